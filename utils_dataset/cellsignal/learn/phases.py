"""What one phase of a training is, and how its learning rate falls."""

from dataclasses import dataclass

import numpy as np

from cellsignal.errors import InputError
from cellsignal.learn.batches import SCOPES
from cellsignal.learn.devices import PRECISIONS
from cellsignal.learn.losses import LOSSES

CHOICES = {
    "schedule": ("steps", "cosine", "constant"),
    "trainable": ("whole", "head"),
    "keep": ("best", "last"),
    "scope": tuple(SCOPES),
    "loss": tuple(LOSSES),
    "precision": PRECISIONS,
}


@dataclass(frozen=True)
class Phase:
    """The knobs of one phase: so many epochs in one way of training.

    Raises InputError for a choice that does not exist and for a virtual batch smaller than a batch.
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
    loss: str = "bce"
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for knob, choices in CHOICES.items():
            if (value := getattr(self, knob)) not in choices:
                raise InputError(f"{value!r} is no {knob}", where=f"phase {self.name}", cure=f"use one of: {', '.join(choices)}")
        if 0 < self.virtual_batch < self.batch_size:
            raise InputError(f"a virtual batch of {self.virtual_batch} cannot hold a batch of {self.batch_size}",
                             where=f"phase {self.name}", cure="make it larger, or 0 for none")

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        return learning_rate_at(epoch, self.epochs, self.learning_rate, schedule=self.schedule)


def learning_rate_at(epoch: int, epochs: int, base: float, *, schedule: str) -> float:
    """The rate of an epoch: "steps" divides by 10 at 320/375 and 350/375 of the way (Brodt's solution)."""
    if schedule == "constant":
        return base
    if schedule == "cosine":
        return base * 0.5 * (1 + np.cos(np.pi * epoch / epochs))
    return base * 0.1 ** ((epoch >= epochs * 320 / 375) + (epoch >= epochs * 350 / 375))
