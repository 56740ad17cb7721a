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
from cellsignal.learn.settings import NetworkSettings, TrainingSettings
from cellsignal.tasks import RXRX1

OPTIMIZER_STATES = {"adam": 3, "adamw": 2, "sgd": 1, "radam": 2}  # numbers that an optimiser stores for each weight
DTYPE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
CONTEXT_BYTES = 2**29  # CUDA context and kernels
WORKSPACE_BYTES = 2**30  # workspace of convolutions; an assumption, not measured
LIVE_GRADIENTS = 3  # simultaneous gradients of the size of the largest tensor
LIVE_IN_FORWARD = 2  # of these while nothing is saved: a layer's input and output
SMALL_BATCH_PIXELS = 2**18  # batches of so few pixels, 64 sites of 64 px, train in at most 2 GB, and nothing is estimated
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


def training_memory(backbone: str, *, size: int, batch_size: int, channels: int = len(RXRX1.channels), classes: int = 1108, precision: str = "fp16",
                    training: TrainingSettings = TrainingSettings(), parts: int = 0) -> TrainingMemory:
    """Estimate for one batch of square images of `size` px, from a forward pass on the meta device.

    Weights, gradients and moments are fp32; convolutions and matrix products compute and save in `precision`.
    `training`: tells the optimiser, and whether weights are averaged. `parts`: of gradient checkpointing (`checkpointing.checkpoint_blocks`).
    """
    weights, sizes, blocks = _saved_by_network(backbone, size, batch_size, channels, classes, precision, min(parts, 2))
    # Saved tensors are there until the backward pass has reached them; a block that is computed again adds its own.
    totals = list(accumulate(sizes, initial=0))
    peak = max(total + (LIVE_GRADIENTS - 1) * saved for total, saved in zip(totals, [*sizes, 0], strict=True))
    for before, in_block, largest in blocks:
        # In parts, the gradient by the whole input is summed, unless the input is the images, which are saved first.
        in_part = (in_block + LIVE_GRADIENTS * largest) / parts + largest * (parts > 1 and before > 1)
        peak = max(peak, totals[before] + max(in_part, LIVE_IN_FORWARD * largest))
    return TrainingMemory(weights=4 * (3 + bool(training.ema_decay)) * weights, optimizer=4 * OPTIMIZER_STATES[training.optimizer] * weights,
                          activations=sum(sizes) + 4 * batch_size * channels * size**2, temporary=int(peak) - sum(sizes))


@cache
def _saved_by_network(backbone: str, size: int, batch_size: int, channels: int, classes: int, precision: str,
                      parts: int) -> tuple[int, list[int], list[tuple[int, int, int]]]:
    """The number of weights, and the bytes of each storage that a forward pass saves, in order; 2 parts stand for any number.

    And for each block that is computed again: how many of these were saved before, the bytes that it saves itself, and the largest.
    """
    with torch.device("meta"):
        model = Classifier(NetworkSettings(backbone=backbone), channels=channels, classes=classes).train()
        images = torch.empty(batch_size, channels, size, size, dtype=_cast_layers(model, precision)).to(memory_format=torch.channels_last)
    segments = checkpointed_segments(model.body, parts=parts) if parts else []
    sizes, marks = _saved_bytes(model, images, segments)
    weights = sum(weight.numel() for weight in model.parameters())
    if parts > 1 and not batchnorm_layers(model.body):
        return weights, [images.nbytes], [(1, sum(sizes), max(sizes))]
    if not segments:
        return weights, sizes, []
    inner = [sizes[first:last] for first, last in marks]
    checkpoint_blocks(model.body, parts=parts)
    sizes, marks = _saved_bytes(model, images, segments)
    return weights, sizes, [(first, sum(saved), max(saved, default=0)) for (first, _), saved in zip(marks, inner, strict=True)]


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
