"""Whose statistics normalise: the network's own past, the batch at hand, or the whole plate.

Batch effects move every activation of a new experiment. Running statistics, gathered over all
training experiments, do not follow; the statistics of the experiment's own images do (Brodt's
solution, "turn off eval mode"; Li et al. 2018, AdaBN).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

STATISTICS = ("running", "batch", "adapted")
Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
# Bytes that an image pixel (one of N*H*W) takes on its way through DenseNet121 in fp32.
PIXEL_BYTES = 226
# Up to this many pixels go through the network as one batch on a CPU, and when held-out sites are
# scored: 2,048 sites of 64 px, 32 of 512 px; DenseNet121 then takes about 1.9 GB.
EXACT_PIXELS = 2**23
# DenseNets hold 16 numbers a pixel in one activation; from 2**31 numbers on, GPU kernels leave the
# 32-bit indices that they are tested with.
GPU_PIXELS = 2**27
# A trained DenseNet of 37 layers, plates in 2, 3 and 6 chunks: after so many, 100, 99 and 98 % of the
# wells got the siRNA that the exact statistics give them, after none 78, 77 and 63 %.
REFINEMENTS = 5
NO_LAYERS = "running, for want of batch normalisation"  # how scores came about
NO_LAYERS_NOTE = (
    "the network has no layers of batch normalisation, so that running, batch and adapted are one and the same answer; what "
    "adapts to new plates instead is `standardise: plate` or `experiment`, or a backbone with batch normalisation, such as densenet121"
)
Answer = TypeVar("Answer")


def batchnorm_layers(model: nn.Module) -> list[Norm]:
    """Every batch-normalisation layer of a network, in order of definition."""
    return [module for module in model.modules() if isinstance(module, Norm)]


def no_layers_note(model: nn.Module) -> str:
    """What to know of a network that has no batch-normalisation layers; "" for others."""
    return "" if batchnorm_layers(model) else NO_LAYERS_NOTE


def exact_pixels(device: torch.device) -> int:
    """How many image pixels (N*H*W) may go through a network as one batch on this device.

    On a GPU three quarters of its free memory are counted on; the networks that need more per pixel
    than a DenseNet121 run out of it, and the caller sends smaller batches (`decide.passes`).
    """
    if device.type != "cuda":
        return EXACT_PIXELS
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(GPU_PIXELS, int(0.75 * (free + unused)) // PIXEL_BYTES)


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, every batch is normalised by its own statistics; the running ones stay untouched."""
    model.eval()
    kept = [(norm, norm.running_mean, norm.running_var) for norm in batchnorm_layers(model)]
    for norm, _, _ in kept:
        norm.running_mean = norm.running_var = None  # PyTorch then uses the batch's own
    try:
        yield
    finally:
        for norm, mean, variance in kept:
            norm.running_mean, norm.running_var = mean, variance


@contextmanager
def without_tracking(model: nn.Module) -> Iterator[None]:
    """Inside, layers in training mode normalise by the batch and leave their running statistics alone."""
    tracking = [norm for norm in batchnorm_layers(model) if norm.training and norm.track_running_stats]
    for norm in tracking:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in tracking:
            norm.track_running_stats = True


def adapted_pass(model: nn.Module, one_pass: Callable[[], Answer], *,
                 refinements: int = REFINEMENTS) -> tuple[Answer, str]:
    """What `one_pass` answers when a whole plate's statistics normalise, although no batch holds the plate.

    `one_pass()` sends every image of the plate through the network once, always in the same batches
    of two or more. In the first pass a batch is normalised by the moments of itself and the batches
    before it. They are not yet the plate's, because deeper layers saw inputs that were normalised
    otherwise. In each of `refinements` further passes it is normalised by its own new moments and
    the latest ones of all other batches: a layer whose predecessors are exact becomes exact, one
    more a pass at least, so that as many refinements as layers give the plate's own statistics.
    (A batch's own moments must be new: passes normalised by those of the last pass alone diverge,
    deep layers first, before they become exact.)

    Returns (answer of the last pass, "accumulated, refined R times" or "layer by layer" when all
    layers are exact). The running statistics are left as they were.
    """
    layers = batchnorm_layers(model.eval())
    refinements = min(refinements, len(layers))
    kept = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in layers]
    plate = [_Moments() for _ in layers]
    hooks = [norm.register_forward_pre_hook(moments) for norm, moments in zip(layers, plate, strict=True)]
    try:
        for _ in range(refinements + 1):
            for moments in plate:
                moments.batch = 0
            answer = one_pass()
    finally:
        for norm, hook, (mean, variance) in zip(layers, hooks, kept, strict=True):
            hook.remove()
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
    return answer, "layer by layer" if refinements == len(layers) else f"accumulated, refined {refinements} times"


class _Moments:
    """The latest moments of one norm's inputs, batch by batch; normalises each batch by all of them."""

    def __init__(self) -> None:
        self.batch = 0  # the one that comes next
        self.known: dict[int, tuple[int, torch.Tensor, torch.Tensor]] = {}  # count, mean[C], variance[C]

    def __call__(self, norm: Norm, inputs: tuple[torch.Tensor]) -> None:
        """Before the norm's turn: take in its inputs, float[N, C, ...], and give it the statistics."""
        values = inputs[0].float()
        # The biased variance, because that is what a batch normalises itself by.
        variance, mean = torch.var_mean(values, dim=[0, *range(2, values.ndim)], correction=0)
        self.known[self.batch] = (values.numel() // len(mean), mean.double(), variance.double())
        self.batch += 1
        mean, variance = self.merged()
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)

    def merged(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance over all batches, in float64 (Chan et al. 1979)."""
        counts, means, variances = zip(*self.known.values())
        means, shares = torch.stack(means), means[0].new_tensor(counts)[:, None] / sum(counts)
        mean = (shares * means).sum(0)
        return mean, (shares * (torch.stack(variances) + (means - mean) ** 2)).sum(0)
