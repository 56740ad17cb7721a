"""The rate of a data path on its way: counted between two waves of batches, so that nobody is helped by what was read ahead."""

import time
from collections.abc import Callable, Iterable, Iterator

import torch

from cellsignal.bench.timer import Piece

Batches = Iterable[tuple[torch.Tensor, ...]]


def steady(begin: Callable[[], Batches], use: Callable[[torch.Tensor], None] = lambda images: None, *, wave: int, seconds: float) -> Piece:
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

