"""How fast several ways to do one thing are: in rounds of shuffled order, as medians with their range."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
import torch

from cellsignal.progress_bars import progress_bar

KINDS = ("ours", "peer", "floor")
CPU = torch.device("cpu")
Piece = Callable[[], float | tuple[float, float]]


@dataclass(frozen=True)
class Candidate:
    """One way to do a thing.

    `work` does a piece of it and returns how many units that were, or units and the seconds that count. `kind`: "ours", "peer"
    (as others do it) or "floor" (what the machine could do at best).
    """

    name: str
    kind: str
    work: Piece
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

    def as_record(self) -> dict[str, Any]:
        """As JSON has it, rates with five digits."""
        return {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in asdict(self).items()}


def measure(stage: str, ways: Sequence[Candidate], *, rounds: int, seconds: float, sites: int = 0, seed: int = 0,
            device: torch.device = CPU) -> list[Row]:
    """Rates of all `ways`, each at work for `seconds` at least in every one of `rounds`, whose order is shuffled anew.

    Once before the first round each does a piece that does not count: libraries load, files come into the page cache. A GPU is
    waited for before a clock is read.
    """
    for way in ways:
        way.work()
    rates: dict[str, list[float]] = {way.name: [] for way in ways}
    generator = np.random.default_rng(seed)
    order = np.concatenate([generator.permutation(len(ways)) for _ in range(rounds)])
    for place in progress_bar(order, desc=stage, unit="measurement"):
        rates[ways[place].name].append(rate(ways[place].work, seconds, device=device))
    return [_row(stage, way, rates[way.name], sites) for way in ways]


def _row(stage: str, way: Candidate, rates: list[float], sites: int) -> Row:
    return Row(stage, way.name, way.kind, way.unit, median(rates), min(rates), max(rates), len(rates), sites, way.note)


def rate(work: Piece, seconds: float, *, device: torch.device = CPU) -> float:
    """Units a second of pieces of work, done until `seconds` have passed, and once at least."""
    units, counted = 0.0, 0.0
    while counted < seconds or not counted:
        begun = now(device)
        done = work()
        done, took = done if isinstance(done, tuple) else (done, now(device) - begun)
        units, counted = units + done, counted + max(took, 1e-9)
    return units / counted


def now(device: torch.device = CPU) -> float:
    """A clock in seconds, read when the device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def ratio(rows: Iterable[Row], stage: str, first: str, second: str) -> float | None:
    """How many times as fast the first way is as the second, by medians; None when one was not measured."""
    found = {row.name: row.median for row in rows if row.stage == stage}
    return found[first] / found[second] if first in found and second in found else None


# The rate of a data path on its way: counted between two waves of batches, so that nobody is helped by what was read ahead.


Batches = Iterable[tuple[torch.Tensor, ...]]


def throughput(begin: Callable[[], Batches], use: Callable[[torch.Tensor], None] = lambda images: None, *, wave: int, seconds: float) -> Piece:
    """Work that starts a data path, lets its first `wave` of batches pass, and counts the sites of the waves that follow.

    As many waves as begin in `seconds`, two at least where there are so many. `use` gets the images of each batch.
    """
    def work() -> tuple[float, float]:
        batches = iter(begin())  # whatever threads or processes it has end with it
        _pass(batches, use, wave)
        sites, waves, begun = 0, 0, time.perf_counter()
        while waves < 2 or time.perf_counter() - begun < seconds:
            came = _pass(batches, use, wave)
            sites, waves = sites + came, waves + 1
            if not came:
                break
        return sites, time.perf_counter() - begun
    return work


def _pass(batches: Iterator[tuple[torch.Tensor, ...]], use: Callable[[torch.Tensor], None], count: int) -> int:
    """Take so many batches; how many sites they had."""
    sites = 0
    for _, (images, *_) in zip(range(count), batches):
        use(images)
        sites += len(images)
    return sites
