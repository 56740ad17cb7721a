"""Windows of an image are as large as asked for, and the same (seed, epoch, site) always gives the same one."""

import numpy as np
import pytest

from cellsignal.errors import InputError
from cellsignal.learn.augment import augmentation

RAMP = (np.arange(64)[:, None] * 3 + np.zeros((6, 1, 64))).astype(np.uint8)  # every row of an image is 3 brighter than the last


def test_a_crop_is_a_window_of_the_image_and_stays_small() -> None:
    crop = augmentation("none", seed=0, crop=0.875)
    windows = [crop(RAMP, epoch=epoch, site=3) for epoch in range(40)]
    assert {window.shape for window in windows} == {(6, 56, 56)}
    assert all(np.array_equal(np.unique(np.diff(window[:, :, 0].astype(int))), [3]) for window in windows), "at its own scale"
    assert {int(window[0, 0, 0]) for window in windows} == {3 * row for row in range(9)}


def test_a_resized_crop_is_as_large_as_the_image_and_magnifies_it() -> None:
    zoom = augmentation("none", seed=0, resized_crop=0.5)
    windows = [zoom(RAMP, epoch=epoch, site=3) for epoch in range(40)]
    assert {window.shape for window in windows} == {RAMP.shape}
    spans = np.array([int(window[0, -1, 0]) - int(window[0, 0, 0]) for window in windows]) / (3 * 63)
    assert 0.65 < spans.min() < 0.8 and 0.9 < spans.max() <= 1, "from half of the area up to all of it"


def test_crops_come_before_the_symmetries_and_follow_their_key() -> None:
    both = augmentation("d4", seed=5, crop=0.5, resized_crop=0.5)
    assert both(RAMP, epoch=1, site=2).shape == (6, 32, 32)
    again = augmentation("d4", seed=5, crop=0.5, resized_crop=0.5)
    assert np.array_equal(both(RAMP, epoch=1, site=9), again(RAMP, epoch=1, site=9))
    assert len({both(RAMP, epoch=epoch, site=9).tobytes() for epoch in range(5)}) == 5
    assert augmentation("none", seed=0) is None


@pytest.mark.parametrize(("options", "words"), [({"crop": 0}, "crop: a window of 0"), ({"resized_crop": 1.5}, "resized_crop: a window of 1.5")])
def test_a_window_larger_than_the_image_is_refused(options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        augmentation("d4", seed=0, **options)
