"""Answers for wells whose siRNA is known, rung by rung: what a comparison of runs goes by."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cellsignal.data.simulated import RECEIPT
from cellsignal.errors import InputError
from cellsignal.files import sha256, write_text

ANSWERS_FILE = "answers.csv"
WELL_COLUMNS = ["id_code", "split", "cell_type", "experiment", "sirna"]  # columns beside those of the rungs; sirna is the truth
ANSWER_KINDS = ("raw", "assigned")
DESIGN_FILES = ("train.csv", "train_controls.csv", "test.csv", "test_controls.csv", "metadata.csv", RECEIPT)
PREDICT_AGAIN = "run 4-predict-assign of that run again"


def known_answers(ladder: Sequence[Mapping[str, Any]], truths: Mapping[str, pd.Series], wells: pd.DataFrame) -> pd.DataFrame:
    """One row a well with a known answer, the columns WELL, and one column `<rung> <kind>` for each rung.

    `ladder`: rows of `ladder.climb`; `truths`: siRNA by id_code, by split; `wells` tells cell type and experiment.
    A cell is the siRNA that the rung gave, <NA> where a rung has no answer for this split.
    """
    places = wells.set_index("id_code")[["cell_type", "experiment"]]
    parts = []
    for split, truth in truths.items():
        table = places.reindex(truth.index).assign(split=split, sirna=truth.astype("Int64"))
        rows = [row for row in ladder if row["split"] == split]
        given = {f"{row['rung']} {row['kind']}": row["answers"].reindex(truth.index).astype("Int64") for row in rows}
        parts.append(table.assign(**given).rename_axis("id_code").reset_index())
    columns = [*WELL_COLUMNS, *dict.fromkeys(name for part in parts for name in part.columns if name not in WELL_COLUMNS)]
    return pd.concat(parts)[columns] if parts else pd.DataFrame(columns=WELL_COLUMNS)


def without_answers(ladder: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The ladder without the answers behind it, as metrics.json holds it."""
    return [{name: value for name, value in row.items() if name != "answers"} for row in ladder]


def write_known_answers(path: Path, answers: pd.DataFrame) -> Path:
    """Write what `known_answers` gives as CSV, atomically; an answer that is absent stays empty."""
    write_text(path, answers.to_csv(index=False, lineterminator="\n"))
    return path


def read_known_answers(path: Path) -> pd.DataFrame:
    """Read what `write_known` wrote: text columns as text, siRNAs as Int64.

    Raises InputError when it is missing, damaged, of other columns, or names a well twice in a split.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, na_values={})
    except FileNotFoundError:
        raise InputError("no such file", where=path, cure=PREDICT_AGAIN) from None
    except (ValueError, OSError) as error:
        raise InputError(f"not readable as a table ({error})", where=path, cure=PREDICT_AGAIN) from None
    strange = [name for name in table.columns if name not in WELL_COLUMNS and rung_and_kind(name)[1] not in ANSWER_KINDS]
    if absent := [*(name for name in WELL_COLUMNS if name not in table.columns), *strange]:
        raise InputError(f"column {absent[0]!r} is {'strange' if strange else 'missing'}", where=path, cure=PREDICT_AGAIN)
    if table.duplicated(["split", "id_code"]).any():
        twice = table.loc[table.duplicated(["split", "id_code"]), "id_code"].iloc[0]
        raise InputError(f"well {twice} stands twice", where=path, cure=PREDICT_AGAIN)
    return table.assign(**{name: _sirna_numbers(table[name], path) for name in table.columns[len(WELL_COLUMNS) - 1:]})


def rung_and_kind(column: str) -> tuple[str, str]:
    """The rung and the kind ("raw" or "assigned") that a column of answers is about."""
    rung, _, kind = column.rpartition(" ")
    return rung, kind


def design_digest(root: Path) -> str:
    """SHA-256 over the tables of a data set and the simulation's receipt: what two runs must share to be compared.

    Not over pixels, which are too many, nor over the solution, which not every copy has.
    """
    there = [name for name in DESIGN_FILES if (Path(root) / name).is_file()]
    return hashlib.sha256("\n".join(f"{name} {sha256(Path(root) / name)}" for name in there).encode()).hexdigest()


def _sirna_numbers(values: pd.Series, path: Path) -> pd.Series:
    whole = values.str.fullmatch(r"\d{1,9}")
    if (odd := values[~whole & (values != "")]).size or (values.name == "sirna" and not whole.all()):
        row, value = (odd.index[0], odd.iloc[0]) if odd.size else (values.index[~whole][0], "")
        raise InputError(f"{value!r} is no siRNA", where=f"{path}:{row + 2}, {values.name}", cure=PREDICT_AGAIN)
    return pd.to_numeric(values.where(whole)).astype("Int64")
