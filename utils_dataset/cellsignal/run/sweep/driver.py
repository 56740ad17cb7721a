"""The trials of a sweep on their way: so many side by side, each record kept, tables that grow with every end."""

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cellsignal import files, settings
from cellsignal.budget import Budget
from cellsignal.run.sweep import results
from cellsignal.run.sweep.progress import Display
from cellsignal.run.sweep.trials import DONE, PRUNED, UNFINISHED, Trial

if TYPE_CHECKING:
    import pandas as pd

Record = dict[str, Any]
LOOK = 0.5  # seconds between two looks at what runs


class Source(Protocol):
    """Where trials come from; `keys` are the parameters that all variants set, `compared` says that the first is the measure of all."""

    keys: tuple[str, ...]
    compared: bool

    def next(self) -> Trial | None:
        """The next trial to make; None when there is none now."""

    def hopeless(self, trial: Trial) -> bool:
        """Whether a running trial is not worth its end."""

    def told(self, trial: Trial, record: Record) -> None:
        """A trial has ended, now or in an earlier sweep."""

    def expected(self) -> int:
        """How many trials there will be in all."""

    def variants(self) -> list[str]:
        """The names of the variants; the first is what the others are compared with."""


class Listed:
    """Trials that are all known beforehand."""

    compared = True

    def __init__(self, trials: Iterable[Trial], *, keys: Iterable[str] = ()) -> None:
        self.keys = tuple(keys)
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
    """All trials that a source gives, `jobs` at a time; whatever happens, none runs on afterwards."""

    def __init__(self, folder: Path, source: Source, *, kinds: Sequence[str], jobs: int, budget: Budget) -> None:
        self.kinds = kinds
        self.folder, self.source, self.jobs, self.budget = folder, source, jobs, budget
        self.threads = max(1, (os.cpu_count() or 1) // jobs)
        self.records: list[Record] = []
        self.running: list[Trial] = []

    def drive(self, display: Display) -> None:
        """Make every trial whole; `budget` is spent afterwards when there was no time for that."""
        try:
            self._fill(display)
            while self.running:
                display.refresh(self.running, ended=len(self.records), expected=self.source.expected())
                time.sleep(LOOK)
                for trial in list(self.running):
                    self._look(trial, display)
                self._fill(display)
        finally:
            for trial in self.running:
                trial.stop()
            for trial in self.running:
                trial.wait()

    def write(self) -> "tuple[pd.DataFrame, pd.DataFrame]":
        """Write results.csv, variants.csv and results.md of what has ended so far; gives the two tables."""
        order = self.source.variants()
        keys, compared = self.source.keys, self.source.compared
        records = sorted(self.records, key=lambda record: (record["seed"], order.index(record["variant"])))
        trials = results.trials_table(records, keys=keys, kinds=self.kinds)
        variants = results.variants_table(trials, order=order, keys=keys)
        files.write_text(self.folder / "results.csv", results.as_csv(trials))
        files.write_text(self.folder / "variants.csv", results.as_csv(variants))
        table = results.as_markdown(variants, keys=() if compared else keys, differences=compared)
        files.write_text(self.folder / "results.md", table + results.code_note(trials))
        return trials, variants

    def _fill(self, display: Display) -> None:
        """Begin trials while there are slots and time, and something to try."""
        while len(self.running) < self.jobs and not self.budget.spent and (trial := self.source.next()) is not None:
            record = trial.record()
            if record is not None and (trial.settled or record["status"] in (DONE, PRUNED)):
                self._note(trial, record, display, kept=True)
            elif trial.fault:
                self._note(trial, trial.refuse(), display)
            elif not self.budget.fits(0):
                self.budget.stop(f"before {trial.name}")
            else:
                self._begin(trial, display)

    def _begin(self, trial: Trial, display: Display) -> None:
        left = self.budget.left / 60 if self.budget.deadline is not None else 0.0
        trial.values = settings.changed(trial.values, {"machine.time_budget_minutes": left})
        trial.start(threads=self.threads)
        display.started(trial)
        self.running.append(trial)

    def _look(self, trial: Trial, display: Display) -> None:
        """See whether a trial has ended, or has to."""
        pruned = not trial.ended() and self.source.hopeless(trial)
        if pruned:
            trial.stop()
            trial.wait()
        if trial.ended():
            self.running.remove(trial)
            self._note(trial, trial.close(pruned=pruned), display)

    def _note(self, trial: Trial, record: Record, display: Display, *, kept: bool = False) -> None:
        """Take a trial's record into the tables."""
        self.records.append(record)
        if record["status"] == UNFINISHED:
            self.budget.stop(f"in {trial.name}")
        self.source.told(trial, record)
        display.ended(trial, record, kept=kept)
        if not kept:
            self.write()
