"""Augmentations whose randomness is a function of (seed, epoch, site) and of nothing else."""

from collections.abc import Callable

import numpy as np


class Augment:
    """Change images by `change(image, generator)`; the same (seed, epoch, site) always gives the same picture."""

    def __init__(self, change: Callable[[np.ndarray, np.random.Generator], np.ndarray], *, seed: int) -> None:
        self.change, self.seed = change, seed

    def __call__(self, image: np.ndarray, *, epoch: int, site: int) -> np.ndarray:
        """Augment one image, uint8[C, H, W]; `site` is its row number."""
        return np.ascontiguousarray(self.change(image, np.random.default_rng((self.seed, epoch, site))))


def d4(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """One of the square's 8 symmetries, each as likely: quarter turns and flips (Surin, Brodt)."""
    turns, mirrored = divmod(int(generator.integers(8)), 2)
    turned = np.rot90(image, turns, axes=(1, 2))
    return turned[:, :, ::-1] if mirrored else turned


def augmentation(name: str, *, seed: int) -> Augment | None:
    """The augmentation called `name`: "d4" (turns and flips) or "none"."""
    return {"d4": Augment(d4, seed=seed), "none": None}[name]
