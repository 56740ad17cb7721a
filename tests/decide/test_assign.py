"""One siRNA per well: optimal, one-to-one, within the plate's group, whatever is missing, and how sure that is."""

import re
import time
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_scores import gaussian, group_on_plate, real_layout
from small_experiment import METHODS, GROUPS, ROTATIONS, each_method, each_one_to_one, experiment

from cellsignal.decide.settings import AssignmentSettings
from cellsignal.decide.assign import solvers
from cellsignal.decide.assign.assign import CERTAIN, assign, decide
from cellsignal.decide.assign.calibration import expected_calibration_error
from cellsignal.decide.assign.known_layouts import KnownLayout
from cellsignal.decide.assign.temperature_source import BETHE_FRACTION
from cellsignal.errors import InputError

# Each method is what its name says


def test_raw_takes_the_most_likely_class() -> None:
    scores, wells, _ = experiment()
    assert assign(scores, wells, settings=AssignmentSettings(method="raw")).tolist() == scores.idxmax(axis=1).tolist()


def test_exact_is_the_best_of_all_one_to_one_assignments() -> None:
    scores, wells, _ = experiment(signal=2.0)
    decision = decide(scores, wells, settings=AssignmentSettings(method="exact", min_group_posterior=0), groups=GROUPS)
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
       ties=st.booleans(), signal=st.sampled_from([1.0, 20.0]))
def test_a_permutation_of_wells_permutes_the_answer(seed: int, missing: int, method: str, grouped: bool, ties: bool, signal: float) -> None:
    scores, wells, _ = experiment(seed=seed, signal=signal)
    scores = scores.round() if ties else scores
    rng = np.random.default_rng(seed)
    kept = rng.permutation(12)[missing:]
    how = {"settings": AssignmentSettings(method=method, min_group_posterior=0), "groups": GROUPS if grouped else None}
    shuffled = decide(scores.iloc[kept, rng.permutation(12)], wells.sample(frac=1, random_state=seed), **how)
    straight = decide(scores.iloc[sorted(kept)], wells, **how)
    assert shuffled.predictions.index.equals(scores.index[kept]) and shuffled.confidence.index.equals(scores.index[kept])
    assert shuffled.predictions.equals(straight.predictions.reindex(scores.index[kept]))
    assert shuffled.confidence.equals(straight.confidence.reindex(scores.index[kept]))
    assert shuffled.confidence.between(0, 1).all()
    if method != "raw":
        assert shuffled.predictions.is_unique
    groups = straight.experiments["group_on_plate"].iloc[0]
    if grouped and groups and straight.experiments["group_posterior"].iloc[0] > CERTAIN:
        present = sorted({wells["plate"].iloc[k] for k in kept})
        for plate, group in zip(present, groups, strict=True):
            assert set(straight.predictions[straight.predictions.index.str.contains(f"_{plate}_")]) <= set(GROUPS[group - 1])


@pytest.mark.slow
@pytest.mark.ci
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
    decision = decide(pd.DataFrame(scores, index=ids, columns=range(1108)), wells, settings=AssignmentSettings(method=method), groups=groups)
    assert decision.experiments.loc["RPE-09", "group_on_plate"] == [1, 2, 3, 4]
    assert decision.predictions.is_unique and (decision.predictions.to_numpy() // 277 == sirnas // 277).all()
    assert abs(decision.confidence.mean() - (decision.predictions.to_numpy() == sirnas).mean()) < 0.1


@each_one_to_one
def test_a_whole_plate_may_be_missing(method: str) -> None:
    scores, wells, truth = experiment(signal=9.0)
    chosen = assign(scores.iloc[3:], wells, settings=AssignmentSettings(method=method, min_group_posterior=0), groups=GROUPS)
    assert chosen.tolist() == truth.iloc[3:].tolist()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), missing=st.integers(1, 8), method=st.sampled_from(METHODS), dead=st.integers(0, 11))
def test_a_class_of_minus_infinity_is_never_chosen_while_another_is_possible(seed: int, missing: int, method: str, dead: int) -> None:
    scores, wells, _ = experiment(seed=seed, signal=1.0)
    scores[dead] = -np.inf
    kept = np.random.default_rng(seed).permutation(12)[missing:]
    decision = decide(scores.iloc[kept], wells, settings=AssignmentSettings(method=method))
    assert dead not in decision.predictions.to_numpy()
    assert np.isfinite(decision.confidence).all()


@each_one_to_one
def test_minus_infinity_is_chosen_only_when_nothing_else_is_left(method: str) -> None:
    scores, wells, truth = experiment()
    scores.iloc[0, scores.columns != truth.iloc[0]] = -np.inf
    chosen = assign(scores, wells, settings=AssignmentSettings(method=method, min_group_posterior=0), groups=GROUPS)
    assert chosen.iloc[0] == truth.iloc[0] and chosen.is_unique
    hopeless = assign(scores.mask(scores < np.inf, -np.inf), wells, settings=AssignmentSettings(method=method))
    assert hopeless.is_unique and len(hopeless) == 12


# What the table of experiments says


@each_method
def test_the_route_of_an_experiment_is_told(method: str) -> None:
    scores, wells, truth = experiment(signal=9.0)
    alone = "raw" if method == "raw" else "one-to-one"
    assert decide(scores, wells, settings=AssignmentSettings(method=method)).experiments.loc["HUVEC-01", "route"] == alone
    row = decide(scores, wells, settings=AssignmentSettings(method=method, min_group_posterior=0.9), groups=GROUPS, rotations=ROTATIONS).experiments.loc["HUVEC-01"]
    assert (row["route"], row["group_on_plate"], row["rotation"], row["note"]) == ("groups", [3, 4, 1, 2], True, "")
    assert (row["cell_type"], row["wells"], row["method"], row["surprise_bits"]) == ("HUVEC", 12, method, 0)
    known = decide(scores, wells, settings=AssignmentSettings(method=method), known_layouts={"HUVEC-01": KnownLayout(truth, confidence=0.9)})
    row = known.experiments.loc["HUVEC-01"]
    assert (row["route"], row["group_on_plate"]) == ("known layout", None) and np.isnan(row["group_posterior"])
    assert known.predictions.equals(truth.rename("sirna")) and (known.confidence == 0.9).all()


def test_an_unlikely_layout_is_a_surprise() -> None:
    scores, wells, _ = experiment(signal=9.0, rotation=(1, 0, 2, 3))
    row = decide(scores, wells, settings=AssignmentSettings(rotation_prior=0.5, min_group_posterior=0), groups=GROUPS, rotations=ROTATIONS).experiments.iloc[0]
    assert row["group_on_plate"] == [2, 1, 3, 4] and not row["rotation"] and row["surprise_bits"] > 3


def test_two_permutations_that_are_too_close_are_not_used_where_that_is_asked_for() -> None:
    scores, wells, _ = experiment(signal=0.0)
    decision = decide(scores, wells, AssignmentSettings(min_group_posterior=0.95), groups=GROUPS, rotations=ROTATIONS)
    row = decision.experiments.loc["HUVEC-01"]
    assert row["route"] == "one-to-one" and row["group_on_plate"] is None and row["group_posterior"] < 0.95
    assert row["note"] == f"two permutations are too close ({row['group_posterior']:.2f}): no groups used"


def test_expected_weighs_the_groups_of_each_plate_by_their_posterior() -> None:
    """The marginals of the mixture are those of each permutation, weighed; no siRNA is chosen twice, and no other choice is expected to do better."""
    scores, wells, _ = experiment(signal=1.0, seed=3)
    decision = decide(scores, wells, groups=GROUPS, rotations=ROTATIONS, temperatures={"HUVEC": 1.0})
    choice, row = decision.choices["HUVEC-01"], decision.experiments.loc["HUVEC-01"]
    assert choice.confidence < 0.9 and row["route"] == "groups" and "weighed by their posterior" in row["note"]
    mixed, values = np.zeros((12, 12)), scores.to_numpy()
    for order, weight in zip(choice.permutations, choice.posterior, strict=True):
        for plate, group in enumerate(order):
            wells_of_plate = np.arange(3 * plate, 3 * plate + 3)
            mixed[np.ix_(wells_of_plate, GROUPS[group])] += weight * solvers.marginals(values[np.ix_(wells_of_plate, GROUPS[group])], fraction=BETHE_FRACTION)
    np.testing.assert_allclose(decision.confidence, mixed[np.arange(12), decision.predictions], atol=2e-3)
    assert decision.predictions.is_unique
    assert decision.confidence.sum() == pytest.approx(mixed[np.arange(12), solvers.exact(mixed)].sum(), abs=0.02)


@pytest.mark.parametrize("method", ["exact", "greedy", "raw"])
def test_the_other_methods_take_the_likeliest_permutation_if_more_wells_are_expected_right_with_it(method: str) -> None:
    routes = set()
    for signal in (0.0, 1.0, 4.0):
        for seed in range(6):
            scores, wells, _ = experiment(seed=seed, signal=signal)
            design = {"groups": GROUPS, "rotations": ROTATIONS, "temperatures": {"HUVEC": 1.0}}
            decision = decide(scores, wells, AssignmentSettings(method=method), **design)
            plain = decide(scores, wells, AssignmentSettings(method=method), temperatures={"HUVEC": 1.0})
            row, gained = decision.experiments.loc["HUVEC-01"], decision.expected_right - plain.expected_right
            routes.add(row["route"])
            assert gained > 0 if row["route"] == "groups" else decision.predictions.equals(plain.predictions) and "fewer wells are expected to be right with the likeliest order" in row["note"]
    assert "groups" in routes and len(routes) == 2


def test_wells_that_a_known_layout_lacks_share_what_is_left() -> None:
    scores, wells, truth = experiment(signal=0.0)
    decision = decide(scores, wells, known_layouts={"HUVEC-01": KnownLayout(truth.iloc[2:])})
    assert decision.predictions.iloc[2:].equals(truth.iloc[2:].rename("sirna"))
    assert set(decision.predictions.iloc[:2]) == set(truth.iloc[:2])
    nothing_left = decide(scores[truth.iloc[2:]], wells, known_layouts={"HUVEC-01": KnownLayout(truth.iloc[2:])})
    assert nothing_left.predictions.iloc[2:].equals(truth.iloc[2:].rename("sirna"))


def test_a_layout_that_is_not_confirmed_is_told_and_not_used() -> None:
    scores, wells, _ = experiment()
    decision = decide(scores, wells, known_layouts={"HUVEC-01": KnownLayout(pd.Series(dtype=int), np.nan, "unlike")})
    assert decision.experiments[["route", "note"]].iloc[0].tolist() == ["one-to-one", "unlike"]
    assert decision.predictions.equals(assign(scores, wells))


def test_a_measured_temperature_is_taken_as_it_is() -> None:
    scores, wells, _ = experiment(signal=0.0)
    cold, hot = (decide(scores, wells, temperatures={"HUVEC": heat}) for heat in (0.2, 5.0))
    assert [found.experiments["temperature"].iloc[0] for found in (cold, hot)] == pytest.approx([0.2, 5.0])
    assert cold.confidence.mean() > hot.confidence.mean()


def test_faults_are_named() -> None:
    scores, wells, _ = experiment()
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


# The real layout


@pytest.mark.slow
@pytest.mark.ci
def test_the_real_layout_in_half_a_second(shared: Path) -> None:
    """18 experiments, 19,897 wells x 1,108: all permutations right, as good as trying each, and calibrated."""
    wells, truth, groups, rotations = real_layout(shared / "rxrx1")
    scores = gaussian(truth, accuracy=0.5, seed=0)
    seconds = []
    for _ in range(3):
        started = time.process_time()
        chosen = assign(scores, wells, settings=AssignmentSettings(method="exact"), groups=groups, rotations=rotations)
        seconds.append(time.process_time() - started)
    assert (chosen == truth).mean() == pytest.approx(0.7199, abs=5e-4)
    decision = decide(scores, wells, groups=groups, rotations=rotations)
    assert decision.experiments["group_on_plate"].to_dict() == group_on_plate(truth, groups)
    right = decision.predictions == truth
    assert right.mean() >= (chosen == truth).mean() + 0.003
    assert expected_calibration_error(decision.confidence, right) <= 0.025  # one draw; at most 0.02 on average over draws: tests/slow
    assert min(seconds) <= 0.5
