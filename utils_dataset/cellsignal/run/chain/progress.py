"""The progress of a chain or a sweep: live bars in a terminal, else a line for each event."""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeElapsedColumn

from cellsignal import json_schemas
from cellsignal.receipts import Receipt
from cellsignal.run.chain.steps import Step


class ProgressLines:
    """A console, and inside a `with` block a bar for all parts of the work and one for each that runs."""

    def __init__(self, title: str, *columns: ProgressColumn) -> None:
        # The output of a notebook claims to be a terminal and keeps every frame: half a gigabyte in a night.
        force_terminal = None if "ipykernel" not in sys.modules else False
        self.console = Console(force_jupyter=False, force_terminal=force_terminal, markup=False, highlight=False, soft_wrap=True)
        columns = (TextColumn("{task.description}"), BarColumn(), *columns, TextColumn("{task.fields[note]}"), TimeElapsedColumn())
        self.bars = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.overall = self.bars.add_task(title, total=None, note="")
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for name in list(self.tasks):
            self.remove_bar(name)
        self.bars.stop()

    def add_bar(self, name: str) -> None:
        """Add the bar of a part that starts."""
        self.tasks[name] = self.bars.add_task(name, total=None, note="")
        if self.bars.disable:
            self.console.print(f"{name} started")

    def remove_bar(self, name: str) -> None:
        """Remove the bar of a part, if it has one."""
        if name in self.tasks:
            self.bars.remove_task(self.tasks.pop(name))


class ChainProgress(ProgressLines):
    """The progress of the steps of a chain."""

    def __init__(self, run: Path) -> None:
        super().__init__("all steps")
        self.run = run
        self.running: dict[str, Step] = {}
        self.earlier_checkpoints: dict[str, int] = {}  # when those were written that were there before their step began

    def set_total(self, steps: int) -> None:
        """Set the number of all steps."""
        self.bars.update(self.overall, total=steps)

    def started(self, step: Step) -> None:
        """A step runs."""
        self.earlier_checkpoints |= {name: _modified(self.run / name) for name in step.checkpoints}
        self.running[step.name] = step
        self.add_bar(step.name)

    def ended(self, step: Step, *, seconds: float, reused: bool) -> None:
        """A step is complete, now or since an earlier run."""
        self._remove(step)
        self.bars.advance(self.overall)
        self.console.print(f"{step.name} kept" if reused else f"{step.name} done in {seconds:.0f} s")

    def paused(self, step: Step, *, note: str) -> None:
        """A step stopped incomplete, because the time budget is spent."""
        self._remove(step)
        self.console.print(f"{step.name} paused: {note}")

    def print_note(self, step: Step, text: str) -> None:
        """Print a line about a step."""
        self.console.print(f"{step.name}: {text}")

    def refresh(self) -> None:
        """Update the epochs of running trainings."""
        for step in list(self.running.values()):
            # Those that the step wrote or copied; one of an earlier run says nothing about it.
            names = [name for name in step.checkpoints if _modified(self.run / name) not in (0, self.earlier_checkpoints.get(name))]
            state = newest_checkpoint(self.run / name for name in names)
            if {"phase", "epoch", "epochs"} <= set(state):
                note = f"{state['phase']}, epoch {state['epoch']}/{state['epochs']}"
                self.bars.update(self.tasks[step.name], completed=state["epoch"], total=state["epochs"], note=note)

    def _remove(self, step: Step) -> None:
        self.running.pop(step.name, None)
        self.remove_bar(step.name)


def newest_checkpoint(paths: Iterable[Path]) -> Mapping[str, Any]:
    """The details of the checkpoint that was written last; empty without one."""
    newest = max(paths, key=_modified, default=None)
    receipt = newest and Receipt.find(newest, json_schemas.CheckpointDetails)
    return receipt.details if receipt else {}


def _modified(path: Path) -> int:
    """When a file was last written, in nanoseconds; 0 when it does not exist."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
