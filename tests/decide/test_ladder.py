"""Accuracy, the ladder and its linear baseline: figures that can be worked out by hand."""

import numpy as np
import pandas as pd
import pytest

from cellsignal.decide.evaluate.baseline import linear_baseline, plate_standardised, well_features
from cellsignal.decide.evaluate.ladder import ladder_table, evaluate_ladder
from cellsignal.decide.evaluate.ladder import accuracy

IDS = [f"{experiment}_{plate}_B0{well}" for experiment in ("HUVEC-01", "RPE-01") for plate in (1, 2) for well in (2, 3)]
WELLS = pd.DataFrame({
    "id_code": IDS, "experiment": ["HUVEC-01"] * 4 + ["RPE-01"] * 4, "cell_type": ["HUVEC"] * 4 + ["RPE"] * 4,
    "plate": [1, 1, 2, 2] * 2, "well_type": "treatment", "split": "test", "sirna": pd.array([0, 1, 2, 3] * 2, dtype="Int64"),
})
TRUTH = pd.Series([0, 1, 2, 3] * 2, index=IDS)


def scores(likes: list[list[float]]) -> pd.DataFrame:
    return pd.DataFrame(np.array(likes * 2, dtype=np.float32), index=IDS, columns=range(4))


def test_accuracy_counts_a_missing_prediction_as_wrong() -> None:
    predictions = TRUTH.drop(IDS[0]).replace({3: 0})
    result = accuracy(predictions, TRUTH, WELLS)
    assert result["accuracy"] == pytest.approx(5 / 8) and result["wells"] == 8
    assert result["by_cell_type"] == pytest.approx({"HUVEC": 0.5, "RPE": 0.75})
    assert result["by_experiment"] == pytest.approx({"HUVEC-01": 0.5, "RPE-01": 0.75})


def test_every_rung_adds_what_its_name_says() -> None:
    # Well 2 of plate 1 prefers siRNA 0, which is taken, then 3, which lies on the other plate.
    wanted = [[5, 1, 0, 0], [4, 1, 0, 3], [0, 0, 5, 1], [0, 0, 1, 5]]
    table = scores(wanted)
    ladder = evaluate_ladder({"running": table * 0 + table[0].to_numpy()[:, None], "adapted": table}, WELLS, TRUTH,
                   design={"groups": [[0, 1], [2, 3]]}, statistics="adapted", split="test")
    by_rung = {row["rung"]: (row["kind"], row["accuracy"]) for row in ladder}
    assert by_rung == {
        "running": ("raw", 0.25), "adapted": ("raw", 0.75), "exact": ("assigned", pytest.approx(1.0)),
        "groups": ("assigned", 0.75), "groups+exact": ("assigned", 1.0), "groups+expected": ("assigned", 1.0),
    }
    table = ladder_table(ladder)
    assert table.index.get_level_values("rung").tolist() == [row["rung"] for row in ladder]
    assert table.notna().sum(axis=1).eq(1).all(), "raw and assigned accuracy never share a column"


def test_better_networks_are_rungs_of_their_own_and_carry_the_assigned_ones() -> None:
    poor, good = scores(np.zeros((4, 4)).tolist()), scores(np.eye(4).tolist())
    ladder = evaluate_ladder({"adapted": poor}, WELLS, TRUTH, design={"groups": [[0, 1], [2, 3]]}, statistics="adapted", split="test",
                   refined={"virtual batch": good}, final={"mixup": good})
    assert [(row["rung"], row["kind"], row["accuracy"]) for row in ladder] == [
        ("adapted", "raw", 0.25), ("virtual batch", "raw", 1.0), ("exact", "assigned", 1.0), ("groups", "assigned", 1.0),
        ("groups+exact", "assigned", 1.0), ("groups+expected", "assigned", 1.0), ("mixup", "raw", 1.0), ("mixup", "assigned", 1.0),
    ]
    table = ladder_table(ladder, with_brodt=True).loc["test"]
    assert table.loc["mixup"].tolist() == [1.0, 1.0, 0.88, 0.95], "the last rung has both accuracies, in columns of their own"
    assert table.index.tolist() == list(dict.fromkeys(row["rung"] for row in ladder))
    assert table.loc["adapted", ["Brodt, public", "Brodt, private"]].isna().all()


def test_the_rungs_above_rest_on_the_statistics_below_them() -> None:
    kinds = {"running": scores(np.zeros((4, 4)).tolist()), "batch": scores(np.eye(4).tolist()), "adapted": scores(np.zeros((4, 4)).tolist())}
    ladder = evaluate_ladder(kinds, WELLS, TRUTH, design={"groups": []}, statistics="batch", split="test")
    assert [(row["rung"], row["accuracy"]) for row in ladder] == [
        ("running", 0.25), ("adapted", 0.25), ("batch", 1.0), ("exact", 1.0)]


def test_without_groups_their_rungs_are_left_out() -> None:
    ladder = evaluate_ladder({"adapted": scores(np.eye(4).tolist())}, WELLS, TRUTH, design={"groups": []}, statistics="adapted", split="test")
    assert [row["rung"] for row in ladder] == ["adapted", "exact"]


def test_wells_of_another_split_give_nothing_away() -> None:
    table = scores([[0, 0, 0, 0], [0, 9, 0, 0], [0, 0, 9, 0], [0, 0, 0, 9]])  # the first well of each experiment is unsure
    held = WELLS["id_code"].isin([IDS[0], IDS[4]])
    wells = WELLS.assign(split=np.where(held, "held_out", "train"))
    [exact] = [row for row in evaluate_ladder({"adapted": table + np.eye(8, 4, 1)}, wells, TRUTH[held.to_numpy()], design={"groups": []},
                                    statistics="adapted", split="held_out") if row["rung"] == "exact"]
    assert (exact["accuracy"], exact["wells"]) == (0.5, 2), "by elimination both would be right"


def test_replicates_leave_the_one_to_one_rungs_out() -> None:
    table = scores(np.eye(4).tolist())[[0, 1]]
    ladder = evaluate_ladder({"adapted": table}, WELLS, TRUTH, design={"groups": [[0], [1]]}, statistics="adapted", split="test")
    assert [row["rung"] for row in ladder] == ["adapted", "groups"]


def test_a_linear_baseline_without_statistics_for_every_well_is_none() -> None:
    stats, wells = screen(informative=True)
    asked = wells[wells["experiment"] == "HUVEC-05"].set_index("id_code")["sirna"].astype(int)
    train = wells["experiment"] != "HUVEC-05"
    assert linear_baseline(stats[stats["id_code"] != asked.index[0]], wells, asked, train=train) is None
    assert linear_baseline(stats, wells, asked, train=wells["sirna"] == 0) is None


def screen(*, informative: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Pixel statistics of 6 experiments x 1 plate x 8 wells, where brightness does or does not tell the siRNA."""
    rng, rows, wells = np.random.default_rng(0), [], []
    for experiment in range(6):
        gain = rng.uniform(1, 5)
        for sirna in range(8):
            id_code = f"HUVEC-0{experiment}_1_B{sirna:02d}"
            wells.append({"id_code": id_code, "experiment": id_code[:8], "cell_type": "HUVEC", "plate": 1,
                          "well_type": "treatment", "sirna": sirna})
            for channel in range(1, 7):
                light = np.sin(sirna * channel) if informative else rng.normal()
                rows.append({"id_code": id_code, "channel": channel, "mean": gain * (9 + light), "std": gain})
    return pd.DataFrame(rows), pd.DataFrame(wells).astype({"sirna": "Int64"})


@pytest.mark.parametrize("informative", [True, False])
def test_the_linear_baseline_is_what_brightness_tells(informative: bool) -> None:
    stats, wells = screen(informative=informative)
    asked = wells[wells["experiment"] == "HUVEC-05"].set_index("id_code")["sirna"].astype(int)
    baseline = linear_baseline(stats, wells, asked, train=wells["experiment"] != "HUVEC-05")
    assert (baseline["accuracy"] == 1) if informative else (baseline["accuracy"] < 0.5)


def test_standardising_takes_the_gain_of_a_plate_away() -> None:
    stats, wells = screen(informative=True)
    features = plate_standardised(well_features(stats), wells)
    brighter = stats.assign(mean=stats["mean"] * np.where(stats["id_code"].str.startswith("HUVEC-03"), 4, 1))
    pd.testing.assert_frame_equal(features, plate_standardised(well_features(brighter), wells))
