"""Scores and submissions on disk: what is written reads back, what is wrong is named in one line."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cellsignal.decide.scores import read_all_scores, read_scores, write_scores
from cellsignal.decide.submit import read_submission, write_submission
from cellsignal.errors import InputError

IDS = ["HUVEC-01_1_B02", "HUVEC-01_1_B03", "HUVEC-01_2_B02"]


def table(**columns) -> pd.DataFrame:
    return pd.DataFrame({"id_code": IDS, "0": [-1.0, -2, -3], "1": [-0.5, -1, -2]} | columns)


def test_scores_read_back_as_written(tmp_path: Path) -> None:
    scores = pd.DataFrame(np.log([[0.25, 0.75]] * 3), index=pd.Index(IDS, name="id_code"), columns=[0, 7]).astype("float32")
    path = write_scores(tmp_path, scores, experiment="HUVEC-01")
    pd.testing.assert_frame_equal(read_scores(path), scores, check_index_type=False)


BAD_SCORES = {
    "no id_code": (table().drop(columns="id_code"), "no column id_code"),
    "NaN": (table(**{"0": [-1.0, np.nan, -3]}), "well HUVEC-01_1_B03, class 0: the score is NaN"),
    "plus infinity": (table(**{"1": [-1.0, 0, np.inf]}), "well HUVEC-01_2_B02, class 1: the score is .inf"),
    "text": (table(**{"1": list("abc")}), "column 1 holds text"),
    "id twice": (table(id_code=[IDS[0]] * 3), "id_code HUVEC-01_1_B02 stands twice"),
    "column that is no class": (table(confidence=[1, 2, 3]), "column 'confidence' is no class number"),
    "negative class": (table(**{"-1": [1, 2, 3]}), "column '-1' is no class number"),
    "class twice": (table(**{"01": [1.0, 2, 3]}), "class 1 stands twice"),
    "too large a number": (table(**{"1": [-1.0, 0, 1e39]}), "well HUVEC-01_2_B02, class 1: the score is .inf"),
    "a digit that is no number": (table(**{"²": [1, 2, 3]}), "is no class number"),
    "missing among nullable numbers": (table(**{"1": pd.array([1.0, None, 2.0], dtype="Float64")}), "the score is NaN"),
    "no rows": (table().iloc[:0], "no wells"),
    "no classes": (table()[["id_code"]], "no wells or no classes"),
}


@pytest.mark.parametrize("fault", BAD_SCORES)
def test_bad_scores_are_named_with_file_and_cure(tmp_path: Path, fault: str) -> None:
    frame, message = BAD_SCORES[fault]
    frame.to_parquet(tmp_path / "bad.parquet", index=False)
    with pytest.raises(InputError, match=message) as caught:
        read_scores(tmp_path / "bad.parquet")
    assert "bad.parquet" in str(caught.value) and ";" in str(caught.value) and "\n" not in str(caught.value)


def test_an_index_called_id_code_and_nullable_numbers_are_fine(tmp_path: Path) -> None:
    table().convert_dtypes().set_index("id_code").to_parquet(tmp_path / "indexed.parquet")
    assert read_scores(tmp_path / "indexed.parquet").loc[IDS[0]].tolist() == [-1.0, -0.5]


def test_files_that_are_no_scores(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_scores(tmp_path / "absent.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(InputError, match="not readable as Parquet"):
        read_scores(tmp_path / "text.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no score files"):
        read_all_scores([tmp_path / "empty"])
    with pytest.raises(InputError, match="scored in two files"):
        table().to_parquet(tmp_path / "a.parquet", index=False)
        read_all_scores([tmp_path / "a.parquet", tmp_path / "a.parquet"])


def test_a_submission_keeps_the_order_of_the_sample(tmp_path: Path) -> None:
    path = write_submission(tmp_path / "submission.csv", pd.Series([5, 6, 7], index=IDS), sample=IDS[::-1])
    assert path.read_text().splitlines() == ["id_code,sirna", f"{IDS[2]},7", f"{IDS[1]},6", f"{IDS[0]},5"]
    assert read_submission(path, sample=IDS).to_dict() == dict(zip(IDS, (5, 6, 7)))


def test_a_control_is_no_answer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="given a control, siRNA 1138"):
        write_submission(tmp_path / "submission.csv", pd.Series([5, 1138, 7], index=IDS), sample=IDS)


@pytest.mark.parametrize(("ids", "message"), [
    (IDS[:2], "well HUVEC-01_2_B02 is missing"),
    ([*IDS, "HUVEC-09_1_B02"], "well HUVEC-09_1_B02 is no test well"),
    ([*IDS, IDS[0]], "well HUVEC-01_1_B02 stands twice"),
])
def test_a_malformed_submission_is_never_written(tmp_path: Path, ids: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_submission(tmp_path / "submission.csv", pd.Series(0, index=ids), sample=IDS)
    assert not list(tmp_path.iterdir())
