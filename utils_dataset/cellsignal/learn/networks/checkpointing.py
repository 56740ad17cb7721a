"""Less memory for more time: blocks of a network keep what goes in, and compute the rest again on the way back.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"; Pleiss et al. 2017 for DenseNets.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from cellsignal.learn.networks.batchnorm import batchnorm_layers

_WEIGHTS = (nn.Conv2d, nn.Linear)
_NORMS = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
_POOLS = (nn.MaxPool2d, nn.AvgPool2d)


def checkpoint_blocks(body: nn.Module) -> int:
    """Have the blocks of a body computed again on the way back while it trains; returns how many they are.

    Gradients and running statistics stay what they were. A block is the smallest part with two layers of weights and a norm:
    a layer of a DenseNet, a block of a ResNet; a plain row of layers (VGG) is cut behind its pools.
    """
    found = checkpointed_blocks(body)
    for block in found:
        if "forward" in vars(block):  # an earlier phase has asked for it
            continue
        block.forward = partial(_in_stretches if isinstance(block, nn.Sequential) else _again, block, block.forward)
    return len(found)


def checkpointed_blocks(body: nn.Module) -> list[nn.Module]:
    """The smallest parts of a body that have two layers of weights and a norm."""
    if inner := [block for part in body.children() for block in checkpointed_blocks(part)]:
        return inner
    parts = list(body.modules())
    whole = sum(isinstance(part, _WEIGHTS) for part in parts) > 1 and any(isinstance(part, _NORMS) for part in parts)
    return [body] * whole


def _again(block: nn.Module, forward: Callable, inputs: Any, *others: Any) -> torch.Tensor:
    """What `forward` makes of a tensor, or of a list of them, of which nothing but these is kept."""
    if not (block.training and torch.is_grad_enabled()):
        return forward(inputs, *others)
    several = isinstance(inputs, list)
    def run(*tensors: torch.Tensor) -> torch.Tensor:
        return forward(list(tensors) if several else tensors[0], *others)
    # The second time, running statistics have seen the batch already.
    return checkpoint(run, *(inputs if several else [inputs]), use_reentrant=False, context_fn=lambda: (nullcontext(), _on_copies(block)))


@contextmanager
def _on_copies(block: nn.Module) -> Iterator[None]:
    """Inside, norms move copies of their running statistics; without any they would keep less than at first, which is refused."""
    kept = [(norm, name, tensor) for norm in batchnorm_layers(block) for name, tensor in norm.named_buffers()]
    for norm, name, tensor in kept:
        setattr(norm, name, tensor.clone())
    try:
        yield
    finally:
        for norm, name, tensor in kept:
            setattr(norm, name, tensor)


def _in_stretches(row: nn.Sequential, forward: Callable, inputs: torch.Tensor) -> torch.Tensor:
    """The same for a row of layers, stretch by stretch."""
    stretch: list[nn.Module] = []
    for number, part in enumerate(row, 1):
        stretch.append(part)
        if isinstance(part, _POOLS) or number == len(row):
            inputs, stretch = _again(row, nn.Sequential(*stretch).forward, inputs), []
    return inputs
