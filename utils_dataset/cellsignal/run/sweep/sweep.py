"""A sweep: many runs on the same plates, side by side, that goes on after any kill and says what each was worth."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellsignal import files, settings
from cellsignal.budget import Budget, TimeSpent
from cellsignal.errors import InputError, StepFailed
from cellsignal.run import environment, inputs, recipe
from cellsignal.run.chain import steps
from cellsignal.run.recipe import Recipe
from cellsignal.run.record import provenance
from cellsignal.run.sweep import search_space
from cellsignal.run.sweep.driver import Listed, Source, Sweep
from cellsignal.run.sweep.progress import Display
from cellsignal.run.sweep.results import KINDS, METRICS, best, write_best
from cellsignal.run.sweep.search import Search
from cellsignal.run.sweep.search_space import Range, Space, Variant
from cellsignal.run.sweep.trials import FAILED, Trial
from cellsignal.tasks import TASKS

if TYPE_CHECKING:
    import pandas as pd

LOCK = ".sweep.lock"
PATIENCE = 60.0  # seconds for the trials of a killed sweep to notice and end
TRIALS = 20  # of a search, where nobody says how many


def run_sweep(
    params: Path, space: Path, *, out: str | Path = "", seeds: Sequence[int] = (), jobs: int = 2, trials: int = 0, overrides: Sequence[str] = (),
) -> Path:
    """Run a recipe in all the ways that the file `space` names, each with every seed, and give the sweep's folder.

    All trials work on the same plates: the recipe's `data`, or those that its `preset` and `seed` draw, once. A trial that
    fails leaves its reason and the others go on. The same call again goes on; what is whole is not repeated. `trials`: of
    a search, in all. Raises InputError before anything runs when a parameter is at fault, StepFailed in the end
    when a trial failed, and TimeSpent when the time budget (the recipe's) is spent.
    """
    base = recipe.load(params, overrides)
    asked = search_space.read(space, params=params)
    if trials and asked.kind != "search":
        raise InputError("--trials is for a search", where=space, cure="leave it out; a grid and variants are tried to the end")
    folder = environment.default_run(str(out) or f"sweeps/{Path(space).stem}")
    bench = SweepRunner(folder, params, asked, base, _measure(asked, base), tuple(seeds) or (base.seed,), tuple(overrides))
    listed, ranges = bench.variants(), bench.ranges()
    with _alone(folder):
        shared = {"data": str(bench.plates()), "preset": "", "machine.parallel_notebooks": max(1, (os.cpu_count() or 1) // jobs)}
        source = bench.search(ranges, shared, trials=trials or TRIALS) if ranges else Listed(bench.on(listed, shared), keys=bench.space.keys)
        files.write_json(folder / "study.json", bench.about())
        _drive(bench, source, jobs=jobs)
    return folder


@dataclass(frozen=True)
class SweepRunner:
    """What all trials of a sweep have in common."""

    folder: Path
    params: Path
    space: Space
    base: Recipe
    measure: str
    seeds: tuple[int, ...]
    overrides: tuple[str, ...]

    def variants(self) -> list[Trial]:
        """Every variant with the first seed, then with the next; all are checked."""
        lines = self.space.lines()
        return [self._trial(variant, seed, lines) for seed in self.seeds for variant in self.space.variants]

    def ranges(self) -> list[Range]:
        """What a search chooses from; nothing where there is none."""
        return search_space.ranges(self.space, base=self.base.model_dump()) if self.space.kind == "search" else []

    def plates(self) -> Path:
        """The plates of all trials: those of the recipe, or drawn once into the sweep's folder."""
        drawn = {"preset": self.base.preset, "seed": self.base.seed, "replace": False}  # trials rest on them
        return inputs.prepare(self.base.data, run=self.folder, task=TASKS[self.base.task], **drawn)

    def on(self, trials: Sequence[Trial], shared: Mapping[str, Any]) -> list[Trial]:
        """The trials, on the plates that all share."""
        for trial in trials:
            trial.values = settings.changed(trial.values, shared)
        return list(trials)

    def search(self, ranges: Sequence[Range], shared: Mapping[str, Any], *, trials: int) -> Search:
        """Trials that are found on the way."""
        def make(name: str, changes: Mapping[str, Any]) -> list[Trial]:
            return self.on([self._suggested(Variant(name, self.params, changes), seed) for seed in self.seeds], shared)

        about = {**steps.without_speed(self.base.model_dump()), "seeds": list(self.seeds)}
        return Search(self.folder, ranges, make, about=about, trials=trials, measure=self.measure)

    def about(self) -> dict[str, Any]:
        """What the sweep is, for whoever finds its folder."""
        return {
            "space": str(self.space.path),
            "kind": self.space.kind,
            "measure": self.measure,
            "seeds": list(self.seeds),
            "recipe": self.base.model_dump(),
            "code": provenance.code_digest(),
            "commit": provenance.commit(),
        }

    def conclude(self, records: Sequence[Mapping[str, Any]], trials: "pd.DataFrame", variants: "pd.DataFrame") -> None:
        """Write best.yaml, and draw sweep.png."""
        from cellsignal.show.style import save
        from cellsignal.show.sweeps import draw_search, draw_variants  # Matplotlib is slow to come

        measure, metric = self.measure, TASKS[self.base.task].metric
        if (chosen := best(variants, measure=measure, seeds=len(self.seeds))) is not None:
            params = {variant.name: variant.params for variant in self.space.variants}.get(chosen["variant"], self.params)
            changes = next(record["changes"] for record in records if record["variant"] == chosen["variant"])
            write_best(self.folder / "best.yaml", chosen, metric=f"{METRICS[metric]}, {measure}", measure=measure, params=params,
                       changes=changes, overrides=self.overrides, seeds=self.seeds)
        keys = self.space.keys
        figure = draw_search(trials, keys=keys, measure=measure) if self.space.ranges else draw_variants(trials, variants, metric=METRICS[metric])
        save(figure, self.folder / "sweep.png")

    def _trial(self, variant: Variant, seed: int, lines: Mapping[str, str] = {}) -> Trial:
        values = search_space.values(variant, seed=seed, overrides=self.overrides, where=lines)
        if values["task"] != self.base.task:
            raise InputError(f"{variant.name} is of the task {values['task']}", where=variant.params, cure=f"leave only variants of {self.base.task}")
        place = self.folder / "trials" / f"{variant.slug}-seed{seed}"
        return Trial(variant.name, seed, place, settings.changed(values, {"machine.html_pages": False}), variant.changes)  # a trial costs its training

    def _suggested(self, variant: Variant, seed: int) -> Trial:
        """A trial of a suggestion, which may not fit together."""
        try:
            return self._trial(variant, seed)
        except InputError as misfit:
            return Trial(variant.name, seed, self.folder / "trials" / f"{variant.slug}-seed{seed}", {}, variant.changes, fault=str(misfit))


def _measure(space: Space, base: Recipe) -> str:
    """By what of the held-out wells the best is chosen."""
    known = KINDS[TASKS[base.task].metric]
    if space.measure and space.measure not in known:
        raise InputError(f"measure is {space.measure!r}", where=space.lines()["measure"], cure=f"write {' or '.join(known)}")
    return space.measure or known[0]


def _drive(bench: SweepRunner, source: Source, *, jobs: int) -> None:
    """Make all trials whole, and say what they came to."""
    budget = Budget(environment.deadline(bench.base.machine.time_budget_minutes))
    sweep = Sweep(bench.folder, source, kinds=KINDS[TASKS[bench.base.task].metric], jobs=jobs, budget=budget)
    with Display() as display:
        sweep.drive(display)
    trials, variants = sweep.write()
    bench.conclude(sweep.records, trials, variants)
    if sweep.budget.spent:
        raise TimeSpent(f"time budget spent {sweep.budget.note}; the same command goes on")
    failed = trials[trials["status"] == FAILED].to_dict("records")  # in the order of the table, whichever ended first
    if len(failed) > (len(trials) - 1 if bench.space.kind == "search" else 0):  # a search meets what does not fit together
        first = f"{failed[0]['variant']}, seed {failed[0]['seed']}: {failed[0]['error']}"
        raise StepFailed(f"{len(failed)} of {len(trials)} trials failed, such as {first}; see {bench.folder / 'results.csv'}")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the sweep's folder, once the trials of a killed sweep have ended too."""
    folder.mkdir(parents=True, exist_ok=True)
    with files.locked(environment.locks(folder) / LOCK, busy_message="another sweep works in this folder"):
        files.remove_temporary(folder, [])
        files.remove_temporary(folder / "trials", [])
        for run in (folder / "trials").glob("*/"):
            lock = environment.locks(run) / environment.CHAIN_LOCK
            if lock.exists():
                with files.locked(lock, timeout=PATIENCE, waiting_message=f"waiting for what still works in {run}", busy_message="another chain works in this folder"):
                    pass
        yield
