"""What one phase of a training is, and how its learning rate moves."""

from typing import Literal

import numpy as np

from cellsignal.learn.settings import AugmentationSettings, TrainingSettings
from cellsignal.learn.training.losses import Loss, parse_loss
from cellsignal.settings import Settings


class Phase(Settings):
    """One phase: `training.epochs` epochs in one way of training.

    `training` and `augmentation`: as this phase takes them (`TrainingSettings.whole`, `.head`, ...). `trainable`: "whole", or
    "head", which leaves the body as it is. `keep`: the weights of the "best" epoch by the held-out sites, or the "last".
    """

    name: str
    training: TrainingSettings
    augmentation: AugmentationSettings = AugmentationSettings()
    seed: int = 0
    trainable: Literal["whole", "head"] = "whole"
    keep: Literal["best", "last"] = "best"

    @property
    def losses(self) -> Loss:
        """The loss, read."""
        return parse_loss(self.training.loss)

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        return learning_rate_at(epoch, self.training)

    def size(self, epoch: int) -> int | None:
        """How large the images of an epoch are, px; None: as they are (progressive resizing; Howard 2018)."""
        sizes = self.augmentation.progressive_sizes
        return sizes[epoch * len(sizes) // self.training.epochs] if sizes else None

    def pseudo(self, epoch: int) -> bool:
        """Whether sites without labels train in this epoch."""
        return epoch >= self.training.epochs - self.training.pseudo_label_epochs


def learning_rate_at(epoch: int, settings: TrainingSettings) -> float:
    """The rate of an epoch; it first rises to `learning_rate` over `warmup_epochs`, evenly, and then follows the schedule.

    "steps" divides by 10 at each of `decay_epochs`, from the phase's beginning, or without them at
    320/375 and 350/375 of the way (Brodt's solution); "cosine" falls once over the epochs that are
    left, "cyclic" in so many equal `cycles` (Loshchilov and Hutter 2017, SGDR).
    """
    base, epochs, warmup = settings.learning_rate, settings.epochs, settings.warmup_epochs
    if epoch < warmup:
        return base * (epoch + 1) / warmup
    if settings.schedule == "constant":
        return base
    if settings.schedule == "steps":
        return base * 0.1 ** sum(epoch >= decay for decay in settings.decay_epochs or (epochs * 320 / 375, epochs * 350 / 375))
    passed, left = epoch - warmup, epochs - warmup
    if settings.schedule == "cyclic":
        passed = passed * settings.cycles % left
    return base * 0.5 * (1 + np.cos(np.pi * passed / left))
