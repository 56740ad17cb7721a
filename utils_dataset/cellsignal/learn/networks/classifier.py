"""Networks: a backbone on any number of channels, with heads that can be exchanged, and what they are told beside images."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from cellsignal.errors import InputError
from cellsignal.files import sha256, write_bytes
from cellsignal.learn.networks.backbones import backbone as named
from cellsignal.learn.networks.heads import Head
from cellsignal.learn.settings import NetworkSettings
from cellsignal.receipts import Receipt
from cellsignal.tasks import RXRX1

HEAD = "head."
OPTIONS = ("heads", "cosine_head", "dropout", "standardise", "control_features")  # of the settings, in the JSON beside weights
LEAST = 1e-3  # grey values: a channel that is all black has no spread to divide by


class Classifier(nn.Module):
    """A body that turns sites, as they are stored, into features, and a head that names the siRNA.

    `prepare`, `embed` and `classify` are the three steps of a call. `settings.standardise`: "none" (grey values / 255), "image"
    (z-scores of each image and channel, as Sypetkowski did), or "plate" and "experiment" (by given moments,
    `standardise.channel_stats`); the head's settings: `heads.Head`. `levels`: of each of `settings.covariates`, as
    `covariates.covariate_levels` gives them; the head sees them as one-hots (`covariates.encode`). `origin` says where the weights
    come from: their seed, or the SHA-256 of the file they were read from; `history` holds the epochs that made them.
    """

    def __init__(self, settings: NetworkSettings, *, channels: int, classes: int, seed: int = 0,
                 levels: Mapping[str, Sequence[str]] = {}) -> None:
        super().__init__()
        self.settings, self.channels, self.classes, self.origin = settings, channels, classes, f"seed {seed}"
        self.covariates = {name: list(known) for name, known in levels.items()}
        self.history: list[dict] = []
        if set(levels) != set(settings.covariates):
            what = f"covariates are {', '.join(settings.covariates) or 'none'}, and levels are given of {', '.join(levels) or 'none'}"
            raise InputError(what, where="covariates", cure="give covariate_levels(sites, settings.covariates) as levels")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            kind = named(settings.backbone)
            self.body, self.features = kind.build(channels)
            self.smallest = kind.smallest
            self.head = Head(settings, self.features, classes, levels=self.covariates)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor, covariates: torch.Tensor | None = None, moments: torch.Tensor | None = None,
                references: tuple[torch.Tensor, torch.Tensor] | None = None) -> torch.Tensor:
        """Logits [N, classes] of images as they are stored; see `prepare` and `classify` for what goes with them."""
        return self.classify(self.embed(self.prepare(images, moments)), covariates, references)

    def prepare(self, images: torch.Tensor, moments: torch.Tensor | None = None, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """What the body sees, float[N, C, H, W], channels last, from uint8, or floats on the same 0-255 scale.

        `moments`: mean and standard deviation by channel, float[N, C, 2], in 8-bit units, on any device. `out`: memory to
        use again for the answer, of its shape, kind and order.
        """
        if out is None:
            # Channels last is the order in which convolutions are fast, on CPUs and GPUs alike.
            out = torch.empty(images.shape, dtype=self.dtype, device=images.device, memory_format=torch.channels_last)
        seen = out.copy_(images)
        if self.settings.standardise == "none":
            return seen.div_(255)
        if self.settings.standardise == "image":
            variance, mean = torch.var_mean(seen, dim=(2, 3), keepdim=True, correction=0)
            return seen.sub_(mean).div_(variance.sqrt().clamp(min=LEAST))
        given = self._given(moments).to(seen.device, seen.dtype, non_blocking=True)
        mean, spread = given[..., None, None].unbind(2)
        return seen.sub_(mean).div_(spread.clamp(min=LEAST))

    def _given(self, moments: torch.Tensor | None) -> torch.Tensor:
        if moments is None:
            raise InputError(f"this network wants images standardised by {self.settings.standardise}", where="moments",
                             cure="give it the moments, or train one with standardise: none")
        return moments

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights, and of the images that the body sees."""
        return next(self.parameters()).dtype

    def embed(self, prepared: torch.Tensor) -> torch.Tensor:
        """Pooled features [N, F] of prepared images; InputError when those are too small for the backbone."""
        if min(prepared.shape[-2:]) < self.smallest:
            raise InputError(f"images of {min(prepared.shape[-2:])} px vanish in the {self.settings.backbone}", where="images",
                             cure=f"use images of {self.smallest} px or more")
        return self.body(prepared)

    def classify(self, features: torch.Tensor, covariates: torch.Tensor | None = None,
                 references: tuple[torch.Tensor, torch.Tensor] | None = None) -> torch.Tensor:
        """Logits [N, classes] of features; covariates float[N, D] and `references`, two of [F] or [N, F], on any device.

        Covariates may be shares of levels, where sites are mixed. They and references are read only when built for.
        """
        wanted = sum(map(len, self.covariates.values()))
        if not self.covariates:
            covariates = None
        elif covariates is None or covariates.shape != (len(features), wanted):
            what = f"this network wants to know {', '.join(self.covariates)} of each site"
            raise InputError(what, where="covariates", cure="give it covariates.encode(sites, model.covariates), or train one without")
        return self.head(features, covariates, references)

    def cosines(self, features: torch.Tensor) -> torch.Tensor:
        """Cosines of features and the prototypes of the classes, [N, classes]; InputError without a cosine head."""
        return self.head.cosines(features)


@dataclass(frozen=True)
class ModelConfig:
    """What the JSON beside the weights says: how to rebuild the network and what its outputs mean."""

    backbone: str
    channels: int
    class_numbers: list[int]  # output i of the network is siRNA class_numbers[i]
    well_types: list[str]  # the kinds of wells whose sites filled its training batches
    scope: str = "plate"  # what a training batch came from: one plate, one experiment, or anywhere (mixed)
    covariates: dict[str, list[str]] = field(default_factory=dict)
    heads: str = "shared"
    cosine_head: str = "none"
    dropout: float = 0.0
    standardise: str = "none"
    control_features: bool = False
    task: str = RXRX1.name

    @classmethod
    def of(cls, model: Classifier, **facts: Any) -> "ModelConfig":
        """The card of a network; `facts` are those that it does not know: class_numbers, well_types, scope, task."""
        options = {name: getattr(model.settings, name) for name in OPTIONS}
        return cls(backbone=model.settings.backbone, channels=model.channels, covariates=model.covariates, **options, **facts)

    def network(self) -> Classifier:
        """The network, its weights still to be filled in."""
        options = {name: getattr(self, name) for name in OPTIONS}
        settings = NetworkSettings(backbone=self.backbone, covariates=list(self.covariates), **options)
        return Classifier(settings, channels=self.channels, classes=len(self.class_numbers), levels=self.covariates)


AGAIN = "train again; older versions wrote other weights"
NEEDED = {each.name for each in fields(ModelConfig) if each.default is MISSING and each.default_factory is MISSING} | {"scope"}


def save_weights(path: Path, state: dict[str, torch.Tensor], card: ModelConfig, *, identity: Mapping[str, Any] | None = None, **facts: object) -> str:
    """Write weights as safetensors and, last, their receipt, a JSON with card and facts among its details; gives their SHA-256."""
    write_bytes(path, save({name: tensor.contiguous() for name, tensor in state.items()}))
    digest = sha256(path)
    Receipt(path.with_suffix(".json"), identity or {}, {path.name: digest}, details={**vars(card), **facts}).write()
    return digest


def load_weights(path: Path, *, channels: int | None = None) -> tuple[Classifier, ModelConfig]:
    """Rebuild a network from its weights and JSON.

    Raises InputError when a file is missing, the JSON is damaged or lacks a fact, the network takes another number of channels
    than `channels`, where that is given, or the weights' SHA-256 differs from the one on record: safetensors itself carries no
    checksum, and a flipped bit would load in silence.
    """
    receipt = _receipt(path)
    check_sha256(path, recorded_sha256(receipt))
    card = _config(receipt)
    if channels not in (None, card.channels):
        raise InputError(f"this network takes {card.channels} channels, and a site has {channels}", where=path, cure="train it again")
    model = card.network()
    try:
        model.load_state_dict(read_tensors(path))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"does not fit the network that its JSON describes ({reason})", where=path, cure="train again") from None
    model.origin, model.history = recorded_sha256(receipt), list(receipt.details.get("history", []))
    return model, card


def read_tensors(path: Path, *, cure: str = "train again") -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file; InputError when it is damaged."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"is no safetensors file ({error})", where=path, cure=cure) from None


def read_config(path: Path) -> ModelConfig:
    """What the JSON beside the weights `path` says of them; InputError when it is missing, damaged or lacks a fact."""
    return _config(_receipt(path))


def _receipt(path: Path) -> Receipt:
    if not path.with_suffix(".json").exists():
        raise InputError("no such weights", where=path, cure=f"run {_kernel(path)}, which writes them")
    receipt = Receipt.read(path.with_suffix(".json"), cure=AGAIN)
    if absent := sorted(NEEDED - receipt.details.keys()):
        raise InputError(f"does not say {', '.join(absent)}", where=receipt.path, cure=AGAIN)
    recorded_sha256(receipt)
    return receipt


def recorded_sha256(receipt: Receipt) -> str:
    """SHA-256 of the weights that a receipt is about; InputError when it is about none, or about several files."""
    if len(receipt.outputs) != 1:
        raise InputError("does not say one file's SHA-256", where=receipt.path, cure=AGAIN)
    return next(iter(receipt.outputs.values()))


def _kernel(path: Path) -> str:
    """The notebook that trains the weights of this name."""
    if path.parent.name.startswith("fold-"):
        return "protein-atlas"
    return "2-pretrain-controls" if path.stem.startswith("pretrain") else "3-train-cell-type"


def _config(receipt: Receipt) -> ModelConfig:
    """Older cards say less: what they do not say did not exist."""
    return ModelConfig(**{each.name: receipt.details[each.name] for each in fields(ModelConfig) if each.name in receipt.details})


def load_body(model: Classifier, path: Path) -> str:
    """Take every weight but the head's from `path`: how controls teach treatments (Brodt's solution).

    Their history becomes the network's. Returns the SHA-256 of the weights taken. Raises InputError when they do not fit.
    """
    trained, _ = load_weights(path)
    body = {name: tensor for name, tensor in trained.state_dict().items() if not name.startswith(HEAD)}
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(HEAD)}
    if {name: tensor.shape for name, tensor in body.items()} != {name: tensor.shape for name, tensor in own.items()}:
        raise InputError(f"these weights of a {trained.settings.backbone} do not fit the {model.settings.backbone}", where=path,
                         cure="pretrain and train with the same backbone and channels")
    model.load_state_dict(body, strict=False)
    model.origin, model.history = trained.origin, trained.history
    return trained.origin


def check_sha256(path: Path, expected: str) -> None:
    """Raise InputError when `path` is missing or is not the file that was recorded."""
    if not path.is_file():
        raise InputError("no such weights", where=path, cure=f"run {_kernel(path)}, which writes them")
    if sha256(path) != expected:
        cure = "delete it and train again, or restore the original"
        raise InputError("the file differs from the SHA-256 on record", where=path, cure=cure)
