"""Augmentations of sites and mixtures of batches, whose random numbers depend on (seed, epoch, site) alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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

# Random crops and symmetries of the square, site by site on the host or batch by batch on the device.

NUM_SYMMETRIES = 8  # of the square: the bits of a number flip left and right (1), flip top and bottom (2), and then transpose (4)
NUM_OBLONG_SYMMETRIES = 4  # those that keep the shape of an image that is not square
# The same on the host, with OpenCV, from one channel uint8[H, W] into another array.
_SYMMETRIES = (
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
    """A random crop of each image, followed by one of the eight symmetries of the square (D4).

    `settings.crop`: height and width of the crop as a share of the image's (Brodt tried 448 of 512 px: 0.875).
    `settings.resized_crop`: least share of the area in another crop, taken before and resized to the whole image (Sypetkowski:
    0.5): bilinear without antialiasing, since it only enlarges (as OpenCV's INTER_LINEAR), rounded to integers. The result is a
    function of (seed, epoch, site) alone, and bit-equal on host and device. Images that are not square are never rotated by 90
    degrees.
    """

    def __init__(self, settings: AugmentationSettings, *, seed: int) -> None:
        self.seed, self.d4, self.crop, self.resized_crop = seed, settings.symmetries == "d4", settings.crop, settings.resized_crop

    @property
    def facts(self) -> dict[str, float]:
        """The settings, for an identity."""
        return vars(self)

    def __call__(self, image: np.ndarray, *, epoch: int, site: int, out: np.ndarray | None = None) -> np.ndarray:
        """Augment one image, uint8[C, H, W], on the host, into `out` if given; `site` is its row number."""
        height, width = self.output_size(image.shape[-2:])
        out = np.empty((len(image), height, width), np.uint8) if out is None else out
        if self.resized_crop < 1:
            out[...] = self.on_device(torch.from_numpy(image)[None], [site], epoch=epoch)[0].numpy()
            return out
        [(symmetry, top, left, *_)] = self.random_numbers([site], epoch)
        top, left = _window_start(top, image.shape[1] - height), _window_start(left, image.shape[2] - width)
        transform = _SYMMETRIES[self._symmetry_number(symmetry, square=height == width)]
        for plane, target in zip(image[:, top:top + height, left:left + width], out, strict=True):
            if (result := transform(plane, target)) is not target:  # OpenCV writes into arrays of the right size and type
                target[...] = result
        return out

    def on_device(self, images: torch.Tensor, rows: Sequence[int], *, epoch: int) -> torch.Tensor:
        """Augment the images uint8[N, C, H, W] of the sites `rows` on their device, all at once; uint8."""
        size, full_size = self.output_size(images.shape[-2:]), images.shape[-2:]
        symmetry, *windows = self.random_numbers(rows, epoch).T
        symmetry = self._symmetry_number(symmetry, square=size[0] == size[1])
        move = partial(torch.Tensor.to, device=images.device, non_blocking=True)
        coordinates = [move(torch.from_numpy(self._source_coordinates(windows, axis, (symmetry >> bit & 1) > 0, side=size[axis], full=full_size[axis])))
                       for axis, bit in ((0, 1), (1, 0))]
        crops = _sample_bilinear(images, *coordinates) if self.resized_crop < 1 else _gather_pixels(images, *coordinates)
        if not (symmetry & 4).any():
            return crops
        return torch.where(move(torch.from_numpy(symmetry & 4 > 0))[:, None, None, None], crops.transpose(2, 3), crops)

    def output_size(self, size: Sequence[int]) -> tuple[int, int]:
        """Height and width, px, of the augmented images for images of the height and width `size`."""
        height, width = (round(self.crop * side) for side in size)
        return height, width

    def random_numbers(self, rows: Sequence[int], epoch: int) -> np.ndarray:
        """Six numbers in [0, 1) for each site: symmetry, top and left of the crop, area, top and left of the resized crop."""
        return np.array([np.random.default_rng((self.seed, epoch, int(row))).random(6) for row in rows])

    def _symmetry_number(self, uniform: np.ndarray, *, square: bool) -> np.ndarray:
        return (np.asarray(uniform) * (NUM_SYMMETRIES if square else NUM_OBLONG_SYMMETRIES) * self.d4).astype(np.int64)

    def _source_coordinates(self, windows: Sequence[np.ndarray], axis: int, flipped: np.ndarray, *, side: int, full: int) -> np.ndarray:
        """The rows (axis 0) or columns of the images from which the crops are taken, [N, side]; fractional for resized crops."""
        start, area, corner = _window_start(windows[axis], full - side), windows[2], windows[3 + axis]
        coordinates = start[:, None] + np.arange(side)
        coordinates = np.where(flipped[:, None], coordinates[:, ::-1], coordinates)
        if self.resized_crop == 1:
            return coordinates
        scale = np.sqrt(self.resized_crop + (1 - self.resized_crop) * area)[:, None]
        return ((coordinates + 0.5) * scale + corner[:, None] * (1 - scale) * full - 0.5).astype(np.float32)


def _window_start(uniform: np.ndarray, largest: int) -> np.ndarray:
    return np.asarray(uniform * (largest + 1)).astype(np.int64)


def _gather_pixels(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """The pixels of each image at its own rows and columns, int64[N, h] and [N, w]."""
    count, channels = (torch.arange(length, device=images.device) for length in images.shape[:2])
    return images[count[:, None, None, None], channels[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]


def _sample_bilinear(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Interpolated pixels of each image at its own rows and columns, float[N, h] and [N, w]."""
    y, x = (2 * (coordinates + 0.5) / length - 1 for coordinates, length in zip((rows, columns), images.shape[-2:]))
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), -1)
    sampled = functional.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled.round().to(torch.uint8)


PIPELINE = "augmentation pipeline"
LICENCES = {"albumentations": "MIT licence", "albumentationsx": "AGPL-3.0 or a commercial licence"}  # both are imported as `albumentations`
Transforms = list["albumentations.BasicTransform"]


class Augment:
    """Albumentations transforms on the host; the same (seed, epoch, site) always gives the same image.

    `transforms(height, width)` returns the transforms for images of this size, in px. Their output must be uint8[H, W, C] of
    one size with all channels: batches are uint8, and the network scales them itself.
    """

    def __init__(self, transforms: Callable[[int, int], Transforms], *, seed: int) -> None:
        self.transforms, self.seed = transforms, seed
        self.composed: dict[tuple[int, ...], albumentations.Compose] = {}
        _print_library_once()

    @property
    def facts(self) -> dict[str, Any]:
        """What the image of a site depends on besides the epoch, for an identity."""
        return {"seed": self.seed, "transforms": self.transforms}

    def describe(self, size: tuple[int, int]) -> dict[str, Any]:
        """Seed and transforms for images of `size` as plain values; with their code if Albumentations cannot serialise all of them."""
        import albumentations

        composed = albumentations.Compose(self.transforms(*size))
        try:
            transforms = albumentations.to_dict(composed)["transform"]
        except Exception:  # transforms that cannot be serialised raise various errors
            return self.facts
        return {"seed": self.seed, "transforms": transforms if all(map(_is_serialisable, _nested_transforms(composed))) else [transforms, self.transforms]}

    def __call__(self, image: np.ndarray, *, epoch: int, site: int, out: np.ndarray | None = None) -> np.ndarray:
        """Augment one image, uint8[C, H, W], into `out` if given; `site` is its row number.

        Raises InputError if the transforms fail, or return anything but uint8[H, W, C] with the image's channels and the size of `out`.
        """
        try:
            compose = self._compose(image.shape[1:])
        except Exception as error:  # so may the function that makes them
            what = f"cannot be made for {_format_shape(image.shape)}: {type(error).__name__}: {error}"
            raise InputError(what, where=PIPELINE, cure="pass a function of height and width that returns a list of transforms") from error
        try:
            compose.set_random_seed(random_key(self.seed, epoch, site))
            augmented = compose(image=image.transpose(1, 2, 0))["image"]
        except Exception as error:  # a transform of the user may raise anything
            what = f"fails on {_format_shape(image.shape)}: {type(error).__name__}: {error}"
            raise InputError(what, where=PIPELINE, cure="use transforms for images of this size and number of channels") from error
        _check_output(augmented, channels=len(image))
        augmented = augmented.transpose(2, 0, 1)
        if out is None:
            return np.ascontiguousarray(augmented)
        if out.shape != augmented.shape:
            what = f"makes images of several sizes: {_format_shape(out.shape)} and {_format_shape(augmented.shape)}"
            raise InputError(what, where=PIPELINE, cure="end it with a transform to one size, such as Resize or RandomCrop")
        out[...] = augmented
        return out

    def _compose(self, size: tuple[int, ...]) -> albumentations.Compose:
        """The composed transforms for a size, one per thread, because each has its own random numbers."""
        import albumentations  # importing it takes as long as the rest of this package

        if (key := (get_ident(), *size)) not in self.composed:
            self.composed[key] = albumentations.Compose(self.transforms(*size))
        return self.composed[key]


FUNCTION = "augmentation function"
FUNCTION_CURE = "write def augment(image, *, epoch, site, out=None), which returns uint8[C, H, W]; Albumentations' transforms belong into Augment"


def augmented(augment: "Augmentation", image: np.ndarray, *, epoch: int, site: int, out: np.ndarray | None = None) -> np.ndarray:
    """The image that `augment` makes of one site's, in `out` if given.

    A function of the user's own may return a new array instead of filling `out`. Raises InputError if it fails, or returns
    anything but uint8[C, H, W] with the image's channels and the size of `out`: floats would be cut to integers.
    """
    if isinstance(augment, CropFlipRotate | Augment):
        return augment(image, epoch=epoch, site=site, out=out)
    try:
        made = augment(image, epoch=epoch, site=site, out=out)
    except Exception as error:  # a function of the user may raise anything
        what = f"fails on {_format_shape(image.shape)}: {type(error).__name__}: {error}"
        raise InputError(what, where=FUNCTION, cure=FUNCTION_CURE) from error
    if not isinstance(made, np.ndarray) or made.dtype != np.uint8 or made.shape[:1] != image.shape[:1] or made.ndim != 3:
        what = f"makes {made.dtype}{list(made.shape)}" if isinstance(made, np.ndarray) else f"makes a {type(made).__name__}"
        raise InputError(f"{what} from uint8{list(image.shape)}", where=FUNCTION, cure=FUNCTION_CURE)
    if out is None or made is out:
        return made
    if made.shape != out.shape:
        raise InputError(f"makes images of several sizes: {_format_shape(out.shape)} and {_format_shape(made.shape)}", where=FUNCTION, cure=FUNCTION_CURE)
    out[...] = made
    return out


def _check_output(output: object, *, channels: int) -> None:
    """Raise InputError unless `output` is an image, uint8[H, W, C], with this number of channels."""
    if isinstance(output, torch.Tensor):
        what, cure = "makes a torch.Tensor, not an array", "leave out ToTensorV2: tensors are made afterwards"
    elif not isinstance(output, np.ndarray):
        what, cure = f"makes a {type(output).__name__}, not an array", "return the image that it makes"
    elif output.dtype != np.uint8:
        what = f"makes pixels of type {output.dtype}, not uint8 from 0 to 255"
        cure = "leave out Normalize, ToFloat and the like: the network scales pixels itself (`standardise`)"
    elif output.ndim != 3 or output.shape[2] != channels:
        what, cure = f"makes an array of shape {output.shape} from a site of {channels} channels", "use transforms that keep all channels, [H, W, C]"
    else:
        return
    raise InputError(what, where=PIPELINE, cure=cure)


def _format_shape(shape: tuple[int, ...]) -> str:
    channels, height, width = shape
    return f"{width}x{height} pixels with {channels} channels"


@cache
def _print_library_once() -> None:
    """Print which library the transforms come from: two with different licences share one import name."""
    versions = {package.name: package.version for name in LICENCES for package in metadata.distributions(name=name)}
    print("augmentation by", " or ".join(f"{name} {version} ({LICENCES[name.lower()]})" for name, version in versions.items()))


# Called with an image uint8[C, H, W] and, by keyword, epoch, site and perhaps `out`.
Augmentation = Augment | CropFlipRotate | Callable[..., np.ndarray]


def random_key(*numbers: int) -> int:
    """One 32-bit seed from several numbers; neighbouring numbers give independent seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def build_augmentation(settings: AugmentationSettings, *, seed: int) -> CropFlipRotate | None:
    """The crops and symmetries of the settings; None if they leave every image unchanged."""
    augment = CropFlipRotate(settings, seed=seed)
    return augment if augment.d4 or min(augment.crop, augment.resized_crop) < 1 else None


def _nested_transforms(transform: Any) -> Iterator[Any]:
    """A transform and the transforms within it."""
    yield transform
    for inner in getattr(transform, "transforms", ()):
        yield from _nested_transforms(inner)


def _is_serialisable(transform: Any) -> bool:
    """Whether a transform is Albumentations' own, and not a wrapper around a function."""
    kind = type(transform)
    return kind.__module__.partition(".")[0] == "albumentations" and kind.__name__ != "Lambda"


# MixUp and CutMix: every image of a batch is mixed with another one.


# Each separates the random numbers of one purpose from those of augmentations, whose keys are (seed, epoch, site), and of
# masked covariates, whose stream is 2.
MIXUP_STREAM, CUTMIX_STREAM, CHOICE_STREAM = 1, 3, 4
Window = tuple[float, float, float, float]  # top, bottom, left, right, as shares of height and width


@dataclass(frozen=True)
class Mix:
    """How a batch is mixed: row i with row `permutation[i]`, where `lam`, as in the papers, is the weight of row i.

    `window`: the part of each image that is replaced by the other image (CutMix); None blends the images (MixUp).
    """

    permutation: torch.Tensor
    lam: float
    window: Window | None = None

    def blend(self, tensor: torch.Tensor) -> torch.Tensor:
        """Rows of [N, ...] mixed as floats: lam * x + (1 - lam) * x[permutation]."""
        floats = tensor if tensor.is_floating_point() else tensor.float()
        return floats[self._permutation_on(tensor)].lerp_(floats, self.lam)

    def mix_images(self, images: torch.Tensor) -> torch.Tensor:
        """Images [N, C, H, W], blended or with a window of the other image."""
        if self.window is None:
            return self.blend(images)
        top, bottom, left, right = self.window_pixels(images)
        mixed = images.clone()
        mixed[..., top:bottom, left:right] = images[..., top:bottom, left:right][self._permutation_on(images)]
        return mixed

    def _permutation_on(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.permutation.to(tensor.device, non_blocking=True)  # does not wait for a GPU

    def window_pixels(self, images: torch.Tensor) -> tuple[int, int, int, int]:
        """The edges of the window in pixels of these images."""
        height, width = images.shape[-2:]
        return tuple(round(edge * side) for edge, side in zip(self.window, (height, height, width, width), strict=True))

    def with_pixel_share(self, images: torch.Tensor) -> "Mix":
        """The same mix, with the exact share of pixels that each image keeps."""
        if self.window is None:
            return self
        top, bottom, left, right = self.window_pixels(images)
        height, width = images.shape[-2:]
        return Mix(self.permutation, 1 - (bottom - top) * (right - left) / (height * width), self.window)


def mixup(alpha: float, sites: int, *, key: tuple[int, ...]) -> Mix:
    """A MixUp of a number of sites; `lam` and the permutation depend on `key` (seed, epoch, number of the batch) alone.

    `lam` is drawn from Beta(alpha, alpha), once per batch as in the authors' code. A resumed training therefore mixes the
    same pairs on any device.
    """
    generator = np.random.default_rng((*key, MIXUP_STREAM))
    lam = float(generator.beta(alpha, alpha))
    return Mix(torch.from_numpy(generator.permutation(sites)), lam)


def cutmix(alpha: float, sites: int, *, key: tuple[int, ...]) -> Mix:
    """A CutMix of a number of sites, which like `mixup` depends on `key` alone: one window per batch, its centre anywhere.

    Its area is 1 - Beta(alpha, alpha) of the image; it is clipped at the edges, and `lam` is the remaining area, as in the
    authors' code.
    """
    generator = np.random.default_rng((*key, CUTMIX_STREAM))
    side = float(np.sqrt(1 - generator.beta(alpha, alpha)))
    permutation, centre = generator.permutation(sites), generator.random(2)
    low, high = np.clip(centre - side / 2, 0, 1), np.clip(centre + side / 2, 0, 1)
    return Mix(torch.from_numpy(permutation), float(1 - np.prod(high - low)), (low[0], high[0], low[1], high[1]))


def draw_mix(sites: int, settings: AugmentationSettings, *, key: tuple[int, ...]) -> Mix | None:
    """The mix of a batch, MixUp or CutMix with equal probability if both are set; it depends on `key` alone. None without either."""
    mixup_alpha, cutmix_alpha = settings.mixup_alpha, settings.cutmix_alpha
    if mixup_alpha and cutmix_alpha:
        use_mixup = np.random.default_rng((*key, CHOICE_STREAM)).random() < 0.5
        return mixup(mixup_alpha, sites, key=key) if use_mixup else cutmix(cutmix_alpha, sites, key=key)
    if mixup_alpha:
        return mixup(mixup_alpha, sites, key=key)
    return cutmix(cutmix_alpha, sites, key=key) if cutmix_alpha else None
