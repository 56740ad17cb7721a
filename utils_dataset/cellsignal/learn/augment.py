"""Augmentations whose randomness is a function of (seed, epoch, site) and of nothing else."""

import albumentations
import numpy as np


class Augment:
    """Apply an Albumentations transform; the same (seed, epoch, site) always gives the same picture."""

    def __init__(self, transform: albumentations.BasicTransform, *, seed: int) -> None:
        self.compose = albumentations.Compose([transform])
        self.seed = seed

    def __call__(self, image: np.ndarray, *, epoch: int, site: int) -> np.ndarray:
        """Augment one image, uint8[C, H, W]; `site` is its row number."""
        self.compose.set_random_seed(random_key(self.seed, epoch, site))
        augmented = self.compose(image=image.transpose(1, 2, 0))["image"]
        return np.ascontiguousarray(augmented.transpose(2, 0, 1))


def random_key(*numbers: int) -> int:
    """One 32-bit key from several numbers, well mixed, so that neighbours share nothing."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def augmentation(name: str, *, seed: int) -> Augment | None:
    """The augmentation called `name`: "d4" (the square's 8 symmetries; Surin, Brodt) or "none"."""
    return {"d4": Augment(albumentations.D4(p=1), seed=seed), "none": None}[name]
