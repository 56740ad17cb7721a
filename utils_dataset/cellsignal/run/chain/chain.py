"""The chain: every notebook in order, side by side where they may, and only what is not whole yet."""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from cellsignal import files, settings
from cellsignal.budget import Budget, TimeSpent
from cellsignal.errors import InputError, system_error
from cellsignal.receipts import Receipt
from cellsignal.run import environment, inputs
from cellsignal.run.chain import notebooks, plans, rebuild, split_prediction, steps
from cellsignal.run.chain.engine import Job, LocalExecutor
from cellsignal.run.chain.notebooks import StepFailed
from cellsignal.run.chain.progress import Display
from cellsignal.run.chain.steps import Step
from cellsignal.run.recipe import Recipe
from cellsignal.run.record import manifest, provenance, session
from cellsignal.tasks import TASKS

Receipts = dict[str, Receipt]  # by step
ROOMS = (".jupyter", "notebooks", "weights", "scores", "eda", manifest.FOLDER)  # the folders in a run folder that steps write
# Steps that cannot stop by themselves, EDA and report, take seconds on simulated plates and should take minutes on the real
# ones. The half hour and more that a deadline leaves before Kaggle's kill is for those that take longer, and for its files.
LAST_START, SHARE = 15 * 60.0, 0.25  # so many seconds, or this share of a shorter budget, must be left for them
PATIENCE = 60.0  # seconds for the kernels of a killed run to notice and end


def run_chain(recipe: Recipe, *, run: str | Path = "", kernels: Path | None = None, way: str = "", engine: LocalExecutor | None = None) -> Path:
    """Run what is not whole of a run and give its folder; `run` wins over the recipe's, `engine` executes its notebooks.

    With a `way` of `rebuild.WAYS` it is made again from there. Raises InputError when parameters, plates, tables or
    what a way starts from are at fault, StepFailed when a step fails, TimeSpent when the time budget is spent: then
    running steps have ended, and the same call goes on.
    """
    kernels = kernels or environment.kernels()
    folder = environment.default_run(str(run) or recipe.run or "runs/run")
    rebuild.check(folder, way)
    plans.check(recipe, kernels=kernels)
    root, preset = inputs.resolve(recipe.data, run=folder, preset=recipe.preset, seed=recipe.seed, task=TASKS[recipe.task])
    inputs.check_cell_types(recipe.wells.cell_types, preset=preset, where=recipe.place("wells.cell_types"))
    ours = not recipe.data and root == environment.scratch(folder)
    values = {**recipe.model_dump(), "run": str(folder), "data": "" if ours else str(root), "preset": preset}
    engine, budget = engine or LocalExecutor(), Budget(environment.deadline(recipe.machine.time_budget_minutes))
    with _alone(folder), engine.opened(folder, deadline=budget.deadline):
        files.remove_temporary(folder, ROOMS)
        session.mark(folder)
        manifest.place(folder, "0-chain").unlink(missing_ok=True)  # its hashes are about to be wrong
        chain = Chain(folder, values, root, engine, Display(folder), budget, budget.left)
        done = {"simulate": chain.simulate()}
        cell_types = inputs.cell_types_to_train(recipe.task, values["data"], recipe.wells, run=folder, preset=preset, seed=recipe.seed)
        files.write_json(folder / "recipe.json", provenance.describe(settings.changed(values, {"wells.cell_types": cell_types})))
        plan = plans.plan(recipe, cell_types, kernels=kernels)
        divided = split_prediction.experiment_steps(plan, values) if engine.divides else []
        steps.forget_others(folder, ["simulate", *["report"] * recipe.machine.html_pages, *(step.name for step in (*plan, *divided))])
        if not recipe.machine.html_pages:
            (folder / "report.html").unlink(missing_ok=True)  # it would tell of another run
        plan, taken = rebuild.begin(folder, plan, way, values=values)
        chain.drive(split_prediction.with_experiment_steps(plan, divided), done | taken, slots=engine.slots(recipe.machine.parallel_notebooks))
        rebuild.ended(folder)
        steps.write_receipt(folder, steps.record(), identity={}, seconds=0.0)
    return folder


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the run folder: no other chain, and no kernel that outlived a killed one for a moment."""
    environment.release(folder)
    waiting = f"waiting for notebooks that still work in {folder}"
    locks = environment.locks(folder)
    with files.locked(locks / environment.CHAIN_LOCK, busy_message="another chain works in this folder"):
        with files.locked(
            locks / environment.KERNELS_LOCK, timeout=PATIENCE, waiting_message=waiting, busy_message="a notebook still works in this folder"
        ):
            pass
        yield


@dataclass(frozen=True)
class Chain:
    """What all steps of one run share."""

    folder: Path
    values: Mapping[str, Any]  # every parameter, resolved
    data: Path  # the plates
    engine: LocalExecutor
    display: Display
    budget: Budget
    time: float  # that there was in the beginning, in seconds
    worked: Event = field(default_factory=Event)  # a notebook has taken some of it
    stop: Event = field(default_factory=Event)

    def simulate(self) -> Receipt:
        """Have the plates in place; those of older code, and damaged ones, are made again, if they are the run's own."""
        data, preset, seed = (self.values[key] for key in ("data", "preset", "seed"))
        root = inputs.data_folder(data, run=self.folder)
        place = root.relative_to(self.folder) if root.is_relative_to(self.folder) else root
        step = steps.simulate(data=str(place), preset=preset)
        same = steps.identity(step, parameters={"preset": preset, "seed": seed} if preset else {}, done={})
        earlier = steps.read(self.folder, step)
        how = {"parallel_map": self.engine.parallel_map} if self.engine.parallel_map else {}
        task = TASKS[self.values["task"]]

        def draw() -> None:
            if preset and not data and earlier is not None:  # they were whole, and are of older code or damaged
                inputs.discard(root)
                steps.forget(self.folder, step)  # else a second call would begin once more
            inputs.prepare(data, run=self.folder, preset=preset, seed=seed, task=task, **how)

        return self._once(step, same, draw)

    def drive(self, plan: list[Step], done: Receipts, *, slots: int) -> None:
        """Run the notebooks of `plan` on `slots` slots, then write the report; `done` gains every receipt."""
        with self.display as display, ThreadPoolExecutor(slots) as pool:
            display.expect(len(plan) + 1 + self.values["machine"]["html_pages"])
            try:
                for _ in self._in_order(plan, done, slots=slots, pool=pool):
                    display.refresh()
                seconds = {name: receipt.details["seconds"] for name, receipt in done.items()}
                files.write_json(self.folder / "seconds.json", seconds)
                if self.values["machine"]["html_pages"]:
                    self._report(steps.report(plan), done, seconds)
            except BaseException:
                self.stop.set()  # leaving the pool waits until its notebooks have gone
                raise

    def _in_order(self, plan: list[Step], done: Receipts, *, slots: int, pool: ThreadPoolExecutor) -> Iterator[None]:
        """Start each step when all it needs is in `done`, a slot is free and time is left; yields twice a second or more.

        Raises TimeSpent when the time budget ends the work; what runs then has ended.
        """
        waiting: list[Step] = list(plan)
        running: dict[Future[Receipt | None], Step] = {}
        while running or (waiting and not self.budget.spent):
            ready = [] if self.budget.spent else [step for step in waiting if {*step.needs, *step.after} <= set(done)]
            for step in ready[: slots - len(running)]:
                waiting.remove(step)
                running[pool.submit(self._notebook, step, done)] = step
            for future in wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done:
                name, receipt = running.pop(future).name, future.result()
                done.update({name: receipt} if receipt else {})
            yield
        if self.budget.spent:
            raise _spent(self.budget.note)

    def _notebook(self, step: Step, done: Receipts) -> Receipt | None:
        """Have a notebook's work whole; None when the time budget does not allow it."""
        parameters = steps.parameters(step, self.values)
        decisive = steps.decisive(step, self.values)
        same = steps.identity(step, parameters=decisive, done=done)
        least = 0.0 if "machine.time_budget_minutes" in decisive else self._last_start()
        try:
            receipt = self._once(step, same, lambda: self._execute(step, parameters, done), least=least)
            return self._paged(step, receipt) if self.values["machine"]["html_pages"] else receipt
        except TimeSpent as spent:
            self.budget.stop(self.budget.note or str(spent))
            return None

    def _paged(self, step: Step, receipt: Receipt) -> Receipt:
        """The receipt of a step that is whole, after its HTML page was written if an earlier run went without."""
        if all((self.folder / name).exists() for name in step.pages):
            return receipt
        notebook, _ = (self.folder / name for name in step.pages)
        notebooks.write_page(notebook)
        return steps.write_receipt(self.folder, step, identity=receipt.identity, seconds=receipt.details["seconds"])

    def _execute(self, step: Step, parameters: Mapping[str, Any], done: Receipts) -> None:
        """Execute a notebook, and see in its receipt whether it did all its work."""
        self.worked.set()
        earlier = steps.read(self.folder, step)  # of other code, see `_once`
        page = self.values["machine"]["html_pages"] and bool(step.pages)
        written = self.engine.execute(Job(step, parameters, done, self.data, page, self.stop))
        if written is None or written == earlier:
            raise StepFailed("it ended without writing its receipt")
        if not written.complete:
            if earlier:
                earlier.write()
            self.display.paused(step, note=written.details["progress"])
            raise TimeSpent(f"in {step.name}: {written.details['progress']}")

    def _report(self, step: Step, done: Receipts, seconds: Mapping[str, float]) -> None:
        from cellsignal.show import report  # Matplotlib is slow to come

        same = steps.identity(step, parameters={**self.values, "seconds": seconds}, done=done)
        try:
            done[step.name] = self._once(step, same, lambda: report.write_report(self.folder), least=self._last_start())
        except TimeSpent as late:
            raise _spent(late) from None

    def _say_other_code(self, step: Step, same: Mapping[str, Any]) -> bool:
        """Whether other code made what lies there of a step, from the same; then a line says so."""
        if other := steps.other_code(self.folder, step, same=same):
            made = next((stage for stage in ("weights", "scores") if stage in step.makes), "")
            keep = f"; {made} that this code makes are made again, unless you stop now and start --from {made}" if made else ""
            self.display.note(step, f"other code ({', '.join(other)}) made it, and it runs again{keep}")
        return bool(other)

    def _last_start(self) -> float:
        """Seconds that must be left for a step that cannot stop by itself; a session that has only begun gives it all it has."""
        return min(LAST_START, SHARE * self.time) if self.worked.is_set() else 0.0

    def _once(self, step: Step, same: Mapping[str, Any], work: Callable[[], object], *, least: float | None = None) -> Receipt:
        """Do the work of a step unless its receipt says that it is whole; the receipt is written last.

        Raises TimeSpent for work that shall begin with so many seconds left, at `least`, when there are fewer.
        """
        receipt = steps.current(self.folder, step, same=same)
        kept = receipt is not None
        if not kept and least is not None and not self.budget.fits(least):
            raise TimeSpent(f"before {step.name}")
        if not kept:
            # The word of other code stands until the step is whole again: nobody takes it for this code's, and who stops
            # the chain now can go on --from weights or --from scores.
            if not self._say_other_code(step, same):
                steps.forget(self.folder, step)
            self.display.started(step)
            began = time.monotonic()
            _named(step, work)
            receipt = steps.write_receipt(self.folder, step, identity=same, seconds=time.monotonic() - began)
        self.engine.whole(step, receipt)
        self.display.ended(step, seconds=receipt.details["seconds"], kept=kept)
        return receipt


def _spent(where: object) -> TimeSpent:
    return TimeSpent(f"time budget spent {where}; the same command goes on")


def _named(step: Step, work: Callable[[], object]) -> None:
    """Do the work; a failure tells which step failed."""
    try:
        work()
    except StepFailed as error:
        raise StepFailed(f"{step.name}: {error}") from None
    except OSError as error:
        fault = system_error(error)
        raise InputError(fault.what, where=": ".join(filter(None, (step.name, str(fault.where)))), cure=fault.cure) from None
