"""The memory of a training, estimated on the meta device without a GPU, and the least gradient checkpointing with which it fits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

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
    segments = checkpointed_segments(model.body, parts=parts) if parts else []
    sizes, marks = _saved_bytes(model, images, segments)
    peaks = [(first, sum(sizes[first:last]), max(sizes[first:last], default=0)) for first, last in marks]
    if parts > 1 and not batchnorm_layers(model.body):
        peaks, sizes, marks = [(0, sum(sizes), max(sizes))], [images.nbytes], [(1, 1)]
    elif segments:
        checkpoint_blocks(model.body, parts=parts)
        sizes, marks = _saved_bytes(model, images, segments)
    # Saved tensors are there until the backward pass has reached them; a block that is computed again adds its own.
    totals = list(accumulate(sizes, initial=0))
    peak = max(total + (LIVE_GRADIENTS - 1) * size for total, size in zip(totals, [*sizes, 0], strict=True))
    for (first, _), (_, in_block, largest) in zip(marks, peaks, strict=True):
        peak = max(peak, totals[first] + max(LIVE_GRADIENTS * largest, (in_block + LIVE_GRADIENTS * largest) / parts + largest * (parts > 1)))
    weights = sum(weight.numel() for weight in model.parameters())
    prepared = 4 * images.numel()
    return TrainingMemory(weights=4 * (3 + averaged) * weights, optimizer=4 * OPTIMIZER_STATES[optimizer] * weights, activations=sum(sizes) + prepared,
                          temporary=int(peak) - sum(sizes))


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


def _saved_bytes(model: Classifier, images: torch.Tensor, segments: Sequence[tuple[nn.Module, nn.Module]] = ()) -> tuple[list[int], list[tuple[int, int]]]:
    """Bytes of each storage that one forward pass saves for the backward pass, in order, including weights that were cast.

    And how many there were when each of `segments` began, with its first module, and ended, with its last.
    """
    storages: dict[int, int] = {}
    begun, ended = [], []
    weights = {weight.untyped_storage()._cdata for weight in model.parameters() if weight.dtype == torch.float32}
    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            storages.setdefault(storage._cdata, storage.nbytes())
        return tensor
    handles = [handle for first, last in segments for handle in (
        first.register_forward_pre_hook(lambda module, inputs: begun.append(len(storages))),
        last.register_forward_hook(lambda module, inputs, output: ended.append(len(storages))))]
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        logits = model.classify(model.embed(images))
    for handle in handles:
        handle.remove()
    assert logits.requires_grad  # its graph still holds all saved tensors
    return list(storages.values()), list(zip(begun, ended, strict=True))
