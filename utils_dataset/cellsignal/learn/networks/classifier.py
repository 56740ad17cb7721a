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
from cellsignal.learn.networks.heads import COSINES, HEADS, Head
from cellsignal.learn.networks.standardise import STANDARDISE
from cellsignal.receipts import Receipt
from cellsignal.tasks import RXRX1

HEAD = "head."
OPTIONS = ("covariates", "heads", "cosine", "dropout", "standardise", "control_features")
LEAST = 1e-3  # grey values: a channel that is all black has no spread to divide by


class Classifier(nn.Module):
    """A body that turns sites, as they are stored, into features, and a head that names the siRNA.

    `prepare`, `embed` and `classify` are the three steps of a call. `covariates`: levels by name, as `covariates.levels`
    gives them; the head is told them as one-hots (`covariates.encode`). `heads`, `cosine`, `dropout` and `control_features`
    are the head's (`heads.Head`). `standardise`: "none" (grey values / 255), "image" (z-scores of each image and channel,
    as Sypetkowski did), or "plate" and "experiment" (by given moments, `standardise.moments`). `origin` says where the
    weights come from: their seed, or the SHA-256 of the file they were read from. Raises InputError for what does not go together.
    """

    def __init__(self, backbone: str, *, channels: int, classes: int, seed: int = 0, covariates: Mapping[str, Sequence[str]] = {},
                 heads: str = "shared", cosine: str = "none", dropout: float = 0.0, standardise: str = "none",
                 control_features: bool = False) -> None:
        super().__init__()
        self.backbone, self.channels, self.classes, self.origin = backbone, channels, classes, f"seed {seed}"
        self.covariates = {name: list(known) for name, known in covariates.items()}
        self.heads, self.cosine, self.dropout = heads, cosine, float(dropout)
        self.standardise, self.control_features = standardise, control_features
        self._check()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            kind = named(backbone)
            self.body, self.features = kind.build(channels)
            self.smallest = kind.smallest
            self.head = self._head()
        self.to(memory_format=torch.channels_last)

    def _check(self) -> None:
        choices = {"heads": HEADS, "cosine": COSINES, "standardise": STANDARDISE}
        for knob, known in choices.items():
            if (value := getattr(self, knob)) not in known:
                raise InputError(f"{value!r} is no kind of {knob}", where=knob, cure=f"use one of: {', '.join(known)}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"a dropout of {self.dropout}", where="dropout", cure="give a share from 0 to below 1")
        if self.heads != "shared" and "cell_type" not in self.covariates:
            raise InputError("heads for each cell type want to know it", where="heads", cure="add cell_type to covariates")
        if self.cosine == "alone" and (self.heads != "shared" or self.covariates or self.control_features):
            raise InputError("a cosine head alone answers by the image's features", where="cosine",
                             cure="use cosine: beside, or leave out covariates, control_features and other heads")

    def _head(self) -> Head:
        sizes = {name: len(known) for name, known in self.covariates.items()}
        names = list(sizes)
        first = sum(sizes[name] for name in names[:names.index("cell_type")]) if "cell_type" in names else 0
        return Head(self.features, self.classes, covariates=sum(sizes.values()), kind=self.heads, cell_types=sizes.get("cell_type", 0),
                    first=first, cosine=self.cosine, dropout=self.dropout, control_features=self.control_features)

    @property
    def options(self) -> dict[str, Any]:
        """What it was built with beside backbone, channels, classes and seed."""
        return {name: getattr(self, name) for name in OPTIONS}

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
        if self.standardise == "none":
            return seen.div_(255)
        if self.standardise == "image":
            variance, mean = torch.var_mean(seen, dim=(2, 3), keepdim=True, correction=0)
            return seen.sub_(mean).div_(variance.sqrt().clamp(min=LEAST))
        given = self._given(moments).to(seen.device, seen.dtype, non_blocking=True)
        mean, spread = given[..., None, None].unbind(2)
        return seen.sub_(mean).div_(spread.clamp(min=LEAST))

    def _given(self, moments: torch.Tensor | None) -> torch.Tensor:
        if moments is None:
            raise InputError(f"this network wants images standardised by {self.standardise}", where="moments",
                             cure="give it the moments, or train one with standardise: none")
        return moments

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights, and of the images that the body sees."""
        return next(self.parameters()).dtype

    def embed(self, prepared: torch.Tensor) -> torch.Tensor:
        """Pooled features [N, F] of prepared images; InputError when those are too small for the backbone."""
        if min(prepared.shape[-2:]) < self.smallest:
            raise InputError(f"images of {min(prepared.shape[-2:])} px vanish in the {self.backbone}", where="images",
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
    cosine: str = "none"
    dropout: float = 0.0
    standardise: str = "none"
    control_features: bool = False
    task: str = RXRX1.name

    @classmethod
    def of(cls, model: Classifier, **facts: Any) -> "ModelConfig":
        """The card of a network; `facts` are those that it does not know: class_numbers, well_types, scope, task."""
        return cls(backbone=model.backbone, channels=model.channels, **model.options, **facts)

    def network(self) -> Classifier:
        """The network, its weights still to be filled in."""
        options = {name: getattr(self, name) for name in OPTIONS}
        return Classifier(self.backbone, channels=self.channels, classes=len(self.class_numbers), **options)


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
    model.origin = recorded_sha256(receipt)
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
    if not path.is_file():
        raise InputError("no such weights", where=path, cure=f"run {_kernel(path)}, which writes them")
    if sha256(path) != expected:
        cure = "delete it and train again, or restore the original"
        raise InputError("the file differs from the SHA-256 on record", where=path, cure=cure)
