"""Augmentations whose randomness is a function of (seed, epoch, site) and of nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from importlib import metadata
from threading import get_ident
from typing import TYPE_CHECKING, Any

import numpy as np

from cellsignal.errors import InputError
from cellsignal.learn.geometry import Geometry

if TYPE_CHECKING:
    import albumentations

AUGMENTATIONS = ("d4", "none")
PIPELINE = "augmentation pipeline"
LICENCES = {"albumentations": "MIT licence", "albumentationsx": "AGPL-3.0 or a commercial licence"}  # both are imported as albumentations
Transforms = list["albumentations.BasicTransform"]


class Augment:
    """Apply Albumentations transforms, on the host; the same (seed, epoch, site) always gives the same picture.

    `transforms(height, width)` gives them for images of one size, in px. What they make must be bytes of one size with all
    channels, [H, W, C]: pictures travel as uint8, and the network scales them itself.
    """

    def __init__(self, transforms: Callable[[int, int], Transforms], *, seed: int) -> None:
        self.transforms, self.seed = transforms, seed
        self.composed: dict[tuple[int, ...], albumentations.Compose] = {}
        _print_library()

    @property
    def facts(self) -> dict[str, Any]:
        """What decides a picture beside epoch and site, for an identity."""
        return {"seed": self.seed, "transforms": self.transforms}

    def written(self, size: tuple[int, int]) -> dict[str, Any]:
        """Seed and transforms for images of a size as plain values; with their code where Albumentations cannot write down all."""
        import albumentations

        composed = albumentations.Compose(self.transforms(*size))
        try:
            transforms = albumentations.to_dict(composed)["transform"]
        except Exception:  # a transform that cannot be written down: each raises an error of its own
            return self.facts
        return {"seed": self.seed, "transforms": transforms if all(map(_tells_all, _each(composed))) else [transforms, self.transforms]}

    def __call__(self, image: np.ndarray, *, epoch: int, site: int, out: np.ndarray | None = None) -> np.ndarray:
        """Augment one image, uint8[C, H, W]; `site` is its row number, `out` what is filled.

        InputError where the transforms fail, or make anything but uint8[H, W, C] with the image's channels and the size of `out`.
        """
        try:
            compose = self._compose(image.shape[1:])
            compose.set_random_seed(random_key(self.seed, epoch, site))
            augmented = compose(image=image.transpose(1, 2, 0))["image"]
        except Exception as error:  # whatever a transform of the user raises
            what = f"fails on {_shape(image.shape)}: {type(error).__name__}: {error}"
            raise InputError(what, where=PIPELINE, cure="use transforms for pictures of this size and number of channels") from error
        _check(augmented, channels=len(image))
        augmented = augmented.transpose(2, 0, 1)
        if out is None:
            return np.ascontiguousarray(augmented)
        if out.shape != augmented.shape:
            what = f"makes pictures of several sizes: {_shape(out.shape)} and {_shape(augmented.shape)}"
            raise InputError(what, where=PIPELINE, cure="end it with a transform to one size, such as Resize or RandomCrop")
        out[...] = augmented
        return out

    def _compose(self, size: tuple[int, int]) -> albumentations.Compose:
        """One for each size and thread: their random numbers are their own."""
        import albumentations  # half of the time that this package would else take to be imported

        if (key := (get_ident(), *size)) not in self.composed:
            self.composed[key] = albumentations.Compose(self.transforms(*size))
        return self.composed[key]


def _check(made: object, *, channels: int) -> None:
    """Raise InputError for what is not a picture, uint8[H, W, C], of so many channels."""
    if not isinstance(made, np.ndarray):
        what, cure = f"makes a {type(made).__module__}.{type(made).__name__}, not an array", "leave out ToTensorV2: tensors are made afterwards"
    elif made.dtype != np.uint8:
        what = f"makes pixels of type {made.dtype}, not uint8 from 0 to 255"
        cure = "leave out Normalize, ToFloat and the like: the network scales pixels itself (`standardise`)"
    elif made.ndim != 3 or made.shape[2] != channels:
        what, cure = f"makes an array of shape {made.shape} from a site of {channels} channels", "use transforms that keep all channels, [H, W, C]"
    else:
        return
    raise InputError(what, where=PIPELINE, cure=cure)


def _shape(shape: tuple[int, ...]) -> str:
    channels, height, width = shape
    return f"{width}x{height} pixels with {channels} channels"


@cache
def _print_library() -> None:
    """Say once which library transforms come from: two with different licences install under one import name."""
    found = {each.name: each.version for name in LICENCES for each in metadata.distributions(name=name)}
    print("augmentation by", " or ".join(f"{name} {version} ({LICENCES[name.lower()]})" for name, version in found.items()))


def random_key(*numbers: int) -> int:
    """One 32-bit key from several numbers, well mixed, so that neighbours share nothing."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def augmentation(name: str, *, seed: int, crop: float = 1.0, resized_crop: float = 1.0) -> Geometry | None:
    """The augmentation called `name`, after the crops: "d4" (the square's 8 symmetries; Surin, Brodt) or "none".

    `crop`: share of an image's sides that a random window has (Brodt tried 448 of 512 px: 0.875); it
    stays that small. `resized_crop`: least share of the area that a random window has, which is then
    brought back to the image's size (Sypetkowski: 0.5). Both at 1: no crop. None when nothing is
    left to do. Raises InputError for a share outside 0..1 and an unknown name.
    """
    if name not in AUGMENTATIONS:
        raise InputError(f"unknown augmentation {name!r}", where="augment", cure=f"use one of: {', '.join(AUGMENTATIONS)}")
    made = Geometry(seed=seed, d4=name == "d4", crop=crop, resized_crop=resized_crop)
    return made if made.d4 or min(crop, resized_crop) < 1 else None


def _each(transform: Any) -> Iterator[Any]:
    """A transform and those within it."""
    yield transform
    for inner in getattr(transform, "transforms", ()):
        yield from _each(inner)


def _tells_all(transform: Any) -> bool:
    """Whether a transform is Albumentations' own, and no wrapper around a function."""
    kind = type(transform)
    return kind.__module__.partition(".")[0] == "albumentations" and kind.__name__ != "Lambda"
