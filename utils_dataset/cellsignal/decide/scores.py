"""Scores on disk: one row per well, one column per class number, natural-log probabilities.

Three formats hold the same table. Parquet and CSV (`.csv`, `.csv.gz`): a column `id_code` and one
column per class number. NPZ, without pickles: `id_code` (text [N]), `scores` (numbers [N, K]) and
`class_numbers` (integers [K]; 0 to K - 1 when left out), or one array [N] per class number instead
of the last two.

A constant added to all scores of a well changes no decision, so softmax logits will do.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cellsignal import receipts
from cellsignal.decide.formats import Columns, is_submission, read_columns, suffix_of
from cellsignal.errors import InputError
from cellsignal.files import replacing

ROUNDING = 1e-5  # by so much a probability may leave 0..1: float32 softmaxes, averaged, do
HUGE = 1e30  # no logarithm is as large; many mask what is impossible with the lowest number of a type, as others with -inf
METADATA = "metadata.json"
NEARLY_ALL = 0.9  # of the values, by which a table is taken for one of probabilities


def without_masks(values: np.ndarray) -> np.ndarray:
    """Scores below -HUGE as -inf."""
    masks = (values < -HUGE) & (values > -np.inf) if values.min() < -HUGE else np.zeros(1, bool)
    return np.where(masks, values.dtype.type(-np.inf), values) if masks.any() else values


def write_scores(folder: Path, scores: pd.DataFrame, *, experiment: str) -> Path:
    """Write the scores of one experiment as `<folder>/<experiment>.parquet`.

    `scores`: index id_code, one column per class number, float32 log-probabilities.
    """
    path = Path(folder) / f"{experiment}.parquet"
    table = scores.rename(columns=str).rename_axis("id_code").reset_index()
    with replacing(path) as temporary:
        table.to_parquet(temporary, index=False)
    return path


def write_metadata(folder: Path, **facts: object) -> Path:
    """Write `<folder>/metadata.json`: how the scores beside it were made."""
    path = Path(folder) / METADATA
    receipts.write(path, {"values": "natural-log probabilities", **facts})
    return path


def read_scores(path: Path, *, probabilities: bool = False) -> pd.DataFrame:
    """Read scores: index id_code, integer class numbers as columns, float32 log-probabilities.

    The suffix tells the format. With `probabilities` the file holds probabilities: the rows are
    made to sum to one and their natural logarithm is returned, -inf for 0.

    Raises InputError naming the file, and the well or column, when it is not such a table: damaged,
    no id_code, a column that is no class number, an id twice, text, NaN or +inf among the values, a
    well for which every class is impossible, or values that belong to the other of the two scales.
    """
    path = Path(path)
    read = _checked(read_columns(path), path)
    _refuse_missing(read, path)
    values = _logarithms(read, path) if probabilities else _log_scale(read, path)
    impossible = values.max(axis=1) == -np.inf
    if impossible.any():
        where = f"{path}: well {read.ids[int(impossible.argmax())]}"
        raise InputError("every class has probability 0", where=where, cure="predict this well again")
    return pd.DataFrame(values, index=pd.Index(read.ids, name="id_code"), columns=read.classes)


def read_all_scores(paths: Sequence[Path], *, probabilities: bool = False) -> pd.DataFrame:
    """Read and stack several score files, or folders of them; no well may come twice.

    Of a folder every Parquet, CSV and NPZ file counts, but submissions. Columns ascend.
    """
    files = files_of(paths)
    if not files:
        raise InputError("no score files (.parquet, .csv, .csv.gz, .npz) there", where=name_of(paths),
                         cure="name files or folders with scores")
    scores = pd.concat([read_scores(file, probabilities=probabilities) for file in files])
    if scores.isna().to_numpy().any():
        # Cell types may have been trained on different classes; an absent class is impossible, not unknown.
        scores = scores.fillna(-np.inf)
    twice = scores.index[scores.index.duplicated()]
    if len(twice):
        raise InputError(f"well {twice[0]} is scored in two files", where=name_of(paths),
                         cure="name each file once, or average the scores first")
    return scores if scores.columns.is_monotonic_increasing else scores.sort_index(axis=1)


def files_of(paths: Sequence[Path]) -> list[Path]:
    """The score files that these paths name, one by one or by their folders."""
    return [file for path in paths for file in _in_folder(Path(path))]


def name_of(paths: Sequence[Path]) -> str:
    """Some paths in one line: the first, and how many more."""
    return f"{paths[0]} and {len(paths) - 1} more" if len(paths) > 1 else str(paths[0] if paths else "SCORES")


def _in_folder(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = (file for file in path.iterdir() if not file.name.startswith("."))  # half-written ones start so
    return sorted(file for file in found if suffix_of(file) and not is_submission(file))


def _checked(read: Columns, path: Path) -> Columns:
    if not len(read.ids) or not read.classes:
        raise InputError("no wells or no classes in it", where=path, cure="write the scores again")
    odd = next((row for row, name in enumerate(read.ids, 1) if not (isinstance(name, str) and name)), 0)
    if odd:
        raise InputError(f"id_code {read.ids[odd - 1]!r} is no text", where=f"{path}: row {odd}",
                         cure="write experiment_plate_well, such as HUVEC-01_1_B03")
    for what, names, cure in (("id_code", read.ids, "well"), ("class", read.classes, "class number")):
        twice = pd.Index(names)[pd.Index(names).duplicated()]
        if len(twice):
            raise InputError(f"{what} {twice[0]} stands twice", where=path,
                             cure=f"keep one {'row' if what == 'id_code' else 'column'} per {cure}")
    return read


def _refuse_missing(read: Columns, path: Path) -> None:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        values = read.values.astype(np.float32, copy=False)
    for bad, name in ((np.isnan(values), "NaN"), (np.isposinf(values), "+inf"), (values > HUGE, "no logarithm, so large is it")):
        if bad.any():
            raise InputError(f"the score is {name}", where=_place(read, bad, path)[0],
                             cure="predict this well again; -inf is allowed")


def _log_scale(read: Columns, path: Path) -> np.ndarray:
    """The values as float32, unless they look like probabilities."""
    low, high = read.values.min(), read.values.max()
    if low >= -ROUNDING and high > ROUNDING:
        if high <= 1 + ROUNDING:
            raise InputError("the values lie between 0 and 1, as probabilities do", where=path,
                             cure="add --probabilities, or write natural logarithms")
        raise InputError("no value is negative, so these are no log-probabilities", where=path,
                         cure="write natural logarithms of probabilities, or probabilities and add --probabilities")
    if low < 0 and ROUNDING < high <= 1 + ROUNDING and (read.values >= -ROUNDING).mean() >= NEARLY_ALL:
        where, value = _place(read, read.values < -ROUNDING, path)
        raise InputError(f"{value:.6g} among values that lie between 0 and 1, as probabilities do", where=where,
                         cure="mend it and add --probabilities, or write natural logarithms")
    with np.errstate(over="ignore"):
        return without_masks(read.values.astype(np.float32, copy=False))


def _logarithms(read: Columns, path: Path) -> np.ndarray:
    """Natural logarithms of probabilities, each row divided by its sum; float32."""
    if read.values.max() <= 0 and read.values.min() < -ROUNDING:
        raise InputError("no value is positive, as in log-probabilities", where=path, cure="drop --probabilities")
    bad = (read.values < -ROUNDING) | (read.values > 1 + ROUNDING)
    if bad.any():
        where, value = _place(read, bad, path)
        raise InputError(f"{value:.6g} is no probability", where=where, cure="write values from 0 to 1")
    values = np.clip(read.values.astype(np.float64), 0, None)
    with np.errstate(divide="ignore", invalid="ignore"):  # log 0; and 0 / 0, a row that is refused later
        values /= values.sum(axis=1, keepdims=True)
        return np.nan_to_num(np.log(values, out=values), nan=-np.inf, neginf=-np.inf, copy=False).astype(np.float32)


def _place(read: Columns, bad: np.ndarray, path: Path) -> tuple[str, float]:
    """Where the first bad value stands, and the value."""
    row, column = np.argwhere(bad)[0]
    return f"{path}: well {read.ids[row]}, class {read.classes[column]}", float(read.values[row, column])
