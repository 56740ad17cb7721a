"""One reader of headers: quotes, byte order marks, spaces, separators and order mean the same to all who look at a table."""

import bz2
import gzip
import io
import lzma
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cellsignal.data.tables import headers
from cellsignal.data.tables.labelled_sites import read_site_tables, task_of
from cellsignal.data.tables.wells import read_solution, read_tables
from cellsignal.decide import commands
from cellsignal.errors import InputError
from cellsignal.run import mounts
from cellsignal.tasks import PROTEIN_ATLAS, RXRX1

Change = Callable[[list[list[str]]], str]


def rows(cells: list[list[str]], separator: str = ",", *, quote: str = "") -> str:
    return "".join(separator.join(f"{quote}{cell}{quote}" for cell in row) + "\n" for row in cells)


SAME: dict[str, Change] = {
    "quoted": lambda cells: rows(cells, quote='"'),
    "byte order mark": lambda cells: "\ufeff" + rows(cells),
    "both": lambda cells: "\ufeff" + rows(cells, quote='"'),
    "other order": lambda cells: rows([row[::-1] for row in cells]),
    "spaces": lambda cells: rows([[f" {cell} " for cell in row] for row in cells]),
    "a space after each comma": lambda cells: rows(cells, ", ", quote='"'),
    "Windows": lambda cells: rows(cells).replace("\n", "\r\n"),
    "an old Macintosh": lambda cells: rows(cells).replace("\n", "\r"),
    "further columns": lambda cells: rows([["note", *row] if row is cells[0] else ["a, b".replace(", ", " "), *row] for row in cells]),
    "blank lines": lambda cells: rows(cells) + "\n\n",
}
REFUSED = {
    "semicolons": lambda cells: rows(cells, ";"),
    "quoted semicolons": lambda cells: rows(cells, ";", quote='"'),
    "tabs": lambda cells: rows(cells, "\t"),
    "bars": lambda cells: "\ufeff" + rows(cells, "|"),
}


def cells(path: Path) -> list[list[str]]:
    return [line.split(",") for line in path.read_text().splitlines()]


@pytest.mark.parametrize("kind", SAME)
def test_tables_of_wells_are_the_same_however_they_are_written(data_set: Path, kind: str) -> None:
    expected = read_tables(data_set)
    for path in data_set.glob("*.csv"):
        path.write_text(SAME[kind](cells(path)), newline="")
    read = read_tables(data_set)
    assert read.wells.equals(expected.wells) and read.sites.equals(expected.sites) and read.sample == expected.sample
    assert read.solution.equals(expected.solution)


ATLAS = {"train.csv": [["Id", "Target"], ["a", "16 0"], ["b", "7"]], "sample_submission.csv": [["Id", "Predicted"], ["x", "0"]]}


@pytest.mark.parametrize("kind", [*SAME, *REFUSED])
def test_tables_of_the_protein_atlas_are_never_taken_for_wells(tmp_path: Path, kind: str) -> None:
    for name, table in ATLAS.items():
        (tmp_path / name).write_text((SAME | REFUSED)[kind](table), newline="")
    assert task_of(tmp_path) is PROTEIN_ATLAS and mounts.has_task_tables(tmp_path, PROTEIN_ATLAS)
    if kind in REFUSED:
        with pytest.raises(InputError, match="train.csv:1: columns are not separated by commas; save it as CSV with commas"):
            read_site_tables(tmp_path, PROTEIN_ATLAS)
    else:
        read = read_site_tables(tmp_path, PROTEIN_ATLAS)
        assert read.sites["labels"].tolist() == [(0, 16), (7,), ()] and read.sample == ["x"]


@pytest.mark.parametrize("kind", [*SAME, *REFUSED])
def test_whose_a_submission_is_does_not_depend_on_how_it_is_written(tmp_path: Path, kind: str) -> None:
    for task, table in ((RXRX1, [["id_code", "sirna"], ["x", "1"]]), (PROTEIN_ATLAS, ATLAS["sample_submission.csv"])):
        (tmp_path / "submission.csv").write_text((SAME | REFUSED)[kind](table), newline="")
        assert commands.submission_task(tmp_path / "submission.csv") is task
        with gzip.open(tmp_path / "submission.csv.gz", "wt", newline="") as stream:
            stream.write((SAME | REFUSED)[kind](table))
        assert commands.submission_task(tmp_path / "submission.csv.gz") is task


def zipped(content: bytes) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writer:
        writer.writestr("solution.csv", content)
    return archive.getvalue()


def test_what_is_no_table_has_no_columns(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "torn.csv.gz").write_bytes(gzip.compress(b"id_code,sirna\n" * 999)[:-20])
    (tmp_path / "plain.csv.gz").write_text("id_code\n")
    for name in ("absent", "fifo", "plain.csv.gz", "."):
        assert not headers.has_columns(tmp_path / name, "id_code")
    assert headers.header_of(b"x" * 300_000).names == ["x" * 300_000]


def test_a_table_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.csv")
    (tmp_path / "torn.csv.gz").write_bytes(gzip.compress(os.urandom(9999))[:-20])
    (tmp_path / "plain.csv.gz").write_text("id_code\n")
    (tmp_path / "huge.csv").write_bytes(b"id_code,sirna\n")
    os.truncate(tmp_path / "huge.csv", 10**12)
    expected = {
        "fifo.csv": "is a device or a FIFO, no file; save the table as a file first",
        "torn.csv.gz": "no whole gzip file (Compressed file ended before the end-of-stream marker was reached); compress the table again",
        "plain.csv.gz": "no whole gzip file (Not a gzipped file (b'id')); compress the table again",
        "huge.csv": "holds more than 256 MiB, as no table does; look what it holds, and write it again",
    }
    for name, what in expected.items():
        with pytest.raises(InputError) as refused:
            read_solution(tmp_path / name)
        assert str(refused.value) == f"{tmp_path / name}: {what}"
    with pytest.raises(InputError, match="/dev/zero: is a device or a FIFO, no file"):
        read_solution(Path("/dev/zero"))


@pytest.mark.parametrize(("pack", "what"), [
    (gzip.compress, "packed with gzip"), (bz2.compress, "packed with bzip2"), (lzma.compress, "packed with xz"), (zipped, "a zip archive, such as Excel's"),
])  # fmt: skip
def test_a_packed_table_under_a_plain_name_is_said(tmp_path: Path, pack: Callable[[bytes], bytes], what: str) -> None:
    (tmp_path / "solution.csv").write_bytes(pack(b"id_code,sirna\na,1\n"))
    for read in (read_solution, headers.require_text):
        with pytest.raises(InputError) as refused:
            read(tmp_path / "solution.csv")
        assert str(refused.value) == f"{tmp_path}/solution.csv: is {what}; unpack it, or save the table as CSV in UTF-8"


def test_a_gzip_bomb_is_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "MAX_TABLE_BYTES", 1 << 20)
    with gzip.open(tmp_path / "bomb.csv.gz", "wb") as stream:
        stream.write(b"id_code,sirna\n" + b"a,0\n" * (1 << 19))
    with pytest.raises(InputError, match="bomb.csv.gz: holds more than 1 MiB, as no table does"):
        read_solution(tmp_path / "bomb.csv.gz")
