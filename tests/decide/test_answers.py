"""The answers behind the ladder, on disk and back."""

from pathlib import Path

import pandas as pd
import pytest

from cellsignal.decide.evaluate.answers import design_digest, without_answers, known_answers, read_known_answers, write_known_answers
from cellsignal.errors import InputError

IDS = ["HUVEC-01_1_B02", "HUVEC-01_1_B03", "RPE-01_1_B02"]
WELLS = pd.DataFrame({"id_code": IDS, "cell_type": ["HUVEC", "HUVEC", "RPE"], "experiment": ["HUVEC-01", "HUVEC-01", "RPE-01"]})
TRUTHS = {"test": pd.Series([3, 1], index=IDS[:2]), "held_out": pd.Series([0], index=IDS[2:])}
LADDER = [
    {"rung": "adapted", "kind": "raw", "split": "test", "accuracy": 0.5, "answers": pd.Series([3, 0], index=IDS[:2])},
    {"rung": "groups+exact", "kind": "assigned", "split": "test", "accuracy": 0.5, "answers": pd.Series([3], index=IDS[:1])},
    {"rung": "adapted", "kind": "raw", "split": "held_out", "accuracy": 1.0, "answers": pd.Series([0], index=IDS[2:])},
]


def test_every_rung_has_its_column_and_comes_back_as_it_was(tmp_path: Path) -> None:
    table = known_answers(LADDER, TRUTHS, WELLS)
    back = read_known_answers(write_known_answers(tmp_path / "answers.csv", table))
    assert back.columns.tolist() == ["id_code", "split", "cell_type", "experiment", "sirna", "adapted raw", "groups+exact assigned"]
    assert back["sirna"].tolist() == [3, 1, 0] and back["adapted raw"].tolist() == [3, 0, 0]
    assert back["groups+exact assigned"].isna().tolist() == [False, True, True], "no answer, and a rung that this split lacks"
    assert back["split"].tolist() == ["test", "test", "held_out"] and back["cell_type"].tolist() == ["HUVEC", "HUVEC", "RPE"]
    assert (tmp_path / "answers.csv").read_bytes().count(b"\n") == 4


def test_without_known_answers_there_is_a_table_without_rows(tmp_path: Path) -> None:
    assert read_known_answers(write_known_answers(tmp_path / "answers.csv", known_answers([], {}, WELLS))).empty


def test_the_figures_are_the_ladder_without_wells() -> None:
    assert without_answers(LADDER)[0] == {"rung": "adapted", "kind": "raw", "split": "test", "accuracy": 0.5}


@pytest.mark.parametrize(("text", "words"), [
    (None, "no such file"), ("", "not readable"), ("id_code,split\n", "'cell_type' is missing"),
    ("id_code,split,cell_type,experiment,sirna,odd\n", "'odd' is unknown"),
    ("id_code,split,cell_type,experiment,sirna,a raw\nw,test,U2OS,U2OS-01,1,x\n", r":2, a raw: 'x' is no siRNA"),
    ("id_code,split,cell_type,experiment,sirna,a raw\nw,test,U2OS,U2OS-01,,1\n", r":2, sirna: '' is no siRNA"),
    ("id_code,split,cell_type,experiment,sirna\n" + "w,test,U2OS,U2OS-01,1\n" * 2, "well w stands twice"),
])
def test_a_damaged_table_is_named_in_one_line(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "answers.csv").write_text(text)
    with pytest.raises(InputError, match=words) as raised:
        read_known_answers(tmp_path / "answers.csv")
    assert "answers.csv" in str(raised.value) and "\n" not in str(raised.value)


def test_two_data_sets_differ_by_their_tables_and_not_by_their_solution(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.csv").write_text("id_code\n")
    (tmp_path / "b/solution.csv").write_text("id_code,sirna\n")
    assert design_digest(tmp_path / "a") == design_digest(tmp_path / "b")
    (tmp_path / "b/simulate.json").write_text("{}")
    assert design_digest(tmp_path / "a") != design_digest(tmp_path / "b")
