"""Scores and submissions on disk: what is written reads back, what is wrong is named in one line."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cellsignal.decide.scores.files import read_all_scores, read_scores, write_scores
from cellsignal.decide.submission import read_submission, write_submission
from cellsignal.errors import InputError
from cellsignal.receipts import Receipt

IDS = ["HUVEC-01_1_B02", "HUVEC-01_1_B03", "HUVEC-01_2_B02"]
SUFFIXES = [".parquet", ".csv", ".csv.gz", ".npz"]
each_format = pytest.mark.parametrize("suffix", SUFFIXES)


def table(**columns) -> pd.DataFrame:
    return pd.DataFrame({"id_code": IDS, "0": [-1.0, -2, -3], "1": [-0.5, -1, -2]} | columns)


def drawn(*, wells: int = 40, classes: int = 12, seed: int = 0) -> pd.DataFrame:
    """Random log-probabilities, a class number in every column, one impossible class."""
    logits = np.random.default_rng(seed).normal(scale=4, size=(wells, classes))
    logits[0, 1] = -np.inf
    logits -= np.logaddexp.reduce(logits, axis=1, keepdims=True)
    ids = pd.Index([f"RPE-{well:02d}_1_B02" for well in range(wells)], name="id_code")
    return pd.DataFrame(logits.astype(np.float32), index=ids, columns=np.random.default_rng(seed).permutation(1108)[:classes])


def arrays(scores: pd.DataFrame) -> dict[str, np.ndarray]:
    ids = scores.index.to_numpy().astype(str)
    return {"id_code": ids, "scores": scores.to_numpy(), "class_numbers": scores.columns.to_numpy(np.int64)}


def save(scores: pd.DataFrame, path: Path) -> Path:
    """Write a table, index id_code, in the format that the path's suffix names."""
    if path.suffix == ".npz":
        np.savez(path, **arrays(scores))
    elif path.suffix == ".parquet":
        scores.rename(columns=str).reset_index().to_parquet(path, index=False)
    else:
        scores.to_csv(path)
    return path


def message_of(path: Path, **options: bool) -> str:
    """What is said of a bad file: one line that names the file and a cure."""
    with pytest.raises(InputError) as caught:
        read_scores(path, **options)
    line = str(caught.value)
    assert path.name in line and ";" in line and "\n" not in line
    return line


def test_scores_read_back_as_written(tmp_path: Path) -> None:
    scores = pd.DataFrame(np.log([[0.25, 0.75]] * 3), index=pd.Index(IDS, name="id_code"), columns=[0, 7]).astype("float32")
    path = write_scores(tmp_path, scores, experiment="HUVEC-01")
    pd.testing.assert_frame_equal(read_scores(path), scores, check_index_type=False)


@each_format
def test_every_format_reads_back_as_written(tmp_path: Path, suffix: str) -> None:
    scores = drawn()
    pd.testing.assert_frame_equal(read_scores(save(scores, tmp_path / f"scores{suffix}")), scores, check_index_type=False)


@each_format
def test_probabilities_become_their_logarithms(tmp_path: Path, suffix: str) -> None:
    scores = drawn()
    path = save(3e-4 * np.exp(scores.astype(float)), tmp_path / f"scores{suffix}")  # rows need not sum to one
    pd.testing.assert_frame_equal(read_scores(path, probabilities=True), scores, check_index_type=False, rtol=1e-5)


@each_format
@pytest.mark.parametrize("first, second", [(".csv", ".npz"), (".parquet", ".csv.gz")])
def test_formats_may_be_mixed_and_columns_ascend(tmp_path: Path, suffix: str, first: str, second: str) -> None:
    scores = drawn()
    parts = zip(np.array_split(np.arange(len(scores)), 3), (first, second, suffix))
    paths = [save(scores.iloc[rows], tmp_path / f"{rows[0]:02d}{end}") for rows, end in parts]
    Receipt(tmp_path / "metadata.json", details={"statistics": "adapted"}).write()
    (tmp_path / "submission.csv").write_text("id_code,sirna\n")
    for asked in (paths, [tmp_path]):
        pd.testing.assert_frame_equal(read_all_scores(asked), scores.sort_index(axis=1), check_index_type=False)


def test_a_class_that_one_file_lacks_is_impossible_there(tmp_path: Path) -> None:
    scores = drawn(wells=4, classes=3)
    first, second = save(scores.iloc[:2, :2], tmp_path / "a.csv"), save(scores.iloc[2:], tmp_path / "b.npz")
    lacking = read_all_scores([first, second])[scores.columns[2]]
    assert lacking.tolist() == [-np.inf, -np.inf, *scores.iloc[2:, 2]]


@pytest.mark.parametrize("layout", ["no class_numbers", "one array per class", "bytes"])
def test_an_npz_may_be_laid_out_otherwise(tmp_path: Path, layout: str) -> None:
    scores = drawn(classes=5).set_axis(range(5), axis=1)
    held = arrays(scores)
    if layout == "bytes":
        held["id_code"] = held["id_code"].astype("S")
    elif layout == "one array per class":
        held = {"id_code": held["id_code"], **{str(sirna): column for sirna, column in scores.items()}}
    else:
        del held["class_numbers"]
    np.savez_compressed(tmp_path / "scores.npz", **held)
    pd.testing.assert_frame_equal(read_scores(tmp_path / "scores.npz"), scores, check_index_type=False, check_column_type=False)


def test_tables_as_others_write_them(tmp_path: Path) -> None:
    table().convert_dtypes().set_index("id_code").to_parquet(tmp_path / "indexed.parquet")
    table().astype({"id_code": "category", "0": "int64"})[::-1].to_parquet(tmp_path / "filtered.parquet")
    (tmp_path / "excel.CSV").write_bytes("\ufeffid_code,0,1\r\nHUVEC-01_1_B02,-1,-.5\r\n\r\n".encode())
    for path in tmp_path.iterdir():
        assert read_scores(path).loc[IDS[0]].tolist() == [-1.0, -0.5], path.name


BAD_SCORES = {
    "no id_code": (table().drop(columns="id_code"), "no column id_code"),
    "NaN": (table(**{"0": [-1.0, np.nan, -3]}), "well HUVEC-01_1_B03, class 0: the score is NaN"),
    "plus infinity": (table(**{"1": [-1.0, 0, np.inf]}), "well HUVEC-01_2_B02, class 1: the score is +inf"),
    "id twice": (table(id_code=[IDS[0]] * 3), "id_code HUVEC-01_1_B02 stands twice"),
    "column that is no class": (table(confidence=[1, 2, 3]), "column 'confidence' is no class number"),
    "negative class": (table(**{"-1": [1, 2, 3]}), "column '-1' is no class number"),
    "class beyond the last": (table(**{"1139": [1, 2, 3]}), "column '1139' is no class number"),
    "class twice": (table(**{"01": [1.0, 2, 3]}), "class 1 stands twice"),
    "too large a number": (table(**{"1": [-1.0, 0, 1e39]}), "well HUVEC-01_2_B02, class 1: the score is +inf"),
    "a digit that is no number": (table(**{"²": [1, 2, 3]}), "is no class number"),
    "missing among nullable numbers": (table(**{"1": pd.array([1.0, None, 2.0], dtype="Float64")}), "the score is NaN"),
    "too large a logarithm": (table(**{"1": [-1.0, 0, 3e38]}), "well HUVEC-01_2_B02, class 1: the score is no logarithm"),
    "no rows": (table().iloc[:0], "no wells"),
    "no classes": (table()[["id_code"]], "no wells or no classes"),
    "no name of a well": (table(id_code=[*IDS[:2], ""]), "row 3: id_code '' is no text"),
    "an impossible well": (table(**{"0": -np.inf, "1": [-1, -np.inf, -2]}), "well HUVEC-01_1_B03: every class has probability 0"),
    "probabilities": (table(**{"0": [0.1, 0.2, 0.3], "1": [0.9, 0.8, 0.7]}), "lie between 0 and 1.*add --probabilities"),
    "sigmoids": (table(**{"0": [0.1, 0, 0], "1": [0.3, 0.8, 0.3]}), "lie between 0 and 1.*add --probabilities"),
    "percentages": (table(**{"0": [10, 20, 30], "1": [90, 80, 70]}), "no value is negative"),
}


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize("fault", BAD_SCORES)
def test_bad_scores_are_named_with_file_and_cure(tmp_path: Path, fault: str, suffix: str) -> None:
    frame, message = BAD_SCORES[fault]
    path = tmp_path / f"bad{suffix}"
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path, index=False)
    assert_said(message_of(path), message)


def assert_said(line: str, message: str) -> None:
    assert all(part in line for part in message.split(".*")), line


BAD_PROBABILITIES = {
    "log-probabilities": (table(), "no value is positive.*drop --probabilities"),
    "a negative one": (table(**{"0": [0.5, -0.3, 0.5]}).replace({-0.5: 1, -1: 0, -2: 1}), "class 0: -0.3 is no probability"),
    "one above 1": (table(**{"0": [0.5, 0.3, 0.5], "1": [0.5, 0.7, 1.5]}), "well HUVEC-01_2_B02, class 1: 1.5 is no probability"),
    "a row of zeros": (table(**{"0": [0.5, 0, 0.5], "1": [0.5, 0, 0.5]}), "well HUVEC-01_1_B03: every class has probability 0"),
    "NaN": (table(**{"0": [0.5, 0, 0.5], "1": [0.5, 0, np.nan]}), "well HUVEC-01_2_B02, class 1: the score is NaN"),
}


@pytest.mark.parametrize("fault", BAD_PROBABILITIES)
def test_bad_probabilities_are_named(tmp_path: Path, fault: str) -> None:
    frame, message = BAD_PROBABILITIES[fault]
    frame.to_csv(tmp_path / "bad.csv", index=False)
    assert_said(message_of(tmp_path / "bad.csv", probabilities=True), message)


def test_a_negative_value_among_probabilities_is_named(tmp_path: Path) -> None:
    likely = np.exp(drawn())
    likely.iloc[3, 2] = -0.001
    assert_said(message_of(save(likely, tmp_path / "bad.csv")),
                f"well RPE-03_1_B02, class {likely.columns[2]}: -0.001 among values that lie between 0 and 1.*add --probabilities")
    logits = drawn().clip(-9, 1)
    logits = logits.sub(logits.median(axis=None)).clip(upper=1)  # half of these lie there, too
    read_scores(save(logits, tmp_path / "logits.npz"))


def test_the_lowest_number_of_a_type_masks_what_is_impossible(tmp_path: Path) -> None:
    masked = drawn().replace(-np.inf, np.finfo(np.float32).min)
    pd.testing.assert_frame_equal(read_scores(save(masked, tmp_path / "scores.npz")), drawn(), check_index_type=False)


def test_rounding_beyond_0_and_1_is_no_fault(tmp_path: Path) -> None:
    table(**{"0": [1.0000002, 0, 0.5], "1": [-1e-9, 1, 0.5]}).to_csv(tmp_path / "rounded.csv", index=False)
    found = read_scores(tmp_path / "rounded.csv", probabilities=True)
    np.testing.assert_allclose(np.exp(found), [[1, 0], [0, 1], [0.5, 0.5]], atol=1e-6)
    assert "add --probabilities" in message_of(tmp_path / "rounded.csv")


BAD_CSV = {
    "text": ("id_code,0,1\na,-1,-2\nb,-1,high\n", "bad.csv:3:1: 'high' is no number"),
    "a cell too few": ("id_code,0,1\na,-1\n", "bad.csv:2: 2 cells where the header has 3"),
    "a cell too many": ("id_code,0,1\na,-1,-2\nb,-1,-2,-3\n", "bad.csv:3: 4 cells where the header has 3"),
    "semicolons": ("id_code;0;1\na;-1;-2\n", "bad.csv:1: columns are not separated by commas"),
    "nothing": ("", "the file is empty; copy the table again"),
    "header alone": ("id_code,0,1\n", "no wells"),
    "a blank": ("id_code,0,1\na,-1,\n", "well a, class 1: the score is NaN"),
    "a nameless index": (",id_code,0\n0,a,-1\n", "column '' is no class number"),
    "id_code twice": ("id_code,id_code,0\na,a,-1\n", "column 'id_code' is no class number"),
    "Latin letters": (b"id_code,0\n\xe9,-1\n", "is not UTF-8 text; save the table as CSV in UTF-8"),
    "a NUL": ("id_code,0\na,-1\n\0", "is not UTF-8 text"),
}


@pytest.mark.parametrize("fault", BAD_CSV)
def test_bad_csv_is_named_by_line_and_column(tmp_path: Path, fault: str) -> None:
    content, message = BAD_CSV[fault]
    (tmp_path / "bad.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_said(message_of(tmp_path / "bad.csv"), message)
    if isinstance(content, str):
        (tmp_path / "bad.csv.gz").write_bytes(gzip.compress(content.encode()))
        assert_said(message_of(tmp_path / "bad.csv.gz"), message.replace("bad.csv", "bad.csv.gz"))


BAD_NPZ: dict[str, tuple[Callable[[dict], dict], str]] = {
    "no id_code": (lambda held: {"scores": held["scores"]}, "no array id_code"),
    "objects": (lambda held: held | {"id_code": held["id_code"].astype(object)}, "holds Python objects; save ids as text"),
    "ids are numbers": (lambda held: held | {"id_code": np.arange(40)}, "array id_code holds int64 of shape [40]"),
    "scores are text": (lambda held: held | {"scores": held["scores"].astype(str)}, "array scores holds text"),
    "scores have one axis": (lambda held: held | {"scores": held["scores"][0]}, "array scores holds float32 of shape [12]"),
    "a well too few": (lambda held: held | {"scores": held["scores"][1:]}, "40 in id_code, 39 in scores"),
    "a class too few": (lambda held: held | {"class_numbers": np.arange(11)}, "11 in class_numbers, 12 in the columns of scores"),
    "classes are fractions": (lambda held: held | {"class_numbers": np.arange(12.0)}, "array class_numbers holds float64"),
    "a class beyond the last": (lambda held: held | {"class_numbers": np.arange(12) + 1138}, "column 1139 is no class number"),
    "a class twice": (lambda held: held | {"class_numbers": np.zeros(12, int)}, "class 0 stands twice"),
    "another name": (lambda held: held | {"classes": held["class_numbers"]}, "array 'classes' is unknown"),
    "one array of another name": (lambda held: {"id_code": held["id_code"], "logits": held["id_code"]}, "array logits holds text"),
    "ids in no UTF-8": (lambda held: held | {"id_code": np.array([b"\xff%d" % k for k in range(40)])}, "array id_code holds damaged text"),
    "no class at all": (lambda held: {"id_code": held["id_code"]}, "no wells or no classes"),
}


@pytest.mark.parametrize("fault", BAD_NPZ)
def test_bad_npz_is_named_by_array(tmp_path: Path, fault: str) -> None:
    change, message = BAD_NPZ[fault]
    np.savez(tmp_path / "bad.npz", **change(arrays(drawn())))
    assert_said(message_of(tmp_path / "bad.npz"), message)


@each_format
@pytest.mark.parametrize("damage", ["text", "empty", "cut", "flipped"])
def test_damaged_files_are_named(tmp_path: Path, suffix: str, damage: str) -> None:
    path = save(drawn(), tmp_path / f"damaged{suffix}")
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes(255 - byte for byte in whole[middle : middle + 40]) + whole[middle + 40 :]
    path.write_bytes({"text": b"hello", "empty": b"", "cut": whole[:middle], "flipped": flipped}[damage])
    message_of(path)


@each_format
def test_no_damage_ends_in_another_error(tmp_path: Path, suffix: str) -> None:
    path, rng, refusals = save(drawn(), tmp_path / f"damaged{suffix}"), np.random.default_rng(0), 0
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    for _ in range(100):
        bytes_now = whole.copy()
        bytes_now[rng.integers(0, len(whole), 5)] = rng.integers(0, 256, 5)
        path.write_bytes(bytes_now.tobytes())
        try:
            read_scores(path)
        except InputError as error:
            refusals += "\n" not in str(error)
    assert refusals > 50


def test_files_that_are_no_scores(tmp_path: Path) -> None:
    assert "no such file" in message_of(tmp_path / "absent.parquet")
    (tmp_path / "scores.txt").write_text("hello")
    assert "give files that end with .parquet, .csv, .csv.gz, .npz" in message_of(tmp_path / "scores.txt")
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    assert "not readable as NPZ" in message_of(tmp_path / "array.npz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no score files"):
        read_all_scores([tmp_path / "empty"])
    with pytest.raises(InputError, match="a.parquet and 1 more: well HUVEC-01_1_B02 is scored in two files"):
        table().to_parquet(tmp_path / "a.parquet", index=False)
        read_all_scores([tmp_path / "a.parquet", tmp_path / "a.parquet"])


def write(path: Path, predictions: pd.Series, *, sample: list[str]) -> Path:
    return write_submission(path, predictions, pd.Series(0.5, index=predictions.index.drop_duplicates()), sample=sample)


def test_a_submission_keeps_the_order_of_the_sample(tmp_path: Path) -> None:
    path = write(tmp_path / "submission.csv", pd.Series([5, 6, 7], index=IDS), sample=IDS[::-1])
    assert path.read_text().splitlines() == ["id_code,sirna", f"{IDS[2]},7", f"{IDS[1]},6", f"{IDS[0]},5"]
    assert read_submission(path, sample=IDS).to_dict() == dict(zip(IDS, (5, 6, 7)))


def test_a_control_is_no_answer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="given a control, siRNA 1138"):
        write(tmp_path / "submission.csv", pd.Series([5, 1138, 7], index=IDS), sample=IDS)


@pytest.mark.parametrize(("ids", "message"), [
    (IDS[:2], "well HUVEC-01_2_B02 is missing"), ([*IDS, "HUVEC-09_1_B02"], "well HUVEC-09_1_B02 is not in sample_submission.csv"), ([*IDS, IDS[0]], "well HUVEC-01_1_B02 stands twice"),
])
def test_a_malformed_submission_is_never_written(tmp_path: Path, ids: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        write(tmp_path / "submission.csv", pd.Series(0, index=ids), sample=IDS)
    assert not list(tmp_path.iterdir())
