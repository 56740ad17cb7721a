"""MixUp mixes as Zhang et al. do, by its key alone."""

import pytest
import torch

from cellsignal.learn.mixup import mixup

IMAGES = torch.arange(6 * 2, dtype=torch.uint8).reshape(6, 2) * 20
TARGETS = torch.eye(6)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_all_tensors_are_mixed_alike_and_each_row_with_one_other(alpha: float) -> None:
    for number in range(20):
        images, targets = mixup(alpha, IMAGES, TARGETS, key=(0, 3, number))
        torch.testing.assert_close(images, targets @ IMAGES.float(), rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(targets.sum(0), torch.ones(6))
        torch.testing.assert_close(targets.sum(1), torch.ones(6))
        shares = {round(float(share), 4) for share in targets.diagonal() if share < 1}
        assert len(shares) <= 1, "one share for the batch"


def test_the_key_decides_and_every_part_of_it_counts() -> None:
    def mixed(*key: int) -> list: return mixup(0.4, IMAGES, key=key)[0].tolist()
    assert mixed(1, 2, 3) == mixed(1, 2, 3)
    assert len({str(mixed(*key)) for key in ((1, 2, 3), (0, 2, 3), (1, 0, 3), (1, 2, 0))}) == 4


def test_shares_come_from_the_beta_distribution() -> None:
    pair = torch.tensor([[0.0], [1.0]])
    shares = torch.stack([mixup(0.4, pair, key=(0, 0, n))[0][1] for n in range(2000)])
    swapped = shares[(shares > 0) & (shares < 1)]  # the order stays as it is in half of the batches
    assert 0.4 < len(swapped) / 2000 < 0.6
    assert swapped.mean().item() == pytest.approx(0.5, abs=0.04)
    assert swapped.var().item() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), rel=0.1)
