"""Pictures on their way to the device: threads fill buffers that are used again and again, a few batches ahead of the arithmetic."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import numpy as np
import torch

AHEAD = 2  # batches that are read while one is at work
CPU = torch.device("cpu")
Read = Callable[[int, np.ndarray], None]  # puts the picture of one row into uint8[C, H, W]
Batch = tuple[torch.Tensor, torch.Tensor]


def prefetch(read: Read, batches: Sequence[np.ndarray], *, shape: Sequence[int], workers: int = 0, device: torch.device = CPU) -> Iterator[Batch]:
    """Yield (images uint8[B, *shape] on `device`, rows int64[B]) for each batch of row numbers, in their order.

    The images are lent: once the next batch is asked for they may be overwritten. `workers` threads read, and on a GPU one
    more sends from pinned memory, on a stream of its own; with 0 the caller's thread does it. What `read` raises comes
    out as it is, for the first picture at fault. Closing the iterator ends its threads.
    """
    coming, longest = iter(batches), max(map(len, batches), default=0)
    slots = [_PinnedBuffer((longest, *shape), device) for _ in batches[:1 + AHEAD * (workers > 0) + (workers == 0 and device.type == "cuda")]]
    readers, sender = (ThreadPoolExecutor(workers), ThreadPoolExecutor(1)) if workers else (_InlineExecutor(), _InlineExecutor())
    try:
        flying = deque(_begin(read, rows, slot, readers, sender, parts=workers or 1) for slot, rows in zip(slots, coming))
        while flying:
            slot, rows, sent = flying.popleft()
            yield slot.arrived(sent.result()), torch.from_numpy(np.asarray(rows, np.int64))
            if (rows := next(coming, None)) is not None:
                flying.append(_begin(read, rows, slot, readers, sender, parts=workers or 1))
    finally:
        for pool in (readers, sender):
            pool.shutdown(cancel_futures=True)


def _begin(read: Read, rows: np.ndarray, slot: "_PinnedBuffer", readers: Executor, sender: Executor, *, parts: int) -> tuple["_PinnedBuffer", np.ndarray, Future]:
    """Have a batch read into a slot, in so many parts side by side, and sent."""
    slot.free()
    def part(places: np.ndarray) -> None:
        for place in places:
            read(int(rows[place]), slot.pictures[place])
    reading = [readers.submit(part, places) for places in np.array_split(np.arange(len(rows)), min(parts, len(rows)))]
    return slot, rows, sender.submit(slot.send, reading, len(rows))


class _InlineExecutor(Executor):
    """Works at once, in the thread that asks."""

    def submit(self, work: Callable, /, *arguments: object) -> Future:
        done: Future = Future()
        try:
            done.set_result(work(*arguments))
        except Exception as error:
            done.set_exception(error)
        return done


class _PinnedBuffer:
    """Room for one batch on the host, and its way to the device."""

    def __init__(self, shape: Sequence[int], device: torch.device) -> None:
        self.device, self.far = device, device.type == "cuda"
        self.buffer = torch.empty(tuple(shape), dtype=torch.uint8, pin_memory=self.far)
        self.pictures = self.buffer.numpy()
        self.stream = torch.cuda.Stream(device) if self.far else None
        self.sent = torch.cuda.Event() if self.far else None

    def free(self) -> None:
        """Wait until nothing is on its way from the buffer any more."""
        if self.far:
            self.sent.synchronize()

    def send(self, reading: Sequence[Future], count: int) -> torch.Tensor:
        """When all is read: the batch, for a GPU underway to it."""
        for part in reading:
            part.result()
        batch = self.buffer[:count]
        if not self.far:
            return batch
        with torch.cuda.stream(self.stream):
            batch = batch.to(self.device, non_blocking=True)
            self.sent.record()
        return batch

    def arrived(self, batch: torch.Tensor) -> torch.Tensor:
        """The batch as the stream of the caller may use it."""
        if self.far:
            here = torch.cuda.current_stream(self.device)
            here.wait_event(self.sent)
            batch.record_stream(here)
        return batch
