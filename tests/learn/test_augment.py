"""Windows and symmetries are those asked for, the same on host and device, and follow (seed, epoch, site) alone."""

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import albumentations
import cv2
import numpy as np
import pytest
import torch
from albumentations.augmentations.geometric import functional as theirs

from cellsignal.learn.settings import AugmentationSettings
from cellsignal.errors import InputError
from cellsignal.learn.batches.augment import Augment, build_augmentation
from cellsignal.learn.batches.dataset import SiteImages, read_batches

RAMP = (np.arange(64)[:, None] * 3 + np.zeros((6, 1, 64))).astype(np.uint8)  # every row of an image is 3 brighter than the last
NOISE = np.random.default_rng(0).integers(0, 256, (40, 6, 24, 24), np.uint8)


def test_a_crop_is_a_window_of_the_image_and_stays_small() -> None:
    crop = build_augmentation(AugmentationSettings(symmetries="none", crop=0.875), seed=0)
    windows = [crop(RAMP, epoch=epoch, site=3) for epoch in range(80)]
    assert {window.shape for window in windows} == {(6, 56, 56)}
    assert all(np.array_equal(np.unique(np.diff(window[:, :, 0].astype(int))), [3]) for window in windows), "at its own scale"
    assert {int(window[0, 0, 0]) for window in windows} == {3 * row for row in range(9)}


def test_a_resized_crop_is_as_large_as_the_image_and_magnifies_it() -> None:
    zoom = build_augmentation(AugmentationSettings(symmetries="none", resized_crop=0.5), seed=0)
    windows = [zoom(RAMP, epoch=epoch, site=3) for epoch in range(40)]
    assert {window.shape for window in windows} == {RAMP.shape}
    spans = np.array([int(window[0, -1, 0]) - int(window[0, 0, 0]) for window in windows]) / (3 * 63)
    assert 0.65 < spans.min() < 0.8 and 0.9 < spans.max() <= 1, "from half of the area up to all of it"


def test_a_resized_crop_is_what_opencv_makes_of_the_window() -> None:
    zoom = build_augmentation(AugmentationSettings(symmetries="none", resized_crop=0.3), seed=1)
    smooth = cv2.GaussianBlur(np.random.default_rng(1).uniform(0, 255, (64, 64)), (0, 0), 3).astype(np.uint8)
    for site in range(12):
        made = zoom(smooth[None], epoch=0, site=site)[0]
        share, down, across = zoom.random_numbers([site], 0)[0, 3:]
        scale = np.sqrt(0.3 + 0.7 * share)
        window = np.array([[scale, 0, (across * (1 - scale)) * 64 + (scale - 1) / 2], [0, scale, (down * (1 - scale)) * 64 + (scale - 1) / 2]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        expected = cv2.warpAffine(smooth, window, (64, 64), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        assert np.abs(made.astype(int) - expected).max() <= 2  # OpenCV keeps 5 bits of a place between pixels


def test_the_symmetries_are_the_eight_of_albumentations() -> None:
    turn = build_augmentation(AugmentationSettings(), seed=0)
    expected = {theirs.d4(NOISE[0].transpose(1, 2, 0), element).transpose(2, 0, 1).tobytes()
                for element in ("e", "r90", "r180", "r270", "v", "hvt", "h", "t")}
    seen = [turn(NOISE[0], epoch=epoch, site=7).tobytes() for epoch in range(400)]
    assert set(seen) == expected and len(expected) == 8
    assert min(seen.count(each) for each in expected) > 25, "each as often as the others"


@pytest.mark.parametrize("options", [{}, {"crop": 0.5}, {"resized_crop": 0.4}, {"crop": 0.75, "resized_crop": 0.5}])
@pytest.mark.parametrize(("name", "width"), [("d4", 24), ("none", 24), ("d4", 17)])
def test_host_and_device_make_the_same_bits_in_any_company(name: str, width: int, options: dict) -> None:
    if name == "none" and not options:
        return
    made, images = build_augmentation(AugmentationSettings(symmetries=name, **options), seed=3), NOISE[..., :width]
    alone = np.stack([made(image, epoch=2, site=site) for site, image in enumerate(images)])
    rows = np.random.default_rng(0).permutation(len(images))
    together = made.on_device(torch.from_numpy(images[rows]), rows, epoch=2)
    assert together.dtype == torch.uint8 and np.array_equal(together.numpy(), alone[rows])
    assert alone.shape[2:] == made.output_size((24, width))
    out = np.empty_like(alone[0])
    assert made(images[5], epoch=2, site=5, out=out) is out and np.array_equal(out, alone[5])
    assert not np.array_equal(alone[0], made(images[0], epoch=1, site=0)) or not np.array_equal(alone[1], made(images[1], epoch=1, site=1))


def test_crops_come_before_the_symmetries_and_follow_their_key() -> None:
    both = build_augmentation(AugmentationSettings(crop=0.5, resized_crop=0.5), seed=5)
    assert both(RAMP, epoch=1, site=2).shape == (6, 32, 32)
    again = build_augmentation(AugmentationSettings(crop=0.5, resized_crop=0.5), seed=5)
    assert np.array_equal(both(RAMP, epoch=1, site=9), again(RAMP, epoch=1, site=9))
    assert len({both(RAMP, epoch=epoch, site=9).tobytes() for epoch in range(5)}) == 5
    assert len({build_augmentation(AugmentationSettings(crop=0.5), seed=seed)(RAMP, epoch=1, site=9).tobytes() for seed in range(5)}) == 5
    assert build_augmentation(AugmentationSettings(symmetries="none"), seed=0) is None


def test_any_albumentations_pipeline_is_drawn_by_its_key_in_any_thread() -> None:
    own = Augment(lambda height, width: [albumentations.D4(p=1), albumentations.GaussNoise(p=1)], seed=2)
    alone = [own(image, epoch=1, site=site) for site, image in enumerate(NOISE)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda site: own(NOISE[site], epoch=1, site=site), range(len(NOISE))))
    assert all(map(np.array_equal, alone, together)) and alone[0].shape == NOISE[0].shape
    assert not np.array_equal(alone[0], own(NOISE[0], epoch=2, site=0))


SCALES = "leave out Normalize, ToFloat and the like: the network scales pixels itself (`standardise`)"
FITS = "use transforms for images of this size and number of channels"


class Change(albumentations.ImageOnlyTransform):
    """A user's own transform."""

    def __init__(self, change: Callable[[np.ndarray], np.ndarray]) -> None:
        super().__init__(p=1)
        self.change = change

    def apply(self, img: np.ndarray, **parameters: object) -> np.ndarray:
        return self.change(img)


@pytest.mark.parametrize(("transform", "words"), [
    (albumentations.Normalize(mean=(0.5,) * 6, std=(0.2,) * 6), f"makes pixels of type float32, not uint8 from 0 to 255; {SCALES}"),
    (albumentations.ToFloat(), f"makes pixels of type float32, not uint8 from 0 to 255; {SCALES}"),
    (Change(lambda image: image.astype(np.uint16) * 257), f"makes pixels of type uint16, not uint8 from 0 to 255; {SCALES}"),
    (albumentations.ToTensorV2(), "makes a torch.Tensor, not an array; leave out ToTensorV2: tensors are made afterwards"),
    (albumentations.RandomCrop(224, 224), f"fails on 24x24 pixels with 6 channels: CropSizeError: {...}; {FITS}"),
    (albumentations.HueSaturationValue(p=1), f"fails on 24x24 pixels with 6 channels: TypeError: {...}; {FITS}"),
    (Change(lambda image: image[..., 0]), "makes an array of shape (24, 24) from a site of 6 channels; use transforms that keep all channels, [H, W, C]"),
    (Change(lambda image: image[..., :1]),  # which would be spread over all channels
     "makes an array of shape (24, 24, 1) from a site of 6 channels; use transforms that keep all channels, [H, W, C]"),
])
def test_pipelines_that_make_no_bytes_are_refused_in_one_line(transform: albumentations.BasicTransform, words: str, patches: tuple) -> None:
    own = Augment(lambda height, width: [transform], seed=0)
    for out in (None, np.empty((6, 24, 24), np.uint8)):
        with pytest.raises(InputError) as error:
            own(NOISE[0], epoch=0, site=0, out=out)
        said, (head, _, tail) = str(error.value), words.partition(str(...))  # between them stands what the library says
        assert said.startswith(f"augmentation pipeline: {head}") and said.endswith(tail) and "\n" not in said
        assert tail or said == f"augmentation pipeline: {words}"
    with pytest.raises(InputError, match=r"^augmentation pipeline: "):  # and before a training begins
        list(read_batches(SiteImages(*patches, class_numbers=range(4), augment=own), [np.arange(4)], workers=2))


@pytest.mark.parametrize(("transforms", "words"), [
    ([albumentations.D4(p=1)], "cannot be made for 24x24 pixels with 6 channels: TypeError: 'list' object is not callable"),
    (lambda height, width: None, "cannot be made for 24x24 pixels with 6 channels: TypeError: 'NoneType' object is not iterable"),
])
def test_what_makes_no_pipeline_is_told_what_does(transforms: Any, words: str) -> None:
    with pytest.raises(InputError) as error:
        Augment(transforms, seed=0)(NOISE[0], epoch=0, site=0)
    assert str(error.value) == f"augmentation pipeline: {words}; pass a function of height and width that returns a list of transforms"


def test_a_function_of_ones_own_may_return_a_new_image(patches: tuple) -> None:
    def inverted(image: np.ndarray, *, epoch: int, site: int, out: np.ndarray | None = None) -> np.ndarray:
        return 255 - image

    data = SiteImages(*patches, class_numbers=range(4), augment=inverted)
    for images, rows in read_batches(data, [np.arange(4), np.arange(4, 8)], workers=2):
        assert np.array_equal(images.numpy(), 255 - np.stack([data.image(row) for row in rows]))


@pytest.mark.parametrize(("function", "words"), [
    (lambda image, **key: image / 255, "makes float64[6, 32, 32] from uint8[6, 32, 32]"),
    (lambda image, **key: image.transpose(1, 2, 0), "makes uint8[32, 32, 6] from uint8[6, 32, 32]"),
    (lambda image, **key: None, "makes a NoneType from uint8[6, 32, 32]"),
    (lambda image, *, epoch, site, out=None: image if epoch + site < 2 else image[:, :30],
     "makes images of several sizes: 32x32 pixels with 6 channels and 32x30 pixels with 6 channels"),
    (lambda image: image, "fails on 32x32 pixels with 6 channels: TypeError: {...}"),
    (albumentations.Compose([albumentations.D4(p=1)]), "fails on 32x32 pixels with 6 channels: {...}"),
])
def test_a_function_that_makes_no_bytes_is_refused_in_one_line(function: Callable, words: str, patches: tuple) -> None:
    with pytest.raises(InputError) as error:
        list(read_batches(SiteImages(*patches, class_numbers=range(4), augment=function), [np.arange(4)], workers=2))
    said, (head, _, _) = str(error.value), words.partition("{...}")
    assert said.startswith(f"augmentation function: {head}") and said.endswith("; write def augment(image, *, epoch, site, out=None), which returns "
        "uint8[C, H, W]; Albumentations' transforms belong into Augment") and "\n" not in said


def test_pictures_of_several_sizes_are_refused() -> None:
    sizes = iter([20, 20, 22])
    own = Augment(lambda height, width: [Change(lambda image: image[: next(sizes)])], seed=0)
    shape = own(NOISE[0], epoch=0, site=0).shape
    own(NOISE[1], epoch=0, site=1, out=np.empty(shape, np.uint8))
    with pytest.raises(InputError) as error:
        own(NOISE[2], epoch=0, site=2, out=np.empty(shape, np.uint8))
    assert str(error.value) == ("augmentation pipeline: makes images of several sizes: 24x20 pixels with 6 channels and 24x22 pixels with 6 channels; "
                                "end it with a transform to one size, such as Resize or RandomCrop")


@pytest.mark.parametrize(("name", "licence"), [("albumentations", "MIT licence"), ("AlbumentationsX", "AGPL-3.0 or a commercial licence")])
def test_the_library_and_its_licence_are_named_once(name: str, licence: str, tmp_path: Path) -> None:
    """Both are imported by one name, so only what is installed tells."""
    facts = tmp_path / f"{name.lower()}-9.9.dist-info/METADATA"
    facts.parent.mkdir()
    facts.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n")
    script = ("import importlib.metadata as metadata, sys; from cellsignal.learn.batches import augment; found = metadata.distributions;"
              "metadata.distributions = lambda **which: found(path=[sys.argv[1]], **which);"
              "augment.build_augmentation(augment.AugmentationSettings(), seed=0); [augment.Augment(lambda height, width: [], seed=0) for _ in range(2)]")
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert ended.stdout == f"augmentation by {name} 9.9 ({licence})\n"
