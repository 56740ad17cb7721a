"""A sweep: many runs on the same plates, in parallel, compared in a table; the same call goes on after it was stopped."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.progress import MofNCompleteColumn

from cellsignal import files, provenance, settings
from cellsignal.budget import Budget, TimeSpent
from cellsignal.errors import InputError, StepFailed
from cellsignal.run import environment, inputs, recipe
from cellsignal.run.chain import steps
from cellsignal.run.chain.progress import ProgressLines, newest_checkpoint
from cellsignal.run.recipe import Recipe
from cellsignal.run.sweep import results, search_space
from cellsignal.run.sweep.results import METRICS, RUNG_KINDS
from cellsignal.run.sweep.search import Search
from cellsignal.run.sweep.search_space import Range, Space, Variant
from cellsignal.run.sweep.trials import DONE, FAILED, PRUNED, UNFINISHED, Trial
from cellsignal.tasks import TASKS

if TYPE_CHECKING:
    import pandas as pd

Record = dict[str, Any]  # of a trial that has ended
LOCK = ".sweep.lock"
LOCK_SECONDS = 60.0  # for the trials of a killed sweep to notice and end
POLL_SECONDS = 0.5  # between two checks of running trials
DEFAULT_TRIALS = 20  # of a search


def run_sweep(
    params: Path, space: Path, *, out: str | Path = "", seeds: Sequence[int] = (), jobs: int = 2, trials: int = 0, overrides: Sequence[str] = (),
) -> Path:
    """Run a recipe in all the ways that the file `space` names, each with every seed, and return the sweep's folder.

    All trials use the same plates: the recipe's `data`, or those that its `preset` and `seed` draw, once. When a trial
    fails, its reason is recorded and the others go on. The same call again goes on where it stopped. `trials`: the number of
    trials of a search. Raises InputError before anything runs when a parameter is invalid, StepFailed in the end
    when a trial failed, but InputError if bad input made all of those fail, such as a damaged image, and TimeSpent when the time budget (the recipe's) is spent.
    """
    base = recipe.load(params, overrides)
    tried = search_space.read(space, params=params)
    if trials and tried.kind != "search":
        raise InputError("--trials is for a search", where=space, cure="leave it out; a grid and variants are tried to the end")
    folder = environment.run_folder(str(out) or f"sweeps/{Path(space).stem}")
    maker = TrialMaker(folder, params, tried, base, _measure(tried, base), tuple(seeds) or (base.seed,), tuple(overrides))
    listed, ranges = maker.listed_trials(), maker.ranges()
    with _locked(folder):
        root = maker.prepare_plates()
        plates, shared = steps.plates_digest(root), {"data": str(root), "preset": "", "machine.parallel_notebooks": max(1, (os.cpu_count() or 1) // jobs)}
        for trial in listed:
            trial.values, trial.plates = settings.update(trial.values, shared), plates
        source = maker.search(ranges, shared, plates=plates, trials=trials or DEFAULT_TRIALS) if ranges else ListedTrials(listed, keys=maker.space.keys)
        files.write_json(folder / "study.json", maker.description())
        _run_trials(maker, source, jobs=jobs)
    return folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the sweep's folder, after the trials of a killed sweep have ended too."""
    folder.mkdir(parents=True, exist_ok=True)
    with files.locked(environment.locks_folder(folder) / LOCK, busy_message="another sweep works in this folder"):
        files.remove_temporary(folder, [])
        files.remove_temporary(folder / "trials", [])
        for run in (folder / "trials").glob("*/"):
            lock = environment.locks_folder(run) / environment.CHAIN_LOCK
            if lock.exists():
                waiting = f"waiting for what still works in {run}"
                with files.locked(lock, timeout=LOCK_SECONDS, waiting_message=waiting, busy_message="another chain works in this folder"):
                    pass
        yield


def _measure(space: Space, base: Recipe) -> str:
    """The kind of held-out score by which the best variant is chosen."""
    kinds = RUNG_KINDS[TASKS[base.task].metric]
    if space.measure and space.measure not in kinds:
        raise InputError(f"measure is {space.measure!r}", where=space.lines()["measure"], cure=f"write {' or '.join(kinds)}")
    return space.measure or kinds[0]


def _run_trials(maker: "TrialMaker", source: "TrialSource", *, jobs: int) -> None:
    """Run all trials, and raise what they ended with."""
    budget = Budget(environment.deadline(maker.base.machine.time_budget_minutes))
    runner = TrialRunner(maker.folder, source, kinds=RUNG_KINDS[TASKS[maker.base.task].metric], jobs=jobs, budget=budget)
    with runner.progress:
        runner.run()
    trials, variants = runner.write_tables()
    maker.write_best(runner.records, trials, variants)
    if budget.spent:
        raise TimeSpent(f"time budget spent {budget.note}; give the same command again to continue")
    failed = trials[trials["status"] == FAILED].to_dict("records")  # in the order of the table, whichever ended first
    if len(failed) > (len(trials) - 1 if maker.space.kind == "search" else 0):  # a search may suggest what does not fit together
        first = f"{failed[0]['variant']}, seed {failed[0]['seed']}: {failed[0]['error']}"
        error = InputError if runner.bad_inputs == len(failed) else StepFailed
        raise error(f"{len(failed)} of {len(trials)} trials failed, such as {first}; see {maker.folder / 'results.csv'}")


@dataclass(frozen=True)
class TrialMaker:
    """Makes the trials of a sweep, and holds what they have in common."""

    folder: Path
    params: Path
    space: Space
    base: Recipe
    measure: str
    seeds: tuple[int, ...]
    overrides: tuple[str, ...]

    def listed_trials(self) -> list[Trial]:
        """Every variant with the first seed, then with the next, after all checks."""
        lines = self.space.lines()
        return [self._make(variant, seed, lines) for seed in self.seeds for variant in self.space.variants]

    def ranges(self) -> list[Range]:
        """The ranges of a search; none for variants and a grid."""
        return search_space.ranges(self.space, base=self.base.model_dump()) if self.space.kind == "search" else []

    def prepare_plates(self) -> Path:
        """The plates of all trials: those of the recipe, or drawn once into the sweep's folder."""
        preset, seed = self.base.preset, self.base.seed
        return inputs.prepare(self.base.data, run=self.folder, task=TASKS[self.base.task], preset=preset, seed=seed, replace=False)

    def search(self, ranges: Sequence[Range], shared: Mapping[str, Any], *, plates: str, trials: int) -> Search:
        """A search whose trials also have the parameters `shared`, and plates of this digest."""
        def make(name: str, changes: Mapping[str, Any]) -> list[Trial]:
            suggested = [self._make_suggested(Variant(name, self.params, changes), seed) for seed in self.seeds]
            for trial in suggested:
                trial.values, trial.plates = settings.update(trial.values, shared), plates
            return suggested

        identity = {**steps.without_paths_and_speed(self.base.model_dump()), "seeds": list(self.seeds), "plates": plates}
        return Search(self.folder, ranges, make, identity=identity, trials=trials, measure=self.measure)

    def description(self) -> dict[str, Any]:
        """The content of study.json."""
        return {
            "space": str(self.space.path),
            "kind": self.space.kind,
            "measure": self.measure,
            "seeds": list(self.seeds),
            "recipe": self.base.model_dump(),
            "code": provenance.code_digest(),
            "commit": provenance.commit(),
        }

    def write_best(self, records: Sequence[Record], trials: "pd.DataFrame", variants: "pd.DataFrame") -> None:
        """Write best.yaml, and draw sweep.png."""
        from cellsignal.show.style import save
        from cellsignal.show.results.sweeps import draw_search, draw_variants  # Matplotlib is slow to import

        measure, metric = self.measure, TASKS[self.base.task].metric
        if (best := results.best_variant(variants, measure=measure, seeds=len(self.seeds))) is not None:
            params = {variant.name: variant.params for variant in self.space.variants}.get(best["variant"], self.params)
            changes = next(record["changes"] for record in records if record["variant"] == best["variant"])
            results.write_best(self.folder / "best.yaml", best, metric=f"{METRICS[metric]}, {measure}", measure=measure, params=params,
                               changes=changes, overrides=self.overrides, seeds=self.seeds)
        keys = self.space.keys
        figure = draw_search(trials, keys=keys, measure=measure) if self.space.ranges else draw_variants(trials, variants, metric=METRICS[metric])
        save(figure, self.folder / "sweep.png")

    def _make(self, variant: Variant, seed: int, lines: Mapping[str, str] = {}) -> Trial:
        values = search_space.values(variant, seed=seed, overrides=self.overrides, lines=lines)
        if values["task"] != self.base.task:
            raise InputError(f"{variant.name} is of the task {values['task']}", where=variant.params, cure=f"leave only variants of {self.base.task}")
        folder = self.folder / "trials" / f"{variant.slug}-seed{seed}"
        return Trial(variant.name, seed, folder, settings.update(values, {"machine.html_pages": False}), variant.changes)  # pages only cost time

    def _make_suggested(self, variant: Variant, seed: int) -> Trial:
        """A trial of suggested values, which may be invalid together."""
        try:
            return self._make(variant, seed)
        except InputError as error:
            return Trial(variant.name, seed, self.folder / "trials" / f"{variant.slug}-seed{seed}", {}, variant.changes, error=str(error))


class TrialSource(Protocol):
    """The origin of trials. `keys`: the parameters that all variants set; `compares_with_first`: the others are compared with the first variant."""

    keys: tuple[str, ...]
    compares_with_first: bool

    def next(self) -> Trial | None:
        """The next trial to run; None when there is none now."""

    def should_prune(self, trial: Trial) -> bool:
        """Whether a running trial should be stopped because others are better."""

    def ended(self, trial: Trial, record: Record) -> None:
        """A trial has ended, now or in an earlier sweep."""

    def num_expected(self) -> int:
        """How many trials there will be in all."""

    def variants(self) -> list[str]:
        """The names of the variants."""


class ListedTrials:
    """Trials that are all known beforehand."""

    compares_with_first = True

    def __init__(self, trials: Sequence[Trial], *, keys: Sequence[str] = ()) -> None:
        self.keys = tuple(keys)
        self.trials = list(trials)
        self.waiting = iter(self.trials)

    def next(self) -> Trial | None:
        """The next trial of the list."""
        return next(self.waiting, None)

    def should_prune(self, trial: Trial) -> bool:
        """Never: the table has a row for every trial."""
        return False

    def ended(self, trial: Trial, record: Record) -> None:
        """The result of a trial changes nothing in the list."""

    def num_expected(self) -> int:
        """The length of the list."""
        return len(self.trials)

    def variants(self) -> list[str]:
        """The names of the variants, in the order of the file."""
        return list(dict.fromkeys(trial.variant for trial in self.trials))


class TrialRunner:
    """Runs all trials of a source, `jobs` at a time; none of them runs on afterwards, whatever happens."""

    def __init__(self, folder: Path, source: TrialSource, *, kinds: Sequence[str], jobs: int, budget: Budget) -> None:
        self.folder, self.source, self.kinds, self.jobs, self.budget = folder, source, kinds, jobs, budget
        self.threads = max(1, (os.cpu_count() or 1) // jobs)
        self.records: list[Record] = []
        self.running: list[Trial] = []
        self.bad_inputs = 0
        self.progress = ProgressLines("all trials", MofNCompleteColumn())
        self.code = provenance.code_digest()[: results.CODE_CHARACTERS]

    def run(self) -> None:
        """Run every trial; `budget` is spent afterwards when there was not enough time."""
        try:
            self._start_trials()
            while self.running:
                self._refresh_progress()
                time.sleep(POLL_SECONDS)
                for trial in list(self.running):
                    self._check(trial)
                self._start_trials()
        finally:
            for trial in self.running:
                trial.stop()
            for trial in self.running:
                trial.wait()

    def write_tables(self) -> "tuple[pd.DataFrame, pd.DataFrame]":
        """Write results.csv, variants.csv and results.md of the trials that have ended; returns the two tables."""
        order = self.source.variants()
        keys, compares = self.source.keys, self.source.compares_with_first
        records = sorted(self.records, key=lambda record: (record["seed"], order.index(record["variant"])))
        trials = results.trials_table(records, keys=keys, kinds=self.kinds)
        variants = results.variants_table(trials, order=order, keys=keys)
        files.write_text(self.folder / "results.csv", files.spreadsheet_text(trials))
        files.write_text(self.folder / "variants.csv", files.spreadsheet_text(variants))
        table = results.as_markdown(variants, keys=() if compares else keys, differences=compares)
        files.write_text(self.folder / "results.md", table + results.notes(trials))
        return trials, variants

    def _start_trials(self) -> None:
        """Start trials while there are slots, time, and something to try."""
        while len(self.running) < self.jobs and not self.budget.spent and (trial := self.source.next()) is not None:
            record = trial.record()
            if record is not None and (trial.is_settled or record["status"] in (DONE, PRUNED)):
                self._add_record(trial, record, reused=True)
            elif trial.error:
                self._add_record(trial, trial.write_error())
            elif not self.budget.fits(0):
                self.budget.stop(f"before {trial.name}")
            else:
                minutes = self.budget.remaining / 60 if self.budget.deadline is not None else 0.0
                trial.values = settings.update(trial.values, {"machine.time_budget_minutes": minutes})
                trial.start(threads=self.threads)
                self.progress.add_bar(trial.name)
                self.running.append(trial)

    def _check(self, trial: Trial) -> None:
        """Stop a trial that is to be pruned, and record one that has ended."""
        pruned = not trial.has_ended() and self.source.should_prune(trial)
        if pruned:
            trial.stop()
            trial.wait()
        if trial.has_ended():
            self.running.remove(trial)
            self._add_record(trial, trial.close(pruned=pruned))

    def _add_record(self, trial: Trial, record: Record, *, reused: bool = False) -> None:
        """Add the record of a trial to the tables; `reused`: of an earlier sweep."""
        self.records.append(record)
        self.bad_inputs += record["status"] == FAILED and trial.met_bad_input
        if record["status"] == UNFINISHED:
            self.budget.stop(f"in {trial.name}")
        self.source.ended(trial, record)
        self.progress.remove_bar(trial.name)
        other_code = reused and record.get("code", self.code) != self.code
        state = "kept, although other code ran it" if other_code else "kept" if reused else record["status"]
        self.progress.console.print(f"{trial.name} {state}{_summary(record)}")
        if not reused:
            self.write_tables()

    def _refresh_progress(self) -> None:
        bars = self.progress.bars
        bars.update(self.progress.overall, completed=len(self.records), total=self.source.num_expected())
        for trial in [] if bars.disable else self.running:
            state = newest_checkpoint((trial.folder / "weights").glob("*/*.checkpoint.json"))
            if {"phase", "epoch", "epochs"} <= set(state):
                bars.update(self.progress.tasks[trial.name], completed=state["epoch"], total=state["epochs"], note=state["phase"])


def _summary(record: Record) -> str:
    """The error of a trial, else its scores on the held-out wells; for its line of progress."""
    if record.get("error"):
        return f": {record['error']}"
    scores = [f"{name.removeprefix('held_out_')} {value:.3f}" for name, value in record.items() if name.startswith("held_out_")]
    return f": held out {', '.join(scores)}, {record['seconds']:.0f} s" if scores else ""
