"""A benchmark's accuracy by split: sites alone, the worst cell type, wells beside it, and answers as files."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from wilds_plates import write_metadata

from cellsignal.data.tables.wells import read_benchmark_sites
from cellsignal.decide.commands import check_file, score_files
from cellsignal.decide.evaluate.split_accuracy import evaluate_splits, split_table, write_predictions, write_site_answers
from cellsignal.errors import InputError
from cellsignal.tasks import RXRX1_WILDS

EXPERIMENTS = {"HUVEC-01": "train", "HUVEC-02": "val", "HUVEC-03": "test", "RPE-01": "test"}
CLASSES = [0, 1, 1138]


@pytest.fixture
def sites(tmp_path: Path) -> pd.DataFrame:
    """A plate of three wells in each experiment, two sites a well."""
    wells = list(zip(("B02", "B03", "B04"), CLASSES))
    rows = [(name, dataset, well, site, sirna) for name, dataset in EXPERIMENTS.items() for well, sirna in wells for site in (1, 2)]
    table = pd.DataFrame(rows, columns=["experiment", "dataset", "well", "site", "sirna_id"]).assign(plate=1, sirna="s")
    table["well_type"] = table["sirna_id"].map(lambda number: "negative_control" if number == 1138 else "treatment")
    names = table["experiment"] + "_1_" + table["well"]
    write_metadata(tmp_path / "data", table.assign(cell_type=table["experiment"].str[:-3], well_id=names, site_id=names + "_" + table["site"].astype(str)))
    return read_benchmark_sites(tmp_path / "data")


def scores_of(sites: pd.DataFrame, answers: dict[str, list[float]]) -> pd.DataFrame:
    """Scores of all sites but those of training: sure and right, but for `answers`, log-probabilities of CLASSES by site."""
    asked = sites[sites["split"] != "train"]
    rows = [answers.get(name, [0.0 if number == sirna else -9.0 for number in CLASSES]) for name, sirna in zip(asked["id_code"], asked["sirna"])]
    return pd.DataFrame(np.array(rows, np.float32), index=pd.Index(asked["id_code"], name="id_code"), columns=CLASSES)


WRONG = {
    "HUVEC-02_1_B02_1": [-3.0, -1.0, -9.0],  # wrong, and outvoted by the well's other site
    "RPE-01_1_B03_1": [-0.1, -9.0, -9.0],  # wrong, and with the next one so is the well
    "RPE-01_1_B03_2": [-0.1, -9.0, -9.0],
    "RPE-01_1_B04_2": [-1.0, -9.0, -2.0],  # a control counts as any other class
}


def test_sites_count_alone_and_wells_beside_them(sites: pd.DataFrame) -> None:
    rows = {row["split"]: row for row in evaluate_splits(scores_of(sites, WRONG), sites, rung="running")}
    assert list(rows) == ["val", "test", "id_test"]
    assert {split: (row["accuracy"], row["sites"], row["well_accuracy"], row["wells"]) for split, row in rows.items()} == {
        "val": (5 / 6, 6, 1.0, 3), "test": (9 / 12, 12, 5 / 6, 6), "id_test": (1.0, 3, 1.0, 3),
    }  # fmt: skip
    assert rows["test"]["by_cell_type"] == {"HUVEC": 1.0, "RPE": 0.5} and rows["test"]["worst_cell_type"] == 0.5
    table = split_table(list(rows.values()))
    assert table.loc[("test (OOD)", "running"), "accuracy %"] == 75.0 and table.loc[("validation (OOD)", "running"), "sites"] == 6


def test_answers_go_to_files_and_are_scored_from_there(sites: pd.DataFrame, tmp_path: Path) -> None:
    answers = scores_of(sites, WRONG).idxmax(axis=1)
    path = write_site_answers(tmp_path / "submission.csv", answers.sample(frac=1, random_state=0), sites=sites, task=RXRX1_WILDS)
    found = score_files(path, tmp_path / "data/metadata.csv")
    assert found["accuracy"] == 17 / 21 and found["by_split"] == {"val": 5 / 6, "test": 0.75, "id_test": 1.0}
    assert check_file(path, sample=tmp_path / "data/sample_submission.csv") is RXRX1_WILDS
    by_split = {file.name: file.read_text().split() for file in write_predictions(tmp_path / "predictions", answers, sites=sites, seed=2)}
    assert set(by_split) == {f"rxrx1_split:{split}_seed:2_epoch:best_pred.csv" for split in ("val", "test", "id_test")}
    test = sites[sites["split"] == "test"]
    assert by_split["rxrx1_split:test_seed:2_epoch:best_pred.csv"] == answers.loc[test["id_code"]].astype(str).tolist()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda text: "\n".join(text.splitlines()[:-1]) + "\n", r" is missing \(1 such\); answer every site"),
        (lambda text: text + "HUVEC-01_1_B02_1,0\n", r"HUVEC-01_1_B02_1 is no site of val, test or id_test \(1 such\)"),
        (lambda text: text + text.splitlines()[1] + "\n", "stands in an earlier row too; keep one"),
        (lambda text: text.replace(",0\n", ",1139\n", 1), "'1139' is not a class"),
        (lambda text: text.replace("sirna_id\n", "sirna_id,note\n", 1), "there is a column 'note'; keep only site_id,sirna_id"),
    ],
)
def test_a_fault_of_answers_is_named(sites: pd.DataFrame, tmp_path: Path, change: object, fault: str) -> None:
    path = write_site_answers(tmp_path / "submission.csv", scores_of(sites, WRONG).idxmax(axis=1), sites=sites, task=RXRX1_WILDS)
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError, match=fault):
        score_files(path, tmp_path / "data")
