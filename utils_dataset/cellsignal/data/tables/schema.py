"""Reading and validating a CSV file: every fault has a file, a line and a column."""

import csv
import io
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import csv as csv_files
from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from cellsignal.data.tables import headers
from cellsignal.errors import InputError, Problem, system_fault
from cellsignal.files import is_plain


def _plain(text: str) -> str:
    """Refuse integers that only Python accepts: 0911, +911, 911.0, 3_0."""
    if not re.fullmatch("0|[1-9][0-9]*", text):
        raise ValueError("not plain digits")
    return text


def _decimal(text: str) -> str:
    if "_" in text:
        raise ValueError("not a number but in Python")
    return text


_PLAIN = BeforeValidator(_plain)
Texts = tuple[list[str], np.ndarray]  # texts of a column, each once where many are the same, and for each row which of them
Text = Annotated[str, Field(min_length=1)]


@cache  # 125,510 rows name 51 experiments
def _usable_as_folder_name(experiment: str) -> str:
    """An experiment whose own name and whose cell type, what stands before its last hyphen, may each name a folder."""
    if not is_plain(experiment) or not is_plain(experiment.rpartition("-")[0]):
        raise ValueError("no plain name")
    return experiment


Experiment = Annotated[str, AfterValidator(_usable_as_folder_name)]
Plate = Annotated[int, _PLAIN, Field(ge=1, le=99)]  # layouts become arrays with a row per plate
Well = Annotated[str, Field(pattern=r"^[A-P](0[1-9]|1[0-9]|2[0-4])$")]
Site = Annotated[int, _PLAIN, Field(ge=1)]
Treatment = Annotated[int, _PLAIN, Field(ge=0, le=1107)]
Control = Annotated[int, _PLAIN, Field(ge=1108, le=1138)]
Sirna = Annotated[int, _PLAIN, Field(ge=0, le=1138)]
Channel = Annotated[int, _PLAIN, Field(ge=1)]
Brightness = Annotated[float, BeforeValidator(_decimal), Field(ge=0, le=255, allow_inf_nan=False)]
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


class BenchmarkRow(TypedDict):
    """A row of RxRx1-WILDS's metadata.csv, which has further columns: one site."""

    cell_type: Text
    dataset: Literal["train", "val", "test"]
    experiment: Experiment
    plate: Plate
    well: Well
    site: Site
    sirna_id: Sirna


class TypedBenchmarkRow(BenchmarkRow):
    """The same with the column by which the controls are named."""

    well_type: WellType


class SiteAnswerRow(TypedDict):
    """A row of answers to the sites of RxRx1-WILDS."""

    site_id: Text
    sirna_id: Sirna


class PixelRow(TestRow):
    """A row of pixel_stats.csv: one channel of a site, in 8-bit units."""

    site: Site
    channel: Channel
    mean: Brightness
    std: Brightness


_CLASS = "write a class number: 0-1107 treatment, 1108-1137 positive control, 1138 untreated"
_NUMBER = "write a number from 0 to 255 with a decimal point, such as 12.5"
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
    "dataset": ("is not a data set", "write train or test (if this is RxRx1-WILDS, read it with task: rxrx1-wilds)"),
    "channel": ("is not a channel", "write a whole number from 1"),
    "mean": ("is not a mean of pixels", _NUMBER),
    "std": ("is not a standard deviation of pixels", _NUMBER),
}
_NEEDS_CSV_READER = (b'"', b"\r", b"\xef\xbb\xbf", b" ", b"\t")  # what makes a CSV file more than lines of cells
_EMPTY_CELL = ("is empty", "fill it in")


def read_rows(path: Path, row: type, *, exact: bool = False) -> tuple[pd.DataFrame, list[Problem]]:
    """Read and check a CSV file (.csv, .csv.gz) against a row type of this module.

    Returns the table, ids as text and numbers as integers, indexed by (file, line), and its
    problems; the table is empty when there are any. Further columns are left out, and spaces around
    cells and names of columns mean nothing, unless it must be `exact`.
    """
    cells, problems = _read_cells(Path(path), list(row.__annotations__), exact=exact)
    if problems:
        return pd.DataFrame(), problems
    lines, texts = cells
    columns, faults = {}, []
    for column_index, (name, kind) in enumerate(row.__annotations__.items()):
        distinct, codes = texts[name]
        try:
            columns[name] = pd.Series(_adapter(kind).validate_python(distinct)).array.take(codes)
        except ValidationError as error:
            invalid = [fault["loc"][0] for fault in error.errors(include_url=False, include_context=False)]
            faults += [(row_index, column_index, name, distinct[codes[row_index]]) for row_index in np.flatnonzero(np.isin(codes, invalid)).tolist()]
    if faults:
        faults.sort(key=lambda fault: fault[:2])  # as one reads: line by line
        return pd.DataFrame(), [_cell_problem(path, lines[row_index], name, value) for row_index, _, name, value in faults]
    # An index of objects, because the text of Arrow holds no name that is not Unicode.
    index = pd.MultiIndex.from_product([pd.Index([str(path)], dtype=object), lines], names=["file", "line"])
    return pd.DataFrame(columns, index=index), []


@cache
def _adapter(kind: Any) -> TypeAdapter:
    """What checks the texts of a whole column at once: with 753,060 rows, rows as objects cost more than their checks."""
    return TypeAdapter(list[kind])


def _read_cells(path: Path, columns: list[str], *, exact: bool) -> tuple[tuple[list[int], dict[str, Texts]], list[Problem]]:
    """Line numbers, and the texts of each column; or the problem that stops the reading."""
    empty: tuple[list[int], dict[str, Texts]] = ([], {})
    try:
        content = headers.read_content(path)
        text = content.decode("utf-8-sig")
        if problems := _header_problems(path, content, columns, exact=exact):
            return empty, problems
        if fast_cells := _plain_cells(content, columns):
            return fast_cells, []
        reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=not exact)
        clean = (lambda cell: cell) if exact else str.strip
        header = [clean(name) for name in next(reader, [])]
        numbered = [(reader.line_num, [clean(cell) for cell in cells]) for cells in reader if cells]
    except (OSError, UnicodeDecodeError, csv.Error, InputError) as error:
        return empty, [_file_problem(path, error)]
    if ragged := list(_wrong_cell_counts(path, numbered, len(header))):
        return empty, ragged
    lines = [line for line, _ in numbered]
    return (lines, {name: _encoded(pa.array([cells[header.index(name)] for _, cells in numbered], pa.string())) for name in columns}), []


def _plain_cells(content: bytes, columns: list[str]) -> tuple[list[int], dict[str, Texts]] | None:
    """The same, five times faster, for a table without quotes or blank lines; None for any other, or one with a fault."""

    if b"\n\n" in content or content.startswith(b"\n") or any(mark in content for mark in _NEEDS_CSV_READER):
        return None
    kinds = csv_files.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()), include_columns=columns, strings_can_be_null=False)
    try:
        table = csv_files.read_csv(io.BytesIO(content), convert_options=kinds, read_options=csv_files.ReadOptions(use_threads=False))
    except pa.ArrowException:
        return None
    return list(range(2, 2 + len(table))), {name: _encoded(table[name].combine_chunks()) for name in columns}


def _encoded(texts: pa.Array) -> Texts:
    if 2 * len(texts[:1000].unique()) > len(texts[:1000]):  # most differ, as ids and measurements do: looking for equal ones costs more
        return texts.to_numpy(zero_copy_only=False).tolist(), np.arange(len(texts))
    dictionary = texts.dictionary_encode()
    return dictionary.dictionary.to_numpy(zero_copy_only=False).tolist(), dictionary.indices.to_numpy()


def _file_problem(path: Path, error: Exception) -> Problem:
    if isinstance(error, FileNotFoundError):
        return Problem(str(path), "no such file", "put the competition's table there")
    if isinstance(error, OSError):
        what, cure = system_fault(error)
        return Problem(str(path), f"cannot be read ({what})", cure)
    if isinstance(error, UnicodeDecodeError):
        return Problem(str(path), *headers.not_text_fault(error.object))
    if isinstance(error, InputError):
        return Problem(str(error.where), error.what, error.cure)
    return Problem(str(path), f"is not CSV ({error})", "quote cells as spreadsheets do")


def _header_problems(path: Path, content: bytes, columns: list[str], *, exact: bool) -> list[Problem]:
    where = f"{path}:1"
    if not content.strip():
        return [Problem(str(path), "the file is empty", "copy the table again")]
    if b"\0" in content:
        return [Problem(str(path), *headers.not_text_fault(content))]
    header = headers.header_of(content, exact=exact)
    if header.separator != ",":
        return [Problem(where, "columns are not separated by commas", "save it as CSV with commas")]
    names = header.names
    if missing := [name for name in columns if name not in names]:
        present = ", ".join(name if name == name.strip() and name.isprintable() else repr(name) for name in names)
        what = f"no column {', '.join(missing)} (there are: {present if len(present) <= 100 else present[:96] + ' ...'})"
        return [Problem(where, what, f"name the columns {','.join(columns)}")]
    duplicated = [name for name in columns if names.count(name) > 1]
    return [Problem(f"{where}:{name}", "column stands twice", "keep one") for name in duplicated]


def _wrong_cell_counts(path: Path, numbered: list[tuple[int, list[str]]], width: int) -> Iterator[Problem]:
    for line, cells in numbered:
        if len(cells) != width:
            what = f"{len(cells)} cells where the header has {width}"
            yield Problem(f"{path}:{line}", what, "give each column one cell")


def _cell_problem(path: Path, line: int, column: str, value: Any) -> Problem:
    what, cure = _EXPECTED.get(column, _EMPTY_CELL)
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
