"""Augmentations whose randomness is a function of (seed, epoch, site) and of nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from importlib import metadata
from threading import get_ident
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from torch.nn import functional

from cellsignal.errors import InputError
from cellsignal.learn.settings import AugmentationSettings

if TYPE_CHECKING:
    import albumentations

# Windows and symmetries of the square, drawn by (seed, epoch, site), made site by site on the host or batch by batch on the device.


D4 = 8  # symmetries of the square: the bits of a number mirror left and right (1), top and bottom (2), and then swap rows and columns (4)
SAME_SHAPE = 4  # those that leave the shape of an oblong as it is
# The same on the host: OpenCV's way to make each from a plane, uint8[H, W], into another.
_TURNED = (
    lambda plane, out: cv2.copyTo(plane, None, out),
    lambda plane, out: cv2.flip(plane, 1, out),
    lambda plane, out: cv2.flip(plane, 0, out),
    lambda plane, out: cv2.flip(plane, -1, out),
    cv2.transpose,
    lambda plane, out: cv2.rotate(plane, cv2.ROTATE_90_COUNTERCLOCKWISE, out),
    lambda plane, out: cv2.rotate(plane, cv2.ROTATE_90_CLOCKWISE, out),
    lambda plane, out: cv2.flip(cv2.transpose(plane), -1, out),
)


class CropFlipRotate:
    """A random window of each picture, and one of the eight symmetries of the square (D4) after it.

    `settings.crop`: share of a picture's sides that the window has (Brodt tried 448 of 512 px: 0.875); it stays that small.
    `settings.resized_crop`: least share of the area of another window, before that one, which is brought back to the picture's
    size (Sypetkowski: 0.5): bilinear without antialiasing, since it only magnifies (as OpenCV's
    INTER_LINEAR does), rounded to whole grey values. What a site gets is a function of (seed, epoch, site) alone; the host
    and the device make the same bits of it. Pictures that are not square are never turned by a quarter.
    """

    def __init__(self, settings: AugmentationSettings, *, seed: int) -> None:
        self.seed, self.d4, self.crop, self.resized_crop = seed, settings.symmetries == "d4", settings.crop, settings.resized_crop

    @property
    def facts(self) -> dict[str, float]:
        """Its settings, for an identity."""
        return vars(self)

    def __call__(self, image: np.ndarray, *, epoch: int, site: int, out: np.ndarray | None = None) -> np.ndarray:
        """One image, uint8[C, H, W], made anew on the host; `site` is its row number, `out` what is filled."""
        height, width = self.size(image.shape[-2:])
        out = np.empty((len(image), height, width), np.uint8) if out is None else out
        if self.resized_crop < 1:
            out[...] = self.on_device(torch.from_numpy(image)[None], [site], epoch=epoch)[0].numpy()
            return out
        [(drawn, top, left, *_)] = self.draws([site], epoch)
        top, left = _place(top, image.shape[1] - height), _place(left, image.shape[2] - width)
        turn = _TURNED[self._element(drawn, square=height == width)]
        for plane, made in zip(image[:, top:top + height, left:left + width], out, strict=True):
            if (elsewhere := turn(plane, made)) is not made:  # OpenCV fills what has the right size and type
                made[...] = elsewhere
        return out

    def on_device(self, images: torch.Tensor, rows: Sequence[int], *, epoch: int) -> torch.Tensor:
        """The images uint8[N, C, H, W] of sites `rows` made anew where they are, all at once; uint8."""
        sides, whole = self.size(images.shape[-2:]), images.shape[-2:]
        element, *windows = self.draws(rows, epoch).T
        element = self._element(element, square=sides[0] == sides[1])
        move = partial(torch.Tensor.to, device=images.device, non_blocking=True)
        places = [move(torch.from_numpy(self._sources(windows, axis, (element >> bit & 1) > 0, side=sides[axis], whole=whole[axis])))
                  for axis, bit in ((0, 1), (1, 0))]
        window = _sampled(images, *places) if self.resized_crop < 1 else _gathered(images, *places)
        if not (element & 4).any():
            return window
        return torch.where(move(torch.from_numpy(element & 4 > 0))[:, None, None, None], window.transpose(2, 3), window)

    def size(self, size: Sequence[int]) -> tuple[int, int]:
        """Height and width of what becomes of images of this height and width, px."""
        height, width = (round(self.crop * side) for side in size)
        return height, width

    def draws(self, rows: Sequence[int], epoch: int) -> np.ndarray:
        """Six numbers in [0, 1) for each site: its symmetry, where the window lies, how large the other one is, and where."""
        return np.array([np.random.default_rng((self.seed, epoch, int(row))).random(6) for row in rows])

    def _element(self, drawn: np.ndarray, *, square: bool) -> np.ndarray:
        return (np.asarray(drawn) * (D4 if square else SAME_SHAPE) * self.d4).astype(np.int64)

    def _sources(self, windows: Sequence[np.ndarray], axis: int, mirrored: np.ndarray, *, side: int, whole: int) -> np.ndarray:
        """Which rows (axis 0) or columns of the images those of the windows come from, [N, side]; fractions where they are magnified."""
        start, share, corner = _place(windows[axis], whole - side), windows[2], windows[3 + axis]
        places = start[:, None] + np.arange(side)
        places = np.where(mirrored[:, None], places[:, ::-1], places)
        if self.resized_crop == 1:
            return places
        scale = np.sqrt(self.resized_crop + (1 - self.resized_crop) * share)[:, None]
        return ((places + 0.5) * scale + corner[:, None] * (1 - scale) * whole - 0.5).astype(np.float32)


def _place(drawn: np.ndarray, room: int) -> np.ndarray:
    return np.asarray(drawn * (room + 1)).astype(np.int64)


def _gathered(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """For each image its own rows and columns, int64[N, h] and [N, w]."""
    count, channels = (torch.arange(length, device=images.device) for length in images.shape[:2])
    return images[count[:, None, None, None], channels[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]


def _sampled(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Between pixels: for each image its own rows and columns, float[N, h] and [N, w]."""
    down, across = (2 * (places + 0.5) / length - 1 for places, length in zip((rows, columns), images.shape[-2:]))
    grid = torch.stack(torch.broadcast_tensors(across[:, None, :], down[:, :, None]), -1)
    found = functional.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return found.round().to(torch.uint8)


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


def build_augmentation(settings: AugmentationSettings, *, seed: int) -> CropFlipRotate | None:
    """The crops and symmetries of the settings; None where they leave each picture as it is."""
    made = CropFlipRotate(settings, seed=seed)
    return made if made.d4 or min(made.crop, made.resized_crop) < 1 else None


def _each(transform: Any) -> Iterator[Any]:
    """A transform and those within it."""
    yield transform
    for inner in getattr(transform, "transforms", ()):
        yield from _each(inner)


def _tells_all(transform: Any) -> bool:
    """Whether a transform is Albumentations' own, and no wrapper around a function."""
    kind = type(transform)
    return kind.__module__.partition(".")[0] == "albumentations" and kind.__name__ != "Lambda"
