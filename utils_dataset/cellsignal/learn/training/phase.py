"""What one phase of a training is, and how its learning rate moves."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cellsignal.errors import InputError
from cellsignal.learn.batches.dataset import SCOPES
from cellsignal.learn.devices import PRECISIONS
from cellsignal.learn.training.losses import Loss, parse_loss
from cellsignal.learn.training.optim import OPTIMIZERS

CHOICES = {
    "optimizer": tuple(OPTIMIZERS),
    "schedule": ("steps", "cosine", "constant", "cyclic"),
    "trainable": ("whole", "head"),
    "keep": ("best", "last"),
    "scope": tuple(SCOPES),
    "precision": PRECISIONS,
}
# What each knob may be, from the first number up to the second; both count.
RANGES = {
    "momentum": (0, 0.999), "warmup_epochs": (0, 10**6), "cycles": (1, 10**6), "margin": (0, 1.5), "margin_scale": (1, 1000),
    "label_smoothing": (0, 0.9), "mixup": (0, 100), "cutmix": (0, 100), "channel_scale": (0, 1), "channel_shift": (0, 10),
    "ema": (0, 0.99999), "pseudo_epochs": (0, 10**6),
}  # fmt: skip


@dataclass(frozen=True)
class Phase:
    """The knobs of one phase: so many epochs in one way of training.

    Raises InputError for a choice that does not exist, a number out of its range, a loss that cannot
    be read, and for a virtual batch smaller than a batch.
    """

    name: str
    epochs: int
    batch_size: int
    learning_rate: float
    virtual_batch: int = 0  # sites per step of the optimiser, gathered from batches; 0: one batch a step
    weight_decay: float = 0.0
    schedule: str = "steps"
    trainable: str = "whole"  # or "head": the body stays as it is
    mixup: float = 0.0  # alpha of the Beta distribution; 0: nothing is mixed
    keep: str = "best"  # by the held-out sites; or "last"
    scope: str = "plate"  # what a batch comes from: one plate, one experiment, or anywhere (mixed)
    loss: str = "bce"  # or a sum, such as "0.8 cross-entropy + 0.1 arcface"
    precision: str = "auto"
    seed: int = 0
    optimizer: str = "adam"
    momentum: float = 0.9  # of sgd
    warmup_epochs: int = 0  # the rate rises in even steps, and has arrived in the last of them
    decay_epochs: tuple[int, ...] = ()  # "steps" divides the rate by 10 after so many epochs; none: where Brodt does
    cycles: int = 1  # of "cyclic", each a cosine from the top
    margin: float = 0.5  # of arcface, in radians, and of cosface
    margin_scale: float = 30.0  # what cosines are multiplied by in their losses
    label_smoothing: float = 0.0  # share of each target that is spread over all classes
    cutmix: float = 0.0  # alpha, as of mixup; with both a coin decides for each batch
    channel_scale: float = 0.0  # each channel of each image times N(1, .), after it was prepared
    channel_shift: float = 0.0  # and plus N(0, .)
    sizes: tuple[int, ...] = ()  # px of the images that train, for as many equal parts of the epochs; none: as they are
    ema: float = 0.0  # decay per step of the averaged weights, which are then scored and kept; 0: none
    pseudo_epochs: int = 0  # in so many epochs at the end sites without labels train too, with labels of the network's own

    def __post_init__(self) -> None:
        for knob, choices in CHOICES.items():
            if (value := getattr(self, knob)) not in choices:
                self._refuse(f"{value!r} is no {knob}", f"use one of: {', '.join(choices)}")
        for knob, (least, most) in RANGES.items():
            if not least <= (value := getattr(self, knob)) <= most:
                self._refuse(f"{knob} is {value}", f"use {least} to {most}")
        if 0 < self.virtual_batch < self.batch_size:
            self._refuse(f"a virtual batch of {self.virtual_batch} cannot hold a batch of {self.batch_size}", "make it larger, or 0 for none")
        for knob in ("decay_epochs", "sizes"):
            object.__setattr__(self, knob, tuple(getattr(self, knob)))  # YAML and JSON know lists only
            if min(getattr(self, knob), default=1) < 1:
                self._refuse(f"{knob} are {list(getattr(self, knob))}", "use numbers from 1 on")
        parse_loss(self.loss, where=f"phase {self.name}")

    def _refuse(self, what: str, cure: str) -> None:
        raise InputError(what, where=f"phase {self.name}", cure=cure)

    @property
    def losses(self) -> Loss:
        """The loss, read."""
        return parse_loss(self.loss, where=f"phase {self.name}")

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        return learning_rate_at(epoch, self.epochs, self.learning_rate, schedule=self.schedule, warmup=self.warmup_epochs,
                                decays=self.decay_epochs, cycles=self.cycles)

    def size(self, epoch: int) -> int | None:
        """How large the images of an epoch are, px; None: as they are (progressive resizing; Howard 2018)."""
        return self.sizes[epoch * len(self.sizes) // self.epochs] if self.sizes else None

    def pseudo(self, epoch: int) -> bool:
        """Whether sites without labels train in this epoch."""
        return epoch >= self.epochs - self.pseudo_epochs


def learning_rate_at(epoch: int, epochs: int, base: float, *, schedule: str, warmup: int = 0, decays: Sequence[int] = (),
                     cycles: int = 1) -> float:
    """The rate of an epoch; it first rises to `base` over `warmup` epochs, evenly, and then follows the schedule.

    "steps" divides by 10 at each of `decays`, epochs from the phase's beginning, or without them at
    320/375 and 350/375 of the way (Brodt's solution); "cosine" falls once over the epochs that are
    left, "cyclic" in so many equal `cycles` (Loshchilov and Hutter 2017, SGDR).
    """
    if epoch < warmup:
        return base * (epoch + 1) / warmup
    if schedule == "constant":
        return base
    if schedule == "steps":
        return base * 0.1 ** sum(epoch >= decay for decay in decays or (epochs * 320 / 375, epochs * 350 / 375))
    passed, left = epoch - warmup, epochs - warmup
    if schedule == "cyclic":
        passed = passed * cycles % left
    return base * 0.5 * (1 + np.cos(np.pi * passed / left))
