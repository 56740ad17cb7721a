"""Marginals of one-to-one assignments: against enumeration, and where float32 has its limits."""

from itertools import permutations

import numpy as np
import pytest

from cellsignal.decide.assign.solvers import MIN_CORRECTED, fractional_marginals, marginals, one_to_one_weights, softmax


def enumerated(scores: np.ndarray) -> np.ndarray:
    """Marginals by summing over every one-to-one assignment."""
    wells, sirnas = scores.shape
    total = np.zeros(scores.shape)
    for order in permutations(range(sirnas), wells):
        total[range(wells), order] += np.exp(scores[range(wells), order].sum())
    return total / total[0].sum()


each_fraction = pytest.mark.parametrize("fraction", [1.0, 0.7])


@each_fraction
@pytest.mark.parametrize(("wells", "sirnas", "error"), [(7, 7, 0.10), (6, 7, 0.06), (5, 8, 0.04), (3, 8, 0.02)])
def test_marginals_are_near_those_by_enumeration(wells: int, sirnas: int, error: float, fraction: float) -> None:
    """Small blocks are the worst case of the approximation; a softmax is several times farther off."""
    rng, together, alone = np.random.default_rng(0), [], []
    for _ in range(15):
        scores = 1.5 * (rng.normal(size=(wells, sirnas)) + np.eye(wells, sirnas))
        truth = enumerated(scores)
        together.append(np.abs(marginals(scores, fraction=fraction) - truth).max())
        alone.append(np.abs(softmax(scores) - truth).max())
    assert np.mean(together) < error and np.mean(together) < np.mean(alone) / 2


def test_two_wells_that_contest_two_sirnas() -> None:
    """Half of the Bethe correction is exact for them, however many such pairs there are; the whole of it is certain of the likelier."""
    scores = np.full((6, 6), -30.0, np.float32)
    for k, odds in ((0, 0.4), (2, 1.0), (4, -2.0)):  # of the diagonal, of both wells together
        scores[k : k + 2, k : k + 2] = [[odds, 0], [0, 0]]
    truth = enumerated(scores)
    np.testing.assert_allclose(marginals(scores, fraction=0.5, tolerance=1e-5), truth, atol=1e-3)
    assert truth[0, 0] == pytest.approx(1 / (1 + np.exp(-0.4)))
    assert marginals(scores)[0, 0] > 0.95 and truth[0, 0] < marginals(scores, fraction=0.7)[0, 0] < 0.7


@each_fraction
@pytest.mark.parametrize("missing", [0, 1, 5, 276])
@pytest.mark.parametrize("signal", [0.0, 3.0, 30.0])
def test_a_plate_converges_to_row_sums_of_one_and_column_sums_of_at_most_one(missing: int, signal: float, fraction: float) -> None:
    scores = signal * (np.random.default_rng(1).normal(size=(277 - missing, 277)) + 2 * np.eye(277 - missing, 277))
    beliefs = marginals(scores.astype(np.float32), fraction=fraction)
    assert beliefs.dtype == np.float32 and np.isfinite(beliefs).all()
    np.testing.assert_allclose(beliefs.sum(1), 1, atol=1e-4)
    assert beliefs.sum(0).max() < 1.05
    far = marginals(scores.astype(np.float32), fraction=fraction, tolerance=1e-6, passes=2000)
    assert np.abs(beliefs - far).mean() < 1e-4


@pytest.mark.parametrize("wells, sirnas, signal", [(277, 277, 4.5), (270, 277, 4.5), (60, 60, 4.5), (12, 12, 6.0), (3, 5, 1.5)])
@pytest.mark.parametrize("fraction", [0.5, 0.78])
def test_scaling_rows_and_columns_finds_the_same_marginals(wells: int, sirnas: int, signal: float, fraction: float) -> None:
    scores = (1.5 * np.random.default_rng(0).normal(size=(wells, sirnas)) + signal * np.eye(wells, sirnas)).astype(np.float32)
    far = {"passes": 5000, "tolerance": 1e-6}
    found, _ = fractional_marginals(one_to_one_weights(scores, 1.0), fraction, **far)
    # Below MIN_CORRECTED the correction is left at its second order, off by less than the square in a row and in a column.
    np.testing.assert_allclose(found, marginals(scores, fraction=fraction, **far), atol=2 * MIN_CORRECTED**2)


def test_temperature_divides_the_scores() -> None:
    scores = np.random.default_rng(2).normal(size=(5, 6))
    np.testing.assert_allclose(marginals(scores, temperature=2.0), marginals(scores / 2), atol=1e-6)
    np.testing.assert_allclose(softmax(scores, temperature=2.0), softmax(scores / 2), atol=1e-6)


@each_fraction
def test_minus_infinity_is_no_probability_and_no_error(fraction: float) -> None:
    scores = np.zeros((3, 4), np.float32)
    scores[:, 3] = -np.inf
    scores[0, 1:] = -np.inf  # well 0 has siRNA 0 alone
    beliefs = marginals(scores, fraction=fraction)
    np.testing.assert_allclose(beliefs[0], [1, 0, 0, 0], atol=1e-3)
    assert beliefs[:, 3].max() < 1e-6 and beliefs[1:, 0].max() < 1e-3
    nothing = np.full((2, 2), -np.inf, np.float32)
    np.testing.assert_allclose(marginals(nothing, fraction=fraction), 0.5)
    np.testing.assert_allclose(softmax(nothing), 0.5)
