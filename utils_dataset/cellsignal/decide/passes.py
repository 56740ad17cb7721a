"""The images of one plate on their way through a network, under each kind of statistics."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from cellsignal.learn import devices
from cellsignal.learn.batches import parts_of
from cellsignal.learn.batchnorm import REFINEMENTS, adapted_pass, batch_statistics, exact_pixels

RUNNING_BATCH = 64  # any size gives the same answer


class Passes:
    """Sends the images of one scope (a plate, say) through a network, and counts them.

    `images`: uint8[N, C, H, W], moved to the network's device once where they fit there, and batch
    by batch otherwise; the network scales them. `plates`: int64[N], the index of each site's plate
    from 0, for networks that are told it. `sent`: images that went through the network so far.
    """

    def __init__(self, model: nn.Module, images: np.ndarray, *, plates: np.ndarray | None = None,
                 precision: str = "auto") -> None:
        self.model, self.precision, self.sent = model.eval(), precision, 0
        self.device = next(model.parameters()).device
        self.images = _near(torch.from_numpy(images), self.device)
        self.extra = [] if plates is None else [torch.from_numpy(plates)]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def pixels(self) -> int:
        """Pixels of one image, H*W."""
        return self.images.shape[-2] * self.images.shape[-1]

    @torch.inference_mode()
    def __call__(self, batches: Sequence[np.ndarray]) -> torch.Tensor:
        """Log-probabilities float32[N, classes] in the order of the images; `batches` hold row numbers."""
        order = torch.from_numpy(np.concatenate(batches))
        return torch.cat([self._batch(torch.from_numpy(rows)) for rows in batches])[order.argsort()]

    def _batch(self, rows: torch.Tensor) -> torch.Tensor:
        inputs = [tensor[rows.to(tensor.device)].to(self.device) for tensor in (self.images, *self.extra)]
        with devices.autocast(self.device, self.precision):
            logits = self.model(*inputs)
        self.sent += len(rows)
        return logits.float().log_softmax(1).cpu()


def _near(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The images on the device, unless they would take more than a quarter of its free memory."""
    if device.type == "cuda" and images.nbytes > torch.cuda.mem_get_info(device)[0] // 4:
        return images
    return images.to(device)


def log_probabilities(passes: Passes, statistics: str, *, batch_sizes: Sequence[int] = (32,),
                      refinements: int = REFINEMENTS) -> tuple[np.ndarray, str]:
    """Log-probabilities float32[N, classes] of the images of one scope, and how statistics were gathered.

    `statistics`: "running"; "batch": a pass for each of `batch_sizes`, each freshly shuffled, their
    log-probabilities averaged (Brodt's "infinite bagging": 32 to 128); "adapted": normalised by the
    whole scope, in one pass where it fits the memory as one batch, else with `refinements`
    (`adapted_pass`). One site alone has no statistics and gets the running ones.
    """
    if statistics == "running" or len(passes) < 2:
        how = "running" if statistics == "running" else "running, for want of a second site"
        return passes(shuffled(len(passes), RUNNING_BATCH, key=0)).numpy(), how
    if statistics == "batch":
        return _batch(passes, batch_sizes).numpy(), "batch"
    answer, how = _adapted(passes, refinements)
    return answer.numpy(), how


def shuffled(count: int, size: int, *, key: int) -> list[np.ndarray]:
    """Rows in random order, so that batches mix treatments and controls, in parts of nearly equal size.

    A last batch of one image would have no statistics to speak of.
    """
    return np.array_split(np.random.default_rng(key).permutation(count), parts_of(count, size))


def _batch(passes: Passes, sizes: Sequence[int]) -> torch.Tensor:
    count, total = len(passes), 0.0
    with batch_statistics(passes.model):
        for key, size in enumerate(sizes):
            if parts_of(count, size) > 1:
                total = total + passes(shuffled(count, size, key=key))
        # All sizes that make one batch of the whole give one answer: computed once, it counts for each.
        if whole := sum(parts_of(count, size) == 1 for size in sizes):
            total = total + whole * passes([np.arange(count)])
    return total / len(sizes)


def _adapted(passes: Passes, refinements: int) -> tuple[torch.Tensor, str]:
    size = exact_pixels(passes.device) // passes.pixels
    while True:
        try:
            return _adapted_by(passes, size, refinements)
        except torch.OutOfMemoryError:
            if size <= 2:
                raise
        size = max(2, min(size, len(passes)) // 2)
        torch.cuda.empty_cache()


def _adapted_by(passes: Passes, size: int, refinements: int) -> tuple[torch.Tensor, str]:
    batches = shuffled(len(passes), max(2, size), key=0)
    if len(batches) == 1:
        # A batch that holds the whole plate is normalised by the plate: its answer is the answer.
        with batch_statistics(passes.model):
            return passes(batches), "exact"
    return adapted_pass(passes.model, lambda: passes(batches), refinements=refinements)
