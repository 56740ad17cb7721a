"""Measuring the rates of several candidates in rounds of shuffled order, as medians with their range."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
import torch

from cellsignal.progress_bars import progress_bar

CANDIDATE_KINDS = ("ours", "peer", "floor")
CPU = torch.device("cpu")
WorkFunction = Callable[[], float | tuple[float, float]]


@dataclass(frozen=True)
class Candidate:
    """One implementation to be measured.

    `work` returns how many units it processed, or units and the seconds that count. `kind`: "ours", "peer" (another
    implementation) or "floor" (the limit of the machine).
    """

    name: str
    kind: str
    work: WorkFunction
    unit: str = "sites/s"
    note: str = ""


@dataclass(frozen=True)
class Row:
    """What was measured of one way: units a second, as median, least and most of so many rounds over so many different sites."""

    stage: str
    name: str
    kind: str
    unit: str
    median: float
    min: float
    max: float
    rounds: int
    sites: int
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """The row for JSON, rates with five digits."""
        return {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in asdict(self).items()}


def measure(stage: str, candidates: Sequence[Candidate], *, rounds: int, seconds: float, sites: int = 0, seed: int = 0,
            device: torch.device = CPU) -> list[Row]:
    """Rates of all `candidates`, each at work for `seconds` at least in every one of `rounds`, whose order is shuffled anew.

    Once before the first round each does a piece that does not count: libraries load, files come into the page cache. A GPU is
    waited for before a clock is read.
    """
    for candidate in candidates:
        candidate.work()
    rates: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    generator = np.random.default_rng(seed)
    order = np.concatenate([generator.permutation(len(candidates)) for _ in range(rounds)])
    for index in progress_bar(order, desc=stage, unit="measurement"):
        rates[candidates[index].name].append(rate(candidates[index].work, seconds, device=device))
    return [_row(stage, candidate, rates[candidate.name], sites) for candidate in candidates]


def _row(stage: str, candidate: Candidate, rates: list[float], sites: int) -> Row:
    return Row(stage, candidate.name, candidate.kind, candidate.unit, median(rates), min(rates), max(rates), len(rates), sites, candidate.note)


def rate(work: WorkFunction, seconds: float, *, device: torch.device = CPU) -> float:
    """Units a second of pieces of work, done until `seconds` have passed, and once at least."""
    units, counted = 0.0, 0.0
    while counted < seconds or not counted:
        started = now(device)
        amount = work()
        amount, elapsed = amount if isinstance(amount, tuple) else (amount, now(device) - started)
        units, counted = units + amount, counted + max(elapsed, 1e-9)
    return units / counted


def now(device: torch.device = CPU) -> float:
    """A clock in seconds, read after synchronising the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def ratio(rows: Iterable[Row], stage: str, first: str, second: str) -> float | None:
    """How many times as fast the first way is as the second, by medians; None when one was not measured."""
    rates = {row.name: row.median for row in rows if row.stage == stage}
    return rates[first] / rates[second] if first in rates and second in rates else None


# The steady rate of a data path: counted after a first wave of batches, so that prefetched batches do not count.


Batches = Iterable[tuple[torch.Tensor, ...]]


def throughput(begin: Callable[[], Batches], use: Callable[[torch.Tensor], None] = lambda images: None, *, wave: int, seconds: float) -> WorkFunction:
    """Work that starts a data path, lets its first `wave` of batches pass, and counts the sites of the waves that follow.

    As many waves as begin in `seconds`, two at least where there are so many. `use` gets the images of each batch.
    """
    def work() -> tuple[float, float]:
        batches = iter(begin())  # whatever threads or processes it has end with it
        _pass(batches, use, wave)
        sites, waves, started = 0, 0, time.perf_counter()
        while waves < 2 or time.perf_counter() - started < seconds:
            count = _pass(batches, use, wave)
            sites, waves = sites + count, waves + 1
            if not count:
                break
        return sites, time.perf_counter() - started
    return work


def _pass(batches: Iterator[tuple[torch.Tensor, ...]], use: Callable[[torch.Tensor], None], count: int) -> int:
    """Take so many batches; how many sites they had."""
    sites = 0
    for _, (images, *_) in zip(range(count), batches):
        use(images)
        sites += len(images)
    return sites
