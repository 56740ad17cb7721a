"""The chain: every notebook in order, side by side where they may, and only what is not whole yet."""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from cellsignal import files
from cellsignal.errors import InputError
from cellsignal.run import inputs, notebooks, paths, provenance, steps
from cellsignal.run.notebooks import StepFailed
from cellsignal.run.progress import Display
from cellsignal.run.recipe import Recipe
from cellsignal.run.steps import Step

if TYPE_CHECKING:
    import pandas as pd

Marker = dict[str, Any]
Markers = dict[str, Marker]
ROOMS = (".jupyter", "notebooks", "weights", "scores", "eda", "done")  # the folders in a run folder that steps write
PATIENCE = 60.0  # seconds for the kernels of a killed run to notice and end


def run_chain(recipe: Recipe, *, run: str | Path = "", kernels: Path | None = None) -> Path:
    """Run what is not whole of a run and give its folder; `run` wins over the recipe's.

    Raises InputError when parameters, plates or tables are at fault, StepFailed when a step fails.
    """
    kernels = kernels or paths.kernels()
    folder = paths.default_run(str(run) or recipe.run or "runs/run")
    values = {**recipe.model_dump(), "run": str(folder)}
    values["data"] = recipe.data and str(inputs.data_folder(recipe.data, run=folder))
    inputs.check(values["data"], run=folder, preset=recipe.preset)
    with _alone(folder):
        files.sweep(folder, ROOMS)
        chain = Chain(folder, values, paths.kernel_environment(folder), Display(folder))
        done = {"simulate": chain.simulate()}
        cell_types = _cell_types(values)
        files.write_json(folder / "recipe.json", provenance.describe({**values, "cell_types": cell_types}))
        plan = steps.plan(cell_types, kernels=kernels, compare_batches=recipe.compare_batches, final=recipe.final_epochs > 0)
        steps.forget_others(folder, ["simulate", "report", *(step.name for step in plan)])
        chain.drive(plan, done, slots=recipe.parallel)
    return folder


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the run folder: no other chain, and no kernel that outlived a killed one for a moment."""
    paths.release(folder)
    waiting = f"waiting for notebooks that still work in {folder}"
    with files.locked(folder / paths.CHAIN_LOCK, refusal="another chain works in this folder"):
        with files.locked(
            folder / paths.KERNELS_LOCK, patience=PATIENCE, waiting=waiting, refusal="a notebook still works in this folder"
        ):
            pass
        yield


def _cell_types(values: Mapping[str, Any]) -> list[str]:
    """The cell types to train, those with most wells first."""
    wanted = {key: values[key] for key in ("run", "preset", "seed", "cell_types", "experiments")}
    tables = inputs.open_tables(values["data"], **wanted)
    wells = tables.wells
    _check_test(wells, where=tables.root)
    sizes = wells.loc[wells["dataset"] == "train", "cell_type"].value_counts()
    return sorted(sizes.index, key=lambda name: (-sizes[name], name))


def _check_test(wells: "pd.DataFrame", *, where: Path) -> None:
    """Refuse now what only the prediction would notice, hours later."""
    asked = wells[(wells["dataset"] == "test") & (wells["well_type"] == "treatment")]
    if asked.empty:
        what = "no test wells among these experiments"
        raise InputError(what, where=where, cure="name a test experiment in `experiments` too, or leave it empty")
    trained = wells[(wells["dataset"] == "train") & (wells["well_type"] == "treatment")]
    if untrained := sorted(set(asked["cell_type"]) - set(trained["cell_type"])):
        what = f"{', '.join(untrained)} has test wells and no training wells"
        raise InputError(what, where=where, cure="leave it out with `cell_types` or `experiments`")


@dataclass(frozen=True)
class Chain:
    """What all steps of one run share."""

    folder: Path
    values: Mapping[str, Any]  # every parameter, resolved
    environment: dict[str, str]  # of the notebooks' processes
    display: Display
    stop: Event = field(default_factory=Event)

    def simulate(self) -> Marker:
        """Have the plates in place; those of older code are made again, if they are the run's own."""
        data, preset, seed = (self.values[key] for key in ("data", "preset", "seed"))
        step = steps.simulate(data=data or "data", preset=preset)
        same = steps.identity(step, parameters={"preset": preset, "seed": seed} if preset else {}, done={})
        if preset and not data and steps.outdated(self.folder, step, same=same):
            inputs.discard(inputs.data_folder(data, run=self.folder))
        return self._once(step, same, lambda: inputs.prepare(data, run=self.folder, preset=preset, seed=seed))

    def drive(self, plan: list[Step], done: Markers, *, slots: int) -> None:
        """Run the notebooks of `plan` on `slots` slots, then write the report; `done` gains every marker."""
        with self.display as display, ThreadPoolExecutor(slots) as pool:
            display.expect(len(plan) + 2)
            try:
                for _ in _in_order(plan, done, slots=slots, start=lambda step: pool.submit(self._notebook, step, done)):
                    display.refresh()
                self._report(steps.report(plan), done)
            except BaseException:
                self.stop.set()  # leaving the pool waits until its notebooks have gone
                raise

    def _notebook(self, step: Step, done: Markers) -> Marker:
        parameters = steps.parameters(step, self.values)
        return self._once(
            step,
            steps.identity(step, parameters=parameters, done=done),
            lambda: notebooks.execute(
                step.notebook,
                target=self.folder / step.pages[0],
                parameters=parameters,
                environment=self.environment,
                stop=self.stop,
            ),
        )

    def _report(self, step: Step, done: Markers) -> None:
        from cellsignal.show import report  # Matplotlib is slow to come

        seconds = {name: marker["seconds"] for name, marker in done.items()}
        files.write_json(self.folder / "seconds.json", seconds)
        same = steps.identity(step, parameters={**self.values, "seconds": seconds}, done=done)
        done[step.name] = self._once(step, same, lambda: report.write_report(self.folder))

    def _once(self, step: Step, same: Mapping[str, Any], work: Callable[[], object]) -> Marker:
        """Do the work of a step unless its marker says that it is whole; the marker is written last."""
        marker = steps.read_marker(self.folder, step, same=same)
        kept = marker is not None
        if not kept:
            steps.forget(self.folder, step)
            self.display.started(step)
            began = time.monotonic()
            _named(step, work)
            marker = steps.write_marker(self.folder, step, identity=same, seconds=time.monotonic() - began)
        self.display.ended(step, seconds=marker["seconds"], kept=kept)
        return marker


def _named(step: Step, work: Callable[[], object]) -> None:
    """Do the work; a failure tells which step failed."""
    try:
        work()
    except StepFailed as error:
        raise StepFailed(f"{step.name}: {error}") from None


def _in_order(
    plan: list[Step], done: Markers, *, slots: int, start: Callable[[Step], "Future[Marker]"]
) -> Iterator[None]:
    """Start each step when all it needs is in `done` and a slot is free; yields twice a second or more."""
    waiting, running = list(plan), {}
    while waiting or running:
        ready = [step for step in waiting if set(step.needs) <= set(done)]
        for step in ready[: slots - len(running)]:
            waiting.remove(step)
            running[start(step)] = step
        for future in wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done:
            done[running.pop(future).name] = future.result()
        yield
