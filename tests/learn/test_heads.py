"""Whose head answers, and what a head is told."""

import pytest
import torch

from cellsignal.learn.networks.classifier import COSINE_SCALE, Head
from cellsignal.learn.settings import NetworkSettings

FEATURES = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
THREE = {"cell_type": ["A", "B", "C"]}  # the levels of a covariate
SHARES = torch.tensor([[1.0, 0, 0], [0, 0, 1.0], [0.3, 0.5, 0.2]])


def test_a_covariate_adds_its_own_weights() -> None:
    head = Head(NetworkSettings(), 7, 5, levels=THREE)
    first, second = head(FEATURES, torch.eye(3)), head(FEATURES, torch.eye(3)[[1, 1, 1]])
    torch.testing.assert_close((second - first)[0], head.weight[:, 8] - head.weight[:, 7])
    half = head(FEATURES, torch.tensor([[0.5, 0.5, 0]] * 3))
    torch.testing.assert_close(half[0], (first[0] + second[0]) / 2)


@pytest.mark.parametrize("kind", ["cell_type", "both"])
def test_a_cell_type_has_its_own_head_and_a_mixture_its_shares(kind: str) -> None:
    head = Head(NetworkSettings(heads=kind, covariates=["site", "cell_type"]), 7, 5, levels={"site": ["1"], **THREE})
    told = torch.cat([torch.ones(3, 1), SHARES], dim=1)
    inputs = torch.cat([FEATURES, told], dim=1)
    each = [inputs @ weight.T for weight in head.own_weight]
    shared = inputs @ head.weight.T if kind == "both" else 0
    expected = torch.stack([sum(share * logits[row] for share, logits in zip(SHARES[row], each)) for row in range(3)])
    torch.testing.assert_close(head(FEATURES, told), expected + shared)


def test_an_unknown_cell_type_gets_the_mean_of_all_heads() -> None:
    head = Head(NetworkSettings(heads="cell_type", covariates=["cell_type"]), 7, 5, levels=THREE)
    mean = torch.cat([FEATURES, torch.zeros(3, 3)], dim=1) @ head.own_weight.mean(0).T
    torch.testing.assert_close(head(FEATURES, torch.zeros(3, 3)), mean)


def test_only_the_heads_that_are_asked_learn() -> None:
    head = Head(NetworkSettings(heads="cell_type", covariates=["cell_type"]), 7, 5, levels=THREE)
    head(FEATURES, torch.eye(3)[[0, 0, 2]]).sum().backward()
    assert [bool(gradient.any()) for gradient in head.own_weight.grad] == [True, False, True]


def test_control_features_are_products_with_both_kinds_of_controls() -> None:
    head, positive, negative = Head(NetworkSettings(control_features=True), 7, 5), torch.rand(7), torch.rand(3, 7)
    inputs = torch.cat([FEATURES, FEATURES * positive, FEATURES * negative, FEATURES * positive * negative], dim=1)
    torch.testing.assert_close(head(FEATURES, references=(positive, negative)), inputs @ head.weight.T)


@pytest.mark.parametrize("kind", ["shared", "cell_type"])
def test_products_of_large_features_stay_numbers_in_half_precision(kind: str) -> None:
    head, told = Head(NetworkSettings(heads=kind, covariates=["cell_type"], control_features=True), 7, 5, levels=THREE), torch.eye(3)
    features, positive, negative = torch.full((3, 7), 45.0), torch.full((7,), 45.0), torch.full((3, 7), 45.0)
    expected = head(features, told, (positive, negative))
    with torch.autocast("cpu", torch.float16):
        found = head(features.half(), told, (positive.half(), negative.half()))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("cosine", ["auxiliary", "only"])
def test_prototypes_answer_alone_or_teach_beside(cosine: str) -> None:
    head = Head(NetworkSettings(cosine_head=cosine), 7, 5)
    expected = torch.cosine_similarity(FEATURES[:, None], head.prototypes[None], dim=2)
    torch.testing.assert_close(head.cosines(FEATURES), expected)
    torch.testing.assert_close(head(FEATURES), COSINE_SCALE * expected if cosine == "only" else FEATURES @ head.weight.T)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head.cosines(FEATURES), head.cosines(FEATURES.float())) and head.cosines(FEATURES).dtype == torch.float32


def test_dropout_counts_in_training_alone_and_never_drops_what_is_told() -> None:
    head, told = Head(NetworkSettings(dropout=0.9), 7, 5, levels=THREE), torch.eye(3)
    assert not torch.equal(head(FEATURES, told), head(FEATURES, told))
    torch.testing.assert_close(head(torch.zeros(3, 7), told), head.weight[:, 7:].T)
    head.eval()
    assert torch.equal(head(FEATURES, told), head(FEATURES, told))
