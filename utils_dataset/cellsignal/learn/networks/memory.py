"""The memory of a training, estimated on the meta device without a GPU, and the least gradient checkpointing with which it fits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from cellsignal.learn.networks.batchnorm import batchnorm_layers
from cellsignal.learn.networks.checkpointing import checkpoint_blocks, checkpointed_segments
from cellsignal.learn.networks.classifier import Classifier
from cellsignal.learn.settings import NetworkSettings
from cellsignal.tasks import RXRX1

OPTIMIZER_STATES = {"adam": 3, "adamw": 2, "sgd": 1, "radam": 2}  # numbers that an optimiser stores for each weight
DTYPE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
CONTEXT_BYTES = 2**29  # CUDA context and kernels
WORKSPACE_BYTES = 2**30  # workspace of convolutions; an assumption, not measured
LIVE_GRADIENTS = 3  # simultaneous gradients of the size of the largest tensor
FRAGMENTATION = 0.1  # share of memory lost between blocks


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of a training, by purpose; an estimate, which no GPU has confirmed."""

    weights: int  # with their gradients and the copy of the selected ones
    optimizer: int
    activations: int  # saved for the backward pass
    temporary: int  # while a layer or a block is computed
    context: int = CONTEXT_BYTES
    workspace: int = WORKSPACE_BYTES

    @property
    def tensors(self) -> int:
        """The bytes of all tensors, which are what a CPU needs too."""
        return self.weights + self.optimizer + self.activations + self.temporary

    @property
    def total(self) -> int:
        """The memory of a GPU: tensors and workspace, with fragmentation, and the context."""
        return int((1 + FRAGMENTATION) * (self.tensors + self.workspace) + self.context)


@cache
def training_memory(backbone: str, *, size: int, batch_size: int, channels: int = len(RXRX1.channels), classes: int = 1108, precision: str = "fp16",
                    optimizer: str = "adam", averaged: bool = False, parts: int = 0) -> TrainingMemory:
    """Estimate for one batch of square images of `size` px, from one forward pass on the meta device.

    Weights, gradients and moments are fp32; convolutions and matrix products compute and save in `precision`. `averaged`: with
    a moving average of the weights. `parts`: of gradient checkpointing (`checkpointing.checkpoint_blocks`).
    """
    with torch.device("meta"):
        model = Classifier(NetworkSettings(backbone=backbone), channels=channels, classes=classes).train()
        images = torch.empty(batch_size, channels, size, size, dtype=_cast_layers(model, precision)).to(memory_format=torch.channels_last)
    block_bytes = 0
    with _record_saved_bytes(checkpointed_segments(model.body) if parts else []) as saved:
        sizes = _saved_bytes(model, images)
    largest = max(sizes)
    if parts > 1 and not list(batchnorm_layers(model.body)):
        block_bytes, sizes, largest = sum(sizes) // parts, [images.nbytes], largest // parts
    elif saved:
        block_bytes = max(saved) // parts
        checkpoint_blocks(model.body)
        sizes = _saved_bytes(model, images)
    weights = sum(weight.numel() for weight in model.parameters())
    prepared = 4 * images.numel()
    return TrainingMemory(weights=4 * (3 + averaged) * weights, optimizer=4 * OPTIMIZER_STATES[optimizer] * weights, activations=sum(sizes) + prepared,
                          temporary=block_bytes + LIVE_GRADIENTS * largest)


def fitting_parts(memory: float, batch_size: int, bytes_in: Callable[[int], float]) -> int:
    """The least parts of gradient checkpointing, 0 for none, with which a training fits into `memory` bytes; `bytes_in(parts)` is its need.

    Where nothing fits, as many parts as a batch has sites.
    """
    parts = 0
    while parts < batch_size and bytes_in(parts) > memory:
        parts = min(2 * parts, batch_size) if parts else 1
    return parts


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
def _record_saved_bytes(segments: list[tuple[nn.Module, nn.Module]]) -> Iterator[list[int]]:
    """Yields a list that grows by the bytes that each of `segments`, from its first to its last module, saves in a forward pass."""
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
    handles = [handle for first, last in segments for handle in (first.register_forward_pre_hook(enter), last.register_forward_hook(leave))]
    try:
        yield saved
    finally:
        for handle in handles:
            handle.remove()
