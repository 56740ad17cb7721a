"""What a training takes of a card's memory, estimated without one: tensors are counted that hold no numbers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from cellsignal.learn.networks.checkpointing import checkpoint_blocks as recomputed
from cellsignal.learn.networks.checkpointing import checkpointed_blocks
from cellsignal.learn.networks.classifier import Classifier
from cellsignal.learn.settings import NetworkSettings
from cellsignal.tasks import RXRX1

NUMBERS = {"adam": 3, "adamw": 2, "sgd": 1, "radam": 2}  # that an optimiser keeps for each weight
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
CONTEXT = 2**29  # of the driver and its kernels
WORKSPACE = 2**30  # that convolutions may take while they work; not measured
PASSING = 3  # gradients as large as the largest tensor that are there at once
SPARE = 0.1  # of all, lost between blocks of memory


@dataclass(frozen=True)
class Memory:
    """Bytes of a training, by what they are for; an estimate, which no card has confirmed."""

    weights: int  # and their gradients
    optimizer: int
    kept: int  # for the way back
    passing: int  # what is only there while a layer is at work
    context: int = CONTEXT

    @property
    def total(self) -> int:
        """All together, with what is lost between."""
        return int((1 + SPARE) * (self.weights + self.optimizer + self.kept + self.passing) + self.context)


def training_memory(backbone: str, *, size: int, batch_size: int, channels: int = len(RXRX1.channels), classes: int = 1108, precision: str = "fp16",
                    optimizer: str = "adam", recompute: bool = False) -> Memory:
    """Estimate for one batch of square images of `size` px; the network, without its numbers, is sent through once.

    Weights, gradients and moments are fp32; what convolutions and products work on and keep is in `precision`.
    """
    with torch.device("meta"):
        model = Classifier(NetworkSettings(backbone=backbone), channels=channels, classes=classes).train()
        images = torch.empty(batch_size, channels, size, size, dtype=_half(model, precision)).to(memory_format=torch.channels_last)
    inside, again = 0, len(checkpointed_blocks(model.body)) * recompute
    if again:
        with _watched(checkpointed_blocks(model.body)) as largest:
            _kept(model, images)
        inside = max(largest)
        recomputed(model.body)
    sizes = _kept(model, images)
    weights = sum(weight.numel() for weight in model.parameters())
    prepared = 4 * images.numel()
    return Memory(weights=8 * weights, optimizer=4 * NUMBERS[optimizer] * weights, kept=sum(sizes) + prepared,
                  passing=inside + PASSING * max(sizes) + WORKSPACE)


def _half(model: Classifier, precision: str) -> torch.dtype:
    """As under autocast: layers of weights work in `precision`, and norms keep fp32; returns the type of what they work on."""
    dtype = {2: torch.float16, 4: torch.float32}[BYTES[precision]]
    for layer in (*model.body.modules(), model.head):
        if isinstance(layer, (nn.Conv2d, nn.Linear)) or layer is model.head:
            layer.to(dtype)
    return dtype


def _kept(model: Classifier, images: torch.Tensor) -> list[int]:
    """Bytes of each piece of memory that one pass keeps for the way back, halves of weights among them."""
    pieces: dict[int, int] = {}
    with torch.autograd.graph.saved_tensors_hooks(_counting(model, pieces), lambda tensor: tensor):
        answer = model.classify(model.embed(images))
    assert answer.requires_grad  # its graph, which holds all of them, is still there
    return list(pieces.values())


def _counting(model: nn.Module, pieces: dict[int, int]) -> Callable[[torch.Tensor], torch.Tensor]:
    """A hook that notes each piece of memory once; fp32 weights are there anyway."""
    known = {weight.untyped_storage()._cdata for weight in model.parameters() if weight.dtype == torch.float32}
    def count(tensor: torch.Tensor) -> torch.Tensor:
        memory = tensor.untyped_storage()
        if memory._cdata not in known:
            pieces[memory._cdata] = memory.nbytes()
        return tensor
    return count


@contextmanager
def _watched(parts: list[nn.Module]) -> Iterator[list[int]]:
    """Notes what each of some parts keeps while it works."""
    kept: list[int] = []
    open_hooks: list = []
    def enter(part: nn.Module, inputs: tuple) -> None:
        pieces: dict[int, int] = {}
        hook = torch.autograd.graph.saved_tensors_hooks(_counting(part, pieces), lambda tensor: tensor)
        hook.__enter__()
        open_hooks.append((hook, pieces))
    def leave(part: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        hook, pieces = open_hooks.pop()
        hook.__exit__(None, None, None)
        kept.append(sum(pieces.values()))
    handles = [handle for part in parts for handle in (part.register_forward_pre_hook(enter), part.register_forward_hook(leave))]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()
