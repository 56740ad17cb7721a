"""Files of scores: one row per well, one column per class number, natural-log probabilities.

There are three formats. Parquet and CSV (`.csv`, `.csv.gz`): a column `id_code` and one
column per class number. NPZ, without pickles: `id_code` (text [N]), `scores` (numbers [N, K]) and
`class_numbers` (integers [K]; 0 to K - 1 when left out), or one array [N] per class number instead
of the last two.

A constant added to all scores of a well changes no decision, so logits before a softmax are accepted too.
"""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from cellsignal.data.tables.headers import BoundedStream, open_table, read_header, refuse_stream, require_text
from cellsignal.errors import InputError, system_fault
from cellsignal.files import open_regular, write_parquet
from cellsignal.tasks import RXRX1

# Reading Parquet, CSV and NPZ files of scores.


MAX_ROWS = 250_000  # of a file: all of RxRx1 has 62,754 wells
MAX_COLUMNS = RXRX1.negative_control + 2  # a class number each, and id_code
_MAX_ID_BYTES, _MAX_NUMBER_BYTES = 256, 32  # bytes
_BLOCK_BYTES = 16 << 20  # bytes of CSV that are parsed at once, and the longest row


class ScoreColumns(NamedTuple):
    """The content of a file of scores, before ids and values are checked."""

    ids: list[object]  # id_code of each row
    classes: list[int]  # class number of each column
    values: np.ndarray  # float[rows, columns], NaN where nothing is written


def read_score_columns(path: Path) -> ScoreColumns:
    """Read a file in the format of its suffix; raises InputError."""
    if not path.exists():
        raise InputError("no such file", where=path, cure="run the kernel 4-predict-assign, or mend the path")
    refuse_stream(path)
    suffix = score_suffix(path)
    if not suffix:
        raise InputError("not a file name of scores", where=path, cure=f"give files that end with {', '.join(FORMATS)}")
    return FORMATS[suffix](path)


def score_suffix(path: Path) -> str:
    """The suffix of a file name, if it is in FORMATS, else ""."""
    return next((suffix for suffix in FORMATS if path.name.lower().endswith(suffix)), "")


def is_submission(path: Path) -> bool:
    """Whether a file is a CSV with a column sirna, so a submission, a solution or confidences, or Parquet with prediction sets."""
    if score_suffix(path) != ".parquet":
        return ".csv" in score_suffix(path) and "sirna" in _csv_header(path)
    try:
        with open_regular(path) as stream:
            return "sirnas" in pa.parquet.read_schema(stream).names
    except (OSError, InputError, pa.ArrowException):
        return False  # whoever reads it says why


def _read_parquet(path: Path) -> ScoreColumns:
    try:
        with open(path, "rb") as stream:
            schema = pa.parquet.read_schema(stream)
            names = [name for name in schema.names if not name.startswith("__index_level_")]  # an index of pandas
            _class_names(names, path)
            _refuse_types(pa.schema([field for field in schema if field.name in names]), path)
            file = pa.parquet.ParquetFile(stream, read_dictionary=["id_code"])  # a repeated long text is stored once
            rows, groups = file.metadata.num_rows, range(file.metadata.num_row_groups)
            declared = sum(file.metadata.row_group(number).total_byte_size for number in groups)
            _refuse_size(path, rows=rows, columns=len(names), size=declared, max_size=_max_bytes(rows, len(names)))
            table = file.read(columns=names)
    except InputError:
        raise
    except Exception as error:  # Arrow raises many kinds of errors for damaged files
        raise _unreadable_file(path, "Parquet", error) from None
    return _from_arrow(table, path, "Parquet")


def _read_csv(path: Path) -> ScoreColumns:
    header = _csv_header(path)
    require_text(path)
    types = {str(name): pa.float64() for name in _class_names(header, path)}
    options = {
        "convert_options": pa.csv.ConvertOptions(column_types=types | {"id_code": pa.string()}),
        "read_options": pa.csv.ReadOptions(column_names=header, skip_rows=1, block_size=_BLOCK_BYTES),
    }
    _refuse_size(path, columns=len(header))
    batches, rows = [], 0
    try:
        with _open_csv(path, columns=len(header)) as stream, pa.csv.open_csv(stream, **options) as reader:
            for batch in reader:
                batches.append(batch)
                rows += len(batch)
                _refuse_size(path, rows=rows)
        table = pa.Table.from_batches(batches, schema=reader.schema)
    except InputError:
        raise
    except Exception as error:  # of Arrow, without the row
        raise _csv_fault(path, header) or _unreadable_file(path, "CSV", error) from None
    return _from_arrow(table, path, "CSV")


def _read_npz(path: Path) -> ScoreColumns:
    arrays = _read_arrays(path)
    ids = _take_array(arrays, "id_code", path, kinds="US", axes=1)
    if "scores" not in arrays:  # one array per class number
        names = list(arrays)
        columns = [_take_array(arrays, name, path, kinds="fiu", axes=1) for name in names]
        classes = [_class_number(name, path) for name in names]
        _same_length(path, id_code=ids, **dict(zip(names, columns)))
        return ScoreColumns(_decode_ids(ids, path), classes, _floats(np.column_stack(columns)) if columns else np.empty((len(ids), 0)))
    scores = _take_array(arrays, "scores", path, kinds="fiu", axes=2)
    numbers = np.arange(scores.shape[1])
    if "class_numbers" in arrays:
        numbers = _take_array(arrays, "class_numbers", path, kinds="iu", axes=1)
    _same_length(path, id_code=ids, scores=scores)
    _same_length(path, class_numbers=numbers, **{"the columns of scores": scores.T})
    return ScoreColumns(_decode_ids(ids, path), [_class_number(number, path) for number in numbers.tolist()], _floats(scores))


FORMATS: dict[str, Callable[[Path], ScoreColumns]] = {
    ".parquet": _read_parquet, ".csv": _read_csv, ".csv.gz": _read_csv, ".npz": _read_npz,
}  # fmt: skip


def _unreadable_file(path: Path, kind: str, error: Exception) -> InputError:
    if isinstance(error, OSError) and error.strerror:
        what, cure = system_fault(error)
        return InputError(f"cannot be read ({what})", where=path, cure=cure)
    return InputError(f"not readable as {kind}", where=path, cure="it is damaged or of another format: write it again")


# Limits, so that a small compressed file cannot exhaust the memory


def _max_bytes(rows: int, columns: int) -> int:
    """An upper bound for the bytes of a table of this size, as text or in Arrow."""
    return (rows + 1000) * (_MAX_ID_BYTES + _MAX_NUMBER_BYTES * columns)


def _refuse_size(path: Path, *, rows: int = 0, columns: int = 0, size: int = 0, max_size: int = 0) -> None:
    """Raise InputError for a file that has, or declares, more rows, columns or bytes than scores can have."""
    for count, limit, unit in ((rows, MAX_ROWS, "rows"), (columns, MAX_COLUMNS, "columns"), (size, max_size, "bytes")):
        if count > limit:
            raise InputError(f"holds {count:,} {unit}, and no scores have more than {limit:,}", where=path,
                             cure="give one row per well and one column per siRNA, in several files if need be")


@contextmanager
def _open_csv(path: Path, *, columns: int) -> Iterator[io.BufferedReader]:
    with open_table(path) as stream:
        max_size = _max_bytes(MAX_ROWS, columns)
        yield io.BufferedReader(BoundedStream(stream, lambda size: _refuse_size(path, size=size, max_size=max_size)), 1 << 20)


# Parquet and CSV


def _from_arrow(table: pa.Table, path: Path, kind: str) -> ScoreColumns:
    classes = [_class_number(name, path) for name in _class_names(table.column_names, path)]
    id_column = table.column_names.index("id_code")
    _refuse_types(table.schema, path)
    try:
        values = table.remove_column(id_column).replace_schema_metadata(None).to_pandas().to_numpy()
        return ScoreColumns(_ids(table.column(id_column), path), classes, _floats(values))
    except InputError:
        raise
    except Exception as error:  # Arrow checks the encoding of text only now
        raise _unreadable_file(path, kind, error) from None


def _refuse_types(schema: pa.Schema, path: Path) -> None:
    """Raise InputError for a column of scores that holds no numbers."""
    for field in schema:
        if field.name != "id_code" and not (pa.types.is_floating(field.type) or pa.types.is_integer(field.type)):
            content = "text" if field.type in (pa.string(), pa.large_string()) else f"{field.type}"
            raise InputError(f"column {field.name} holds {content}", where=path, cure="write scores as numbers")


def _ids(column: pa.ChunkedArray, path: Path) -> list[object]:
    """The values of id_code, with surrounding spaces removed from text."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if kind not in (pa.string(), pa.large_string()):
        return column.to_pylist()
    for chunk in column.chunks:
        longest = pa.compute.max(pa.compute.binary_length(getattr(chunk, "dictionary", chunk))).as_py() or 0
        if longest > _MAX_ID_BYTES:
            raise InputError(f"an id_code of {longest:,} bytes", where=path, cure="write experiment_plate_well, such as HUVEC-01_1_B03")
    return pa.compute.utf8_trim_whitespace(column.cast(kind)).to_pylist()


def _class_names(names: Sequence[str], path: Path) -> list[str]:
    """The names of all columns but id_code."""
    if "id_code" not in names:
        raise InputError("no column id_code", where=path, cure="name the column that holds the well ids id_code")
    id_column = list(names).index("id_code")
    return [*names[:id_column], *names[id_column + 1 :]]


def _class_number(name: object, path: Path) -> int:
    text = str(name)
    if not (text.isascii() and text.isdecimal() and len(text) <= 9 and int(text) <= RXRX1.negative_control):
        raise InputError(f"column {name!r} is no class number", where=path,
                         cure="name every column but id_code after the siRNA it scores, such as 0 or 1107")
    return int(text)


def _floats(values: np.ndarray) -> np.ndarray:
    """float16 and float32 as float32, all other types as float64."""
    return values.astype(np.float32 if values.dtype in (np.float16, np.float32) else np.float64, copy=False)


def _csv_header(path: Path) -> list[str]:
    try:
        header = read_header(path)
    except OSError as error:
        raise _unreadable_file(path, "CSV", error) from None
    if header.separator != ",":
        raise InputError("columns are not separated by commas", where=f"{path}:1", cure="save it as CSV with commas")
    return header.names


def _csv_fault(path: Path, header: list[str]) -> InputError | None:
    """The first invalid line of a file that Arrow cannot read; None if there is none."""
    try:
        with _open_csv(path, columns=len(header)) as stream:
            text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
            reader = csv.reader(iter(lambda: text.readline(_BLOCK_BYTES), ""))
            next(reader)
            for cells in filter(None, reader):
                if len(cells) != len(header):
                    what = f"{len(cells)} cells where the header has {len(header)}"
                    return InputError(what, where=f"{path}:{reader.line_num}", cure="give each column one cell")
                invalid = [(name, cell) for name, cell in zip(header, cells) if name != "id_code" and not _is_number(cell)]
                if invalid:
                    return InputError(f"{invalid[0][1][:40]!r} is no number", where=f"{path}:{reader.line_num}:{invalid[0][0]}",
                                      cure="write scores as numbers")
    except InputError as error:
        return error
    except Exception as error:
        return _unreadable_file(path, "CSV", error)
    return None


def _is_number(cell: str) -> bool:
    try:
        float(cell or "nan")
    except ValueError:
        return False
    return True


# NPZ


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an archive; InputError for arrays of Python objects, which would need pickle."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if "scores" in archive.files and (unknown := set(archive.files) - {"id_code", "scores", "class_numbers"}):
                raise InputError(f"array {min(unknown)!r} is unknown", where=path, cure="save id_code, scores and class_numbers, and no other")
            size = sum(entry.file_size for entry in archive.zip.infolist())
            _refuse_size(path, columns=len(archive.files), size=size, max_size=_max_bytes(MAX_ROWS, MAX_COLUMNS))
            return {name: archive[name] for name in archive.files}
    except InputError:
        raise
    except ValueError as error:
        if "Object arrays" in str(error):
            raise InputError("an array holds Python objects", where=path, cure="save ids as text: ids.astype(str)") from None
        raise _unreadable_file(path, "NPZ", error) from None
    except Exception as error:  # zip, zlib, struct and NumPy raise various errors
        raise _unreadable_file(path, "NPZ", error) from None


def _take_array(arrays: dict[str, np.ndarray], name: str, path: Path, *, kinds: str, axes: int) -> np.ndarray:
    """Remove and return one array, with values of these kinds and `axes` dimensions; else InputError."""
    array = arrays.pop(name, None)
    if array is None:
        raise InputError(f"no array {name}", where=path, cure="save id_code, scores and class_numbers")
    if array.dtype.kind not in kinds or array.ndim != axes:
        kind = "text" if array.dtype.kind in "US" else f"{array.dtype}"
        expected = f"{'text' if kinds == 'US' else 'numbers'} of shape {'[wells, classes]' if axes == 2 else '[n]'}"
        raise InputError(f"array {name} holds {kind} of shape {list(array.shape)}", where=path, cure=f"save {expected}")
    return array


def _same_length(path: Path, **arrays: np.ndarray) -> None:
    (first, length), *rest = ((name, len(array)) for name, array in arrays.items())
    for name, other in rest:
        if other != length:
            raise InputError(f"{length} in {first}, {other} in {name}", where=path, cure="save arrays of the same wells")


def _decode_ids(ids: np.ndarray, path: Path) -> list[str]:
    try:
        return (np.char.decode(ids, "utf-8") if ids.dtype.kind == "S" else ids).tolist()
    except ValueError:  # invalid UTF-8 or code points
        raise InputError("array id_code holds damaged text", where=path, cure="save ids as text: ids.astype(str)") from None


ROUNDING = 1e-5  # tolerance for probabilities outside 0..1, as after averaging float32 softmaxes
MAX_SCORE = 1e30  # larger than any logarithm; some programs mask impossible classes with the lowest number of a type instead of -inf
METADATA = "metadata.json"
PROBABILITY_SHARE = 0.9  # of the values in 0..1, from which on a table is taken for probabilities


def replace_masks(values: np.ndarray) -> np.ndarray:
    """Scores with -inf in place of values below -MAX_SCORE."""
    masks = (values < -MAX_SCORE) & (values > -np.inf) if values.min() < -MAX_SCORE else np.zeros(1, bool)
    return np.where(masks, values.dtype.type(-np.inf), values) if masks.any() else values


def write_scores(folder: Path, scores: pd.DataFrame, *, experiment: str) -> Path:
    """Write the scores of one experiment as `<folder>/<experiment>.parquet`.

    `scores`: index id_code, one column per class number, float32 log-probabilities.
    """
    path = Path(folder) / f"{experiment}.parquet"
    table = scores.rename(columns=str).rename_axis("id_code").reset_index()
    write_parquet(path, table)
    return path


def read_scores(path: Path, *, probabilities: bool = False) -> pd.DataFrame:
    """Read scores: index id_code, integer class numbers as columns, float32 log-probabilities.

    The suffix is the format. With `probabilities` the file holds probabilities: rows are normalised, and their natural
    logarithm is returned, -inf for 0.

    Raises InputError with the file, and the well or column, for a damaged file, a missing id_code, a column that is no class
    number, a duplicated id, text, NaN or +inf among the values, a well without a possible class, and values on the other of the
    two scales.
    """
    path = Path(path)
    columns = _check_names(read_score_columns(path), path)
    _check_values(columns, path)
    values = _log_of_probabilities(columns, path) if probabilities else _as_log_probabilities(columns, path)
    impossible = values.max(axis=1) == -np.inf
    if impossible.any():
        where = f"{path}: well {columns.ids[int(impossible.argmax())]}"
        raise InputError("every class has probability 0", where=where, cure="predict this well again")
    return pd.DataFrame(values, index=pd.Index(columns.ids, name="id_code"), columns=columns.classes)


def read_all_scores(paths: Sequence[Path], *, probabilities: bool = False) -> pd.DataFrame:
    """Read and concatenate several score files, or folders of them; InputError for a well in two files.

    Folders contribute every Parquet, CSV and NPZ file except submissions. Columns are sorted.
    """
    files = list_score_files(paths)
    if not files:
        raise InputError("no score files (.parquet, .csv, .csv.gz, .npz)", where=describe_paths(paths),
                         cure="name files or folders with scores")
    scores = pd.concat([read_scores(file, probabilities=probabilities) for file in files])
    if scores.isna().to_numpy().any():
        # Cell types may have been trained on different classes; a missing class is impossible (-inf).
        scores = scores.fillna(-np.inf)
    duplicated = scores.index[scores.index.duplicated()]
    if len(duplicated):
        raise InputError(f"well {duplicated[0]} is scored in two files", where=describe_paths(paths),
                         cure="name each file once, or average the scores first")
    return scores if scores.columns.is_monotonic_increasing else scores.sort_index(axis=1)


def list_score_files(paths: Sequence[Path]) -> list[Path]:
    """The score files among these paths and in these folders."""
    return [file for path in paths for file in _score_files_in(Path(path))]


def describe_paths(paths: Sequence[Path]) -> str:
    """Paths in one line: the first, and the number of others."""
    return f"{paths[0]} and {len(paths) - 1} more" if len(paths) > 1 else str(paths[0] if paths else "SCORES")


def _score_files_in(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    visible = (file for file in path.iterdir() if not file.name.startswith("."))  # temporary files start with a dot
    return sorted(file for file in visible if score_suffix(file) and not is_submission(file))


def _check_names(columns: ScoreColumns, path: Path) -> ScoreColumns:
    if not len(columns.ids) or not columns.classes:
        raise InputError("no wells or no classes in it", where=path, cure="write the scores again")
    invalid_row = next((row for row, name in enumerate(columns.ids, 1) if not (isinstance(name, str) and name)), 0)
    if invalid_row:
        raise InputError(f"id_code {columns.ids[invalid_row - 1]!r} is no text", where=f"{path}: row {invalid_row}",
                         cure="write experiment_plate_well, such as HUVEC-01_1_B03")
    for what, names, cure in (("id_code", columns.ids, "well"), ("class", columns.classes, "class number")):
        duplicated = pd.Index(names)[pd.Index(names).duplicated()]
        if len(duplicated):
            raise InputError(f"{what} {duplicated[0]} stands twice", where=path,
                             cure=f"keep one {'row' if what == 'id_code' else 'column'} per {cure}")
    return columns


def _check_values(columns: ScoreColumns, path: Path) -> None:
    with np.errstate(over="ignore"):  # values beyond float32 become infinite, and are refused
        values = columns.values.astype(np.float32, copy=False)
    for invalid, name in ((np.isnan(values), "NaN"), (np.isposinf(values), "+inf"), (values > MAX_SCORE, "no logarithm, so large is it")):
        if invalid.any():
            raise InputError(f"the score is {name}", where=_locate_value(columns, invalid, path)[0],
                             cure="predict this well again; -inf is allowed")


def _as_log_probabilities(columns: ScoreColumns, path: Path) -> np.ndarray:
    """The values as float32; InputError if they look like probabilities."""
    low, high = columns.values.min(), columns.values.max()
    if low >= -ROUNDING and high > ROUNDING:
        if high <= 1 + ROUNDING:
            raise InputError("the values lie between 0 and 1, as probabilities do", where=path,
                             cure="add --probabilities, or write natural logarithms")
        raise InputError("no value is negative, so these are no log-probabilities", where=path,
                         cure="write natural logarithms of probabilities, or probabilities and add --probabilities")
    if low < 0 and ROUNDING < high <= 1 + ROUNDING and (columns.values >= -ROUNDING).mean() >= PROBABILITY_SHARE:
        where, value = _locate_value(columns, columns.values < -ROUNDING, path)
        raise InputError(f"{value:.6g} among values that lie between 0 and 1, as probabilities do", where=where,
                         cure="mend it and add --probabilities, or write natural logarithms")
    with np.errstate(over="ignore"):
        return replace_masks(columns.values.astype(np.float32, copy=False))


def _log_of_probabilities(columns: ScoreColumns, path: Path) -> np.ndarray:
    """Natural logarithms of the probabilities, normalised by row; float32. InputError if they are no probabilities."""
    if columns.values.max() <= 0 and columns.values.min() < -ROUNDING:
        raise InputError("no value is positive, as in log-probabilities", where=path, cure="drop --probabilities")
    invalid = (columns.values < -ROUNDING) | (columns.values > 1 + ROUNDING)
    if invalid.any():
        where, value = _locate_value(columns, invalid, path)
        raise InputError(f"{value:.6g} is no probability", where=where, cure="write values from 0 to 1")
    values = np.clip(columns.values.astype(np.float64), 0, None)
    with np.errstate(divide="ignore", invalid="ignore"):  # log 0, and 0 / 0 in rows that are refused later
        values /= values.sum(axis=1, keepdims=True)
        return np.nan_to_num(np.log(values, out=values), nan=-np.inf, neginf=-np.inf, copy=False).astype(np.float32)


def _locate_value(columns: ScoreColumns, invalid: np.ndarray, path: Path) -> tuple[str, float]:
    """The place of the first invalid value, and the value."""
    row, column = np.argwhere(invalid)[0]
    return f"{path}: well {columns.ids[row]}, class {columns.classes[column]}", float(columns.values[row, column])
