"""Temperatures, with and without labels, and the calibration error, against what is known."""

import numpy as np
import pandas as pd
import pytest

from cellsignal.decide.assign.calibration import conflict_temperature, expected_calibration_error, fit_temperature, fit_temperatures
from cellsignal.errors import InputError


def calibrated(*, wells: int, classes: int, signal: float, seed: int) -> np.ndarray:
    """Log-probabilities up to a constant, the truth on the diagonal, calibrated at the temperature 1."""
    scores = np.random.default_rng(seed).normal(size=(wells, classes))
    return signal * (scores + signal * np.eye(wells, classes))


@pytest.mark.parametrize("overconfidence", [0.3, 1.0, 4.0])
def test_held_out_labels_tell_the_temperature(overconfidence: float) -> None:
    values = overconfidence * calibrated(wells=400, classes=400, signal=2.5, seed=0)
    scores = pd.DataFrame(values, index=[f"w{k}" for k in range(400)], columns=range(400))
    scores.iloc[5, 9] = -np.inf
    truth = pd.Series(range(400), index=scores.index)
    assert fit_temperature(scores, truth) == pytest.approx(overconfidence, rel=0.1)
    with pytest.raises(InputError, match="no scored well has a known siRNA"):
        fit_temperature(scores, truth.rename(lambda name: f"{name}x"))


def test_wells_whose_truth_is_impossible_do_not_count() -> None:
    values = calibrated(wells=400, classes=400, signal=2.5, seed=0)
    scores = pd.DataFrame(values, index=[f"w{k}" for k in range(400)], columns=range(400))
    labelled = pd.DataFrame({"cell_type": "RPE", "sirna": range(400)}, scores.index)
    rest = fit_temperature(scores.iloc[40:], labelled["sirna"])
    for k in range(40):
        scores.iat[k, k] = -np.inf
    assert fit_temperature(scores, labelled["sirna"]) == pytest.approx(rest, rel=1e-3)
    assert fit_temperatures(scores, labelled) == {"RPE": pytest.approx(rest, rel=1e-3)}
    assert fit_temperatures(scores.iloc[:40], labelled) == {}
    with pytest.raises(InputError, match="no scored well has a known siRNA"):
        fit_temperature(scores.iloc[:40], labelled["sirna"])


@pytest.mark.parametrize("overconfidence", [0.3, 1.0, 4.0])
def test_wells_that_quarrel_tell_the_temperature_without_labels(overconfidence: float) -> None:
    plates = [overconfidence * calibrated(wells=275, classes=277, signal=3.0, seed=seed) for seed in range(4)]
    assert conflict_temperature(plates) == pytest.approx(overconfidence, rel=0.1)


def test_where_wells_know_nothing_the_prior_stays() -> None:
    noise = np.random.default_rng(0).normal(size=(3, 20)) * 1e-3
    assert conflict_temperature([noise], centre=1.7) == pytest.approx(1.7, rel=0.01)
    strong = 4 * calibrated(wells=277, classes=277, signal=3.0, seed=1)
    near, free = (conflict_temperature([strong], spread=spread) for spread in (0.01, 0.5))
    assert near < 0.8 * free


def test_calibration_error_by_hand() -> None:
    # Two bins: three wells at 0.9 of which one is right, one at 0.1 that is wrong.
    assert expected_calibration_error([0.9, 0.9, 0.9, 0.1], [1, 0, 0, 0], bins=2) == pytest.approx((1.7 + 0.1) / 4)
    assert expected_calibration_error(pd.Series([1.0, 0.0]), pd.Series([True, False])) == 0
    with pytest.raises(InputError, match="no well"):
        expected_calibration_error([], [])
