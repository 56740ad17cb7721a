"""The classifier: a backbone for any number of channels, its heads, and its files of weights."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn
from torch.nn import functional

from cellsignal.errors import InputError
from cellsignal.files import sha256, write_bytes
from cellsignal.learn.networks.backbones import get_backbone
from cellsignal.learn.settings import NetworkSettings
from cellsignal.receipts import Receipt
from cellsignal.tasks import RXRX1, TASKS

# Heads on pooled features: linear heads, one for all or one per cell type, and a cosine head.

COSINE_SCALE = 30.0  # from cosines to logits; ArcFace and CosFace are trained with a similar value


class Head(nn.Module):
    """Logits [N, classes] from features [N, F], covariates and the features of controls.

    `settings.heads`: "shared", one linear head; "cell_type", one for each cell type, selected by the covariates; "both", their
    sum. `settings.cosine_head`: "none", "auxiliary" (prototypes for the loss only: Sypetkowski) or "only" (the logits are
    COSINE_SCALE times the cosines). `settings.control_features`: the input is cat(x, x*p, x*n, x*p*n), where p and n are mean
    features of positive and negative controls (Brodt's list of what was not better). `levels`: of each covariate, by name.
    """

    def __init__(self, settings: NetworkSettings, features: int, classes: int, *, levels: Mapping[str, Sequence[str]] = {}) -> None:
        super().__init__()
        self.kind, self.cosine_head, self.control_features = settings.heads, settings.cosine_head, settings.control_features
        sizes, names = {name: len(values) for name, values in levels.items()}, list(levels)
        self.cell_types = sizes.get("cell_type", 0)
        self.cell_type_column = sum(sizes[name] for name in names[:names.index("cell_type")]) if "cell_type" in names else 0
        inputs = features * (4 if self.control_features else 1) + sum(sizes.values())
        self.dropout = nn.Dropout(settings.dropout)
        self.weight = self.bias = self.own_weight = self.own_bias = self.prototypes = None
        if self.cosine_head != "only" and self.kind != "cell_type":
            self.weight, self.bias = nn.Linear(inputs, classes).weight, nn.Parameter(torch.zeros(classes))
        if self.cosine_head != "only" and self.kind != "shared":
            self.own_weight = nn.Parameter(torch.stack([nn.Linear(inputs, classes).weight.detach() for _ in range(self.cell_types)]))
            self.own_bias = nn.Parameter(torch.zeros(self.cell_types, classes))
        if self.cosine_head != "none":
            self.prototypes = nn.Parameter(nn.init.xavier_uniform_(torch.empty(classes, features)))

    def forward(self, features: torch.Tensor, covariates: torch.Tensor | None = None,
                references: tuple[torch.Tensor, torch.Tensor] | None = None) -> torch.Tensor:
        """`covariates`: [N, D], shares for mixed sites; `references`: p and n, [F] or [N, F]."""
        if self.cosine_head == "only":
            return COSINE_SCALE * self.cosines(features)
        if not self.control_features:
            return self._linear(features, covariates)
        with torch.autocast(features.device.type, enabled=False):  # a product of three features overflows fp16 if each is above 40
            return self._linear(_control_features(features.to(next(self.parameters())), references), covariates)

    def _linear(self, features: torch.Tensor, covariates: torch.Tensor | None) -> torch.Tensor:
        inputs = self.dropout(features)
        if covariates is not None:
            inputs = torch.cat([inputs, covariates.to(inputs, non_blocking=True)], dim=1)
        if self.kind == "shared":
            return functional.linear(inputs, self.weight, self.bias)
        logits = self._cell_type_logits(inputs, covariates[:, self.cell_type_column:self.cell_type_column + self.cell_types].to(inputs, non_blocking=True))
        return logits if self.kind == "cell_type" else logits + functional.linear(inputs, self.weight, self.bias)

    def _cell_type_logits(self, inputs: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """Logits of the heads of the cell types, weighted by their shares; the share of unknown cell types is distributed evenly."""
        shares = shares + (1 - shares.sum(1, keepdim=True)) / self.cell_types
        logits = functional.linear(inputs, self.own_weight.flatten(0, 1), self.own_bias.flatten())
        return (logits.view(len(inputs), self.cell_types, -1) * shares[:, :, None]).sum(1)

    def cosines(self, features: torch.Tensor) -> torch.Tensor:
        """Cosines between features [N, F] and the prototypes of the classes, [N, classes]; fp32, because margins are small."""
        if self.prototypes is None:
            raise InputError("this network has no cosine head", where="cosine_head", cure='build it with cosine_head: "auxiliary" or "only"')
        with torch.autocast(features.device.type, enabled=False):
            return functional.linear(functional.normalize(features.to(self.prototypes)), functional.normalize(self.prototypes))


def _control_features(features: torch.Tensor, references: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
    if references is None:
        raise InputError("this network needs the controls of each site's plate", where="control_features",
                         cure="give it their mean features, or train one without control features")
    positive, negative = (reference.to(features) for reference in references)
    product = features * positive
    return torch.cat([features, product, features * negative, product * negative], dim=1)


HEAD_PREFIX = "head."
HEAD_OPTIONS = ("heads", "cosine_head", "dropout", "standardise", "control_features")  # settings that stand in the JSON beside the weights
MIN_DEVIATION = 1e-3  # grey values: an all-black channel has no standard deviation to divide by


class Classifier(nn.Module):
    """A body that computes features of sites from their stored images, and a head that computes logits of siRNAs.

    A call has three steps: `prepare`, `embed` and `classify`. `settings.standardise`: "none" (grey values / 255), "image"
    (z-scores of each image and channel, as in Sypetkowski's solution), or "plate" and "experiment" (by given channel statistics,
    `standardise.channel_stats`); for the settings of the head see `Head`. `levels`: the levels of each of
    `settings.covariates` (`covariates.covariate_levels`), which the head gets as one-hots (`covariates.encode_covariates`).
    `origin`: where the weights come from, their seed or the SHA-256 of their file; `history`: the epochs that trained them.
    """

    def __init__(self, settings: NetworkSettings, *, channels: int, classes: int, seed: int = 0,
                 levels: Mapping[str, Sequence[str]] = {}) -> None:
        super().__init__()
        self.settings, self.channels, self.classes, self.origin = settings, channels, classes, f"seed {seed}"
        self.covariates = {name: list(values) for name, values in levels.items()}
        self.history: list[dict] = []
        if set(levels) != set(settings.covariates):
            what = f"covariates are {', '.join(settings.covariates) or 'none'}, and levels are given for {', '.join(levels) or 'none'}"
            raise InputError(what, where="covariates", cure="give covariate_levels(sites, settings.covariates) as levels")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            backbone = get_backbone(settings.backbone)
            self.body, self.features = backbone.build(channels)
            self.min_image_size = backbone.min_image_size
            self.head = Head(settings, self.features, classes, levels=self.covariates)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor, covariates: torch.Tensor | None = None, channel_statistics: torch.Tensor | None = None,
                references: tuple[torch.Tensor, torch.Tensor] | None = None) -> torch.Tensor:
        """Logits [N, classes] of images as stored; for the other arguments see `prepare` and `classify`."""
        return self.classify(self.embed(self.prepare(images, channel_statistics)), covariates, references)

    def prepare(self, images: torch.Tensor, channel_statistics: torch.Tensor | None = None, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """The body's input, float[N, C, H, W], channels last, from uint8, or from floats on the same 0-255 scale.

        `channel_statistics`: mean and standard deviation of each channel, float[N, C, 2], in 8-bit units, on any device. `out`: a tensor
        of the right shape, type and memory format to reuse for the result. Raises InputError without those that it needs.
        """
        if out is None:
            # Convolutions are fastest on channels last, on CPUs and GPUs alike.
            out = torch.empty(images.shape, dtype=self.dtype, device=images.device, memory_format=torch.channels_last)
        prepared = out.copy_(images)
        if self.settings.standardise == "none":
            return prepared.div_(255)
        if self.settings.standardise == "image":
            variance, mean = torch.var_mean(prepared, dim=(2, 3), keepdim=True, correction=0)
            return prepared.sub_(mean).div_(variance.sqrt().clamp(min=MIN_DEVIATION))
        if channel_statistics is None:
            raise InputError(f"this network needs images standardised by {self.settings.standardise}", where="channel_statistics",
                             cure="give it the channel statistics, or train one with standardise: none")
        mean, deviation = channel_statistics.to(prepared.device, prepared.dtype, non_blocking=True)[..., None, None].unbind(2)
        return prepared.sub_(mean).div_(deviation.clamp(min=MIN_DEVIATION))

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights and of prepared images."""
        return next(self.parameters()).dtype

    def embed(self, prepared: torch.Tensor) -> torch.Tensor:
        """Pooled features [N, F] of prepared images; InputError if the backbone takes no images of their size."""
        if min(prepared.shape[-2:]) < self.min_image_size:
            raise InputError(f"images of {min(prepared.shape[-2:])} px are too small for the {self.settings.backbone}", where="images",
                             cure=f"use images of {self.min_image_size} px or more")
        try:
            return self.body(prepared)
        except AssertionError as error:  # how timm's transformers, made for one size, refuse others
            cure = "use images of the size that it was made for (wells.packed_size, augmentation.progressive_sizes), or another network.backbone"
            reason = str(error).partition("\n")[0].rstrip(".")
            raise InputError(f"the {self.settings.backbone} takes no images of {max(prepared.shape[-2:])} px ({reason})", where="images", cure=cure) from None

    def classify(self, features: torch.Tensor, covariates: torch.Tensor | None = None,
                 references: tuple[torch.Tensor, torch.Tensor] | None = None) -> torch.Tensor:
        """Logits [N, classes] of features, covariates float[N, D] and `references`, two of [F] or [N, F], on any device.

        Covariates of mixed sites are shares of levels. Covariates and references are ignored by a network without them; a
        network with covariates raises InputError without them.
        """
        width = sum(map(len, self.covariates.values()))
        if not self.covariates:
            covariates = None
        elif covariates is None or covariates.shape != (len(features), width):
            what = f"this network needs {', '.join(self.covariates)} of each site"
            raise InputError(what, where="covariates", cure="give it covariates.encode_covariates(sites, model.covariates), or train one without")
        return self.head(features, covariates, references)

    def cosines(self, features: torch.Tensor) -> torch.Tensor:
        """Cosines between features and the prototypes of the classes, [N, classes]; InputError without a cosine head."""
        return self.head.cosines(features)


@dataclass(frozen=True)
class ModelConfig:
    """The configuration in the JSON beside the weights: how to rebuild the network, and the meaning of its outputs."""

    backbone: str
    channels: int
    class_numbers: list[int]  # output i of the network is siRNA class_numbers[i]
    well_types: list[str]  # of the sites in its training batches
    scope: str = "plate"  # of a training batch: one plate, one experiment, or all sites (mixed)
    covariates: dict[str, list[str]] = field(default_factory=dict)
    heads: str = "shared"
    cosine_head: str = "none"
    dropout: float = 0.0
    standardise: str = "none"
    control_features: bool = False
    task: str = RXRX1.name

    @classmethod
    def from_model(cls, model: Classifier, **facts: Any) -> "ModelConfig":
        """The configuration of a network; `facts` are the fields that it does not hold: class_numbers, well_types, scope, task."""
        options = {name: getattr(model.settings, name) for name in HEAD_OPTIONS}
        return cls(backbone=model.settings.backbone, channels=model.channels, covariates=model.covariates, **options, **facts)

    def build(self, *, seed: int = 0) -> Classifier:
        """The network with the random weights of a seed, before others are loaded."""
        options = {name: getattr(self, name) for name in HEAD_OPTIONS}
        settings = NetworkSettings(backbone=self.backbone, covariates=list(self.covariates), **options)
        return Classifier(settings, channels=self.channels, classes=len(self.class_numbers), seed=seed, levels=self.covariates)


TRAIN_AGAIN = "train again; older versions wrote other weights"
REQUIRED_KEYS = {item.name for item in fields(ModelConfig) if item.default is MISSING and item.default_factory is MISSING} | {"scope"}


def save_weights(path: Path, state: dict[str, torch.Tensor], config: ModelConfig, *, identity: Mapping[str, Any] | None = None, **facts: object) -> str:
    """Write weights as safetensors and then their receipt, a JSON with `config` and `facts` among its details; returns their SHA-256."""
    write_bytes(path, save({name: tensor.contiguous() for name, tensor in state.items()}))
    digest = sha256(path)
    Receipt(path.with_suffix(".json"), identity or {}, {path.name: digest}, details={**vars(config), **facts}).write()
    return digest


def load_weights(path: Path, *, channels: int | None = None) -> tuple[Classifier, ModelConfig]:
    """Rebuild a network from its weights and JSON.

    Raises InputError if a file is missing, the JSON is damaged or incomplete, the network has another number of channels than
    `channels` (if given), or the SHA-256 of the weights differs from the recorded one: safetensors has no checksum, and a
    flipped bit would go unnoticed.
    """
    receipt = _read_receipt(path)
    check_sha256(path, recorded_sha256(receipt))
    config = _config_from_receipt(receipt)
    if channels not in (None, config.channels):
        raise InputError(f"this network takes {config.channels} channels, and a site has {channels}", where=path, cure="train it again")
    model = config.build()
    try:
        model.load_state_dict(read_tensors(path))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"does not fit the network that its JSON describes ({reason})", where=path, cure="train again") from None
    model.origin, model.history = recorded_sha256(receipt), list(receipt.details.get("history", []))
    return model, config


def read_tensors(path: Path, *, cure: str = "train again") -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file; InputError when it is damaged."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"is no safetensors file ({error})", where=path, cure=cure) from None


def read_config(path: Path) -> ModelConfig:
    """The configuration in the JSON beside the weights `path`; InputError if it is missing, damaged or incomplete."""
    return _config_from_receipt(_read_receipt(path))


def _read_receipt(path: Path) -> Receipt:
    if not path.with_suffix(".json").exists():
        raise InputError("no such weights", where=path, cure=f"run {_training_kernel(path)}, which writes them")
    receipt = Receipt.read(path.with_suffix(".json"), cure=TRAIN_AGAIN)
    if missing := sorted(REQUIRED_KEYS - receipt.details.keys()):
        raise InputError(f"does not say {', '.join(missing)}", where=receipt.path, cure=TRAIN_AGAIN)
    recorded_sha256(receipt)
    return receipt


def recorded_sha256(receipt: Receipt) -> str:
    """SHA-256 of the weights that a receipt describes; InputError unless it describes exactly one file."""
    if len(receipt.outputs) != 1:
        raise InputError("does not say one file's SHA-256", where=receipt.path, cure=TRAIN_AGAIN)
    return next(iter(receipt.outputs.values()))


def _training_kernel(path: Path) -> str:
    """The notebook that trains weights with this path."""
    if path.parent.name.startswith("fold-"):
        return "protein-atlas"
    if path.parent.name in TASKS:
        return path.parent.name
    return "2-pretrain-controls" if path.stem.startswith("pretrain") else "3-train-cell-type"


def _config_from_receipt(receipt: Receipt) -> ModelConfig:
    """The configuration in a receipt; older receipts lack fields, which have their defaults."""
    return ModelConfig(**{item.name: receipt.details[item.name] for item in fields(ModelConfig) if item.name in receipt.details})


def load_body(model: Classifier, path: Path) -> str:
    """Load all weights except the head's from `path`, as after pretraining on controls (Brodt's solution).

    The network takes over their history. Returns the SHA-256 of the file. Raises InputError if the weights do not fit.
    """
    trained, _ = load_weights(path)
    body = {name: tensor for name, tensor in trained.state_dict().items() if not name.startswith(HEAD_PREFIX)}
    target = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(HEAD_PREFIX)}
    if {name: tensor.shape for name, tensor in body.items()} != {name: tensor.shape for name, tensor in target.items()}:
        raise InputError(f"these weights of a {trained.settings.backbone} do not fit the {model.settings.backbone}", where=path,
                         cure="pretrain and train with the same backbone and channels")
    model.load_state_dict(body, strict=False)
    model.origin, model.history = trained.origin, trained.history
    return trained.origin


def check_sha256(path: Path, expected: str) -> None:
    """Raise InputError if `path` is missing or has another SHA-256."""
    if not path.is_file():
        raise InputError("no such weights", where=path, cure=f"run {_training_kernel(path)}, which writes them")
    if sha256(path) != expected:
        cure = "delete it and train again, or restore the original"
        raise InputError("the file differs from the SHA-256 on record", where=path, cure=cure)
