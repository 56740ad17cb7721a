"""What a person sees while the chain runs: a live line per step in a terminal, else a line per event."""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from cellsignal import shapes
from cellsignal.receipts import Receipt
from cellsignal.run.chain.steps import Step


class Display:
    """Lines for steps that start and end; inside a `with` block live bars too, where there is a terminal."""

    def __init__(self, run: Path) -> None:
        self.run = run
        # A notebook's output calls itself a terminal and keeps every frame: half a gigabyte in a night.
        live = None if "ipykernel" not in sys.modules else False
        self.console = Console(force_jupyter=False, force_terminal=live, markup=False, highlight=False, soft_wrap=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn())
        self.bars = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.overall = self.bars.add_task("all steps", total=None, note="")
        self.running: dict[str, tuple[Step, TaskID]] = {}
        self.left: dict[str, int] = {}  # checkpoints that lay there before their step began, and when they were written

    def __enter__(self) -> "Display":
        self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for name in list(self.running):
            self.bars.remove_task(self.running.pop(name)[1])
        self.bars.stop()

    def expect(self, steps: int) -> None:
        """How many steps there are in all."""
        self.bars.update(self.overall, total=steps)

    def started(self, step: Step) -> None:
        """A step runs."""
        self.left |= {name: _written(self.run / name) for name in step.checkpoints}
        self.running[step.name] = step, self.bars.add_task(step.name, total=None, note="")
        if self.bars.disable:
            self.console.print(f"{step.name} started")

    def ended(self, step: Step, *, seconds: float, kept: bool) -> None:
        """A step is whole, now or since an earlier run."""
        if step.name in self.running:
            self.bars.remove_task(self.running.pop(step.name)[1])
        self.bars.advance(self.overall)
        self.console.print(f"{step.name} kept" if kept else f"{step.name} done in {seconds:.0f} s")

    def paused(self, step: Step, *, note: str) -> None:
        """A step stopped in time, unfinished."""
        self.bars.remove_task(self.running.pop(step.name)[1])
        self.console.print(f"{step.name} paused: {note}")

    def note(self, step: Step, text: str) -> None:
        """A line on a step."""
        self.console.print(f"{step.name}: {text}")

    def refresh(self) -> None:
        """Bring the epochs of running trainings up to date."""
        for step, task in list(self.running.values()):
            state = self._newest(step)
            if {"phase", "epoch", "epochs"} <= set(state):
                note = f"{state['phase']}, epoch {state['epoch']}/{state['epochs']}"
                self.bars.update(task, completed=state["epoch"], total=state["epochs"], note=note)

    def _newest(self, step: Step) -> Mapping[str, Any]:
        """The checkpoint that the step wrote or took up last; one that an earlier run left tells nothing of it."""
        written = {name: _written(self.run / name) for name in step.checkpoints}
        its_own = [name for name, when in written.items() if when and when != self.left.get(name)]
        return _read(self.run / max(its_own, key=written.__getitem__)) if its_own else {}


def _written(path: Path) -> int:
    """When a file was last written, in nanoseconds; 0 when it is not there."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _read(path: Path) -> Mapping[str, Any]:
    """A checkpoint's details; nothing when it is not there (any more)."""
    found = Receipt.find(path, shapes.Checkpoint)
    return found.details if found else {}
