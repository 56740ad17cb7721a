"""Thresholds: fitted, matched to shares, kept with what they belong to."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from cellsignal.decide.labels.multilabel import apply_thresholds, f1_by_class, macro_f1
from cellsignal.decide.labels.thresholds import THRESHOLD_METHODS, Thresholds, best_f1_thresholds, cross_fitted_answers, labels_digest, matching_thresholds, write_thresholds
from cellsignal.files import read_json


def sites(count: int, *, seed: int = 0, decimals: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and truth of five classes from frequent to rare, as a timid network gives them."""
    generator = np.random.default_rng(seed)
    truth = generator.random((count, 5)) < np.array([0.4, 0.2, 0.08, 0.03, 0.01])
    logits = generator.normal(size=(count, 5)) + 2.2 * truth + np.log([0.4, 0.2, 0.08, 0.03, 0.01])
    return np.round(1 / (1 + np.exp(-logits)), decimals), truth


@pytest.mark.parametrize("decimals", [1, 6])
def test_no_threshold_is_better_on_the_sites_it_was_fitted_on(decimals: int) -> None:
    probabilities, truth = sites(200, decimals=decimals)
    best = f1_by_class(truth, probabilities >= best_f1_thresholds(probabilities, truth))
    for k in range(5):
        cuts = [0.0, *np.unique(probabilities[:, k]), 1.1]
        every = [f1_by_class(truth[:, [k]], probabilities[:, [k]] >= (low + high) / 2)[0] for low, high in pairwise(cuts)]
        assert best[k] == pytest.approx(max(every))


def test_fitted_thresholds_beat_a_half_on_sites_they_have_not_seen() -> None:
    held_out, asked = sites(3000), sites(3000, seed=1)
    values = THRESHOLD_METHODS["fitted"](*held_out, asked[0])
    half = macro_f1(asked[1], apply_thresholds(asked[0], THRESHOLD_METHODS["half"](*held_out, asked[0])))
    assert macro_f1(asked[1], apply_thresholds(asked[0], values)) > half + 0.05
    assert macro_f1(asked[1], apply_thresholds(asked[0], THRESHOLD_METHODS["shares"](*held_out, asked[0]))) > half + 0.05


@pytest.mark.parametrize("share", [0.0, 1e-4, 0.013, 0.5, 0.9997, 1.0])
def test_shares_are_matched_to_half_a_site(share: float) -> None:
    probabilities, _ = sites(997, decimals=12)
    got = (probabilities >= matching_thresholds(probabilities, np.full(5, share))).sum(axis=0)
    assert (abs(got - share * 997) <= 0.5 + 1e-9).all()


def test_equal_probabilities_stay_on_one_side() -> None:
    probabilities = np.array([[1.0], [1.0], [0.5], [0.5], [0.0], [0.0]])
    shares = [(probabilities >= matching_thresholds(probabilities, np.array([share]))).mean() for share in (0.0, 0.2, 0.4, 0.6, 0.9)]
    assert shares == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 2 / 3])  # a 0 is never answered


def test_a_class_that_nobody_has_keeps_a_half() -> None:
    probabilities, truth = sites(50)
    truth[:, 2] = False
    assert best_f1_thresholds(probabilities, truth)[2] == 0.5


def test_sites_are_judged_by_thresholds_that_have_not_seen_them() -> None:
    probabilities, truth = sites(600)
    folds = np.arange(600) % 3
    answers = cross_fitted_answers(probabilities, truth, folds, method="fitted")
    values = best_f1_thresholds(probabilities[folds != 1], truth[folds != 1])
    assert (answers[folds == 1] == apply_thresholds(probabilities[folds == 1], values)).all()
    seen = macro_f1(truth, apply_thresholds(probabilities, best_f1_thresholds(probabilities, truth)))
    assert macro_f1(truth, answers) < seen


def test_thresholds_are_kept_with_what_they_belong_to(tmp_path: Path) -> None:
    digest = labels_digest(["a", "b"], [(0,), (1, 2)])
    assert digest == labels_digest(["b", "a"], [(1, 2), (0,)]) != labels_digest(["a", "b"], [(0,), (1,)])
    told = Thresholds((0.1, 0.25), "fitted", digest, 2, {"fold-0/model": "abc"}, "mean")
    path = write_thresholds(tmp_path / "thresholds.json", told)
    assert read_json(path) == {"values": [0.1, 0.25], "method": "fitted", "fitted_on": digest, "sites": 2,
                               "weights": {"fold-0/model": "abc"}, "combined": "mean"}  # fmt: skip
