"""A training that takes a second, for the tests that interrupt one or share it out."""

from pathlib import Path

from cellsignal.learn.batches import SiteImages
from cellsignal.learn.budget import Budget
from cellsignal.learn.models import Classifier
from cellsignal.learn.phases import Phase
from cellsignal.learn.train import fit

CLASSES = [0, 10, 20, 30]


class Epochs(Budget):
    """Time for so many more epochs, whatever the clock says."""

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.epochs = epochs

    def fits(self, seconds: float) -> bool:
        self.epochs -= 1
        return self.epochs >= 0 and not self.spent


def small(patches: tuple, weights: Path, *, model: Classifier | None = None, watch: bool = True, cache: bool = True,
          kind: type[SiteImages] = SiteImages, options: dict | None = None, **changes) -> list[dict]:
    """Train on one experiment of `patches`, watch the other; `changes` are the phase's, `options` fit's."""
    root, sites = patches
    first = sites["experiment"] == "HUVEC-01"
    data, held_out = (kind(root, part, class_numbers=CLASSES, cache=cache) for part in (sites[first], sites[~first]))
    phase = Phase(**{"name": "train", "epochs": 4, "batch_size": 8, "learning_rate": 3e-3} | changes)
    return fit(model or Classifier("densenet-small", channels=6, classes=4), data, phase=phase, weights=weights,
               held_out=held_out if watch else None, **{"device": "cpu", **(options or {})})
