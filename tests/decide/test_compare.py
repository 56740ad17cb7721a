"""Runs side by side: figures that can be worked out by hand, and nothing compared that must not be."""

import pandas as pd
import pytest

from cellsignal.decide.evaluate.compare import RunResult, compare, last_rung
from cellsignal.decide.evaluate.compare import confusions, order_by_group, confusion_matrix
from cellsignal.decide.evaluate.statistics import wilson

WELLS = pd.DataFrame({
    "id_code": [f"{name}_1_B0{well}" for name in ("HUVEC-01", "HUVEC-02", "RPE-01") for well in range(2, 6)],
    "split": "test", "cell_type": ["HUVEC"] * 8 + ["RPE"] * 4, "experiment": ["HUVEC-01"] * 4 + ["HUVEC-02"] * 4 + ["RPE-01"] * 4,
    "sirna": pd.array([0, 1, 2, 3] * 3, dtype="Int64"),
})


def result(name: str, wrong: list[int], *, recipe: str = "", seed: int = 0, assigned: list[int] = [], rows: slice = slice(None)) -> RunResult:
    """A run whose raw and assigned answers are wrong (the next siRNA) in these rows."""
    table = WELLS.copy()
    for column, places in (("running raw", range(12)), ("adapted raw", wrong), ("exact assigned", assigned)):
        table[column] = table["sirna"].where(~table.index.isin(list(places)), (table["sirna"] + 1) % 4)
    return RunResult(name, recipe or name, seed, table[rows], [[0, 1], [2, 3]], {"weights": 5, "training_seconds": None})


def rows(comparison: dict, what: str, **wanted: object) -> list[dict]:
    return [row for row in comparison[what] if all(row[name] == value for name, value in wanted.items())]


def test_accuracies_by_recipe_cell_type_and_experiment_stand_on_the_last_rung() -> None:
    found = compare([result("a", [0, 1, 8]), result("b", [0])], draws=200)
    [whole] = rows(found, "accuracies", recipe="a", kind="raw", by="")
    assert (whole["accuracy"], whole["rung"], whole["wells"], whole["experiments"]) == (0.75, "adapted", 12, 3)
    assert whole["std"] is None and whole["wilson"][0] < 0.75 < whole["wilson"][1] and whole["interval"][0] < 0.75 < whole["interval"][1]
    by_type = {row["part"]: row["accuracy"] for row in rows(found, "accuracies", recipe="a", kind="raw", by="cell_type")}
    assert by_type == {"HUVEC": 0.75, "RPE": 0.75}
    by_experiment = {row["part"]: row["accuracy"] for row in rows(found, "accuracies", recipe="a", kind="raw", by="experiment")}
    assert by_experiment == {"HUVEC-01": 0.5, "HUVEC-02": 1.0, "RPE-01": 0.75}
    assert {row["rung"]: row["accuracy"] for row in rows(found, "rungs", recipe="a", kind="raw")} == {"running": 0.0, "adapted": 0.75}
    assert found["runs"][0] == {"name": "a", "recipe": "a", "seed": 0, "weights": 5, "training_seconds": None}


def test_raw_is_never_compared_with_assigned() -> None:
    found = compare([result("a", list(range(12))), result("b", list(range(12)))], draws=50)
    assert {row["accuracy"] for row in rows(found, "accuracies", kind="raw")} == {0.0}
    assert {row["accuracy"] for row in rows(found, "accuracies", kind="assigned")} == {1.0}
    assert [(row["kind"], row["p"]) for row in found["pairs"]] == [("raw", 1.0), ("assigned", 1.0)]


def test_seeds_of_a_recipe_are_averaged_and_paired() -> None:
    runs = [result("a0", [0, 1], recipe="a"), result("a1", [0], recipe="a", seed=1),
            result("b0", [1], recipe="b"), result("b1", [], recipe="b", seed=1)]
    found = compare(runs, draws=200)
    [mine] = rows(found, "accuracies", recipe="a", kind="raw", by="")
    assert mine["accuracy"] == pytest.approx((10 / 12 + 11 / 12) / 2) and mine["runs"] == {"a0": 10 / 12, "a1": 11 / 12}
    assert mine["std"] == pytest.approx((1 / 12) / 2**0.5)
    [difference] = rows(found, "differences", kind="raw")
    assert (difference["recipe"], difference["from"], difference["seeds"]) == ("b", "a", 2)
    assert difference["by_seed"] == pytest.approx([1 / 12, 1 / 12]) and difference["mean"] == pytest.approx(1 / 12)
    assert difference["standard_error"] == pytest.approx(0, abs=1e-12)
    assert len(rows(found, "pairs", kind="raw")) == 6


def test_pairs_count_what_one_run_alone_has_right() -> None:
    found = compare([result("a", [0, 1, 2]), result("b", [2, 3]), result("c", [])], draws=200)
    [pair] = rows(found, "pairs", kind="raw", first="a", second="b")
    assert (pair["only_first"], pair["only_second"], pair["wells"]) == (1, 2, 12)
    assert pair["difference"] == pytest.approx(1 / 12) and pair["p"] == 1.0
    [sure] = rows(found, "pairs", kind="raw", first="a", second="c")
    assert sure["p"] == pytest.approx(0.25) and sure["p_holm"] == pytest.approx(0.75)
    assert sure["of_wells"][0] < 3 / 12 < sure["of_wells"][1] and sure["of_experiments"][0] == 0.0, "all in one experiment"


def test_held_out_wells_may_differ_and_pairs_stand_on_those_in_common() -> None:
    runs = [result("a", [0], rows=slice(0, 8)), result("b", [4], seed=1, rows=slice(4, 12)), result("c", [], seed=2, rows=slice(8, 12))]
    for each in runs:
        each.answers["split"] = "held_out"
    found = compare(runs, draws=100)
    assert {(row["first"], row["second"]): (row["wells"], row["difference"]) for row in rows(found, "pairs", kind="raw")} == {
        ("a", "b"): (4, -0.25), ("b", "c"): (4, 0.0)}
    assert rows(found, "accuracies", recipe="b", kind="raw", by="")[0]["wells"] == 8
    assert found["differences"] == [], "no two have the same seed"


def test_intervals_count_the_wells_of_the_runs_that_have_them() -> None:
    """Of other held-out experiments, in one run of three: as many wells as that run has, and not a third."""
    runs = [result("a", [0], recipe="r", rows=slice(0, 1)), result("b", [], recipe="r", seed=1, rows=slice(4, 12)), result("c", [], recipe="r", seed=2, rows=slice(8, 12))]
    [one] = rows(compare(runs, draws=50), "accuracies", recipe="r", kind="raw", by="experiment", part="HUVEC-01")
    assert one["wilson"] == pytest.approx(wilson(0.0, 1))
    [three] = rows(compare(runs, draws=50), "accuracies", recipe="r", kind="raw", by="experiment", part="HUVEC-02")
    assert three["wilson"] == pytest.approx(wilson(1.0, 4))


def test_a_missing_answer_is_wrong() -> None:
    run = result("a", [])
    run.answers.loc[[0, 5], "adapted raw"] = pd.NA
    [row] = rows(compare([run, result("b", [])], draws=50), "accuracies", recipe="a", kind="raw", by="")
    assert row["accuracy"] == pytest.approx(10 / 12)


def test_the_last_rung_is_the_last_that_answered() -> None:
    table = result("a", []).answers.assign(**{"mixup raw": pd.array([pd.NA] * 12, dtype="Int64")})
    assert last_rung(table, "raw") == "adapted" and last_rung(table.drop(columns="exact assigned"), "assigned") == ""


def test_confusions_by_pair_and_by_group() -> None:
    truth, given = pd.Series([0, 0, 1, 2, 3, 3], dtype="Int64"), pd.Series([1, 1, 0, 2, 0, pd.NA], dtype="Int64")
    found = confusions(truth, given, [[0, 1], [2, 3]])
    assert (found["wells"], found["wrong"]) == (5, 4)
    assert found["pairs"] == [{"sirnas": [0, 1], "wells": 3, "wrong": 3, "same_group": True},
                              {"sirnas": [0, 3], "wells": 3, "wrong": 1, "same_group": False}]
    assert found["between"] == [[3, 0], [1, 0]] and found["over_chance"] == pytest.approx(0.75 / (1 / 3))
    assert confusions(truth, given)["over_chance"] is None and confusions(truth, given)["pairs"][0]["same_group"] is None
    assert order_by_group([0, 1, 2, 3, 9], [[1, 3], [0, 2]]) == [1, 3, 0, 2, 9]
    assert confusion_matrix(truth, given, [0, 1, 2, 3]).tolist() == [[0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert confusion_matrix(truth, given, [0, 1, 2, 3], bins=2).tolist() == [[3, 0], [1, 0]]
