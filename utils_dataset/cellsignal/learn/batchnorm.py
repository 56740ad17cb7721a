"""Whose statistics normalise: the network's own past, the batch at hand, or the whole plate.

Batch effects move every activation of a new experiment. Running statistics, gathered over all
training experiments, do not follow; the statistics of the experiment's own images do (Brodt's
solution, "turn off eval mode"; Li et al. 2018, AdaBN).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

STATISTICS = ("running", "batch", "adapted")
# Up to this many image pixels (N*H*W) go through the network as one batch: 2,048 sites of 64 px,
# 32 of 512 px; DenseNet121 then takes about 1.9 GB.
EXACT_PIXELS = 2**23


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """Every batch-normalisation layer of a network, in order of definition."""
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, every batch is normalised by its own statistics; the running ones stay untouched."""
    model.eval()
    kept = [(norm, norm.running_mean, norm.running_var) for norm in norms(model)]
    for norm, _, _ in kept:
        norm.running_mean = norm.running_var = None  # PyTorch then uses the batch's own
    try:
        yield
    finally:
        for norm, mean, variance in kept:
            norm.running_mean, norm.running_var = mean, variance


@contextmanager
def adapted_statistics(model: nn.Module, images: torch.Tensor, *, exact_pixels: int = EXACT_PIXELS) -> Iterator[str]:
    """Inside, the statistics of `images` (uint8[N, C, H, W]; one plate, say) normalise every batch.

    Yields how they were gathered: "exact" when all images fit one batch, so that every layer sees
    inputs normalised by the very statistics it will later be given; "accumulated" when they are
    averaged over chunks, where a deeper layer sees inputs normalised by chunk and the result is
    close but not equal. On leaving, the running statistics are what they were.
    """
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items() if "running_" in name}
    n, _, height, width = images.shape
    exact = n * height * width <= exact_pixels
    with torch.inference_mode():
        if exact:
            _gather_exactly(model, images)
        else:
            _accumulate(model, images, chunk=max(2, exact_pixels // (height * width)))
    try:
        yield "exact" if exact else "accumulated"
    finally:
        model.load_state_dict(kept, strict=False)


def _gather_exactly(model: nn.Module, images: torch.Tensor) -> None:
    def take(norm: nn.BatchNorm2d, inputs: tuple[torch.Tensor]) -> None:
        # The biased variance, because that is what a batch normalises itself by.
        variance, mean = torch.var_mean(inputs[0].float(), dim=(0, 2, 3), correction=0)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)

    hooks = [norm.register_forward_pre_hook(take) for norm in norms(model)]
    try:
        model.eval()(images.to(_device(model)))
    finally:
        for hook in hooks:
            hook.remove()


def _accumulate(model: nn.Module, images: torch.Tensor, *, chunk: int) -> None:
    momenta = [norm.momentum for norm in norms(model)]
    for norm in norms(model):
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch then keeps the plain mean over all chunks
        norm.train()
    for part in torch.tensor_split(images, -(-len(images) // chunk)):
        model(part.to(_device(model)))
    for norm, momentum in zip(norms(model), momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
