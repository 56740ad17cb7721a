"""The statistics of batch normalisation: running, of the batch, or of the whole plate.

Batch effects shift every activation of a new experiment. Running statistics, computed over all training experiments, do not
follow these shifts; the statistics of the experiment's own images do (Brodt's solution, "turn off eval mode"; Li et al. 2018,
AdaBN).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
# Memory per image pixel (one of N*H*W) in DenseNet121, fp32, inference.
BYTES_PER_PIXEL = 226
# The largest batch on a CPU, and wherever held-out sites are scored: 2,048 sites of 64 px, 32 of 512 px; DenseNet121 then
# takes about 1.9 GB.
CPU_BATCH_PIXELS = 2**23
# The largest batch on a GPU. DenseNets have activations of 16 numbers per pixel, and from 2**31 numbers on GPU kernels need
# 64-bit indices, with which they are hardly tested.
GPU_BATCH_PIXELS = 2**27
# With a trained DenseNet of 37 layers and plates in 2, 3 and 6 chunks, 100, 99 and 98 % of the wells got the same siRNA as
# under exact statistics after 5 refinements; without refinements 78, 77 and 63 % did.
REFINEMENTS = 5
NO_BATCHNORM = "running, without batch normalisation"  # how statistics were gathered
NO_BATCHNORM_NOTE = (
    "the network has no layers of batch normalisation, so that running, batch and adapted give the same scores; to adapt to "
    "new plates use `standardise: plate` or `experiment`, or a backbone with batch normalisation, such as densenet121"
)
Output = TypeVar("Output")


def batchnorm_layers(model: nn.Module) -> list[Norm]:
    """Every batch-normalisation layer of a network, in order of definition."""
    return [module for module in model.modules() if isinstance(module, Norm)]


def no_batchnorm_note(model: nn.Module) -> str:
    """A note about a network without batch-normalisation layers; "" for others."""
    return "" if batchnorm_layers(model) else NO_BATCHNORM_NOTE


def max_batch_pixels(device: torch.device) -> int:
    """The largest batch, in image pixels (N*H*W), for inference on this device.

    A GPU is given three quarters of its free memory. Networks that need more per pixel than DenseNet121 run out of it, and the
    caller retries with smaller batches (`decide.predict.inference`).
    """
    if device.type != "cuda":
        return CPU_BATCH_PIXELS
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(GPU_BATCH_PIXELS, int(0.75 * (free + unused)) // BYTES_PER_PIXEL)


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, every batch is normalised by its own statistics, and the running ones do not change."""
    model.eval()
    saved = [(norm, norm.running_mean, norm.running_var) for norm in batchnorm_layers(model)]
    for norm, _, _ in saved:
        norm.running_mean = norm.running_var = None  # PyTorch then uses the batch's own
    try:
        yield
    finally:
        for norm, mean, variance in saved:
            norm.running_mean, norm.running_var = mean, variance


@contextmanager
def without_tracking(model: nn.Module) -> Iterator[None]:
    """Inside, layers in training mode normalise by the batch and do not update their running statistics."""
    tracking = [norm for norm in batchnorm_layers(model) if norm.training and norm.track_running_stats]
    for norm in tracking:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in tracking:
            norm.track_running_stats = True


def adapted_pass(model: nn.Module, one_pass: Callable[[], Output], *,
                 refinements: int = REFINEMENTS) -> tuple[Output, str]:
    """The output of `one_pass` normalised by the statistics of a whole plate, although no batch holds the plate.

    Returns the output of the last pass, and how statistics were gathered (`gathered_statistics`).
    """
    with gathered_statistics(model, one_pass, refinements=refinements) as gathered:
        return gathered


@contextmanager
def gathered_statistics(model: nn.Module, one_pass: Callable[[], Output], *, refinements: int = REFINEMENTS) -> Iterator[tuple[Output, str]]:
    """Inside, the network normalises by the statistics of all images that `one_pass` sends through it.

    `one_pass()` sends every image of the plate through the network once, always in the same batches of at least two. In the
    first pass a batch is normalised by the moments of itself and the batches before it. These are not yet the plate's, because
    the inputs of deeper layers were normalised otherwise. In each of `refinements` further passes a batch is normalised by its
    own new moments and the latest ones of all other batches. A layer whose predecessors are exact thereby becomes exact, at
    least one more in each pass, so that with as many refinements as layers the statistics are exactly the plate's. (A batch's
    own moments must be new: passes normalised by those of the last pass alone diverge, deep layers first.) A single batch needs
    no refinement.

    Yields the output of the last pass, and how statistics were gathered: "accumulated, refined R times", or "layer by layer"
    if all layers are exact. Afterwards the running statistics are what they were.
    """
    layers = batchnorm_layers(model.eval())
    refinements = min(refinements, len(layers))
    saved = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in layers]
    layer_moments = [BatchMoments() for _ in layers]
    hooks = [norm.register_forward_pre_hook(moments) for norm, moments in zip(layers, layer_moments, strict=True)]
    try:
        for _ in range(refinements + 1):
            for moments in layer_moments:
                moments.batch = 0
            output = one_pass()
        for hook in hooks:
            hook.remove()
        yield output, "layer by layer" if refinements == len(layers) else f"accumulated, refined {refinements} times"
    finally:
        for norm, hook, (mean, variance) in zip(layers, hooks, saved, strict=True):
            hook.remove()
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)


@contextmanager
def recorded_moments(model: nn.Module) -> Iterator[list["BatchMoments"]]:
    """Inside, the moments of every layer's inputs are recorded, batch by batch, and change nothing; yields those of each layer."""
    layer_moments = [BatchMoments() for _ in batchnorm_layers(model)]
    hooks = [norm.register_forward_pre_hook(moments.record) for norm, moments in zip(batchnorm_layers(model), layer_moments, strict=True)]
    try:
        yield layer_moments
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def normalised_by(model: nn.Module, layer_moments: Sequence["BatchMoments"]) -> Iterator[None]:
    """Inside, the network normalises by the moments that `recorded_moments` yielded, over all their batches."""
    layers = batchnorm_layers(model.eval())
    saved = [(norm.running_mean, norm.running_var) for norm in layers]
    for norm, moments in zip(layers, layer_moments, strict=True):
        norm.running_mean, norm.running_var = (value.to(norm.running_mean) for value in moments.merged())
    try:
        yield
    finally:
        for norm, (mean, variance) in zip(layers, saved, strict=True):
            norm.running_mean, norm.running_var = mean, variance


class BatchMoments:
    """The latest moments of one layer's inputs for each batch; every batch is normalised by all of them."""

    def __init__(self) -> None:
        self.batch = 0  # number of the next batch
        self.by_batch: dict[int, tuple[int, torch.Tensor, torch.Tensor]] = {}  # count, mean[C], variance[C]

    def record(self, norm: Norm, inputs: tuple[torch.Tensor]) -> None:
        """Forward pre-hook: record the moments of the inputs, float[N, C, ...]."""
        values = inputs[0].float()
        # The biased variance, by which a batch is normalised in training mode.
        variance, mean = torch.var_mean(values, dim=[0, *range(2, values.ndim)], correction=0)
        self.by_batch[self.batch] = (values.numel() // len(mean), mean.double(), variance.double())
        self.batch += 1

    def __call__(self, norm: Norm, inputs: tuple[torch.Tensor]) -> None:
        """Forward pre-hook: record the moments of the inputs, and set the running statistics of the layer."""
        self.record(norm, inputs)
        mean, variance = self.merged()
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)

    def merged(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance over all batches, in float64 (Chan et al. 1979)."""
        counts, means, variances = zip(*self.by_batch.values())
        means, shares = torch.stack(means), means[0].new_tensor(counts)[:, None] / sum(counts)
        mean = (shares * means).sum(0)
        return mean, (shares * (torch.stack(variances) + (means - mean) ** 2)).sum(0)
