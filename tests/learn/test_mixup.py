"""MixUp and CutMix mix as their authors do, by their keys alone."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from cellsignal.learn.settings import AugmentationSettings
from cellsignal.learn.batches.augment import cutmix, draw_mix, mixup

IMAGES = torch.arange(6 * 2, dtype=torch.uint8).reshape(6, 2) * 20
TARGETS = torch.eye(6)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_all_tensors_are_mixed_alike_and_each_row_with_one_other(alpha: float) -> None:
    for number in range(20):
        mix = mixup(alpha, 6, key=(0, 3, number))
        images, targets = mix.mix_images(IMAGES), mix.blend(TARGETS)
        torch.testing.assert_close(images, targets @ IMAGES.float(), rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(targets.sum(0), torch.ones(6))
        torch.testing.assert_close(targets.sum(1), torch.ones(6))
        shares = {round(float(share), 4) for share in targets.diagonal() if share < 1}
        assert len(shares) <= 1, "one share for the batch"


@pytest.mark.parametrize("way", [mixup, cutmix])
def test_the_key_decides_and_every_part_of_it_counts(way: Callable) -> None:
    def mixed(*key: int) -> str: return str((way(0.4, 6, key=key).permutation.tolist(), way(0.4, 6, key=key).lam))
    assert mixed(1, 2, 3) == mixed(1, 2, 3)
    assert len({mixed(*key) for key in ((1, 2, 3), (0, 2, 3), (1, 0, 3), (1, 2, 0))}) == 4


def test_shares_come_from_the_beta_distribution() -> None:
    pair = torch.tensor([[0.0], [1.0]])
    shares = torch.stack([mixup(0.4, 2, key=(0, 0, n)).blend(pair)[1] for n in range(2000)])
    swapped = shares[(shares > 0) & (shares < 1)]  # the order stays as it is in half of the batches
    assert 0.4 < len(swapped) / 2000 < 0.6
    assert swapped.mean().item() == pytest.approx(0.5, abs=0.04)
    assert swapped.var().item() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), rel=0.1)


def test_a_window_comes_from_the_other_image_and_the_labels_know_its_area() -> None:
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None] * torch.ones(6, 2, 20, 30, dtype=torch.uint8)
    for number in range(20):
        mix = cutmix(1.0, 6, key=(0, 0, number)).with_pixel_share(images)
        cut = mix.mix_images(images)
        assert cut.dtype == torch.uint8 and torch.equal(cut[:, 0], cut[:, 1])
        own = (cut == images).float().mean((1, 2, 3))
        others = mix.permutation != torch.arange(6)
        assert torch.allclose(own[others], torch.tensor(mix.lam)), "counted in whole pixels"
        for row in range(6):
            assert set(cut[row].unique().tolist()) <= {row, int(mix.permutation[row])}
            places = (cut[row, 0] == mix.permutation[row]).nonzero()
            if others[row] and len(places):
                height, width = (places.amax(0) - places.amin(0) + 1).tolist()
                assert height * width == len(places), "one rectangle"


def test_windows_have_the_areas_that_the_authors_draw() -> None:
    shares = np.array([cutmix(1.0, 4, key=(0, 0, n)).lam for n in range(3000)])
    rng = np.random.default_rng(0)
    side, middles = np.sqrt(1 - rng.beta(1, 1, 3000)), rng.random((2, 3000))
    edges = np.clip(middles + side / 2, 0, 1) - np.clip(middles - side / 2, 0, 1)
    assert shares.mean() == pytest.approx(1 - edges.prod(0).mean(), abs=0.02)
    assert shares.std() == pytest.approx(edges.prod(0).std(), abs=0.02)


def test_with_both_kinds_a_fair_coin_decides() -> None:
    kinds = [draw_mix(4, settings=AugmentationSettings(mixup_alpha=0.4, cutmix_alpha=1.0), key=(0, 0, n)).window is None for n in range(400)]
    assert 160 < sum(kinds) < 240
    assert draw_mix(4, settings=AugmentationSettings(mixup_alpha=0.0, cutmix_alpha=0.0), key=(0, 0, 0)) is None
    assert draw_mix(4, settings=AugmentationSettings(mixup_alpha=0.4, cutmix_alpha=0.0), key=(0, 0, 7)).window is None
    assert draw_mix(4, settings=AugmentationSettings(mixup_alpha=0.0, cutmix_alpha=1.0), key=(0, 0, 7)).window is not None
