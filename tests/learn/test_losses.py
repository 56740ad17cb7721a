"""Losses are what their papers say, read from one line, and metrics are scikit-learn's."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torch.nn.functional import cross_entropy, one_hot

from cellsignal.errors import InputError
from cellsignal.learn.settings import TrainingSettings
from cellsignal.learn.training.losses import LOSSES, parse_loss, smooth_targets
from cellsignal.learn.training.losses import arcface, cosface, margin_loss
from cellsignal.learn.training.epoch import METRICS


def batch(seed: int = 0, *, sites: int = 7, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sites, classes, generator=generator), torch.randint(classes, (sites,), generator=generator)


def test_a_sum_is_read_and_weighed() -> None:
    logits, labels = batch()
    targets = one_hot(labels, 5).float()
    cosines = torch.tanh(logits)
    loss = parse_loss("0.8 cross-entropy + .1 arcface+bce")
    assert loss.terms == ((0.8, "cross-entropy"), (0.1, "arcface"), (1.0, "bce")) and loss.uses_cosines and loss.single_label
    expected = (0.8 * cross_entropy(logits, labels) + LOSSES["bce"](logits, targets)
                + 0.1 * margin_loss("arcface", cosines, targets, margin=0.5, scale=30.0))
    torch.testing.assert_close(loss(logits, targets, cosines), expected)
    assert torch.equal(parse_loss("bce")(logits, targets), LOSSES["bce"](logits, targets))
    assert not parse_loss("0.5 focal + 0.5 lovasz").single_label


@pytest.mark.parametrize("text", ["", "nonsense", "0.8 cross-entropy + 0.2 arcfac", "bce +", "bce - focal", "0.5 0.5 bce"])
def test_what_is_no_loss_is_named(text: str) -> None:
    with pytest.raises(InputError, match=r"is no \[weight\] name; names are bce, cross-entropy, focal, lovasz, arcface, cosface"):
        TrainingSettings(loss=text)


def test_arcface_widens_the_angle_and_cosface_takes_from_the_cosine() -> None:
    angles = torch.tensor([[0.3, 2.0], [1.2, 0.4], [3.0, 0.5]])
    labels = torch.tensor([0, 1, 0])
    wide = arcface(angles.cos(), labels, margin=0.5)
    assert wide[0].tolist() == pytest.approx([math.cos(0.8), math.cos(2.0)], abs=1e-6)
    assert wide[1].tolist() == pytest.approx([math.cos(1.2), math.cos(0.9)], abs=1e-6)
    assert wide[2, 0].item() < math.cos(3.0), "beyond pi it falls on"
    assert cosface(angles.cos(), labels, margin=0.35)[:, 0].tolist() == pytest.approx(
        [math.cos(0.3) - 0.35, math.cos(1.2), math.cos(3.0) - 0.35], abs=1e-6)


@pytest.mark.parametrize("name", ["arcface", "cosface"])
def test_a_margin_weighs_both_classes_of_a_mixed_site_and_has_a_slope_everywhere(name: str) -> None:
    cosines, first = batch()
    cosines = torch.tanh(cosines).requires_grad_()
    second = (first + 2) % 5
    def alone(labels: torch.Tensor) -> torch.Tensor:
        return margin_loss(name, cosines, one_hot(labels, 5).float(), margin=0.5, scale=30.0)
    mixed = margin_loss(name, cosines, 0.7 * one_hot(first, 5) + 0.3 * one_hot(second, 5), margin=0.5, scale=30.0)
    torch.testing.assert_close(mixed, 0.7 * alone(first) + 0.3 * alone(second))
    certain = torch.tensor([[1.0, -1.0]], requires_grad=True)
    margin_loss(name, certain, torch.tensor([[1.0, 0.0]]), margin=0.5, scale=30.0).backward()
    assert certain.grad.isfinite().all()


def test_the_lovasz_hinge_of_hard_answers_is_the_jaccard_loss() -> None:
    """Where every logit is 0 or beyond the hinge, it is the loss of the set of wrong labels (Berman et al. 2018, section 2)."""
    for seed in range(20):
        _, labels = batch(seed, sites=12, classes=2)
        targets, wrong = labels.reshape(2, 6).float(), batch(seed + 100, sites=12, classes=2)[1].reshape(2, 6).bool()
        logits = torch.where(wrong, 0.0, 9.0) * (2 * targets - 1)  # an error of 1 where wrong, none else
        def jaccard(true: torch.Tensor, missed: torch.Tensor) -> float:
            union = (true | missed).sum().item()
            return missed.sum().item() / union if union else 0.0
        expected = np.mean([(jaccard(t, w) + jaccard(~t, w)) / 2 for t, w in zip(targets.bool(), wrong)])
        assert LOSSES["lovasz"](logits, targets).item() == pytest.approx(expected, abs=1e-6)


def test_focal_counts_little_what_is_right() -> None:
    logits, targets = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 1.0]])
    share = torch.sigmoid(logits)
    assert LOSSES["focal"](logits, targets).item() == pytest.approx((-(1 - share) ** 2 * share.log()).mean().item())


def test_smoothing_keeps_the_sum_of_one_label_and_doubts_each_of_several() -> None:
    one = smooth_targets(torch.eye(4), 0.1, uniform=1 / 4)
    torch.testing.assert_close(one.sum(1), torch.ones(4))
    torch.testing.assert_close(cross_entropy(torch.ones(4, 4).triu(), one),
                               cross_entropy(torch.ones(4, 4).triu(), torch.arange(4), label_smoothing=0.1))
    assert smooth_targets(torch.tensor([1.0, 0.0]), 0.1, uniform=0.5).tolist() == pytest.approx([0.95, 0.05])


def test_macro_f1_is_scikit_learns_over_batches() -> None:
    metric, rng = METRICS["macro_f1"], np.random.default_rng(0)
    for _ in range(30):
        logits, true = rng.normal(size=(9, 6)), rng.random((9, 6)) < rng.choice([0.05, 0.4], 6)
        counts = metric.zero_counts(6)
        for part in np.array_split(np.arange(9), 3):
            counts += metric.counts(torch.from_numpy(logits[part]), torch.from_numpy(true[part]).float())
        assert metric.value(counts, 9) == pytest.approx(f1_score(true, logits > 0, average="macro", zero_division=0))
