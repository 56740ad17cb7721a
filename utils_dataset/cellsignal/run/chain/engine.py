"""Who executes the notebooks of a run: this machine. Another engine takes some of them elsewhere (run.cluster)."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from cellsignal.receipts import Receipt
from cellsignal.run import environment
from cellsignal.run.chain import notebooks
from cellsignal.run.chain.steps import Step
from cellsignal.run.record import manifest


@dataclass(frozen=True)
class Job:
    """One notebook to execute, and what it is told."""

    step: Step
    parameters: Mapping[str, Any]
    done: Mapping[str, Receipt]  # of the steps before it
    data: Path  # the plates
    page: bool  # write it as HTML too
    stop: Event  # set when it shall end


class LocalExecutor:
    """An engine of one machine: this one."""

    divides = False  # a prediction, experiment by experiment
    parallel_map: Callable[..., Iterator[Any]] | None = None  # who draws plates, if not this machine alone (`data.workshop`)

    @contextmanager
    def opened(self, run: Path, *, deadline: float | None) -> Iterator[None]:
        """Be ready to work for a run folder until `deadline`, in seconds since 1970."""
        self.run, self.deadline = run, deadline
        self.environment = environment.kernel_environment(run, deadline=deadline)
        yield

    def slots(self, parallel: int) -> int:
        """How many notebooks may run at once, of `parallel` on each machine."""
        return parallel

    def execute(self, errand: Job) -> Receipt | None:
        """Execute a notebook and give its receipt, None without one; errors as `notebooks.execute` raises them."""
        step = errand.step
        target = self.run / f"notebooks/{step.name}.ipynb"
        notebooks.execute(step.notebook, target=target, parameters=errand.parameters, environment=self.environment, stop=errand.stop)
        if errand.page:
            notebooks.write_page(target)
        return manifest.read(self.run, step.name)

    def whole(self, step: Step, receipt: Receipt) -> None:
        """A step is whole, now or since an earlier run: its receipt was written."""
