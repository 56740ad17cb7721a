"""Augmentations whose randomness is a function of (seed, epoch, site) and of nothing else."""

from collections.abc import Callable

import albumentations
import numpy as np

from cellsignal.errors import InputError

Transforms = list[albumentations.BasicTransform]


class Augment:
    """Apply Albumentations transforms; the same (seed, epoch, site) always gives the same picture.

    `transforms(height, width)` gives them for images of one size, in px.
    """

    def __init__(self, transforms: Callable[[int, int], Transforms], *, seed: int) -> None:
        self.transforms, self.seed = transforms, seed
        self.composed: dict[tuple[int, int], albumentations.Compose] = {}

    def __call__(self, image: np.ndarray, *, epoch: int, site: int) -> np.ndarray:
        """Augment one image, uint8[C, H, W]; `site` is its row number."""
        compose = self._compose(image.shape[1:])
        compose.set_random_seed(random_key(self.seed, epoch, site))
        augmented = compose(image=image.transpose(1, 2, 0))["image"]
        return np.ascontiguousarray(augmented.transpose(2, 0, 1))

    def _compose(self, size: tuple[int, int]) -> albumentations.Compose:
        if size not in self.composed:
            self.composed[size] = albumentations.Compose(self.transforms(*size))
        return self.composed[size]


def random_key(*numbers: int) -> int:
    """One 32-bit key from several numbers, well mixed, so that neighbours share nothing."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def augmentation(name: str, *, seed: int, crop: float = 1.0, resized_crop: float = 1.0) -> Augment | None:
    """The augmentation called `name`, after the crops: "d4" (the square's 8 symmetries; Surin, Brodt) or "none".

    `crop`: share of an image's sides that a random window has (Brodt tried 448 of 512 px: 0.875); it
    stays that small. `resized_crop`: least share of the area that a random window has, which is then
    brought back to the image's size (Sypetkowski: 0.5). Both at 1: no crop. None when nothing is
    left to do. Raises InputError for a share outside 0..1 and an unknown name.
    """
    for knob, share in (("crop", crop), ("resized_crop", resized_crop)):
        if not 0 < share <= 1:
            raise InputError(f"a window of {share} of an image", where=knob, cure="use a share above 0, up to 1 for the whole image")
    if name not in TURNS:
        raise InputError(f"unknown augmentation {name!r}", where="augment", cure=f"use one of: {', '.join(TURNS)}")
    def transforms(height: int, width: int) -> Transforms:
        window = albumentations.RandomCrop(round(crop * height), round(crop * width))
        zoom = albumentations.RandomResizedCrop((height, width), scale=(resized_crop, 1.0), ratio=(1.0, 1.0))
        return [*[zoom] * (resized_crop < 1), *[window] * (crop < 1), *TURNS[name]()]
    return Augment(transforms, seed=seed) if name != "none" or min(crop, resized_crop) < 1 else None


TURNS: dict[str, Callable[[], Transforms]] = {"d4": lambda: [albumentations.D4(p=1)], "none": list}
