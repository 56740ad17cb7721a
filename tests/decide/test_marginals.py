"""Marginals of one-to-one assignments: against enumeration, and where float32 has its limits."""

from itertools import permutations

import numpy as np
import pytest

from cellsignal.decide.marginals import marginals, softmax


def enumerated(scores: np.ndarray) -> np.ndarray:
    """Marginals by summing over every one-to-one assignment."""
    wells, sirnas = scores.shape
    total = np.zeros(scores.shape)
    for order in permutations(range(sirnas), wells):
        total[range(wells), order] += np.exp(scores[range(wells), order].sum())
    return total / total[0].sum()


@pytest.mark.parametrize(("wells", "sirnas", "error"), [(7, 7, 0.10), (6, 7, 0.06), (5, 8, 0.04), (3, 8, 0.02)])
def test_marginals_are_near_those_by_enumeration(wells: int, sirnas: int, error: float) -> None:
    """Small blocks are the worst case of the approximation; a softmax is several times farther off."""
    rng, together, alone = np.random.default_rng(0), [], []
    for _ in range(15):
        scores = 1.5 * (rng.normal(size=(wells, sirnas)) + np.eye(wells, sirnas))
        truth = enumerated(scores)
        together.append(np.abs(marginals(scores) - truth).max())
        alone.append(np.abs(softmax(scores) - truth).max())
    assert np.mean(together) < error and np.mean(together) < np.mean(alone) / 2


@pytest.mark.parametrize("missing", [0, 1, 5, 276])
@pytest.mark.parametrize("signal", [0.0, 3.0, 30.0])
def test_a_plate_converges_to_row_sums_of_one_and_column_sums_of_at_most_one(missing: int, signal: float) -> None:
    scores = signal * (np.random.default_rng(1).normal(size=(277 - missing, 277)) + 2 * np.eye(277 - missing, 277))
    beliefs = marginals(scores.astype(np.float32))
    assert beliefs.dtype == np.float32 and np.isfinite(beliefs).all()
    np.testing.assert_allclose(beliefs.sum(1), 1, atol=1e-4)
    assert beliefs.sum(0).max() < 1.05
    far = marginals(scores.astype(np.float32), tolerance=1e-6, passes=2000)
    assert np.abs(beliefs - far).mean() < 1e-4


def test_temperature_divides_the_scores() -> None:
    scores = np.random.default_rng(2).normal(size=(5, 6))
    np.testing.assert_allclose(marginals(scores, temperature=2.0), marginals(scores / 2), atol=1e-6)
    np.testing.assert_allclose(softmax(scores, temperature=2.0), softmax(scores / 2), atol=1e-6)


def test_minus_infinity_is_no_probability_and_no_error() -> None:
    scores = np.zeros((3, 4), np.float32)
    scores[:, 3] = -np.inf
    scores[0, 1:] = -np.inf  # well 0 has siRNA 0 alone
    beliefs = marginals(scores)
    np.testing.assert_allclose(beliefs[0], [1, 0, 0, 0], atol=1e-3)
    assert beliefs[:, 3].max() < 1e-6 and beliefs[1:, 0].max() < 1e-3
    nothing = np.full((2, 2), -np.inf, np.float32)
    np.testing.assert_allclose(marginals(nothing), 0.5)
    np.testing.assert_allclose(softmax(nothing), 0.5)
