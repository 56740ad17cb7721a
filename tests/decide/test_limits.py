"""Files of scores that would become more than the memory holds: each is refused in one line, at once."""

import gzip
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from cellsignal.decide.scores import files
from cellsignal.decide.scores.files import read_all_scores, read_scores
from cellsignal.errors import InputError

CURE = "give one row per well and one column per siRNA, in several files if need be"


def parquet(path: Path, columns: dict[str, object]) -> None:
    pa.parquet.write_table(pa.table(columns), path, compression="zstd")


def rows_without_end(path: Path) -> None:
    """600,000 wells in 20 kB: equal values are counted, not written."""
    ids = pa.DictionaryArray.from_arrays(pa.array(np.zeros(600_000, np.int32)), pa.array(["RPE-01_1_B02"])).cast(pa.string())
    parquet(path, {"id_code": ids, "0": np.zeros(600_000)})


def a_novel_as_id(path: Path) -> None:
    """A text of 300 kB in each of 200 rows: 60 MB that lie on the disk once."""
    ids = pa.DictionaryArray.from_arrays(pa.array(np.zeros(200, np.int32)), pa.array(["x" * 300_000]))
    parquet(path, {"id_code": ids, "0": np.zeros(200)})


def pages_that_swell(path: Path) -> None:
    """10 texts of 400 kB each, which hardly take space when packed."""
    parquet(path, {"id_code": [str(number) * 400_000 for number in range(10)], "0": np.zeros(10)})


def columns_without_end(path: Path) -> None:
    parquet(path, {"id_code": ["RPE-01_1_B02"], **{str(number): [0.0] for number in range(1200)}})


def lists(path: Path) -> None:
    parquet(path, {"id_code": ["RPE-01_1_B02"], "0": [[0.0] * 1000]})


def packed(path: Path, head: bytes, block: bytes, times: int) -> None:
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(head)
        for _ in range(times):
            stream.write(block)


def blank_lines(path: Path) -> None:
    packed(path, b"id_code,0\n", b"\n" * (1 << 20), 128)


def one_line(path: Path) -> None:
    packed(path, b"id_code,0\n", b"0" * (1 << 20), 64)


def no_line(path: Path) -> None:
    packed(path, b"", b"\0" * (1 << 20), 64)


def many_rows(path: Path) -> None:
    packed(path, b"id_code,0\n", b"a,0\n" * 50_000, 6)


def sparse(path: Path) -> None:
    """A file of a terabyte that takes no space."""
    path.write_bytes(b"id_code,0\n")
    os.truncate(path, 10**12)


def zip_of_zeros(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, archive.open("scores.npy", "w", force_zip64=True) as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (50_000, 1108)})
        for _ in range(50_000 * 1108 * 8 >> 20):
            stream.write(b"\0" * (1 << 20))


def strange_array(path: Path) -> None:
    np.savez_compressed(path, id_code=np.array(["RPE-01_1_B02"]), scores=np.zeros((1, 2)), more=np.zeros(10**7))


BOMBS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "rows": (".parquet", rows_without_end, f": holds 600,000 rows, and no scores have more than 250,000; {CURE}"),
    "an id": (".parquet", a_novel_as_id, ": an id_code of 300,000 bytes; write experiment_plate_well, such as HUVEC-01_1_B03"),
    "pages": (".parquet", pages_that_swell, f" bytes, and no scores have more than 323,200; {CURE}"),
    "columns": (".parquet", columns_without_end, f": holds 1,201 columns, and no scores have more than 1,140; {CURE}"),
    "lists": (".parquet", lists, ": column 0 holds list<element: double>; write scores as numbers"),
    "blank lines": (".csv.gz", blank_lines, f" bytes, and no scores have more than 80,320,000; {CURE}"),
    "one line": (".csv.gz", one_line, ": not readable as CSV; it is damaged or of another format: write it again"),
    "no line": (".csv.gz", no_line, ": is not UTF-8 text; save the table as CSV in UTF-8"),
    "rows of text": (".csv.gz", many_rows, f" rows, and no scores have more than 250,000; {CURE}"),
    "a sparse file": (".csv", sparse, ": is not UTF-8 text; save the table as CSV in UTF-8"),
    "another array": (".npz", strange_array, ": array 'more' is unknown; save id_code, scores and class_numbers, and no other"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    suffix, write, message = BOMBS[kind]
    write(tmp_path / f"bomb{suffix}")
    with pytest.raises(InputError) as refused:
        read_scores(tmp_path / f"bomb{suffix}")
    assert str(refused.value).startswith(f"{tmp_path / 'bomb'}{suffix}:") and str(refused.value).endswith(message)


def test_an_archive_is_refused_for_what_it_says_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zip_of_zeros(tmp_path / "bomb.npz")
    monkeypatch.setattr(files, "MAX_ROWS", 1000)
    with pytest.raises(InputError, match=r"bomb.npz: holds 4\d\d,\d\d\d,\d\d\d bytes, and no scores have more than 73,472,000; give one row"):
        read_scores(tmp_path / "bomb.npz")


@pytest.mark.parametrize("name", ["scores.csv", "scores.csv.gz", "scores.parquet", "scores.npz"])
@pytest.mark.parametrize("alone", [True, False])
def test_a_fifo_is_refused_and_not_waited_for(tmp_path: Path, name: str, alone: bool) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=f"{name}: is a device or a FIFO, no file; save the table as a file first"):
        read_all_scores([tmp_path / name if alone else tmp_path])


def test_all_of_rxrx1_is_far_from_the_limits() -> None:
    wells, classes = 62_754, 1139
    assert 3 * wells < files.MAX_ROWS and classes < files.MAX_COLUMNS
    longest = len("-1.7976931348623157e+308,")
    assert files._max_bytes(wells, classes + 1) > wells * (classes * longest + len("HUVEC-24_4_O23") + 1)


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_spaces_quotes_and_a_byte_order_mark_mean_nothing(tmp_path: Path, suffix: str) -> None:
    path, text = tmp_path / f"scores{suffix}", '\ufeff"id_code" , "1107",0\n"RPE-01_1_B02", -0.5 ,-2\n RPE-01_1_B03 ,-1,-1\n'
    path.write_bytes(gzip.compress(text.encode()) if suffix == ".csv.gz" else text.encode())
    expected = pd.DataFrame({1107: [-0.5, -1], 0: [-2.0, -1]}, index=pd.Index(["RPE-01_1_B02", "RPE-01_1_B03"], name="id_code"), dtype=np.float32)
    pd.testing.assert_frame_equal(read_scores(path), expected, check_index_type=False, check_column_type=False)
