"""A sweep: many runs on the same plates, side by side, that goes on after any kill and says what each was worth."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from cellsignal import files
from cellsignal.errors import InputError, StepFailed
from cellsignal.learn.budget import Budget
from cellsignal.run import inputs, paths, provenance, recipe, session, sweep_results, sweep_space
from cellsignal.run.notebooks import Unfinished
from cellsignal.run.recipe import Recipe
from cellsignal.run.sweep_progress import Display
from cellsignal.run.sweep_space import Space, Variant
from cellsignal.run.sweep_trials import DONE, FAILED, PRUNED, UNFINISHED, Trial

Record = dict[str, Any]
LOCK = ".sweep.lock"
LOOK = 0.5  # seconds between two looks at what runs
PATIENCE = 60.0  # seconds for the trials of a killed sweep to notice and end


class Source(Protocol):
    """Where trials come from."""

    def next(self) -> Trial | None:
        """The next trial to make; None when there is none now."""

    def hopeless(self, trial: Trial) -> bool:
        """Whether a running trial is not worth its end."""

    def told(self, trial: Trial, record: Record) -> None:
        """A trial has ended, now or in an earlier sweep."""

    def expected(self) -> int:
        """How many trials there will be in all."""

    def variants(self) -> list[str]:
        """The names of the variants, the first of which is compared with all others."""


class Listed:
    """Trials that are all known beforehand: every variant with the first seed, then with the next."""

    def __init__(self, trials: Iterable[Trial]) -> None:
        self.trials = list(trials)
        self.waiting = iter(self.trials)

    def next(self) -> Trial | None:
        """The next trial in line."""
        return next(self.waiting, None)

    def hopeless(self, trial: Trial) -> bool:
        """Never: a table wants every row."""
        return False

    def told(self, trial: Trial, record: Record) -> None:
        """It changes nothing."""

    def expected(self) -> int:
        """All of them."""
        return len(self.trials)

    def variants(self) -> list[str]:
        """In the order of the file."""
        return list(dict.fromkeys(trial.variant for trial in self.trials))


class Sweep:
    """The trials of one study on their way: `jobs` side by side, their records, and the tables that grow with them."""

    def __init__(self, folder: Path, source: Source, *, jobs: int, budget: Budget) -> None:
        self.folder, self.source, self.jobs, self.budget = folder, source, jobs, budget
        self.threads = max(1, (os.cpu_count() or 1) // jobs)
        self.records: list[Record] = []
        self.running: list[Trial] = []

    def drive(self, display: Display) -> None:
        """Make every trial whole that the source gives; whatever happens, none runs on afterwards."""
        try:
            while self._fill(display) or self.running:
                display.refresh(self.running, ended=len(self.records), expected=self.source.expected())
                time.sleep(LOOK)
                for trial in list(self.running):
                    self._look(trial, display)
        finally:
            for trial in self.running:
                trial.stop()
            for trial in self.running:
                trial.wait()

    def _fill(self, display: Display) -> bool:
        """Start trials while there is a slot, time, and something to try; tells whether there was one."""
        found = False
        while len(self.running) < self.jobs and not self.budget.spent and (trial := self.source.next()) is not None:
            found = True
            record = trial.record()
            if record is not None and record["status"] in (DONE, PRUNED):
                self._note(trial, record, display, kept=True)
                continue
            left = self.budget.left / 60 if self.budget.deadline is not None else 0.0
            trial.values = {**trial.values, "time_budget_minutes": left}
            trial.start(threads=self.threads)
            display.started(trial)
            self.running.append(trial)
        return found

    def _look(self, trial: Trial, display: Display) -> None:
        pruned = not trial.ended() and self.source.hopeless(trial)
        if pruned:
            trial.stop()
            trial.wait()
        if trial.ended():
            self.running.remove(trial)
            self._note(trial, trial.close(status=PRUNED if pruned else ""), display)

    def _note(self, trial: Trial, record: Record, display: Display, *, kept: bool = False) -> None:
        """Take a trial's record into the tables."""
        self.records.append(record)
        if record["status"] == UNFINISHED:
            self.budget.stop(f"in {trial.name}")
        self.source.told(trial, record)
        display.ended(trial, record, kept=kept)
        if not kept:
            self.write()

    def write(self) -> None:
        """Write results.csv, variants.csv and results.md of what has ended so far."""
        order = self.source.variants()
        trials = sweep_results.trials_table(sorted(self.records, key=lambda record: (record["seed"], order.index(record["variant"]))))
        variants = sweep_results.variants_table(trials, order=order)
        files.write_text(self.folder / "results.csv", trials.to_csv(index=False))
        files.write_text(self.folder / "variants.csv", variants.to_csv(index=False))
        files.write_text(self.folder / "results.md", sweep_results.as_markdown(variants))


def run_sweep(
    params: Path, space: Path, *, out: str | Path = "", seeds: Sequence[int] = (), jobs: int = 2, trials: int = 0, overrides: Sequence[str] = (),
) -> Path:
    """Run a recipe in all the ways that the file `space` lists, each with every seed, and give the sweep's folder.

    All trials work on the same plates: the recipe's `data`, or those that its `preset` and `seed` draw, once. A trial that
    fails leaves its reason and the others go on. The same call again goes on; what is whole is not repeated.
    Raises InputError before anything runs when a parameter is at fault, StepFailed in the end when a trial failed, and
    Unfinished when the time budget (the recipe's) is spent.
    """
    base = recipe.load(params, overrides)
    asked = sweep_space.read(space, params=params)
    folder = paths.default_run(str(out) or f"sweeps/{Path(space).stem}")
    planned = _planned(asked, folder, seeds=list(seeds) or [base.seed], overrides=overrides)
    if trials:
        raise InputError("--trials is for a search", where=space, cure="leave it out; a grid and variants are tried to the end")
    with _alone(folder, planned):
        common = {"data": str(_plates(base, folder)), "preset": "", "parallel": max(1, (os.cpu_count() or 1) // jobs)}
        for trial in planned:
            trial.values = {**trial.values, **common}
        files.write_json(folder / "study.json", _study(asked, base, planned))
        sweep = Sweep(folder, Listed(planned), jobs=jobs, budget=session.budget(base.time_budget_minutes))
        with Display() as display:
            sweep.drive(display)
        sweep.write()
    _verdict(sweep)
    return folder


def _planned(space: Space, folder: Path, *, seeds: Sequence[int], overrides: Sequence[str]) -> list[Trial]:
    """Every variant with every seed, checked before anything runs."""
    lines = space.lines()
    return [_trial(variant, folder, seed=seed, overrides=overrides, where=lines) for seed in seeds for variant in space.variants]


def _trial(variant: Variant, folder: Path, *, seed: int, overrides: Sequence[str], where: Mapping[str, str]) -> Trial:
    values = sweep_space.values(variant, seed=seed, overrides=overrides, where=where)
    if "pages" in Recipe.model_fields:
        values["pages"] = False  # a trial costs its training
    return Trial(variant.name, seed, folder / "trials" / f"{variant.slug}-seed{seed}", values)


def _plates(base: Recipe, folder: Path) -> Path:
    """The plates of all trials: those of the recipe, or drawn once into the sweep's folder."""
    ours = str(folder / "data") if base.preset and not base.data else base.data
    return inputs.prepare(ours, run=folder, preset=base.preset, seed=base.seed)


@contextmanager
def _alone(folder: Path, planned: Iterable[Trial]) -> Iterator[None]:
    """Hold the sweep's folder, once the trials of a killed sweep have ended too."""
    folder.mkdir(parents=True, exist_ok=True)
    with files.locked(folder / LOCK, refusal="another sweep works in this folder"):
        files.sweep(folder, ["trials"])
        for trial in planned:
            if trial.folder.is_dir():
                with files.locked(paths.locks(trial.folder) / paths.CHAIN_LOCK, patience=PATIENCE, waiting=f"waiting for what still works in {trial.folder}",
                                  refusal="another chain works in this folder"):
                    pass
        yield


def _study(space: Space, base: Recipe, planned: Sequence[Trial]) -> dict[str, Any]:
    """What the sweep is about, for whoever finds its folder."""
    return {
        "space": str(space.path),
        "kind": space.kind,
        "measure": space.measure,
        "recipe": base.model_dump(),
        "trials": [{"name": trial.name, "variant": trial.variant, "seed": trial.seed} for trial in planned],
        "code": provenance.code_digest(),
        "commit": provenance.commit(),
    }


def _verdict(sweep: Sweep) -> None:
    """Raise what the ends of the trials deserve."""
    failed = [record for record in sweep.records if record["status"] == FAILED]
    if sweep.budget.spent:
        raise Unfinished(f"time budget spent {sweep.budget.note}; the same command goes on")
    if failed:
        first = f"{failed[0]['variant']}, seed {failed[0]['seed']}: {failed[0]['error']}"
        raise StepFailed(f"{len(failed)} of {len(sweep.records)} trials failed, such as {first}; see {sweep.folder / 'results.csv'}")
