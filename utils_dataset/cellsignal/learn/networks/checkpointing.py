"""Gradient checkpointing: blocks of a network store only their inputs and are computed again in the backward pass.

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
    """Switch on gradient checkpointing for the blocks of a body; returns their number.

    Gradients and running statistics stay the same. A block is the smallest module with two layers of weights and a norm: a
    layer of a DenseNet, a block of a ResNet; a sequence of layers (VGG) is split after its pooling layers.
    """
    blocks = checkpointed_blocks(body)
    for block in blocks:
        if "forward" in vars(block):  # switched on by an earlier phase
            continue
        block.forward = partial(_checkpointed_sequence if isinstance(block, nn.Sequential) else _checkpointed_forward, block, block.forward)
    return len(blocks)


def checkpointed_blocks(body: nn.Module) -> list[nn.Module]:
    """The smallest modules of a body that have two layers of weights and a norm."""
    if inner := [block for child in body.children() for block in checkpointed_blocks(child)]:
        return inner
    modules = list(body.modules())
    is_block = sum(isinstance(module, _WEIGHTS) for module in modules) > 1 and any(isinstance(module, _NORMS) for module in modules)
    return [body] * is_block


def _checkpointed_forward(block: nn.Module, forward: Callable, inputs: Any, *arguments: Any) -> torch.Tensor:
    """The output of `forward` for a tensor or a list of tensors, which are all that is stored for the backward pass."""
    if not (block.training and torch.is_grad_enabled()):
        return forward(inputs, *arguments)
    is_list = isinstance(inputs, list)
    def run(*tensors: torch.Tensor) -> torch.Tensor:
        return forward(list(tensors) if is_list else tensors[0], *arguments)
    # In the second forward pass, running statistics have seen the batch already.
    return checkpoint(run, *(inputs if is_list else [inputs]), use_reentrant=False, context_fn=lambda: (nullcontext(), _copied_running_statistics(block)))


@contextmanager
def _copied_running_statistics(block: nn.Module) -> Iterator[None]:
    """Inside, norms update copies of their running statistics. Without statistics they would save fewer tensors, which PyTorch refuses."""
    saved = [(norm, name, tensor) for norm in batchnorm_layers(block) for name, tensor in norm.named_buffers()]
    for norm, name, tensor in saved:
        setattr(norm, name, tensor.clone())
    try:
        yield
    finally:
        for norm, name, tensor in saved:
            setattr(norm, name, tensor)


def _checkpointed_sequence(sequence: nn.Sequential, forward: Callable, inputs: torch.Tensor) -> torch.Tensor:
    """The same for a sequence of layers, segment by segment."""
    segment: list[nn.Module] = []
    for number, layer in enumerate(sequence, 1):
        segment.append(layer)
        if isinstance(layer, _POOLS) or number == len(sequence):
            inputs, segment = _checkpointed_forward(sequence, nn.Sequential(*segment).forward, inputs), []
    return inputs
