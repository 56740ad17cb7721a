"""What a network is, how it is trained, what happens to its pictures, and on which machine."""

import re
from functools import cache
from math import isfinite
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from cellsignal.files import is_plain
from cellsignal.settings import Names, Settings, check_distinct, check_rising

# Written out, because learn.networks.backbones and learn.training.losses bring PyTorch; a test keeps them equal. A backbone or a
# loss of one's own has its name here and its code there.
BACKBONES = [
    "densenet121", "densenet161", "densenet201", "densenet-small", "densenet-deep-small", "resnet34", "resnet50", "resnet-small",
    "se-resnext50", "se-resnext-small", "vgg19", "vgg-small", "inception", "xception", "xception-small", "plain-cnn",
]  # fmt: skip
LOSSES = ["bce", "cross-entropy", "focal", "lovasz", "arcface", "cosface"]
MARGIN_LOSSES = ("arcface", "cosface")  # those on cosines
ONE_LABEL = ("cross-entropy", *MARGIN_LOSSES)  # those that ask which class, not whether each
COVARIATES = ("cell_type", "experiment", "plate", "well", "site")
_TERM = re.compile(r"(?:(?P<weight>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*\*?\s*)?(?P<name>[a-z][a-z-]*)")
_PLUS = re.compile(r"(?<!\d[eE])\+")  # and not that of 1e+1


@cache
def parse_loss(text: str) -> tuple[tuple[float, str], ...]:
    """The terms (weight, name) of a loss such as "0.8 cross-entropy + 0.1 arcface"; a weight left out is 1. ValueError for a term that is none."""
    return tuple(_term(term.strip()) for term in _PLUS.split(text))


def _term(text: str) -> tuple[float, str]:
    found = _TERM.fullmatch(text)
    if found is None or found["name"] not in LOSSES or not isfinite(float(found["weight"] or 1)):
        raise ValueError(f"{text!r} is no [weight] name; names are {', '.join(LOSSES)}")
    return float(found["weight"] or 1), found["name"]


class NetworkSettings(Settings):
    """What the networks are."""

    one_network: bool = Field(False, description="one network for all cell types, and not one each")
    backbone: str = Field("densenet121", description="network, by name; timm:NAME for any of timm's")
    ensemble: Names = Field([], description="backbones of further networks, whose scores are averaged", examples=[["densenet121"]])
    pretrained: str = Field("", description="weights to begin with: imagenet, or a .safetensors file")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the features dropped before the head")
    standardise: Literal["none", "image", "plate", "experiment"] = Field(
        "none", description="whose mean and deviation per channel are taken out of a picture"
    )
    covariates: Names = Field([], description="what the network knows of a site besides its picture", examples=[["plate", "site"]])
    heads: Literal["shared", "cell_type", "both"] = Field("shared", description="one head, one per cell type, or their sum")
    cosine_head: Literal["none", "auxiliary", "only"] = Field("none", description="head of cosines, for arcface and cosface: it teaches, or answers")
    control_features: bool = Field(False, description="multiply features by those of the plate's controls (seed 004)")

    subsets = {
        "classifier": ("backbone", "dropout", "standardise", "covariates", "heads", "cosine_head", "control_features"),
        "pretraining": ("backbone", "standardise"),
        "labels": ("backbone", "dropout", "standardise"),
    }

    @property
    def classifier(self) -> "NetworkSettings":
        """What a network of the run is built with."""
        return self.subset("classifier")

    @property
    def pretraining(self) -> "NetworkSettings":
        """What it is built with while it learns the controls: a plain head."""
        return self.subset("pretraining")

    @property
    def labels(self) -> "NetworkSettings":
        """What a network for several labels a site is built with."""
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
    def _heads_know_the_cell_type(cls, heads: str, info: ValidationInfo) -> str:
        if heads != "shared" and "cell_type" not in info.data.get("covariates", []):
            raise ValueError("a head per cell type must know the cell type: covariates: [cell_type]")
        return heads

    @field_validator("cosine_head")
    @classmethod
    def _cosines_only_know_the_picture_only(cls, kind: str, info: ValidationInfo) -> str:
        if kind == "only" and (info.data.get("covariates") or info.data.get("heads") != "shared"):
            raise ValueError("cosines only answer by the picture; use cosine_head: auxiliary, or leave covariates and other heads out")
        return kind

    @field_validator("control_features")
    @classmethod
    def _controls_multiply_a_linear_head(cls, chosen: bool, info: ValidationInfo) -> bool:
        if chosen and info.data.get("cosine_head") == "only":
            raise ValueError("it needs a head that is not of cosines only: cosine_head: auxiliary, or none")
        return chosen


_SHARED = ("virtual_batch", "weight_decay", "batch_size", "batch_scope", "optimizer", "momentum", "learning_rate")
_LOSS = ("loss", "margin", "margin_scale", "label_smoothing", "ema_decay")
_COURSE = ("schedule", "warmup_epochs", "decay_epochs", "cycles")


class TrainingSettings(Settings):
    """How networks are trained."""

    batch_size: int = Field(16, ge=2, description="sites per batch; one alone has no batch statistics")
    batch_scope: Literal["plate", "experiment", "mixed"] = Field("plate", description="which wells share a batch")
    virtual_batch: int = Field(0, ge=0, description="sites per step of the optimiser; 0 means one batch")
    ablate_virtual_batch: bool = Field(False, description="train once more from the same pretraining, without the virtual batch, for its rung")
    pretrain_epochs: int = Field(100, ge=0, description="epochs on the 31 control classes")
    head_epochs: int = Field(0, ge=0, description="epochs on the treatments that train the new head only")
    epochs: int = Field(375, ge=0, description="epochs on the treatments, the whole network")
    final_epochs: int = Field(0, ge=0, description="last epochs on all labelled wells, the held-out ones too")
    optimizer: Literal["adam", "adamw", "sgd", "radam"] = Field("adam", description="rule of the steps")
    momentum: float = Field(0.9, ge=0, le=0.999, description="of sgd")
    learning_rate: float = Field(1.0e-3, gt=0, description="of the optimiser, before its schedule")
    final_learning_rate: float = Field(1.0e-4, gt=0, description="of the last epochs, constant")
    weight_decay: float = Field(0.0, ge=0, description="of the optimiser")
    schedule: Literal["steps", "cosine", "cyclic", "constant"] = Field("steps", description="how the learning rate falls")
    warmup_epochs: int = Field(0, ge=0, description="epochs in which the learning rate rises to its value")
    decay_epochs: list[int] = Field([], description="epochs at which `steps` divides by 10; empty means Brodt's shares")
    cycles: int = Field(1, ge=1, description="cosines of the schedule `cyclic`")
    loss: str = Field("bce", description="sum of weighted terms, such as 0.8 cross-entropy + 0.1 arcface")
    margin: float = Field(0.5, ge=0, le=1.5, description="of arcface (radians) and cosface")
    margin_scale: float = Field(30.0, ge=1, le=1000, description="by which cosines become logits")
    label_smoothing: float = Field(0.0, ge=0, le=0.9, description="share of a label that all classes divide")
    ema_decay: float = Field(0.0, ge=0, le=0.99999, description="of the weights, kept at each step in their moving average; 0 means none")
    pseudo_label_epochs: int = Field(0, ge=0, description="last epochs on the treatments that learn from test wells too, as they are assigned")
    pseudo_label_share: float = Field(0.4, gt=0, le=1, description="of the test wells, the surest first, in the first of these epochs")
    pseudo_label_step: float = Field(0.015, ge=0, le=1, description="by which that share grows with each epoch")

    subsets = {
        "pretraining": (*_SHARED, "schedule", "warmup_epochs", "pretrain_epochs"),
        "head": (*_SHARED, *_LOSS, "head_epochs"),
        "whole": (*_SHARED, *_LOSS, *_COURSE, "epochs", "pseudo_label_epochs", "pseudo_label_share", "pseudo_label_step"),
        "final": (*_SHARED, *_LOSS, "final_epochs", "final_learning_rate"),
        "labels": (*(name for name in _SHARED if name != "batch_scope"), *_COURSE, "loss", "label_smoothing", "ema_decay", "epochs"),
    }

    @property
    def pretraining(self) -> "TrainingSettings":
        """Of the phase that learns the controls: `pretrain_epochs`, with the plain loss."""
        return self.subset("pretraining", epochs=self.pretrain_epochs)

    @property
    def head(self) -> "TrainingSettings":
        """Of the phase that trains the new head only: `head_epochs`, at a constant rate."""
        return self.subset("head", epochs=self.head_epochs, schedule="constant")

    @property
    def whole(self) -> "TrainingSettings":
        """Of the phase that trains the whole network."""
        return self.subset("whole")

    @property
    def final(self) -> "TrainingSettings":
        """Of the phase on all labelled wells: `final_epochs` at the constant `final_learning_rate`."""
        return self.subset("final", epochs=self.final_epochs, learning_rate=self.final_learning_rate, schedule="constant")

    @property
    def labels(self) -> "TrainingSettings":
        """Of a training on sites with several labels, whose batches mix all of them."""
        return self.subset("labels", batch_scope="mixed")

    @field_validator("virtual_batch")
    @classmethod
    def _holds_a_batch(cls, sites: int, info: ValidationInfo) -> int:
        if 0 < sites < info.data.get("batch_size", 0):
            raise ValueError(f"a virtual batch holds whole batches, here of {info.data['batch_size']}; 0 means none")
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
        parse_loss(loss)
        return loss

    @field_validator("pseudo_label_epochs")
    @classmethod
    def _within_the_epochs(cls, epochs: int, info: ValidationInfo) -> int:
        if epochs > info.data.get("epochs", epochs):
            raise ValueError(f"there are only {info.data['epochs']} epochs")
        return epochs

    rising_epochs = field_validator("decay_epochs")(check_rising)


class AugmentationSettings(Settings):
    """What happens to a picture that trains."""

    symmetries: Literal["d4", "none"] = Field("d4", description="flips and quarter turns, or nothing")
    crop: float = Field(1.0, gt=0, le=1, description="side of a random crop, as a share of the picture's")
    resized_crop: float = Field(1.0, gt=0, le=1, description="least share of the area in a random crop that is resized to the whole")
    channel_scale: float = Field(0.0, ge=0, le=1, description="deviation of a random factor per picture and channel")
    channel_shift: float = Field(0.0, ge=0, le=10, description="deviation of a random summand per picture and channel")
    mixup_alpha: float = Field(0.0, ge=0, le=100, description="of MixUp; 0 means none")
    cutmix_alpha: float = Field(0.0, ge=0, le=100, description="of CutMix; 0 means none")
    mix_phases: Literal["final", "all"] = Field("final", description="when pictures are mixed: the last epochs, or all on treatments")
    progressive_sizes: list[int] = Field([], description="sides, in px, of pictures in equal parts of the epochs; empty means as they are")

    subsets = {
        "pretraining": ("symmetries", "crop", "resized_crop", "channel_scale", "channel_shift"),
        "final": ("symmetries", "crop", "resized_crop", "channel_scale", "channel_shift", "mixup_alpha", "cutmix_alpha"),
        "labels": ("symmetries", "crop", "resized_crop", "channel_scale", "channel_shift", "mixup_alpha", "cutmix_alpha", "progressive_sizes"),
    }

    @property
    def pretraining(self) -> "AugmentationSettings":
        """Of the phases that mix nothing and see pictures as they are: of the controls, and of the head."""
        return self.subset("pretraining")

    @property
    def whole(self) -> "AugmentationSettings":
        """Of the phase that trains the whole network: it mixes if all phases do."""
        return self if self.mix_phases == "all" else self.subset("pretraining", progressive_sizes=self.progressive_sizes)

    @property
    def final(self) -> "AugmentationSettings":
        """Of the phase on all labelled wells, which mixes."""
        return self.subset("final")

    @property
    def labels(self) -> "AugmentationSettings":
        """Of a training on sites with several labels."""
        return self.subset("labels")

    rising_sizes = field_validator("progressive_sizes")(check_rising)


class MachineSettings(Settings):
    """On what a run works, in which arithmetic, and for how long."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where networks run")
    precision: Literal["auto", "fp32", "fp16", "bf16"] = Field("auto", description="of the arithmetic; auto asks the GPU")
    num_workers: int = Field(0, ge=0, description="threads that read images ahead; 0 means none")
    num_processes: int = Field(0, ge=0, description="training processes; 0 means one per GPU")
    parallel_notebooks: int = Field(2, ge=1, description="notebooks at once")
    compile: bool = Field(False, description="train with kernels that torch.compile makes, after minutes of making them")
    gradient_checkpointing: bool = Field(False, description="train with less memory and more time: blocks are computed again on the way back")
    html_pages: bool = Field(True, description="look at the plates first, and write HTML pages and a report")
    time_budget_minutes: float = Field(
        0.0, ge=0, description="work stops cleanly in time and goes on at the next call; 0 means 11 hours on Kaggle, no limit elsewhere"
    )
