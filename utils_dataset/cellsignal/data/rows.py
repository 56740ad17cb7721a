"""One CSV file to one checked table: every fault has a file, a line and a column."""

import csv
import io
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import pyarrow as pa
from pyarrow import csv as csv_files
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from cellsignal.data.problems import Problem
from cellsignal.files import is_plain

Text = Annotated[str, Field(min_length=1)]


@cache  # 125,510 rows name 51 experiments
def _names_folders(experiment: str) -> str:
    """An experiment whose own name and whose cell type, what stands before its last hyphen, may each name a folder."""
    if not is_plain(experiment) or not is_plain(experiment.rpartition("-")[0]):
        raise ValueError("no plain name")
    return experiment


Experiment = Annotated[str, AfterValidator(_names_folders)]
Plate = Annotated[int, Field(ge=1, le=99)]  # layouts become arrays with a row per plate
Well = Annotated[str, Field(pattern=r"^[A-P](0[1-9]|1[0-9]|2[0-4])$")]
Site = Annotated[int, Field(ge=1)]
Treatment = Annotated[int, Field(ge=0, le=1107)]
Control = Annotated[int, Field(ge=1108, le=1138)]
Sirna = Annotated[int, Field(ge=0, le=1138)]
WellType = Literal["treatment", "positive_control", "negative_control"]


class TestRow(TypedDict):
    """A row of test.csv."""

    id_code: Text
    experiment: Experiment
    plate: Plate
    well: Well


class TrainRow(TestRow):
    """A row of train.csv."""

    sirna: Treatment


class ControlRow(TestRow):
    """A row of train_controls.csv or test_controls.csv."""

    sirna: Control
    well_type: WellType


class SampleRow(TypedDict):
    """A row of sample_submission.csv, whose class numbers mean nothing."""

    id_code: Text


class SolutionRow(TypedDict):
    """A row of solution.csv."""

    id_code: Text
    sirna: Sirna


class ReleaseRow(TypedDict):
    """A row of the public release's metadata.csv: one site; `sirna` there is the maker's name."""

    site_id: Text
    well_id: Text
    cell_type: Text
    dataset: Literal["train", "test"]
    experiment: Experiment
    plate: Plate
    well: Well
    site: Site
    well_type: WellType
    sirna_id: Sirna


_CLASS = "write a class number: 0-1107 treatment, 1108-1137 positive control, 1138 untreated"
_EXPECTED = {
    "id_code": ("is not an id", "write experiment_plate_well, such as HUVEC-01_1_B03"),
    "experiment": ("is not an experiment", "write cell type, hyphen, number, such as HUVEC-01, of letters, digits and any of _.+-"),
    "plate": ("is not a plate", "write a whole number from 1 to 99"),
    "well": ("is not a well", "write a row A-P and a column 01-24, such as B03"),
    "site": ("is not a site", "write a whole number from 1"),
    "sirna": ("is not a class of this table", _CLASS),
    "sirna_id": ("is not a class", _CLASS),
    "well_type": (
        "is not a well type",
        "write treatment, positive_control or negative_control",
    ),
    "dataset": ("is not a data set", "write train or test"),
}
_ODD = (b'"', b"\r", b"\0", b"\xef\xbb\xbf")  # what makes a CSV file more than lines of cells
_FILLED = ("is empty", "fill it in")


def read_rows(path: Path, row: type) -> tuple[pd.DataFrame, list[Problem]]:
    """Read and check a CSV file against a row type of this module.

    Returns the table, ids as text and numbers as integers, indexed by (file, line), and its
    problems; the table is empty when there are any. Further columns are left out.
    """
    cells, problems = _read_cells(path, list(row.__annotations__))
    if problems:
        return pd.DataFrame(), problems
    lines, texts = cells
    columns, faults = {}, []
    for place, (name, kind) in enumerate(row.__annotations__.items()):
        try:
            columns[name] = _adapter(kind).validate_python(texts[name])
        except ValidationError as error:
            faults += [(fault["loc"][0], place, name, fault["input"]) for fault in _faults(error)]
    if faults:
        faults.sort(key=lambda fault: fault[:2])  # as one reads: line by line
        return pd.DataFrame(), [_cell_problem(path, lines[at], name, value) for at, _, name, value in faults]
    index = pd.MultiIndex.from_product([[str(path)], lines], names=["file", "line"])
    return pd.DataFrame(columns, index=index), []


@cache
def _adapter(kind: Any) -> TypeAdapter:
    """What checks a whole column at once: with 125,510 rows, rows as objects cost more than their checks."""
    return TypeAdapter(list[kind])


def _read_cells(path: Path, columns: list[str]) -> tuple[tuple[list[int], dict[str, list[str]]], list[Problem]]:
    """Line numbers, and the texts of each column; or the problem that stops the reading."""
    if plain := _plain_cells(path, columns):
        return plain, []
    nothing: tuple[list[int], dict[str, list[str]]] = ([], {})
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            header = next(reader, [])
            problems = _header_problems(path, header, columns)
            if problems:
                return nothing, problems
            numbered = [(reader.line_num, cells) for cells in reader if cells]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        return nothing, [_file_problem(path, error)]
    if ragged := list(_ragged(path, numbered, len(header))):
        return nothing, ragged
    places = {name: header.index(name) for name in columns}
    return ([line for line, _ in numbered], {name: [cells[at] for _, cells in numbered] for name, at in places.items()}), []


def _plain_cells(path: Path, columns: list[str]) -> tuple[list[int], dict[str, list[str]]] | None:
    """The same, five times faster, of a file in which each line is a row; None for any other, or one with a fault."""
    try:
        content = path.read_bytes()
        content.decode()
        if b"\n\n" in content or content.startswith(b"\n") or any(mark in content for mark in _ODD):
            return None
        kinds = csv_files.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()), include_columns=columns, strings_can_be_null=False)
        table = csv_files.read_csv(io.BytesIO(content), convert_options=kinds, read_options=csv_files.ReadOptions(use_threads=False))
    except (OSError, UnicodeDecodeError, pa.ArrowException):
        return None
    if any(content.partition(b"\n")[0].split(b",").count(name.encode()) != 1 for name in columns):
        return None
    return list(range(2, 2 + len(table))), {name: table[name].to_pylist() for name in columns}


def _file_problem(path: Path, error: Exception) -> Problem:
    if isinstance(error, FileNotFoundError):
        return Problem(str(path), "no such file", "put the competition's table there")
    if isinstance(error, OSError):
        return Problem(str(path), f"cannot be read ({error.strerror})", "make it a readable file")
    if isinstance(error, UnicodeDecodeError):
        return Problem(str(path), "is not UTF-8 text", "save the table as CSV in UTF-8")
    return Problem(str(path), f"is not CSV ({error})", "quote cells as spreadsheets do")


def _header_problems(path: Path, header: list[str], columns: list[str]) -> list[Problem]:
    where = f"{path}:1"
    if not header:
        return [Problem(str(path), "the file is empty", "copy the table again")]
    missing = [name for name in columns if name not in header]
    if missing and len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
        return [Problem(where, "columns are not separated by commas", "save it as CSV with commas")]
    if missing:
        what = f"no column {', '.join(missing)} (there are: {', '.join(header)})"
        return [Problem(where, what, f"name the columns {','.join(columns)}")]
    twice = [name for name in columns if header.count(name) > 1]
    return [Problem(f"{where}:{name}", "column stands twice", "keep one") for name in twice]


def _ragged(path: Path, numbered: list[tuple[int, list[str]]], width: int) -> Iterator[Problem]:
    for line, cells in numbered:
        if len(cells) != width:
            what = f"{len(cells)} cells where the header has {width}"
            yield Problem(f"{path}:{line}", what, "give each column one cell")


def _faults(error: ValidationError) -> list[Any]:
    return error.errors(include_url=False, include_context=False)


def _cell_problem(path: Path, line: int, column: str, value: Any) -> Problem:
    what, cure = _EXPECTED.get(column, _FILLED)
    return Problem(f"{path}:{line}:{column}", f"{_short(value)} {what}", cure)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:56] + "...'"


def flag(frame: pd.DataFrame, bad: pd.Series, column: str, what: str, cure: str) -> list[Problem]:
    """One problem for each row of a (file, line)-indexed table where `bad` holds."""
    cells = frame.loc[bad.to_numpy(), column].items()
    return [
        Problem(f"{file}:{line}:{column}", f"{_short(value)} {what}", cure)
        for (file, line), value in cells
    ]
