"""Temperatures of decided wells, against scores whose errors are known."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from cellsignal.decide.settings import AssignmentSettings
from cellsignal.decide.assign.assign import decide
from cellsignal.decide.assign.calibration import expected_calibration_error, fit_temperature
from cellsignal.decide.assign.temperature import decided_temperatures
from cellsignal.decide.assign.temperature_source import BETHE_FRACTION

GROUPS = np.arange(400).reshape(4, 100).tolist()


def screen(experiments: list[str], values: Callable[[], np.ndarray]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores, each experiment's as drawn by `values`, and wells: siRNA k in well k, four plates of 100."""
    tables, places = [], []
    for name in experiments:
        ids = [f"{name}_{1 + k // 100}_w{k % 100:02d}" for k in range(400)]
        tables.append(pd.DataFrame(values(), ids, range(400)))
        places.append(pd.DataFrame({"id_code": ids, "experiment": name, "cell_type": name.split("-")[0],
                                    "plate": [1 + k // 100 for k in range(400)], "sirna": range(400)}))
    return pd.concat(tables), pd.concat(places, ignore_index=True)


def independent(*, heat: float = 1.0, seed: int = 0) -> Callable[[], np.ndarray]:
    """Wells that err on their own; at heat 1 a well's softmax is a probability."""
    rng = np.random.default_rng(seed)
    return lambda: heat * 3 * (rng.normal(size=(400, 400)) + 3 * np.eye(400))


def pairs(correlation: float, *, seed: int = 0) -> Callable[[], np.ndarray]:
    """Only siRNAs 2k and 2k + 1 are confused; each well's softmax is a probability, and a pair's errors are correlated.

    A well's log-odds x for the right one of the two are normal with mean 1 and variance 2, which is calibrated: density(x) is
    exp(x) density(-x). The two wells together have odds of their sum where they err apart, of the sum / (1 + correlation) as it is.
    """
    rng, mixing = np.random.default_rng(seed), np.linalg.cholesky([[1, correlation], [correlation, 1]])

    def values() -> np.ndarray:
        odds = (1 + np.sqrt(2) * rng.normal(size=(200, 2)) @ mixing.T).ravel()
        scores, k = np.full((400, 400), -30.0), np.arange(400)
        scores[k, k], scores[k, k ^ 1] = odds / 2, -odds / 2
        return scores

    return values


def labels(wells: pd.DataFrame, *experiments: str) -> pd.DataFrame:
    return wells[wells["experiment"].isin(experiments)].set_index("id_code")[["cell_type", "sirna"]]


@pytest.mark.parametrize("heat", [0.4, 3.0])
def test_wells_that_err_on_their_own_have_the_temperature_of_single_wells(heat: float) -> None:
    scores, wells = screen(["RPE-01", "RPE-02"], independent(heat=heat))
    found = decided_temperatures(scores, labels(wells, "RPE-01", "RPE-02"), wells, groups=GROUPS)
    assert found == {"RPE": pytest.approx(heat, rel=0.1)}


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.99])
def test_wells_that_swap_their_sirnas_are_as_sure_as_they_should_be(correlation: float) -> None:
    held_out, tests = [f"RPE-{k:02d}" for k in range(1, 9)], [f"RPE-{k:02d}" for k in range(9, 17)]
    scores, wells = screen(held_out + tests, pairs(correlation))
    known, asked = labels(wells, *held_out), labels(wells, *tests)
    assert fit_temperature(scores, known["sirna"]) == pytest.approx(1, rel=0.15)
    found = decided_temperatures(scores, known, wells, groups=GROUPS)
    # What one pair's marginals make of odds at a fraction of the Bethe correction, and the correlation that these must be told.
    assert found["RPE"] == pytest.approx((1 + correlation) / (2 - 2 * BETHE_FRACTION), rel=0.15)
    errors = []
    for temperature in (1.0, found["RPE"]):
        decision = decide(scores.loc[asked.index], wells, groups=GROUPS, temperatures={"RPE": temperature})
        errors.append(expected_calibration_error(decision.confidence, decision.predictions.eq(asked["sirna"])))
    assert errors[1] < 0.04 and errors[1] < errors[0] / 2


def test_raw_answers_have_the_temperature_of_single_wells() -> None:
    scores, wells = screen(["RPE-01"], pairs(0.9))
    held_out = labels(wells, "RPE-01")
    found = decided_temperatures(scores, held_out, wells, settings=AssignmentSettings(method="raw"))
    assert found["RPE"] == pytest.approx(fit_temperature(scores, held_out["sirna"]), rel=0.02)


def test_cell_types_are_measured_apart_and_those_without_errors_not_at_all() -> None:
    scores, wells = screen(["RPE-01", "U2OS-01", "HUVEC-01"], independent())
    scores[scores.index.str.startswith("U2OS")] *= 2
    scores[scores.index.str.startswith("HUVEC")] += 100 * np.eye(400)
    held_out = labels(wells, "RPE-01", "U2OS-01", "HUVEC-01")
    found = decided_temperatures(scores, held_out, wells, groups=GROUPS)
    assert set(found) == {"RPE", "U2OS"} and found["U2OS"] == pytest.approx(2 * found["RPE"], rel=0.2)
    assert decided_temperatures(scores, held_out.iloc[:0], wells, groups=GROUPS) == {}
    assert decided_temperatures(scores.drop(held_out.index), held_out, wells, groups=GROUPS) == {}


def test_decisions_without_an_error_are_not_taken_for_certain() -> None:
    """Single wells err, the decision never does: the prior keeps the temperature near that of single wells."""
    scores, wells = screen(["RPE-01"], independent())
    held_out, clear = labels(wells, "RPE-01"), scores.copy()
    clear.iloc[::8, 0] += 30  # one in eight wells has the same wrong favourite, which only one may have
    clear.iat[0, 0] += 60
    clear += 8 * np.eye(400)
    found = decided_temperatures(clear, held_out, wells, groups=GROUPS)
    assert found["RPE"] > 0.5 * fit_temperature(clear, held_out["sirna"])
