"""The GPU memory of a training: saved by gradient checkpointing, and estimated on the meta device, without a GPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from cellsignal.learn.networks.batchnorm import batchnorm_layers
from cellsignal.learn.networks.classifier import Classifier
from cellsignal.learn.settings import NetworkSettings
from cellsignal.tasks import RXRX1

# Gradient checkpointing: blocks of a network store only their inputs and are computed again in the backward pass.

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


OPTIMIZER_STATES = {"adam": 3, "adamw": 2, "sgd": 1, "radam": 2}  # numbers that an optimiser stores for each weight
DTYPE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
CONTEXT_BYTES = 2**29  # CUDA context and kernels
WORKSPACE_BYTES = 2**30  # workspace of convolutions; an assumption, not measured
LIVE_GRADIENTS = 3  # simultaneous gradients of the size of the largest tensor
FRAGMENTATION = 0.1  # share of memory lost between blocks


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of a training, by purpose; an estimate, which no GPU has confirmed."""

    weights: int  # and their gradients
    optimizer: int
    activations: int  # saved for the backward pass
    temporary: int  # while a layer is computed
    context: int = CONTEXT_BYTES

    @property
    def total(self) -> int:
        """The sum, with fragmentation."""
        return int((1 + FRAGMENTATION) * (self.weights + self.optimizer + self.activations + self.temporary) + self.context)


def training_memory(backbone: str, *, size: int, batch_size: int, channels: int = len(RXRX1.channels), classes: int = 1108, precision: str = "fp16",
                    optimizer: str = "adam", gradient_checkpointing: bool = False) -> TrainingMemory:
    """Estimate for one batch of square images of `size` px, from one forward pass on the meta device.

    Weights, gradients and moments are fp32; convolutions and matrix products compute and save in `precision`.
    """
    with torch.device("meta"):
        model = Classifier(NetworkSettings(backbone=backbone), channels=channels, classes=classes).train()
        images = torch.empty(batch_size, channels, size, size, dtype=_cast_layers(model, precision)).to(memory_format=torch.channels_last)
    block_activations = 0
    if gradient_checkpointing and (blocks := checkpointed_blocks(model.body)):
        with _record_saved_bytes(blocks) as saved:
            _saved_bytes(model, images)
        block_activations = max(saved)
        checkpoint_blocks(model.body)
    sizes = _saved_bytes(model, images)
    weights = sum(weight.numel() for weight in model.parameters())
    prepared = 4 * images.numel()
    return TrainingMemory(weights=8 * weights, optimizer=4 * OPTIMIZER_STATES[optimizer] * weights, activations=sum(sizes) + prepared,
                          temporary=block_activations + LIVE_GRADIENTS * max(sizes) + WORKSPACE_BYTES)


def _cast_layers(model: Classifier, precision: str) -> torch.dtype:
    """Cast layers as autocast does: `precision` for layers of weights, fp32 for norms; returns the type of the former."""
    dtype = {2: torch.float16, 4: torch.float32}[DTYPE_BYTES[precision]]
    for layer in (*model.body.modules(), model.head):
        if isinstance(layer, (nn.Conv2d, nn.Linear)) or layer is model.head:
            layer.to(dtype)
    return dtype


def _saved_bytes(model: Classifier, images: torch.Tensor) -> list[int]:
    """Bytes of each storage that one forward pass saves for the backward pass, including weights that were cast."""
    storages: dict[int, int] = {}
    with torch.autograd.graph.saved_tensors_hooks(_counting_hook(model, storages), lambda tensor: tensor):
        logits = model.classify(model.embed(images))
    assert logits.requires_grad  # its graph still holds all saved tensors
    return list(storages.values())


def _counting_hook(model: nn.Module, storages: dict[int, int]) -> Callable[[torch.Tensor], torch.Tensor]:
    """A hook that records the bytes of each storage once, except those of fp32 weights."""
    weights = {weight.untyped_storage()._cdata for weight in model.parameters() if weight.dtype == torch.float32}
    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            storages[storage._cdata] = storage.nbytes()
        return tensor
    return count


@contextmanager
def _record_saved_bytes(modules: list[nn.Module]) -> Iterator[list[int]]:
    """Yields a list that grows by the bytes that each of `modules` saves in a forward pass."""
    saved: list[int] = []
    open_hooks: list = []
    def enter(module: nn.Module, inputs: tuple) -> None:
        storages: dict[int, int] = {}
        hook = torch.autograd.graph.saved_tensors_hooks(_counting_hook(module, storages), lambda tensor: tensor)
        hook.__enter__()
        open_hooks.append((hook, storages))
    def leave(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        hook, storages = open_hooks.pop()
        hook.__exit__(None, None, None)
        saved.append(sum(storages.values()))
    handles = [handle for module in modules for handle in (module.register_forward_pre_hook(enter), module.register_forward_hook(leave))]
    try:
        yield saved
    finally:
        for handle in handles:
            handle.remove()
