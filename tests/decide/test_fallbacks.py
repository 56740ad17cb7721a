"""Where a design or its scores leave something impossible, one experiment falls back and the others do not notice."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_experiment import METHODS, GROUPS, each_method, each_one_to_one, experiment

from cellsignal.decide.settings import AssignmentSettings
from cellsignal.decide.assign.assign import assign, decide
from cellsignal.errors import InputError

def replicated(scores: pd.DataFrame, wells: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The same experiment and a second one, in which each well of its first two plates has a twin."""
    twins = pd.concat([scores, scores.iloc[:6].rename("{}x".format)]).rename(lambda name: name.replace("-01", "-02"))
    places = pd.concat([wells, wells.iloc[:6].assign(id_code=wells["id_code"] + "x")])
    places = places.assign(id_code=places["id_code"].str.replace("-01", "-02"), experiment="HUVEC-02")
    return pd.concat([scores, twins]), pd.concat([wells, places])


@each_method
def test_replicates_each_take_their_best(method: str) -> None:
    scores, wells, truth = experiment(signal=9.0)
    both, places = replicated(scores, wells)
    decision = decide(both, places, settings=AssignmentSettings(method=method))
    note = "" if method == "raw" else "18 wells share 12 siRNAs: each well its best"
    assert decision.experiments.loc["HUVEC-02", ["route", "note"]].tolist() == ["raw", note]
    assert decision.predictions.iloc[12:].tolist() == [*truth, *truth.iloc[:6]]
    alone = decide(scores, wells, settings=AssignmentSettings(method=method))
    assert decision.predictions.iloc[:12].equals(alone.predictions)
    assert decision.experiments.loc["HUVEC-01", "route"] == alone.experiments.loc["HUVEC-01", "route"]


@each_one_to_one
def test_replicates_on_a_plate_take_their_best_of_its_group(method: str) -> None:
    scores, wells, truth = experiment(signal=9.0)
    decision = decide(*replicated(scores, wells), settings=AssignmentSettings(method=method, min_group_posterior=0), groups=GROUPS)
    row = decision.experiments.loc["HUVEC-02"]
    assert (row["route"], row["group_on_plate"]) == ("groups", [3, 4, 1, 2])
    assert row["note"] == "; ".join(f"plate {plate}, 6 wells share 3 siRNAs: each well its best" for plate in (1, 2))
    assert decision.predictions.iloc[12:].tolist() == [*truth, *truth.iloc[:6]]


@each_method
def test_groups_that_do_not_fit_the_plates_are_not_used(method: str) -> None:
    scores, wells, _ = experiment(signal=9.0)
    faults = {"4 plates but 2 plate groups": GROUPS[:2], "116280 permutations of 20 plate groups": [[k] for k in range(20)],
              "a plate group without a scored siRNA": [*GROUPS[:3], [77]]}
    for fault, groups in faults.items():
        decision = decide(scores, wells, settings=AssignmentSettings(method=method), groups=groups)
        row = decision.experiments.iloc[0]
        assert row["note"].startswith(fault) and row["note"].endswith(": no groups used"), row["note"]
        assert decision.predictions.equals(assign(scores, wells, settings=AssignmentSettings(method=method)))


def test_raw_takes_replicates() -> None:
    scores, wells, _ = experiment()
    decision = decide(scores[[0, 1, 2]], wells, settings=AssignmentSettings(method="raw"))
    assert len(decision.predictions) == 12 and decision.experiments["temperature"].iloc[0] == 1


# A class that no well was scored for, and other impossibilities


def plates_of(*, seed: int = 0, signal: float = 3.0, overconfidence: float = 3.0) -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray]:
    """Three experiments of 4 plates of 60 wells, 240 classes in four groups; scores, wells and truth."""
    rng = np.random.default_rng(seed)
    truth = np.concatenate([60 * plate + rng.permutation(60) for _ in range(3) for plate in range(4)])
    values = rng.normal(size=(720, 240))
    values[np.arange(720), truth] += signal
    places = [(f"RPE-{1 + k // 240:02d}", 1 + k // 60 % 4, k % 60) for k in range(720)]
    ids = [f"{name}_{plate}_{well:02d}" for name, plate, well in places]
    wells = pd.DataFrame({"id_code": ids, "experiment": [name for name, _, _ in places], "cell_type": "RPE",
                          "plate": [plate for _, plate, _ in places]})
    return pd.DataFrame((overconfidence * signal * values).astype(np.float32), index=ids, columns=range(240)), wells, truth


@each_method
@pytest.mark.parametrize("grouped", [True, False])
def test_a_class_that_is_impossible_everywhere_costs_one_well_and_no_more(method: str, grouped: bool) -> None:
    scores, wells, truth = plates_of()
    groups = np.arange(240).reshape(4, 60).tolist() if grouped else None
    found = []
    for lost in ([], [7]):
        scores[lost] = -np.inf
        decision = decide(scores, wells, settings=AssignmentSettings(method=method), groups=groups)
        heat = decision.experiments["temperature"]
        found.append(((decision.predictions.to_numpy() == truth).mean(), decision.confidence.mean(), heat.to_numpy()))
    (accuracy, confidence, heat), (accuracy_without, confidence_without, heat_without) = found
    np.testing.assert_allclose(heat_without, heat, rtol=0.05)
    assert abs(accuracy_without - accuracy) < 0.02 and abs(confidence_without - confidence) < 0.015


def test_a_well_that_is_left_with_the_impossible_moves_no_temperature() -> None:
    scores, wells, _ = plates_of()
    before = decide(scores, wells).experiments["temperature"].to_numpy()
    clash = scores.copy()
    clash.iloc[[5, 6, 7], 1:] = -np.inf  # three wells for one siRNA
    np.testing.assert_allclose(decide(clash, wells).experiments["temperature"], before, rtol=0.1)
    clash.iloc[[5, 6, 7]] = -np.inf
    np.testing.assert_allclose(decide(clash, wells).experiments["temperature"], before, rtol=0.1)


@each_method
@pytest.mark.parametrize("lost", [[], [7]])
def test_a_constant_per_well_changes_nothing(method: str, lost: list[int]) -> None:
    scores, wells, _ = plates_of(overconfidence=1.0)
    scores[lost] = -np.inf
    moved = scores + 100 * np.random.default_rng(1).normal(size=(len(scores), 1)).astype(np.float32)
    same = assign(scores, wells, settings=AssignmentSettings(method=method)) == assign(moved, wells, settings=AssignmentSettings(method=method))
    assert same.mean() > 0.99  # rounding alone breaks a tie


@each_method
def test_huge_scores_are_masks_below_and_refused_above(method: str, recwarn: pytest.WarningsRecorder) -> None:
    scores, wells, _ = experiment()
    masked, impossible = scores.copy(), scores.copy()
    masked[3], impossible[3] = np.float32(-3.4e38), np.float32(-np.inf)
    assert assign(masked, wells, settings=AssignmentSettings(method=method)).equals(assign(impossible, wells, settings=AssignmentSettings(method=method)))
    with pytest.raises(InputError, match="of class 0"):
        assign(scores + 3e38, wells, settings=AssignmentSettings(method=method))
    assert not recwarn.list


@pytest.mark.parametrize("groups", [GROUPS, None])
def test_the_routes_can_be_written_as_json(groups: list[list[int]] | None) -> None:
    scores, wells, _ = experiment()
    [row] = decide(scores, wells, groups=groups).records
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert row["experiment"] == "HUVEC-01" and row["route"] == ("groups" if groups else "one-to-one")
    assert (row["group_posterior"] is None) == (groups is None)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), wells=st.integers(1, 24), classes=st.integers(1, 24), plates=st.integers(1, 4),
       method=st.sampled_from(METHODS), grouped=st.booleans())
@pytest.mark.filterwarnings("error")
def test_whatever_is_impossible_every_well_has_an_answer(
    seed: int, wells: int, classes: int, plates: int, method: str, grouped: bool
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(scale=rng.choice([0.1, 3, 30]), size=(wells, classes)).astype(np.float32)
    values[rng.random(values.shape) < rng.choice([0, 0.3, 0.8])] = -np.inf
    values[:, rng.random(classes) < rng.choice([0, 0.3])] = -np.inf
    ids = [f"w{k:02d}" for k in range(wells)]
    places = pd.DataFrame({"id_code": ids, "experiment": rng.choice(["A", "B"], wells), "cell_type": "RPE",
                           "plate": rng.integers(1, plates + 1, wells)})
    groups = [list(range(k, classes, plates)) for k in range(plates)] if grouped else None
    decision = decide(pd.DataFrame(values, index=ids, columns=range(classes)), places, settings=AssignmentSettings(method=method, min_group_posterior=0), groups=groups)
    assert decision.predictions.isin(range(classes)).all() and decision.confidence.between(0, 1 + 1e-6).all()
    assert np.isfinite(decision.experiments["temperature"]).all()


def test_a_temperature_beyond_belief_is_doubted_unless_it_was_measured() -> None:
    rng = np.random.default_rng(0)
    ids = [f"HUVEC-01_{plate}_B{well:02d}" for plate in (1, 2, 3, 4) for well in range(2, 22)]
    wells = pd.DataFrame({"id_code": ids, "experiment": "HUVEC-01", "cell_type": "HUVEC", "plate": np.repeat([1, 2, 3, 4], 20)})
    favourites = np.where(np.arange(80) < 4, 9.0, 0.0)  # the same four siRNAs in every well
    scores = pd.DataFrame(rng.normal(size=(80, 80)) + favourites, index=ids, columns=range(80))
    assert "held-out wells" in decide(scores, wells).experiments["note"].iloc[0]
    assert decide(scores, wells, temperatures={"HUVEC": 1.0}).experiments["note"].iloc[0] == ""
