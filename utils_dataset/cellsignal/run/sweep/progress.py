"""What a person sees while a sweep runs: a live line per trial in a terminal, else a line per event."""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from cellsignal import shapes
from cellsignal.receipts import Receipt
from cellsignal.run.record import provenance
from cellsignal.run.sweep.results import SHORT
from cellsignal.run.sweep.trials import Trial


class Display:
    """Lines for trials that start and end; inside a `with` block a bar for all and one for each that runs."""

    def __init__(self) -> None:
        live = None if "ipykernel" not in sys.modules else False  # as run.progress.Display, and for its reason
        self.console = Console(force_jupyter=False, force_terminal=live, markup=False, highlight=False, soft_wrap=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn())
        self.bars = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.overall = self.bars.add_task("all trials", total=None, note="")
        self.tasks: dict[str, TaskID] = {}
        self.code = provenance.code_digest()[:SHORT]

    def __enter__(self) -> "Display":
        self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bars.stop()

    def started(self, trial: Trial) -> None:
        """A trial runs."""
        self.tasks[trial.name] = self.bars.add_task(trial.name, total=None, note="")
        if self.bars.disable:
            self.console.print(f"{trial.name} started")

    def ended(self, trial: Trial, record: Mapping[str, Any], *, kept: bool) -> None:
        """A trial has ended, now or in an earlier sweep."""
        if trial.name in self.tasks:
            self.bars.remove_task(self.tasks.pop(trial.name))
        other = kept and record.get("code", self.code) != self.code
        state = "kept, although other code ran it" if other else "kept" if kept else record["status"]
        self.console.print(f"{trial.name} {state}{_told(record)}")

    def refresh(self, running: Iterable[Trial], *, ended: int, expected: int) -> None:
        """Bring the counts, and the epochs of what runs, up to date."""
        self.bars.update(self.overall, completed=ended, total=expected)
        for trial in running:
            state = {} if self.bars.disable else _newest(trial.folder)
            if {"phase", "epoch", "epochs"} <= set(state):
                self.bars.update(self.tasks[trial.name], completed=state["epoch"], total=state["epochs"], note=state["phase"])


def _told(record: Mapping[str, Any]) -> str:
    """What is worth a word of a trial's record."""
    if record.get("error"):
        return f": {record['error']}"
    measured = [f"{name.removeprefix('held_out_')} {value:.3f}" for name, value in record.items() if name.startswith("held_out_")]
    return f": held out {', '.join(measured)}, {record['seconds']:.0f} s" if measured else ""


def _newest(run: Path) -> Mapping[str, Any]:
    """The facts of the checkpoint that was written last; nothing when there is none (any more)."""
    try:
        newest = max((run / "weights").glob("*/*.checkpoint.json"), key=lambda path: path.stat().st_mtime_ns)
    except (OSError, ValueError):
        return {}
    found = Receipt.find(newest, shapes.Checkpoint)
    return found.details if found else {}
