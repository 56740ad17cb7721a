"""Settings of networks, training, augmentation and the machine."""

import re
from functools import cache
from math import isfinite
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from cellsignal.files import is_plain
from cellsignal.settings import Names, Settings, check_distinct, check_rising

# Listed here because learn.networks.backbones and learn.training.losses import PyTorch; a test keeps the lists equal. The name of
# a new backbone or loss belongs here, its code there.
BACKBONES = [
    "densenet121", "densenet161", "densenet201", "densenet-small", "densenet-deep-small", "resnet34", "resnet50", "resnet-small",
    "se-resnext50", "se-resnext-small", "vgg19", "vgg-small", "inception", "xception", "xception-small", "plain-cnn",
]  # fmt: skip
LOSS_NAMES = ["bce", "cross-entropy", "focal", "lovasz", "arcface", "cosface"]
MARGIN_LOSSES = ("arcface", "cosface")  # losses on cosines
SINGLE_LABEL_LOSSES = ("cross-entropy", *MARGIN_LOSSES)  # for sites with exactly one class
COVARIATES = ("cell_type", "experiment", "plate", "well", "site")
_TERM = re.compile(r"(?:(?P<weight>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*\*?\s*)?(?P<name>[a-z][a-z-]*)")
_PLUS = re.compile(r"(?<!\d[eE])\+")  # but not the sign in 1e+1


@cache
def loss_terms(text: str) -> tuple[tuple[float, str], ...]:
    """The terms (weight, name) of a loss such as "0.8 cross-entropy + 0.1 arcface"; an omitted weight is 1. Raises ValueError for an invalid term."""
    return tuple(_term(term.strip()) for term in _PLUS.split(text))


def _term(text: str) -> tuple[float, str]:
    match = _TERM.fullmatch(text)
    if match is None or match["name"] not in LOSS_NAMES or not isfinite(float(match["weight"] or 1)):
        raise ValueError(f"{text!r} is no [weight] name; names are {', '.join(LOSS_NAMES)}")
    return float(match["weight"] or 1), match["name"]


class NetworkSettings(Settings):
    """Settings of the networks."""

    one_network: bool = Field(False, description="one network for all cell types instead of one each")
    backbone: str = Field("densenet121", description="network, by name; timm:NAME for any network of timm")
    ensemble: Names = Field([], description="backbones of further networks, whose scores are averaged", examples=[["densenet121"]])
    pretrained: str = Field("", description="initial weights: imagenet, or a .safetensors file")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the features dropped before the head")
    standardise: Literal["none", "image", "plate", "experiment"] = Field(
        "none", description="mean and standard deviation by which the channels of an image are standardised"
    )
    covariates: Names = Field([], description="inputs of the network besides the image of a site", examples=[["plate", "site"]])
    heads: Literal["shared", "cell_type", "both"] = Field("shared", description="one head, one per cell type, or their sum")
    cosine_head: Literal["none", "auxiliary", "only"] = Field("none", description="cosine head for arcface and cosface: for the loss only, or also for the prediction")
    control_features: bool = Field(False, description="multiply features by those of the plate's controls (Brodt)")

    subsets = {
        "classifier": ("backbone", "dropout", "standardise", "covariates", "heads", "cosine_head", "control_features"),
        "pretraining": ("backbone", "standardise"),
        "labels": ("backbone", "dropout", "standardise"),
    }

    @property
    def classifier(self) -> "NetworkSettings":
        """Settings of the networks that a run trains."""
        return self.subset("classifier")

    @property
    def pretraining(self) -> "NetworkSettings":
        """Settings while a network trains on the controls: a plain head."""
        return self.subset("pretraining")

    @property
    def labels(self) -> "NetworkSettings":
        """Settings of a network for multi-label sites."""
        return self.subset("labels")

    @field_validator("backbone")
    @classmethod
    def _known_backbone(cls, name: str) -> str:
        if name not in BACKBONES and not (name.startswith("timm:") and is_plain(name[5:])):
            raise ValueError(f"no such backbone; choose from {', '.join(BACKBONES)}, or timm:NAME")
        return name

    @field_validator("ensemble")
    @classmethod
    def _known_backbones(cls, names: Names) -> Names:
        return [cls._known_backbone(name) for name in names]

    @field_validator("covariates")
    @classmethod
    def _known_covariates(cls, names: Names) -> Names:
        if unknown := set(names) - set(COVARIATES):
            raise ValueError(f"{min(unknown)!r} is none of {', '.join(COVARIATES)}")
        return check_distinct(names)

    @field_validator("heads")
    @classmethod
    def _cell_type_heads_need_the_covariate(cls, heads: str, info: ValidationInfo) -> str:
        if heads != "shared" and "cell_type" not in info.data.get("covariates", []):
            raise ValueError("a head per cell type needs the cell type: covariates: [cell_type]")
        return heads

    @field_validator("cosine_head")
    @classmethod
    def _cosine_head_alone_uses_the_image_alone(cls, kind: str, info: ValidationInfo) -> str:
        if kind == "only" and (info.data.get("covariates") or info.data.get("heads") != "shared"):
            raise ValueError("a cosine head alone uses the image alone; use cosine_head: auxiliary, or leave covariates and other heads out")
        return kind

    @field_validator("control_features")
    @classmethod
    def _control_features_need_a_linear_head(cls, chosen: bool, info: ValidationInfo) -> bool:
        if chosen and info.data.get("cosine_head") == "only":
            raise ValueError("control features need a linear head: cosine_head: auxiliary, or none")
        return chosen


_SHARED = ("virtual_batch", "weight_decay", "batch_size", "batch_scope", "optimizer", "momentum", "learning_rate")
_LOSS = ("loss", "margin", "margin_scale", "label_smoothing", "ema_decay")
_SCHEDULE = ("schedule", "warmup_epochs", "decay_epochs", "cycles")


class TrainingSettings(Settings):
    """Settings of training."""

    batch_size: int = Field(16, ge=2, description="sites per batch; one alone has no batch statistics")
    batch_scope: Literal["plate", "experiment", "mixed"] = Field("plate", description="wells that share a batch")
    virtual_batch: int = Field(0, ge=0, description="sites per step of the optimiser; 0 means one batch")
    ablate_virtual_batch: bool = Field(False, description="also train without the virtual batch from the same pretraining, for its rung of the ladder")
    pretrain_epochs: int = Field(100, ge=0, description="epochs on the 31 control classes")
    head_epochs: int = Field(0, ge=0, description="epochs on the treatments that train the new head only")
    epochs: int = Field(375, ge=0, description="epochs on the treatments, the whole network")
    final_epochs: int = Field(0, ge=0, description="last epochs on all labelled wells, the held-out ones too")
    optimizer: Literal["adam", "adamw", "sgd", "radam"] = Field("adam", description="optimiser")
    momentum: float = Field(0.9, ge=0, le=0.999, description="of sgd")
    learning_rate: float = Field(1.0e-3, gt=0, description="of the optimiser, before its schedule")
    final_learning_rate: float = Field(1.0e-4, gt=0, description="of the last epochs, constant")
    weight_decay: float = Field(0.0, ge=0, description="of the optimiser")
    schedule: Literal["steps", "cosine", "cyclic", "constant"] = Field("steps", description="schedule of the learning rate")
    warmup_epochs: int = Field(0, ge=0, description="epochs of a linear rise to the learning rate")
    decay_epochs: list[int] = Field([], description="epochs at which `steps` divides by 10; empty means Brodt's shares of all epochs")
    cycles: int = Field(1, ge=1, description="cycles of the schedule `cyclic`")
    loss: str = Field("bce", description="sum of weighted terms, such as 0.8 cross-entropy + 0.1 arcface")
    margin: float = Field(0.5, ge=0, le=1.5, description="of arcface (radians) and cosface")
    margin_scale: float = Field(30.0, ge=1, le=1000, description="factor from cosines to logits")
    label_smoothing: float = Field(0.0, ge=0, le=0.9, description="share of each label that is distributed over all classes")
    ema_decay: float = Field(0.0, ge=0, le=0.99999, description="decay of the moving average of the weights; 0 means no average")
    pseudo_label_epochs: int = Field(0, ge=0, description="last epochs on the treatments that also train on test wells, with their assigned siRNAs as labels")
    pseudo_label_share: float = Field(0.4, gt=0, le=1, description="share of the test wells, the most confident first, in the first of these epochs")
    pseudo_label_increment: float = Field(0.015, ge=0, le=1, description="increase of that share with each epoch")

    subsets = {
        "pretraining": (*_SHARED, "schedule", "warmup_epochs", "pretrain_epochs"),
        "head": (*_SHARED, *_LOSS, "head_epochs"),
        "whole": (*_SHARED, *_LOSS, *_SCHEDULE, "epochs", "pseudo_label_epochs", "pseudo_label_share", "pseudo_label_increment"),
        "final": (*_SHARED, *_LOSS, "final_epochs", "final_learning_rate"),
        "sites": (*_SHARED, *_SCHEDULE, "loss", "label_smoothing", "ema_decay", "epochs"),
        "labels": (*(name for name in _SHARED if name != "batch_scope"), *_SCHEDULE, "loss", "label_smoothing", "ema_decay", "epochs"),
    }

    @property
    def pretraining(self) -> "TrainingSettings":
        """Settings of pretraining on the controls: `pretrain_epochs`, with the plain loss."""
        return self.subset("pretraining", epochs=self.pretrain_epochs)

    @property
    def head(self) -> "TrainingSettings":
        """Settings of the phase that trains the new head only: `head_epochs`, at a constant rate."""
        return self.subset("head", epochs=self.head_epochs, schedule="constant")

    @property
    def whole(self) -> "TrainingSettings":
        """Settings of the phase that trains the whole network."""
        return self.subset("whole")

    @property
    def final(self) -> "TrainingSettings":
        """Settings of the phase on all labelled wells: `final_epochs` at the constant `final_learning_rate`."""
        return self.subset("final", epochs=self.final_epochs, learning_rate=self.final_learning_rate, schedule="constant")

    @property
    def sites(self) -> "TrainingSettings":
        """Settings of training on a benchmark's sites, in one phase: no pretraining, no margins, no pseudo-labels."""
        return self.subset("sites")

    @property
    def labels(self) -> "TrainingSettings":
        """Settings of training on multi-label sites, with batches of any sites."""
        return self.subset("labels", batch_scope="mixed")

    @field_validator("virtual_batch")
    @classmethod
    def _at_least_one_batch(cls, sites: int, info: ValidationInfo) -> int:
        if 0 < sites < info.data.get("batch_size", 0):
            raise ValueError(f"use at least the batch size, {info.data['batch_size']}, or 0 for no virtual batch")
        return sites

    @field_validator("ablate_virtual_batch")
    @classmethod
    def _something_to_ablate(cls, chosen: bool, info: ValidationInfo) -> bool:
        if chosen and not info.data.get("virtual_batch"):
            raise ValueError("without a virtual_batch there is nothing to compare")
        return chosen

    @field_validator("loss")
    @classmethod
    def _known_terms(cls, loss: str) -> str:
        loss_terms(loss)
        return loss

    @field_validator("pseudo_label_epochs")
    @classmethod
    def _within_the_epochs(cls, epochs: int, info: ValidationInfo) -> int:
        if epochs > info.data.get("epochs", epochs):
            raise ValueError(f"there are only {info.data['epochs']} epochs")
        return epochs

    rising_epochs = field_validator("decay_epochs")(check_rising)


class AugmentationSettings(Settings):
    """Settings of augmentation."""

    symmetries: Literal["d4", "none"] = Field("d4", description="flips and rotations by 90 degrees, or none")
    crop: float = Field(1.0, gt=0, le=1, description="side of a random crop, as a share of the image's")
    resized_crop: float = Field(1.0, gt=0, le=1, description="least share of the area in a random crop that is resized to the whole image")
    channel_scale: float = Field(0.0, ge=0, le=1, description="standard deviation of a random factor per image and channel")
    channel_shift: float = Field(0.0, ge=0, le=10, description="standard deviation of a random offset per image and channel")
    mixup_alpha: float = Field(0.0, ge=0, le=100, description="of MixUp; 0 means none")
    cutmix_alpha: float = Field(0.0, ge=0, le=100, description="of CutMix; 0 means none")
    mix_phases: Literal["final", "all"] = Field("final", description="phases with mixed images: the last epochs, or all on treatments")
    progressive_sizes: list[int] = Field([], description="image sizes, px, in equal parts of the epochs; empty means the original size")

    subsets = {
        "pretraining": ("symmetries", "crop", "resized_crop", "channel_scale", "channel_shift"),
        "final": ("symmetries", "crop", "resized_crop", "channel_scale", "channel_shift", "mixup_alpha", "cutmix_alpha"),
        "labels": ("symmetries", "crop", "resized_crop", "channel_scale", "channel_shift", "mixup_alpha", "cutmix_alpha", "progressive_sizes"),
    }

    @property
    def pretraining(self) -> "AugmentationSettings":
        """Settings of the phases on the controls and of the head, without mixing and resizing."""
        return self.subset("pretraining")

    @property
    def whole(self) -> "AugmentationSettings":
        """Settings of the phase that trains the whole network, which mixes if all phases do."""
        return self if self.mix_phases == "all" else self.subset("pretraining", progressive_sizes=self.progressive_sizes)

    @property
    def final(self) -> "AugmentationSettings":
        """Settings of the phase on all labelled wells, which mixes."""
        return self.subset("final")

    @property
    def labels(self) -> "AugmentationSettings":
        """Settings of training on multi-label sites."""
        return self.subset("labels")

    rising_sizes = field_validator("progressive_sizes")(check_rising)


class MachineSettings(Settings):
    """Settings of the machine: device, precision, parallelism and time."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="device of the networks")
    precision: Literal["auto", "fp32", "fp16", "bf16"] = Field("auto", description="of the arithmetic; auto depends on the GPU")
    num_workers: int = Field(0, ge=0, description="threads that prefetch images; 0 means none")
    num_processes: int = Field(0, ge=0, description="training processes; 0 means one per GPU")
    parallel_notebooks: int = Field(2, ge=1, description="notebooks that run at once")
    compile: bool = Field(False, description="train with torch.compile, which first takes minutes")
    gradient_checkpointing: Literal["auto", True, False] = Field(
        "auto", description="compute blocks of the network again in the backward pass, for less memory and more time, in parts of a batch if need be; auto: where memory is short"
    )
    html_pages: bool = Field(True, description="run the notebook about the plates, and write HTML pages and a report")
    time_budget_minutes: float = Field(
        0.0, ge=0, description="time after which a run stops cleanly, to resume at the next call; 0 means 11 hours on Kaggle, no limit elsewhere"
    )

    @field_validator("gradient_checkpointing")
    @classmethod
    def _not_of_a_compiled_body(cls, chosen: bool | str, info: ValidationInfo) -> bool | str:
        if chosen is True and info.data.get("compile"):
            raise ValueError("torch.compile computes no blocks again; use auto or false, or compile: false")
        return chosen
