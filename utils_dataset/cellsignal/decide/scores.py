"""Scores on disk: one row per well, one column per class number, natural-log probabilities."""

from pathlib import Path

import numpy as np
import pandas as pd

from cellsignal.errors import InputError
from cellsignal.files import replacing, write_json


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
    path = Path(folder) / "metadata.json"
    write_json(path, {"values": "natural-log probabilities", **facts})
    return path


def read_scores(path: Path) -> pd.DataFrame:
    """Read scores: index id_code, integer class numbers as columns, float32 log-probabilities.

    Raises InputError naming the file and the well or column when it is not such a table: no
    id_code, a column that is no class number, an id twice, text, NaN or +inf among the values.
    """
    table = _read_parquet(path)
    if table.index.name == "id_code":
        table = table.reset_index()
    if "id_code" not in table.columns:
        raise InputError("no column id_code", where=path, cure="name the column that holds the well ids id_code")
    scores = table.set_index("id_code")
    scores.columns = [_class_number(column, path) for column in scores.columns]
    _check_ids(scores, path)
    return _checked_values(scores, path)


def read_all_scores(paths: list[Path]) -> pd.DataFrame:
    """Read and stack several score files, or folders of them; no well may come twice."""
    files = [file for path in paths for file in (sorted(path.glob("*.parquet")) if path.is_dir() else [path])]
    if not files:
        where = ", ".join(map(str, paths))
        raise InputError("no score files (*.parquet) there", where=where, cure="name files or folders with scores")
    scores = pd.concat([read_scores(file) for file in files])
    if scores.isna().to_numpy().any():
        # Cell types may have been trained on different classes; an absent class is impossible, not unknown.
        scores = scores.fillna(-np.inf)
    twice = scores.index[scores.index.duplicated()]
    if len(twice):
        raise InputError(f"well {twice[0]} is scored in two files", where=", ".join(map(str, paths)),
                         cure="name each file once, or average the scores first")
    return scores


def _read_parquet(path: Path) -> pd.DataFrame:
    if not Path(path).exists():
        raise InputError("no such file", where=path, cure="run the kernel 4-predict-assign, or mend the path")
    try:
        return pd.read_parquet(path)
    except Exception:  # Arrow raises its own family of errors for damaged files
        cure = "write it again with kernel 4-predict-assign"
        raise InputError("not readable as Parquet", where=path, cure=cure) from None


def _class_number(column: object, path: Path) -> int:
    if not (str(column).isascii() and str(column).isdecimal()):
        raise InputError(f"column {column!r} is no class number", where=path,
                         cure="name every column but id_code after the siRNA it scores, such as 0 or 1107")
    return int(str(column))


def _check_ids(scores: pd.DataFrame, path: Path) -> None:
    if scores.empty:
        raise InputError("no wells or no classes in it", where=path, cure="write the scores again")
    duplicated = scores.index[scores.index.duplicated()]
    if len(duplicated):
        raise InputError(f"id_code {duplicated[0]} stands twice", where=path, cure="keep one row per well")
    columns = scores.columns[scores.columns.duplicated()]
    if len(columns):
        raise InputError(f"class {columns[0]} stands twice", where=path, cure="keep one column per class number")


def _checked_values(scores: pd.DataFrame, path: Path) -> pd.DataFrame:
    text = [column for column in scores if not pd.api.types.is_numeric_dtype(scores[column])]
    if text:
        raise InputError(f"column {text[0]} holds text", where=path, cure="write log-probabilities as numbers")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused below
        values = np.column_stack([scores[column].to_numpy(np.float32, na_value=np.nan) for column in scores])
    for bad, name in ((np.isnan(values), "NaN"), (np.isposinf(values), "+inf")):
        if bad.any():
            row, column = np.argwhere(bad)[0]
            where = f"{path}: well {scores.index[row]}, class {scores.columns[column]}"
            raise InputError(f"the score is {name}", where=where, cure="predict this well again; -inf is allowed")
    return pd.DataFrame(values, index=scores.index, columns=scores.columns)
