"""One siRNA per well: optimal, one-to-one, within the plate's group, whatever is missing, and how sure that is."""

import json
import re
import time
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from noise import gaussian, group_on_plate, real_layout

from cellsignal.decide import solvers
from cellsignal.decide.assign import METHODS, assign, decide
from cellsignal.decide.calibrate import expected_calibration_error
from cellsignal.decide.known import Layout
from cellsignal.errors import InputError

GROUPS = [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]
ROTATIONS = {"HUVEC-90": [0, 1, 2, 3], "HUVEC-91": [1, 2, 3, 0], "HUVEC-92": [-1, 0, 1, 2]}

each_method = pytest.mark.parametrize("method", METHODS)
each_one_to_one = pytest.mark.parametrize("method", METHODS[1:])


def experiment(*, seed: int = 0, signal: float = 3.0, rotation: tuple[int, ...] = (2, 3, 0, 1)):
    """Scores, wells and truth of one experiment: 4 plates of 3 wells, 12 classes."""
    rng = np.random.default_rng(seed)
    truth = [sirna for group in rotation for sirna in rng.permutation(GROUPS[group])]
    plates = np.repeat([1, 2, 3, 4], 3)
    ids = [f"HUVEC-01_{plate}_B{2 + i % 3:02d}" for i, plate in enumerate(plates)]
    logits = rng.normal(size=(12, 12))
    logits[np.arange(12), truth] += signal
    scores = pd.DataFrame(logits - np.logaddexp.reduce(logits, 1, keepdims=True), index=ids, columns=range(12))
    wells = pd.DataFrame({"id_code": ids, "experiment": "HUVEC-01", "cell_type": "HUVEC", "plate": plates})
    return scores.astype(np.float32), wells, pd.Series(truth, index=ids)


# Each method is what its name says


def test_raw_takes_the_most_likely_class() -> None:
    scores, wells, _ = experiment()
    assert assign(scores, wells, method="raw").tolist() == scores.idxmax(axis=1).tolist()


def test_exact_is_the_best_of_all_one_to_one_assignments() -> None:
    scores, wells, _ = experiment(signal=2.0)
    decision = decide(scores, wells, method="exact", groups=GROUPS, certainty=0)
    for plate, group in zip([1, 2, 3, 4], decision.experiments["group_on_plate"].iloc[0]):
        block = scores[(wells["plate"] == plate).to_numpy()]
        totals = [sum(block.loc[id_code, sirna] for id_code, sirna in zip(block.index, order))
                  for order in permutations(GROUPS[group - 1])]
        assert sum(block.loc[i, decision.predictions[i]] for i in block.index) == pytest.approx(max(totals), rel=1e-6)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), wells=st.integers(1, 30), spare=st.integers(0, 5), ties=st.booleans())
def test_greedy_takes_the_best_score_that_is_left_again_and_again(seed: int, wells: int, spare: int, ties: bool) -> None:
    scores = np.random.default_rng(seed).normal(size=(wells, wells + spare))
    left, chosen = (scores := np.round(scores) if ties else scores).copy(), np.empty(wells, int)
    for _ in range(wells):
        row, column = np.unravel_index(left.argmax(), left.shape)
        chosen[row] = column
        left[row], left[:, column] = -np.inf, -np.inf
    assert solvers.greedy(scores).tolist() == chosen.tolist()


def test_expected_has_the_largest_expected_number_of_right_wells() -> None:
    """The sum of scores can prefer two half-likely pairs to a sure one with a leftover; see this case of three wells."""
    probabilities = np.array([[0.55, 0.40, 0.05], [0.50, 0.05, 0.45], [0.02, 0.49, 0.49]])
    joint = {order: np.prod(probabilities[range(3), order]) for order in permutations(range(3))}
    marginals = np.zeros((3, 3))
    for order, weight in joint.items():
        marginals[range(3), order] += weight / sum(joint.values())
    chosen = solvers.expected(np.log(probabilities), marginals)
    gains = {order: marginals[range(3), order].sum() for order in joint}
    assert tuple(chosen) == max(gains, key=gains.__getitem__)
    assert tuple(solvers.exact(np.log(probabilities))) == max(joint, key=joint.__getitem__)


# What holds for all methods


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), missing=st.integers(0, 6), method=st.sampled_from(METHODS), grouped=st.booleans(),
       ties=st.booleans())
def test_a_permutation_of_wells_permutes_the_answer(seed: int, missing: int, method: str, grouped: bool, ties: bool) -> None:
    scores, wells, _ = experiment(seed=seed, signal=1.0)
    scores = scores.round() if ties else scores
    rng = np.random.default_rng(seed)
    kept = rng.permutation(12)[missing:]
    how = {"method": method, "groups": GROUPS if grouped else None, "certainty": 0}
    shuffled = decide(scores.iloc[kept, rng.permutation(12)], wells.sample(frac=1, random_state=seed), **how)
    straight = decide(scores.iloc[sorted(kept)], wells, **how)
    assert shuffled.predictions.index.equals(scores.index[kept]) and shuffled.confidence.index.equals(scores.index[kept])
    assert shuffled.predictions.equals(straight.predictions.reindex(scores.index[kept]))
    assert shuffled.confidence.equals(straight.confidence.reindex(scores.index[kept]))
    assert shuffled.confidence.between(0, 1).all()
    if method != "raw":
        assert shuffled.predictions.is_unique
    if grouped:
        groups = straight.experiments["group_on_plate"].iloc[0]
        present = sorted({wells["plate"].iloc[k] for k in kept})
        for plate, group in zip(present, groups, strict=True):
            assert set(straight.predictions[straight.predictions.index.str.contains(f"_{plate}_")]) <= set(GROUPS[group - 1])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), missing=st.sampled_from([0, 1, 5, 276]), method=st.sampled_from(METHODS[1:]))
def test_wells_may_be_missing_from_a_real_sized_plate(seed: int, missing: int, method: str) -> None:
    """Of 1,108 siRNAs in four groups, one plate loses 0, 1, 5 or all but one of its wells."""
    rng = np.random.default_rng(seed)
    groups = np.arange(1108).reshape(4, 277).tolist()
    sirnas = np.concatenate([rng.permutation(group)[: 277 - missing * (number == 2)] for number, group in enumerate(groups)])
    scores = rng.normal(size=(len(sirnas), 1108)).astype(np.float32)
    scores[np.arange(len(sirnas)), sirnas] += 3
    ids = [f"RPE-09_{sirna // 277 + 1}_{k:04d}" for k, sirna in enumerate(sirnas)]
    wells = pd.DataFrame({"id_code": ids, "experiment": "RPE-09", "cell_type": "RPE", "plate": sirnas // 277 + 1})
    decision = decide(pd.DataFrame(scores, index=ids, columns=range(1108)), wells, method=method, groups=groups)
    assert decision.experiments.loc["RPE-09", "group_on_plate"] == [1, 2, 3, 4]
    assert decision.predictions.is_unique and (decision.predictions.to_numpy() // 277 == sirnas // 277).all()
    assert abs(decision.confidence.mean() - (decision.predictions.to_numpy() == sirnas).mean()) < 0.1


@each_one_to_one
def test_a_whole_plate_may_be_missing(method: str) -> None:
    scores, wells, truth = experiment(signal=9.0)
    chosen = assign(scores.iloc[3:], wells, method=method, groups=GROUPS, certainty=0)
    assert chosen.tolist() == truth.iloc[3:].tolist()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), missing=st.integers(1, 8), method=st.sampled_from(METHODS), dead=st.integers(0, 11))
def test_a_class_of_minus_infinity_is_never_chosen_while_another_is_possible(seed: int, missing: int, method: str, dead: int) -> None:
    scores, wells, _ = experiment(seed=seed, signal=1.0)
    scores[dead] = -np.inf
    kept = np.random.default_rng(seed).permutation(12)[missing:]
    decision = decide(scores.iloc[kept], wells, method=method)
    assert dead not in decision.predictions.to_numpy()
    assert np.isfinite(decision.confidence).all()


@each_one_to_one
def test_minus_infinity_is_chosen_only_when_nothing_else_is_left(method: str) -> None:
    scores, wells, truth = experiment()
    scores.iloc[0, scores.columns != truth.iloc[0]] = -np.inf
    chosen = assign(scores, wells, method=method, groups=GROUPS, certainty=0)
    assert chosen.iloc[0] == truth.iloc[0] and chosen.is_unique
    hopeless = assign(scores.mask(scores < np.inf, -np.inf), wells, method=method)
    assert hopeless.is_unique and len(hopeless) == 12


# What the table of experiments says


@each_method
def test_the_route_of_an_experiment_is_told(method: str) -> None:
    scores, wells, truth = experiment(signal=9.0)
    alone = "raw" if method == "raw" else "one-to-one"
    assert decide(scores, wells, method=method).experiments.loc["HUVEC-01", "route"] == alone
    row = decide(scores, wells, method=method, groups=GROUPS, rotations=ROTATIONS, certainty=0.9).experiments.loc["HUVEC-01"]
    assert (row["route"], row["group_on_plate"], row["rotation"], row["note"]) == ("groups", [3, 4, 1, 2], True, "")
    assert (row["cell_type"], row["wells"], row["method"], row["surprise_bits"]) == ("HUVEC", 12, method, 0)
    known = decide(scores, wells, method=method, known={"HUVEC-01": Layout(truth, confidence=0.9)})
    row = known.experiments.loc["HUVEC-01"]
    assert (row["route"], row["group_on_plate"]) == ("known layout", None) and np.isnan(row["group_confidence"])
    assert known.predictions.equals(truth.rename("sirna")) and (known.confidence == 0.9).all()


def test_an_unlikely_layout_is_a_surprise() -> None:
    scores, wells, _ = experiment(signal=9.0, rotation=(1, 0, 2, 3))
    row = decide(scores, wells, groups=GROUPS, rotations=ROTATIONS, rotation_prior=0.5, certainty=0).experiments.iloc[0]
    assert row["group_on_plate"] == [2, 1, 3, 4] and not row["rotation"] and row["surprise_bits"] > 3


def test_two_permutations_that_are_too_close_are_not_used() -> None:
    scores, wells, _ = experiment(signal=0.0)
    decision = decide(scores, wells, groups=GROUPS, rotations=ROTATIONS)
    row = decision.experiments.loc["HUVEC-01"]
    assert row["route"] == "one-to-one" and row["group_on_plate"] is None and row["group_confidence"] < 0.95
    assert row["note"] == f"two permutations are too close ({row['group_confidence']:.2f}): no groups used"
    assert decision.predictions.equals(assign(scores, wells))


def test_wells_that_a_known_layout_lacks_share_what_is_left() -> None:
    scores, wells, truth = experiment(signal=0.0)
    decision = decide(scores, wells, known={"HUVEC-01": Layout(truth.iloc[2:])})
    assert decision.predictions.iloc[2:].equals(truth.iloc[2:].rename("sirna"))
    assert set(decision.predictions.iloc[:2]) == set(truth.iloc[:2])
    nothing_left = decide(scores[truth.iloc[2:]], wells, known={"HUVEC-01": Layout(truth.iloc[2:])})
    assert nothing_left.predictions.iloc[2:].equals(truth.iloc[2:].rename("sirna"))


def test_a_layout_that_is_not_confirmed_is_told_and_not_used() -> None:
    scores, wells, _ = experiment()
    decision = decide(scores, wells, known={"HUVEC-01": Layout(pd.Series(dtype=int), np.nan, "unlike")})
    assert decision.experiments[["route", "note"]].iloc[0].tolist() == ["one-to-one", "unlike"]
    assert decision.predictions.equals(assign(scores, wells))


def test_a_measured_temperature_is_where_the_search_starts() -> None:
    scores, wells, _ = experiment(signal=0.0)
    cold, hot = (decide(scores, wells, temperatures={"HUVEC": heat}) for heat in (0.2, 5.0))
    assert cold.experiments["temperature"].iloc[0] < 1 < hot.experiments["temperature"].iloc[0]
    assert cold.confidence.mean() > hot.confidence.mean()


def test_faults_are_named() -> None:
    scores, wells, _ = experiment()
    with pytest.raises(InputError, match="unknown method 'best'.*raw, greedy, exact, expected"):
        assign(scores, wells, method="best")
    with pytest.raises(InputError, match="well HUVEC-01_1_B02 is not in the data set"):
        assign(scores, wells.iloc[1:])
    with pytest.raises(InputError, match="well HUVEC-01_1_B03 comes twice"):
        assign(scores.iloc[[0, 1, 1]], wells)
    for nothing in (scores.iloc[:0], scores.iloc[:, :0]):
        with pytest.raises(InputError, match="no wells or no classes"):
            assign(nothing, wells)
    with pytest.raises(InputError, match="experiment HUVEC-01: its wells are of two cell types, HUVEC and RPE"):
        assign(scores, wells.assign(cell_type=["HUVEC"] * 11 + ["RPE"]))
    for bad in (np.nan, np.inf, np.float32(3e38)):
        with pytest.raises(InputError, match=re.escape(f"well HUVEC-01_2_B03: score {bad} of class 7")):
            assign(scores.mask((scores.index == "HUVEC-01_2_B03")[:, None] & (scores.columns == 7), bad), wells)


# Where the design does not fit, one experiment falls back and the others do not notice


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
    decision = decide(both, places, method=method)
    note = "" if method == "raw" else "18 wells share 12 siRNAs: each well its best"
    assert decision.experiments.loc["HUVEC-02", ["route", "note"]].tolist() == ["raw", note]
    assert decision.predictions.iloc[12:].tolist() == [*truth, *truth.iloc[:6]]
    alone = decide(scores, wells, method=method)
    assert decision.predictions.iloc[:12].equals(alone.predictions)
    assert decision.experiments.loc["HUVEC-01", "route"] == alone.experiments.loc["HUVEC-01", "route"]


@each_one_to_one
def test_replicates_on_a_plate_take_their_best_of_its_group(method: str) -> None:
    scores, wells, truth = experiment(signal=9.0)
    decision = decide(*replicated(scores, wells), method=method, groups=GROUPS, certainty=0)
    row = decision.experiments.loc["HUVEC-02"]
    assert (row["route"], row["group_on_plate"]) == ("groups", [3, 4, 1, 2])
    assert row["note"] == "; ".join(f"plate {plate}, 6 wells share 3 siRNAs: each well its best" for plate in (1, 2))
    assert decision.predictions.iloc[12:].tolist() == [*truth, *truth.iloc[:6]]


@each_method
def test_groups_that_do_not_fit_the_plates_are_not_used(method: str) -> None:
    scores, wells, _ = experiment(signal=9.0)
    faults = {"4 plates but 2 plate groups": GROUPS[:2], "116280 ways to lay 20 plate groups": [[k] for k in range(20)],
              "a plate group without a scored siRNA": [*GROUPS[:3], [77]]}
    for fault, groups in faults.items():
        decision = decide(scores, wells, method=method, groups=groups)
        row = decision.experiments.iloc[0]
        assert row["note"].startswith(fault) and row["note"].endswith(": no groups used"), row["note"]
        assert decision.predictions.equals(assign(scores, wells, method=method))


def test_raw_takes_replicates() -> None:
    scores, wells, _ = experiment()
    decision = decide(scores[[0, 1, 2]], wells, method="raw")
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
        decision = decide(scores, wells, method=method, groups=groups)
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
    same = assign(scores, wells, method=method) == assign(moved, wells, method=method)
    assert same.mean() > 0.99  # rounding alone breaks a tie


@each_method
def test_huge_scores_are_masks_below_and_refused_above(method: str, recwarn: pytest.WarningsRecorder) -> None:
    scores, wells, _ = experiment()
    masked, impossible = scores.copy(), scores.copy()
    masked[3], impossible[3] = np.float32(-3.4e38), np.float32(-np.inf)
    assert assign(masked, wells, method=method).equals(assign(impossible, wells, method=method))
    with pytest.raises(InputError, match="of class 0"):
        assign(scores + 3e38, wells, method=method)
    assert not recwarn.list


# The real layout


def test_the_real_layout_in_half_a_second(shared: Path) -> None:
    """18 experiments, 19,897 wells x 1,108: all permutations right, as good as trying each, and calibrated."""
    wells, truth, groups, rotations = real_layout(shared / "rxrx1")
    scores = gaussian(truth, accuracy=0.5, seed=0)
    seconds = []
    for _ in range(3):
        started = time.process_time()
        chosen = assign(scores, wells, method="exact", groups=groups, rotations=rotations)
        seconds.append(time.process_time() - started)
    assert (chosen == truth).mean() == pytest.approx(0.7199, abs=5e-4)
    decision = decide(scores, wells, groups=groups, rotations=rotations)
    assert decision.experiments["group_on_plate"].to_dict() == group_on_plate(truth, groups)
    right = decision.predictions == truth
    assert right.mean() >= (chosen == truth).mean() + 0.003
    assert expected_calibration_error(decision.confidence, right) <= 0.02
    assert min(seconds) <= 0.5


@pytest.mark.parametrize("groups", [GROUPS, None])
def test_the_routes_can_be_written_as_json(groups: list[list[int]] | None) -> None:
    scores, wells, _ = experiment()
    [row] = decide(scores, wells, groups=groups).records
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert row["experiment"] == "HUVEC-01" and row["route"] == ("groups" if groups else "one-to-one")
    assert (row["group_confidence"] is None) == (groups is None)


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
    decision = decide(pd.DataFrame(values, index=ids, columns=range(classes)), places, method=method, groups=groups, certainty=0)
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
