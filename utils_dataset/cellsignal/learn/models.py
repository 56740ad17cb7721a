"""Backbones by name, on any number of channels, with a head that can be exchanged."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import nn
from torchvision.models import DenseNet

from cellsignal.errors import InputError
from cellsignal.files import read_json, sha256, write_bytes, write_json


def densenet121(classes: int) -> DenseNet:
    """DenseNet121 (Huang et al. 2017), the backbone of Brodt's solution."""
    return DenseNet(growth_rate=32, block_config=(6, 12, 24, 16), num_init_features=64, num_classes=classes)


def densenet_small(classes: int) -> DenseNet:
    """A DenseNet of 0.3 M weights: the same anatomy at a price that a CPU core can pay."""
    return DenseNet(growth_rate=16, block_config=(2, 4, 6, 4), num_init_features=32, num_classes=classes)


BACKBONES: dict[str, Callable[[int], DenseNet]] = {
    "densenet121": densenet121,
    "densenet-small": densenet_small,
}


HEAD = "network.classifier."
SMALLEST = 32  # px; DenseNets halve their input five times


class Classifier(nn.Module):
    """A backbone that reads sites as they are stored.

    Input: uint8[N, C, H, W], or floats on the same 0-255 scale. Output: logits, float32[N, classes].
    """

    def __init__(self, backbone: str, *, channels: int, classes: int, seed: int = 0) -> None:
        super().__init__()
        if backbone not in BACKBONES:
            known = ", ".join(BACKBONES)
            raise InputError(f"unknown backbone {backbone!r}", where="backbone", cure=f"use one of: {known}")
        self.backbone, self.channels, self.classes = backbone, channels, classes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = BACKBONES[backbone](classes)
            self._widen_stem(channels)
        self.to(memory_format=torch.channels_last)

    def _widen_stem(self, channels: int) -> None:
        stem = self.network.features.conv0
        self.network.features.conv0 = nn.Conv2d(
            channels, stem.out_channels, stem.kernel_size, stem.stride, stem.padding, bias=False
        )
        nn.init.kaiming_normal_(self.network.features.conv0.weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if min(images.shape[-2:]) < SMALLEST:
            raise InputError(f"images of {images.shape[-1]} px vanish in the {self.backbone}", where="images",
                             cure=f"use images of {SMALLEST} px or more")
        # Channels last is the order in which convolutions are fast, on CPUs and GPUs alike.
        return self.network((images.float() / 255).contiguous(memory_format=torch.channels_last))


@dataclass(frozen=True)
class Card:
    """What the JSON beside the weights says: how to rebuild the network and what its outputs mean."""

    backbone: str
    channels: int
    class_numbers: list[int]  # output i of the network is siRNA class_numbers[i]
    well_types: list[str]  # the kinds of wells whose sites filled its training batches


def save_weights(path: Path, state: dict[str, torch.Tensor], card: Card, **facts: object) -> None:
    """Write weights as safetensors and, last, their JSON with card, facts and SHA-256."""
    write_bytes(path, save({name: tensor.contiguous() for name, tensor in state.items()}))
    write_json(path.with_suffix(".json"), {**vars(card), **facts, "sha256": sha256(path)})


def load_weights(path: Path) -> tuple[Classifier, Card]:
    """Rebuild a network from its weights and JSON.

    Raises InputError when a file is missing or the weights' SHA-256 differs from the one on record:
    safetensors itself carries no checksum, and a flipped bit would load in silence.
    """
    facts = read_json(path.with_suffix(".json"))
    check_sha256(path, facts["sha256"])
    card = Card(**{field.name: facts[field.name] for field in fields(Card)})
    model = Classifier(card.backbone, channels=card.channels, classes=len(card.class_numbers))
    model.load_state_dict(load_file(path))
    return model, card


def load_body(model: Classifier, path: Path) -> str:
    """Take every weight but the head's from `path`: how controls teach treatments (Brodt's solution).

    Returns the SHA-256 of the weights taken. Raises InputError when they do not fit.
    """
    trained, _ = load_weights(path)
    body = {name: tensor for name, tensor in trained.state_dict().items() if not name.startswith(HEAD)}
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(HEAD)}
    if {name: tensor.shape for name, tensor in body.items()} != {name: tensor.shape for name, tensor in own.items()}:
        raise InputError(f"these weights of a {trained.backbone} do not fit the {model.backbone}", where=path,
                         cure="pretrain and train with the same backbone and channels")
    model.load_state_dict(body, strict=False)
    return sha256(path)


def check_sha256(path: Path, expected: str) -> None:
    """Raise InputError when `path` is missing or is not the file that was recorded."""
    if not path.exists():
        raise InputError("no such weights", where=path, cure="run the training kernel that writes them")
    if sha256(path) != expected:
        cure = "delete it and train again, or restore the original"
        raise InputError("the file differs from the SHA-256 on record", where=path, cure=cure)
