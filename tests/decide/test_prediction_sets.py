"""Prediction sets hold the right siRNA as often as is stated, and are no larger than that needs."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cellsignal.decide.assign.assign import Decision, decide
from cellsignal.decide.assign.known_layouts import KnownLayout
from cellsignal.decide.assign.temperature import decided_temperatures
from cellsignal.decide.evaluate.prediction_sets import (
    COVERAGES, UNREACHED, RankedExperiment, conformal_level, coverage_table, held_out_levels, prediction_sets, most_confident_wells, write_prediction_sets,
)
from cellsignal.decide.settings import AssignmentSettings
from cellsignal.errors import InputError
from small_experiment import experiment

CLASSES = 48
GROUPS = [list(range(first, CLASSES, 4)) for first in range(4)]
DESIGN = {"settings": AssignmentSettings(), "groups": GROUPS, "rotations": {"HUVEC-00": [0, 1, 2, 3]}}
Screen = tuple[pd.DataFrame, pd.DataFrame, pd.Series]


def screen(names: list[str], *, seed: int, signal: float = 2.2, sharpness: float = 1.0) -> Screen:
    """Scores, wells and truth: 4 plates of 12 wells an experiment; Gaussian scores that are calibrated at the temperature `sharpness`."""
    rng, scores, wells, truths = np.random.default_rng(seed), [], [], []
    for name in names:
        turn = rng.integers(4)
        truth = np.concatenate([rng.permutation(GROUPS[(plate + turn) % 4]) for plate in range(4)])
        logits = rng.normal(size=(CLASSES, CLASSES))
        logits[np.arange(CLASSES), truth] += signal
        logits *= signal * sharpness
        ids = [f"{name}_{1 + well // 12}_B{well % 12:02d}" for well in range(CLASSES)]
        scores.append(pd.DataFrame(logits - np.logaddexp.reduce(logits, 1, keepdims=True), index=ids, columns=range(CLASSES)))
        wells.append(pd.DataFrame({"id_code": ids, "experiment": name, "cell_type": name.split("-")[0], "plate": np.repeat([1, 2, 3, 4], 12)}))
        truths.append(pd.Series(truth, index=ids))
    return pd.concat(scores).astype(np.float32), pd.concat(wells), pd.concat(truths)


def decided(some: Screen, **temperatures: float) -> Decision:
    return decide(some[0], some[1], temperatures=temperatures, **DESIGN)


def overall(table: pd.DataFrame, column: str) -> pd.Series:
    return table[table["experiment"] == "all"].set_index("coverage")[column]


def test_sets_grow_by_what_is_before_a_siRNA_until_their_mean_probability_is_the_level():
    one = RankedExperiment("HUVEC-01", np.array(["a", "b"]), np.array([[5, 6, 7], [7, 5, -1]], np.int32), np.array([[0.5, 0.3, 0.2], [0.8, 0.2, 0]], np.float32))
    # With the first siRNAs the mean probability is 0.65, with 6 in a (0.5 before it) 0.8, with 5 in b or 7 in a (0.8 before) 1.
    for level, sizes in ((0.0, [1, 1]), (0.65, [1, 1]), (0.66, [2, 1]), (0.8, [2, 1]), (0.81, [3, 2]), (1.0, [3, 2]), (UNREACHED, [3, 2])):
        assert one.common_sizes(level).tolist() == sizes
    for coverage, sizes in ((0.5, [1, 1]), (0.51, [2, 1]), (0.81, [3, 2])):
        assert one.sizes(coverage).tolist() == sizes
    np.testing.assert_allclose(one.levels(pd.Series({"a": 6, "b": 7})), [0.8, 0.0], atol=1e-6)
    np.testing.assert_allclose(one.levels(pd.Series({"a": 9, "b": 5})), [UNREACHED, 1.0], atol=1e-6)


def test_the_level_is_a_conformal_quantile_but_no_lower_than_the_coverage():
    levels = np.arange(1, 20) / 20  # 19 wells: at 0.95 the largest counts, at 0.9 the one before
    assert conformal_level(levels, 0.95) == 0.95 and conformal_level(levels + 0.03, 0.95) == pytest.approx(0.98)
    assert conformal_level(levels / 2, 0.9) == 0.9
    assert np.isnan(conformal_level(levels[:18] + 0.9, 0.95)), "too few wells for it"
    assert np.isnan(conformal_level(np.array([]), 0.8))


def test_calibrated_probabilities_need_no_labels():
    some = screen([f"HUVEC-{number:02d}" for number in range(1, 17)], seed=1, signal=1.8)
    table = coverage_table(prediction_sets(decided(some)), some[2])
    excess = overall(table, "covered") - np.array(COVERAGES)  # the last siRNA of a set takes it beyond the coverage
    assert excess.between(-0.02, [0.12, 0.07, 0.04]).all()
    assert overall(table, "wells").eq(16 * 48).all() and overall(table, "mean_size").is_monotonic_increasing


def test_held_out_experiments_correct_probabilities_that_are_too_sure():
    test, held = (screen([f"HUVEC-{number:02d}" for number in numbers], seed=numbers[0], signal=1.8, sharpness=3) for numbers in (range(1, 17), range(30, 36)))
    decision = decide(*test[:2], temperatures={"HUVEC": 1.0})  # without groups, which would correct them
    uncorrected = overall(coverage_table(prediction_sets(decision), test[2]), "covered")
    assert (uncorrected < np.array(COVERAGES) - [0.02, 0.05, 0.05]).all()  # at 0.8 no set is smaller than its best siRNA
    levels = held_out_levels(decide(*held[:2], temperatures={"HUVEC": 1.0}), held[2])
    covered = overall(coverage_table(prediction_sets(decision, levels), test[2]), "covered")
    np.testing.assert_allclose(covered, COVERAGES, atol=0.05)  # two standard deviations of a quantile of 288 wells and a share of 768


def test_an_overconfident_held_out_experiment_does_not_inflate_the_sets_where_groups_tell_the_temperature():
    test, held = screen([f"HUVEC-{number:02d}" for number in range(1, 17)], seed=20, signal=2.0, sharpness=1.5), screen(["HUVEC-30"], seed=40, signal=1.3, sharpness=3)
    temperatures = decided_temperatures(held[0], held[1].set_index("id_code").assign(sirna=held[2]), held[1], **DESIGN)
    assert temperatures["HUVEC"] > 2, "far above the 1.5 of the test wells, whose sets cover 0.96, 0.99 and 0.99 at it"
    levels = held_out_levels(decided(held, **temperatures), held[2])
    covered = overall(coverage_table(prediction_sets(decided(test, **temperatures), levels), test[2]), "covered")
    np.testing.assert_allclose(covered, COVERAGES, atol=0.05)


def test_sets_are_small_where_the_network_is_good_and_each_holds_those_of_lower_coverage():
    parts = [screen(["HUVEC-01", "HUVEC-02"], seed=3, signal=3.5), screen(["RPE-01", "RPE-02"], seed=4, signal=1.6)]
    both = tuple(pd.concat(tables) for tables in zip(*parts))
    sets = prediction_sets(decided(both, HUVEC=1.0, RPE=1.0))
    size = sets.groupby(["coverage", sets["experiment"].str.split("-").str[0]])["size"].mean().unstack()
    assert (size["HUVEC"] * 1.5 < size["RPE"]).all() and sets["size"].min() == 1
    for _, some in sets.groupby("id_code"):
        small, middle, large = some.sort_values("coverage")["sirnas"]
        assert large[: len(middle)] == middle and middle[: len(small)] == small and len(set(large)) == len(large)


def test_no_experiment_calibrates_itself_or_another_cell_type():
    held = screen(["HUVEC-01", "HUVEC-02", "RPE-01"], seed=5)
    levels = pd.DataFrame({"experiment": ["HUVEC-01"] * 30, "cell_type": "HUVEC", "level": 0.99})
    sets = prediction_sets(decided(held, HUVEC=1.0, RPE=1.0), levels, coverages=[0.9])
    assert sets.groupby("experiment")["level"].median().dropna().to_dict() == {"HUVEC-02": 0.99}


def test_no_set_is_smaller_than_one_of_lower_coverage_where_held_out_wells_are_few():
    held = screen(["HUVEC-01"], seed=5)
    for wells, calibrated in ((10, False), (18, False), (19, True)):  # 19 are needed at 0.95, 9 at 0.9, 4 at 0.8
        levels = pd.DataFrame({"experiment": ["HUVEC-02"] * wells, "cell_type": "HUVEC", "level": 0.99})
        sets = prediction_sets(decided(held, HUVEC=1.0), levels)
        assert sets["level"].notna().eq(calibrated).all()
        assert (np.diff(sets.pivot(index="id_code", columns="coverage", values="size")) >= 0).all()


@pytest.mark.parametrize("method", ["raw", "greedy", "exact", "expected"])
def test_every_method_has_sets_also_without_groups_and_for_known_layouts(method: str):
    scores, wells, truth = experiment()
    layouts = {"HUVEC-01": KnownLayout(truth.iloc[:5], confidence=0.97)}
    for design in ({}, {"known_layouts": layouts}, {"groups": GROUPS[:0]}):
        sets = prediction_sets(decide(scores, wells, AssignmentSettings(method=method), **design))
        assert sets.groupby("coverage")["id_code"].nunique().tolist() == [12] * 3 and sets["size"].between(1, 12).all()
    fixed = prediction_sets(decide(scores, wells, AssignmentSettings(method=method), known_layouts=layouts)).query("id_code in @truth.index[:5]")
    assert [some == [truth[name]] for name, some in zip(fixed["id_code"], fixed["sirnas"])] == [True] * 15


def test_experiments_like_the_held_out_ones_are_covered_as_stated():
    names = [f"HUVEC-{number:02d}" for number in range(1, 13)]
    scores, wells, truth = screen(names, seed=6, signal=1.9, sharpness=1.6)
    held = truth.index[truth.index.str[6:8].astype(int) > 8]
    labelled = pd.DataFrame({"cell_type": "HUVEC", "sirna": truth[held]})
    temperatures = decided_temperatures(scores, labelled, wells, **DESIGN)
    test, validation = (decide(scores.loc[ids], wells, temperatures=temperatures, **DESIGN) for ids in (truth.index.difference(held), held))
    table = coverage_table(prediction_sets(test, held_out_levels(validation, truth)), truth)
    assert (overall(table, "covered") > np.array(COVERAGES) - 0.02).all() and (overall(table, "covered") < np.array(COVERAGES) + 0.05).all()


def test_a_coverage_that_is_no_share_is_refused():
    with pytest.raises(InputError, match="a coverage of 90; give shares between 0 and 1"):
        prediction_sets(decided(screen(["HUVEC-01"], seed=7)), coverages=[0.8, 90])


def test_the_file_has_a_row_for_each_well_and_coverage_in_the_order_of_the_sample(tmp_path: Path):
    some = screen(["HUVEC-01"], seed=8)
    sets, order = prediction_sets(decided(some, HUVEC=1.0)), some[2].index[::-1].to_list()
    files = [write_prediction_sets(tmp_path / name, rows, order=order) for name, rows in (("a.parquet", sets), ("b.parquet", sets.sample(frac=1, random_state=0)))]
    assert files[0].read_bytes() == files[1].read_bytes()
    read = pd.read_parquet(files[0])
    assert read.columns.tolist() == ["id_code", "coverage", "size", "sirnas"] and read["id_code"].tolist() == [name for name in order for _ in COVERAGES]
    assert read["coverage"].tolist() == [*COVERAGES] * 48 and read["sirnas"].map(len).tolist() == read["size"].tolist()


def test_coverage_is_of_known_wells_alone():
    sets = pd.DataFrame({"id_code": ["a", "b"], "experiment": ["A-1", "B-1"], "coverage": 0.9, "level": 0.9, "size": [1, 2], "sirnas": [[3], [4, 5]]})
    table = coverage_table(sets, pd.Series({"b": 5})).set_index("experiment")
    assert np.isnan(table.loc["A-1", "covered"]) and table.loc["B-1", "covered"] == 1 and table.loc["all", ["wells", "mean_size", "covered"]].tolist() == [2, 1.5, 1]
    assert coverage_table(sets)["covered"].isna().all()


def test_the_surest_wells_come_first():
    table = most_confident_wells(pd.Series({"a": 0.2, "b": 0.9, "c": 0.8, "d": 0.4}), pd.Series({"d": True, "b": True, "a": False, "c": False}), shares=[0.25, 0.5, 1])
    assert table["wells"].tolist() == [1, 2, 4] and table["accuracy"].tolist() == [1, 0.5, 0.5]
    assert table["least_confidence"].tolist() == [0.9, 0.8, 0.2] and table["stated"].tolist() == pytest.approx([0.9, 0.85, 0.575])
    assert most_confident_wells(pd.Series(dtype=float)).empty and most_confident_wells(pd.Series({"a": 0.5}))["accuracy"].isna().all()
