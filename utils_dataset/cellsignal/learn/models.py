"""Backbones by name, on any number of channels, with a head that can be exchanged."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import nn
from torch.nn import functional
from torchvision.models import DenseNet

from cellsignal.errors import InputError
from cellsignal.files import read_json, sha256, write_bytes, write_json


def densenet121(channels: int) -> tuple[nn.Module, int]:
    """DenseNet121 (Huang et al. 2017), the backbone of Brodt's solution: the body and its number of features."""
    return _densenet(channels, growth_rate=32, block_config=(6, 12, 24, 16), num_init_features=64)


def densenet_small(channels: int) -> tuple[nn.Module, int]:
    """A DenseNet of 0.3 M weights: the same anatomy at a price that a CPU core can pay."""
    return _densenet(channels, growth_rate=16, block_config=(2, 4, 6, 4), num_init_features=32)


def _densenet(channels: int, **anatomy: object) -> tuple[nn.Module, int]:
    body = DenseNet(**anatomy, num_classes=1)
    stem, features = body.features.conv0, body.classifier.in_features
    body.features.conv0 = nn.Conv2d(channels, stem.out_channels, stem.kernel_size, stem.stride, stem.padding, bias=False)
    nn.init.kaiming_normal_(body.features.conv0.weight)
    body.classifier = nn.Identity()
    return body, features


# Each takes a number of channels and gives a body, from float[N, C, H, W] to pooled features
# [N, F], and F. Nothing else here knows one architecture from another.
BACKBONES: dict[str, Callable[[int], tuple[nn.Module, int]]] = {
    "densenet121": densenet121,
    "densenet-small": densenet_small,
}


HEAD = "head."
SMALLEST = 32  # px; DenseNets halve their input five times


class Classifier(nn.Module):
    """A body that turns sites, as they are stored, into features, and a head that names the siRNA.

    Input: uint8[N, C, H, W], or floats on the same 0-255 scale. With `plates` > 0 the head is told,
    as a one-hot, on which of so many plates a site lies. Output: logits, [N, classes]. `origin` says
    where the weights come from: their seed, or the SHA-256 of the file they were read from.
    """

    def __init__(self, backbone: str, *, channels: int, classes: int, plates: int = 0, seed: int = 0) -> None:
        super().__init__()
        if backbone not in BACKBONES:
            known = ", ".join(BACKBONES)
            raise InputError(f"unknown backbone {backbone!r}", where="backbone", cure=f"use one of: {known}")
        self.backbone, self.channels, self.classes, self.plates = backbone, channels, classes, plates
        self.origin = f"seed {seed}"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.body, features = BACKBONES[backbone](channels)
            self.head = nn.Linear(features + plates, classes)
            nn.init.zeros_(self.head.bias)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor, plates: torch.Tensor | None = None) -> torch.Tensor:
        """`plates`: int64[N], from 0, on any device, or shares of the plates, float[N, plates]; read only when built with plates."""
        if min(images.shape[-2:]) < SMALLEST:
            raise InputError(f"images of {images.shape[-1]} px vanish in the {self.backbone}", where="images",
                             cure=f"use images of {SMALLEST} px or more")
        # Channels last is the order in which convolutions are fast, on CPUs and GPUs alike.
        features = self.body((images.float() / 255).contiguous(memory_format=torch.channels_last))
        if self.plates:
            features = torch.cat([features, self._one_hot(plates).to(features)], dim=1)
        return self.head(features)

    def _one_hot(self, plates: torch.Tensor | None) -> torch.Tensor:
        if plates is None:
            raise InputError("this network wants to know the plate of each site", where="plates",
                             cure="give it their indices, or train one without the plate input")
        if plates.is_floating_point():
            return plates
        # On a GPU the look at the values would wait for all work under way; there, callers answer for them.
        if plates.device.type == "cpu" and len(plates) and not 0 <= plates.min() <= plates.max() < self.plates:
            raise InputError(f"plate {plates.max().item() + 1} is none of the {self.plates} it was built for", where="plates",
                             cure="train with the plate input for as many plates as the data have")
        return functional.one_hot(plates, self.plates)


@dataclass(frozen=True)
class Card:
    """What the JSON beside the weights says: how to rebuild the network and what its outputs mean."""

    backbone: str
    channels: int
    class_numbers: list[int]  # output i of the network is siRNA class_numbers[i]
    well_types: list[str]  # the kinds of wells whose sites filled its training batches
    scope: str = "plate"  # what a training batch came from: one plate, one experiment, or anywhere (mixed)
    plates: int = 0  # how many plates the one-hot input tells apart; 0: there is none


NAMES = [field.name for field in fields(Card)]


def save_weights(path: Path, state: dict[str, torch.Tensor], card: Card, **facts: object) -> str:
    """Write weights as safetensors and, last, their JSON with card, facts and SHA-256, which is returned."""
    write_bytes(path, save({name: tensor.contiguous() for name, tensor in state.items()}))
    digest = sha256(path)
    write_json(path.with_suffix(".json"), {**vars(card), **facts, "sha256": digest})
    return digest


def load_weights(path: Path) -> tuple[Classifier, Card]:
    """Rebuild a network from its weights and JSON.

    Raises InputError when a file is missing, the JSON lacks a fact, or the weights' SHA-256 differs
    from the one on record: safetensors itself carries no checksum, and a flipped bit would load in silence.
    """
    facts = _facts(path)
    check_sha256(path, facts["sha256"])
    card = _card(facts)
    model = Classifier(card.backbone, channels=card.channels, classes=len(card.class_numbers), plates=card.plates)
    model.load_state_dict(load_file(path))
    model.origin = facts["sha256"]
    return model, card


def read_card(path: Path) -> Card:
    """What the JSON beside the weights `path` says of them; InputError when it is missing or lacks a fact."""
    return _card(_facts(path))


def _facts(path: Path) -> dict:
    facts = read_json(path.with_suffix(".json"))
    if not isinstance(facts, dict) or (absent := sorted({"sha256", *NAMES} - facts.keys())):
        what = f"does not say {', '.join(absent)}" if isinstance(facts, dict) else "does not describe weights"
        raise InputError(what, where=path.with_suffix(".json"), cure="train again; older versions wrote other weights")
    return facts


def _card(facts: dict) -> Card:
    return Card(**{name: facts[name] for name in NAMES})


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
    model.origin = trained.origin
    return trained.origin


def check_sha256(path: Path, expected: str) -> None:
    """Raise InputError when `path` is missing or is not the file that was recorded."""
    if not path.exists():
        raise InputError("no such weights", where=path, cure="run the training kernel that writes them")
    if sha256(path) != expected:
        cure = "delete it and train again, or restore the original"
        raise InputError("the file differs from the SHA-256 on record", where=path, cure=cure)
