"""Images on their way to the device: threads fill reusable buffers a few batches ahead of the training step."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import numpy as np
import torch

PREFETCHED_BATCHES = 2  # read ahead while one is in use
CPU = torch.device("cpu")
ReadImage = Callable[[int, np.ndarray], None]  # reads the image of one row into uint8[C, H, W]
Batch = tuple[torch.Tensor, torch.Tensor]


def prefetch(read: ReadImage, batches: Sequence[np.ndarray], *, shape: Sequence[int], workers: int = 0, device: torch.device = CPU) -> Iterator[Batch]:
    """Yield (images uint8[B, *shape] on `device`, rows int64[B]) for each batch of row numbers, in order.

    The images are valid until the next batch is requested, when their memory may be overwritten. `workers` threads read, and
    for a GPU one more copies from pinned memory, on a CUDA stream of its own; with 0 workers the caller's thread does both. An
    exception of `read` is raised unchanged, for the first failing image. Closing the iterator ends its threads.
    """
    remaining, largest = iter(batches), max(map(len, batches), default=0)
    num_buffers = 1 + PREFETCHED_BATCHES * (workers > 0) + (workers == 0 and device.type == "cuda")
    buffers = [_PinnedBuffer((largest, *shape), device) for _ in batches[:num_buffers]]
    readers, sender = (ThreadPoolExecutor(workers), ThreadPoolExecutor(1)) if workers else (_InlineExecutor(), _InlineExecutor())
    try:
        pending = deque(_submit_batch(read, rows, buffer, readers, sender, parts=workers or 1) for buffer, rows in zip(buffers, remaining))
        while pending:
            buffer, rows, copied = pending.popleft()
            yield buffer.synchronised(copied.result()), torch.from_numpy(np.asarray(rows, np.int64))
            if (rows := next(remaining, None)) is not None:
                pending.append(_submit_batch(read, rows, buffer, readers, sender, parts=workers or 1))
    finally:
        for pool in (readers, sender):
            pool.shutdown(cancel_futures=True)


def _submit_batch(read: ReadImage, rows: np.ndarray, buffer: "_PinnedBuffer", readers: Executor, sender: Executor, *,
                  parts: int) -> tuple["_PinnedBuffer", np.ndarray, Future]:
    """Start reading a batch into a buffer, in several parts at once, and then its copy to the device."""
    buffer.wait_for_copy()
    def read_part(positions: np.ndarray) -> None:
        for position in positions:
            read(int(rows[position]), buffer.images[position])
    reading = [readers.submit(read_part, positions) for positions in np.array_split(np.arange(len(rows)), min(parts, len(rows)))]
    return buffer, rows, sender.submit(buffer.copy_to_device, reading, len(rows))


class _InlineExecutor(Executor):
    """Runs every task at once, in the calling thread."""

    def submit(self, work: Callable, /, *arguments: object) -> Future:
        done: Future = Future()
        try:
            done.set_result(work(*arguments))
        except Exception as error:
            done.set_exception(error)
        return done


class _PinnedBuffer:
    """Host memory for one batch, pinned for a GPU, and its copy to the device."""

    def __init__(self, shape: Sequence[int], device: torch.device) -> None:
        self.device, self.is_cuda = device, device.type == "cuda"
        self.buffer = torch.empty(tuple(shape), dtype=torch.uint8, pin_memory=self.is_cuda)
        self.images = self.buffer.numpy()
        self.stream = torch.cuda.Stream(device) if self.is_cuda else None
        self.copy_event = torch.cuda.Event() if self.is_cuda else None

    def wait_for_copy(self) -> None:
        """Wait until the last copy from the buffer has ended."""
        if self.is_cuda:
            self.copy_event.synchronize()

    def copy_to_device(self, reading: Sequence[Future], count: int) -> torch.Tensor:
        """Wait for the readers, and start the copy to a GPU; on a CPU the batch is the buffer itself."""
        for part in reading:
            part.result()
        batch = self.buffer[:count]
        if not self.is_cuda:
            return batch
        with torch.cuda.stream(self.stream):
            batch = batch.to(self.device, non_blocking=True)
            self.copy_event.record()
        return batch

    def synchronised(self, batch: torch.Tensor) -> torch.Tensor:
        """The batch, safe to use in the caller's CUDA stream."""
        if self.is_cuda:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(self.copy_event)
            batch.record_stream(stream)
        return batch
