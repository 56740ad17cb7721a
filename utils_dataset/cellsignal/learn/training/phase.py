"""One phase of a training, and its learning-rate schedule."""

from typing import Literal

import numpy as np

from cellsignal.learn.settings import AugmentationSettings, TrainingSettings
from cellsignal.learn.training.losses import Loss, parse_loss
from cellsignal.settings import Settings


class Phase(Settings):
    """One phase of a training: `training.epochs` epochs with the same settings.

    `training` and `augmentation`: the settings of this phase (`TrainingSettings.whole`, `.head`, ...). `trainable`: "whole", or
    "head", which freezes the body. `keep`: the epoch whose weights are selected, the "best" on the held-out sites or the "last".
    """

    name: str
    training: TrainingSettings
    augmentation: AugmentationSettings = AugmentationSettings()
    seed: int = 0
    trainable: Literal["whole", "head"] = "whole"
    keep: Literal["best", "last"] = "best"

    @property
    def losses(self) -> Loss:
        """The parsed loss."""
        return parse_loss(self.training.loss)

    def learning_rate(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        return learning_rate_at(epoch, self.training)

    def image_size(self, epoch: int) -> int | None:
        """The longer side of the images of an epoch, px; None leaves them as they are (progressive resizing; Howard 2018)."""
        sizes = self.augmentation.progressive_sizes
        return sizes[epoch * len(sizes) // self.training.epochs] if sizes else None

    def uses_pseudo_labels(self, epoch: int) -> bool:
        """Whether sites without labels train in this epoch."""
        return epoch >= self.training.epochs - self.training.pseudo_label_epochs


def learning_rate_at(epoch: int, settings: TrainingSettings) -> float:
    """The learning rate of an epoch: a linear rise to `learning_rate` over `warmup_epochs`, then the schedule.

    "steps" divides by 10 at each of `decay_epochs`, counted from the start of the phase, or without them after 320/375 and
    350/375 of the epochs (Brodt's solution); "cosine" falls once over the epochs after the warm-up, "cyclic" falls in
    `cycles` equal cycles (Loshchilov and Hutter 2017, SGDR).
    """
    base, epochs, warmup = settings.learning_rate, settings.epochs, settings.warmup_epochs
    if epoch < warmup:
        return base * (epoch + 1) / warmup
    if settings.schedule == "constant":
        return base
    if settings.schedule == "steps":
        return base * 0.1 ** sum(epoch >= decay for decay in settings.decay_epochs or (epochs * 320 / 375, epochs * 350 / 375))
    passed, total = epoch - warmup, epochs - warmup
    if settings.schedule == "cyclic":
        passed = passed * settings.cycles % total
    return base * 0.5 * (1 + np.cos(np.pi * passed / total))
