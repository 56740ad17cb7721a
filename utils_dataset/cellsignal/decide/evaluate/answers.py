"""Predicted siRNAs of wells with known siRNAs, rung by rung: the input of a comparison of runs."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cellsignal.data.simulated import RECEIPT
from cellsignal.errors import InputError
from cellsignal.files import sha256, write_text

ANSWERS_FILE = "answers.csv"
WELL_COLUMNS = ["id_code", "split", "cell_type", "experiment", "sirna"]  # columns besides those of the rungs; sirna is the truth
ANSWER_KINDS = ("raw", "assigned")
DESIGN_FILES = ("train.csv", "train_controls.csv", "test.csv", "test_controls.csv", "metadata.csv", RECEIPT)
PREDICT_AGAIN = "run 4-predict-assign of that run again"


def known_answers(ladder: Sequence[Mapping[str, Any]], truths: Mapping[str, pd.Series], wells: pd.DataFrame) -> pd.DataFrame:
    """One row per well with a known siRNA: the columns WELL_COLUMNS, and a column `<rung> <kind>` for each rung.

    `ladder`: rows of `ladder.evaluate_ladder`; `truths`: siRNA by id_code, by split; `wells`: has cell type and experiment. A
    cell is the siRNA predicted on a rung, <NA> if the rung has no predictions for this split.
    """
    well_table = wells.set_index("id_code")[["cell_type", "experiment"]]
    parts = []
    for split, truth in truths.items():
        table = well_table.reindex(truth.index).assign(split=split, sirna=truth.astype("Int64"))
        rows = [row for row in ladder if row["split"] == split]
        predictions = {f"{row['rung']} {row['kind']}": row["answers"].reindex(truth.index).astype("Int64") for row in rows}
        parts.append(table.assign(**predictions).rename_axis("id_code").reset_index())
    columns = [*WELL_COLUMNS, *dict.fromkeys(name for part in parts for name in part.columns if name not in WELL_COLUMNS)]
    return pd.concat(parts)[columns] if parts else pd.DataFrame(columns=WELL_COLUMNS)


def without_answers(ladder: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The ladder without predictions, as in metrics.json."""
    return [{name: value for name, value in row.items() if name != "answers"} for row in ladder]


def write_known_answers(path: Path, answers: pd.DataFrame) -> Path:
    """Write the table of `known_answers` as CSV, atomically; missing predictions are empty cells."""
    write_text(path, answers.to_csv(index=False, lineterminator="\n"))
    return path


def read_known_answers(path: Path) -> pd.DataFrame:
    """Read a file of `write_known_answers`: text columns as text, siRNAs as Int64.

    Raises InputError if it is missing or damaged, has other columns, or has a well twice in a split.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, na_values={})
    except FileNotFoundError:
        raise InputError("no such file", where=path, cure=PREDICT_AGAIN) from None
    except (ValueError, OSError) as error:
        raise InputError(f"not readable as a table ({error})", where=path, cure=PREDICT_AGAIN) from None
    unknown = [name for name in table.columns if name not in WELL_COLUMNS and rung_and_kind(name)[1] not in ANSWER_KINDS]
    if faulty := [*(name for name in WELL_COLUMNS if name not in table.columns), *unknown]:
        raise InputError(f"column {faulty[0]!r} is {'missing' if faulty[0] in WELL_COLUMNS else 'unknown'}", where=path, cure=PREDICT_AGAIN)
    if table.duplicated(["split", "id_code"]).any():
        duplicated = table.loc[table.duplicated(["split", "id_code"]), "id_code"].iloc[0]
        raise InputError(f"well {duplicated} stands twice", where=path, cure=PREDICT_AGAIN)
    return table.assign(**{name: _sirna_numbers(table[name], path) for name in table.columns[len(WELL_COLUMNS) - 1:]})


def rung_and_kind(column: str) -> tuple[str, str]:
    """The rung and the kind ("raw" or "assigned") of a column of predictions."""
    rung, _, kind = column.rpartition(" ")
    return rung, kind


def design_digest(root: Path) -> str:
    """SHA-256 of the tables of a data set and of the simulation's receipt, which comparable runs share.

    Pixels are left out, because they are too many, and the solution, because not every copy has it.
    """
    names = [name for name in DESIGN_FILES if (Path(root) / name).is_file()]
    return hashlib.sha256("\n".join(f"{name} {sha256(Path(root) / name)}" for name in names).encode()).hexdigest()


def _sirna_numbers(values: pd.Series, path: Path) -> pd.Series:
    valid = values.str.fullmatch(r"\d{1,9}")
    if (invalid := values[~valid & (values != "")]).size or (values.name == "sirna" and not valid.all()):
        row, value = (invalid.index[0], invalid.iloc[0]) if invalid.size else (values.index[~valid][0], "")
        raise InputError(f"{value!r} is no siRNA", where=f"{path}:{row + 2}, {values.name}", cure=PREDICT_AGAIN)
    return pd.to_numeric(values.where(valid)).astype("Int64")
