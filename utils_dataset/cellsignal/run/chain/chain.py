"""The chain: every notebook in order, in parallel where possible, and only those that are not complete yet."""

import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from cellsignal import files, provenance, settings
from cellsignal.budget import Budget, TimeSpent
from cellsignal.errors import InputError, system_error
from cellsignal.receipts import Receipt
from cellsignal.run import environment, inputs
from cellsignal.run.chain import notebooks, plans, rebuild, steps
from cellsignal.run.chain.notebook_server import NotebookServer
from cellsignal.run.chain.notebooks import StepFailed
from cellsignal.run.chain.progress import ChainProgress
from cellsignal.run.chain.steps import Step
from cellsignal.run.recipe import Recipe
from cellsignal.run.record import session, step_receipts
from cellsignal.tasks import TASKS

Receipts = dict[str, Receipt]  # by step
STEP_FOLDERS = (".jupyter", "notebooks", "weights", "scores", "eda", step_receipts.RECEIPTS_FOLDER)  # the folders that steps write
# EDA and report cannot stop by themselves. They take seconds on simulated plates and should take minutes on real ones. A deadline
# leaves half an hour and more before Kaggle ends the session, for those that take longer and for saving the files.
LAST_START, LAST_START_SHARE = 15 * 60.0, 0.25  # so many seconds, or this share of a shorter budget, must remain for them
MIN_OPEN_FILES = 128  # of a process: with 64 even the EDA of tiny plates fails
LOCK_SECONDS = 60.0  # for the kernels of a killed run to notice and end


@dataclass(frozen=True)
class Job:
    """A notebook to execute, and with what."""

    step: Step
    parameters: Mapping[str, Any]
    receipts: Mapping[str, Receipt]  # of the steps before it
    data: Path  # the plates
    write_page: bool  # as HTML too
    stop: Event  # set when it must end


class LocalExecutor:
    """Executes the notebooks of a run on this machine; run.cluster has an executor that uses other machines."""

    splits_prediction = False  # into one step per experiment
    parallel_map: Callable[..., Iterator[Any]] | None = None  # by which plates are drawn on other machines too

    @contextmanager
    def open(self, run: Path, *, deadline: float | None) -> Iterator[None]:
        """Work for a run folder until `deadline`, in seconds since 1970."""
        self.run, self.deadline = run, deadline
        with NotebookServer(environment.kernel_environment(run, deadline=deadline)) as self.server:
            yield

    def num_slots(self, parallel_notebooks: int) -> int:
        """How many notebooks may run at once, with so many on each machine."""
        return parallel_notebooks

    def execute(self, job: Job) -> Receipt | None:
        """Execute a notebook; returns its receipt, None without one, and raises as `notebooks.execute` does."""
        step = job.step
        target = self.run / f"notebooks/{step.name}.ipynb"
        notebooks.execute(step.notebook, target=target, parameters=job.parameters, server=self.server, stop=job.stop)
        if job.write_page:
            notebooks.write_page(target)
        return step_receipts.read(self.run, step.name)

    def step_completed(self, step: Step, receipt: Receipt) -> None:
        """Called when a step is complete, now or since an earlier run, and its receipt is written."""


def run_chain(
    recipe: Recipe, *, run: str | Path = "", kernels: Path | None = None, start_from: str = "", executor: LocalExecutor | None = None
) -> Path:
    """Run the steps of a run that are not complete, and return its folder; `run` takes precedence over the recipe's.

    With `start_from` one of `rebuild.STARTING_POINTS`, a finished run is made again from there. Raises InputError when parameters,
    plates, tables or the files of the starting point have a fault, StepFailed when a step fails, TimeSpent when the time budget is
    spent: then running steps have ended, and the same call goes on.
    """
    kernels = kernels or environment.kernels_folder()
    folder = environment.run_folder(str(run) or recipe.run or "runs/run")
    _check_open_files()
    _check_folders(folder)
    rebuild.check_starting_point(folder, start_from)
    plans.check(recipe, kernels=kernels)
    root, preset = inputs.resolve(recipe.data, run=folder, preset=recipe.preset, seed=recipe.seed, task=TASKS[recipe.task])
    inputs.check_cell_types(recipe.wells.cell_types, run=folder, preset=preset, where=recipe.location("wells.cell_types"))
    in_run_folder = not recipe.data and root == environment.scratch_folder(folder)
    values = {**recipe.model_dump(), "run": str(folder), "data": "" if in_run_folder else str(root), "preset": preset}
    if recipe.wells.packed_size and executor is not None and executor.splits_prediction:
        what = "the machines of a cluster do not share a run's packed images"
        raise InputError(what, where=recipe.location("wells.packed_size"), cure="pack them first with `cellsignal pack`, name the store as `data`, and write 0 here")
    executor, budget = executor or LocalExecutor(), Budget(environment.deadline(recipe.machine.time_budget_minutes))
    with _locked(folder), executor.open(folder, deadline=budget.deadline):
        files.remove_temporary(folder, STEP_FOLDERS)
        session.write_run_file(folder)
        step_receipts.receipt_path(folder, "0-chain").unlink(missing_ok=True)  # the files that it lists are about to change
        chain = Chain(folder, values, root, executor, ChainProgress(folder), budget, budget.remaining)
        receipts = {"plates": chain.prepare_plates()}
        cell_types = inputs.cell_types_to_train(recipe.task, values["data"], recipe.wells, run=folder, preset=preset, seed=recipe.seed)
        plan = plans.plan(recipe, cell_types, kernels=kernels)
        experiment_steps = plans.experiment_steps(plan, values) if executor.splits_prediction else []
        names = ["plates", *["report"] * recipe.machine.html_pages, *(step.name for step in (*plan, *experiment_steps))]
        steps.remove_other_receipts(folder, names)
        if not recipe.machine.html_pages:
            for name in steps.REPORT_PAGES:
                (folder / name).unlink(missing_ok=True)  # of another run
        rerun, kept_receipts = rebuild.begin_rebuild(folder, plan, start_from, values=values)
        notes = rebuild.notes_on_kept_steps(plan, kept_receipts, values=values)
        print(*notes, sep="\n", end="\n" * bool(notes), flush=True)
        description = provenance.describe(settings.update(values, {"wells.cell_types": cell_types}))
        files.write_json(folder / "recipe.json", {**description, "notes": notes})
        plan = plans.with_experiment_steps(rerun, experiment_steps)
        chain.run_steps(plan, receipts | kept_receipts, num_slots=executor.num_slots(recipe.machine.parallel_notebooks))
        rebuild.end_rebuild(folder)
        steps.write_receipt(folder, steps.record_step(), identity={}, seconds=0.0)
    return folder


def _check_open_files() -> None:
    """InputError where a process may open so few files that a notebook's kernel would die without a reason."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit < MIN_OPEN_FILES:
        raise InputError(f"a process may have {limit} open files, and a notebook needs {MIN_OPEN_FILES}", where="ulimit -n", cure="raise the limit, such as with ulimit -n 4096")


def _check_folders(folder: Path) -> None:
    """InputError for a file, or a link to nowhere, in the place of a folder that a step writes to, perhaps after hours."""
    for path in (folder, *(folder / name for name in STEP_FOLDERS)):
        if os.path.lexists(path) and not path.is_dir():
            raise InputError("is a link to nowhere" if path.is_symlink() and not path.exists() else "is no folder", where=path,
                             cure="remove it, or choose another run folder")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the run folder: no other chain works in it, and no kernel of a killed one."""
    environment.unlock_run_folder(folder)
    waiting = f"waiting for notebooks that still work in {folder}"
    locks = environment.locks_folder(folder)
    with files.locked(locks / environment.CHAIN_LOCK, busy_message="another chain works in this folder"):
        with files.locked(
            locks / environment.KERNELS_LOCK, timeout=LOCK_SECONDS, waiting_message=waiting, busy_message="a notebook still works in this folder"
        ):
            pass
        yield


@dataclass(frozen=True)
class Chain:
    """A run, and what all its steps share."""

    folder: Path
    values: Mapping[str, Any]  # every parameter, resolved
    data: Path  # the plates
    executor: LocalExecutor
    progress: ChainProgress
    budget: Budget
    total_seconds: float  # of the budget at the beginning
    notebook_started: Event = field(default_factory=Event)
    stop: Event = field(default_factory=Event)

    def prepare_plates(self) -> Receipt:
        """Provide the plates; those of older code, and damaged ones, are drawn again if they lie in the run's own folder."""
        data, preset, seed = (self.values[key] for key in ("data", "preset", "seed"))
        root = inputs.data_folder(data, run=self.folder)
        relative = root.relative_to(self.folder) if root.is_relative_to(self.folder) else root
        step = steps.plates_step(data=str(relative), preset=preset)
        identity = steps.step_identity(step, parameters={"preset": preset, "seed": seed} if preset else {}, receipts={})
        old_receipt = steps.read_receipt(self.folder, step)
        options = {"parallel_map": self.executor.parallel_map} if self.executor.parallel_map else {}
        task = TASKS[self.values["task"]]

        def draw() -> None:
            if preset and not data and old_receipt is not None:  # the plates were complete, and are of older code or damaged
                inputs.discard(root)
                steps.remove_receipt(self.folder, step)  # otherwise a second call would discard them once more
            inputs.prepare(data, run=self.folder, preset=preset, seed=seed, task=task, **options)

        return self._run_unless_current(step, identity, draw)

    def run_steps(self, plan: list[Step], receipts: Receipts, *, num_slots: int) -> None:
        """Run the notebooks of `plan`, `num_slots` at a time, then write the report; every receipt is added to `receipts`."""
        with self.progress as progress, ThreadPoolExecutor(num_slots) as pool:
            progress.set_total(len(plan) + 1 + self.values["machine"]["html_pages"])
            try:
                for _ in self._in_order(plan, receipts, num_slots=num_slots, pool=pool):
                    progress.refresh()
                seconds = {name: receipt.details["seconds"] for name, receipt in receipts.items()}
                files.write_json(self.folder / "seconds.json", seconds)
                if self.values["machine"]["html_pages"]:
                    self._write_report(steps.report_step(plan), receipts, seconds)
            except BaseException:
                self.stop.set()  # leaving the pool waits until its notebooks have ended
                raise

    def _in_order(self, plan: list[Step], receipts: Receipts, *, num_slots: int, pool: ThreadPoolExecutor) -> Iterator[None]:
        """Start each step when all it needs is in `receipts`, a slot is free and time remains; yields at least twice a second.

        Raises TimeSpent when the time budget ends the work; the running steps have ended then.
        """
        waiting: list[Step] = list(plan)
        running: dict[Future[Receipt | None], Step] = {}
        while running or (waiting and not self.budget.spent):
            ready = [] if self.budget.spent else [step for step in waiting if {*step.needs, *step.after} <= set(receipts)]
            for step in ready[: num_slots - len(running)]:
                waiting.remove(step)
                running[pool.submit(self._run_notebook, step, receipts)] = step
            for future in wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done:
                name, receipt = running.pop(future).name, future.result()
                receipts.update({name: receipt} if receipt else {})
            yield
        if self.budget.spent:
            raise _time_spent(self.budget.note)

    def _run_notebook(self, step: Step, receipts: Receipts) -> Receipt | None:
        """Run a notebook unless its receipt is current; None when the time budget does not allow it."""
        parameters = steps.notebook_parameters(step, self.values)
        read = steps.parameters_read(step, self.values)
        identity = steps.step_identity(step, parameters=read, receipts=receipts)
        min_seconds = 0.0 if "machine.time_budget_minutes" in read else self._seconds_for_last_start()
        try:
            receipt = self._run_unless_current(step, identity, lambda: self._execute(step, parameters, receipts), min_seconds=min_seconds)
            return self._with_page(step, receipt) if self.values["machine"]["html_pages"] else receipt
        except TimeSpent as spent:
            self.budget.stop(self.budget.note or str(spent))
            return None

    def _with_page(self, step: Step, receipt: Receipt) -> Receipt:
        """The receipt of a complete step; its HTML page is written now if an earlier run had none."""
        if all((self.folder / name).exists() for name in step.pages):
            return receipt
        notebook, _ = (self.folder / name for name in step.pages)
        notebooks.write_page(notebook)
        return steps.write_receipt(self.folder, step, identity=receipt.identity, seconds=receipt.details["seconds"])

    def _execute(self, step: Step, parameters: Mapping[str, Any], receipts: Receipts) -> None:
        """Execute a notebook, and check in its receipt that its work is complete."""
        self.notebook_started.set()
        old_receipt = steps.read_receipt(self.folder, step)  # of other code, see `_run_unless_current`
        write_page = self.values["machine"]["html_pages"] and bool(step.pages)
        receipt = self.executor.execute(Job(step, parameters, receipts, self.data, write_page, self.stop))
        if receipt is None or receipt == old_receipt:
            raise StepFailed("it ended without writing its receipt")
        if not receipt.complete:
            if old_receipt:
                old_receipt.write()
            self.progress.paused(step, note=receipt.details["progress"])
            raise TimeSpent(f"in {step.name}: {receipt.details['progress']}")

    def _write_report(self, step: Step, receipts: Receipts, seconds: Mapping[str, float]) -> None:
        from cellsignal.show import report  # Matplotlib is slow to import

        identity = steps.step_identity(step, parameters={**self.values, "seconds": seconds}, receipts=receipts)
        try:
            receipts[step.name] = self._run_unless_current(
                step, identity, lambda: report.write_report(self.folder, data=self.data), min_seconds=self._seconds_for_last_start())
        except TimeSpent as spent:
            raise _time_spent(spent) from None

    def _seconds_for_last_start(self) -> float:
        """Seconds that must remain for a step that cannot stop by itself; 0 before the first notebook, so that a short session runs one."""
        return min(LAST_START, LAST_START_SHARE * self.total_seconds) if self.notebook_started.is_set() else 0.0

    def _run_unless_current(
        self, step: Step, identity: Mapping[str, Any], work: Callable[[], object], *, min_seconds: float | None = None
    ) -> Receipt:
        """Do the work of a step unless its receipt is current; a new receipt is written last.

        Raises TimeSpent when the work must not begin with less than `min_seconds` left, and less is left.
        """
        receipt = steps.current_receipt(self.folder, step, identity=identity)
        kept = receipt is not None
        if not kept and min_seconds is not None and not self.budget.fits(min_seconds):
            raise TimeSpent(f"before {step.name}")
        if not kept:
            if parts := steps.changed_code(self.folder, step, identity=identity):
                # The receipt of other code stays until the step is complete again. Nobody takes it for this code's, and after
                # stopping the chain now --from weights and --from scores still work.
                made = next((stage for stage in ("weights", "scores") if stage in step.stages), "")
                advice = f"; the {made} are then made again too; to keep them, stop now and use --from {made}" if made else ""
                self.progress.print_note(step, f"made by other code ({', '.join(parts)}), so it runs again{advice}")
            else:
                if altered := steps.altered_outputs(self.folder, step, identity=identity):
                    self.progress.print_note(step, f"{altered[0]} was changed or removed since, so it runs again")
                steps.remove_receipt(self.folder, step)
            self.progress.started(step)
            start = time.monotonic()
            _run_with_step_name(step, work)
            receipt = steps.write_receipt(self.folder, step, identity=identity, seconds=time.monotonic() - start)
        self.executor.step_completed(step, receipt)
        self.progress.ended(step, seconds=receipt.details["seconds"], reused=kept)
        return receipt


def _time_spent(where: object) -> TimeSpent:
    return TimeSpent(f"time budget spent {where}; give the same command again to continue")


def _run_with_step_name(step: Step, work: Callable[[], object]) -> None:
    """Do the work; the message of a failure begins with the name of the step."""
    try:
        work()
    except StepFailed as error:
        raise StepFailed(f"{step.name}: {error}") from None
    except OSError as error:
        fault = system_error(error)
        raise InputError(fault.what, where=": ".join(filter(None, (step.name, str(fault.where)))), cure=fault.cure) from None
