"""What a run says of each well that it answered, and of the controls of the same plates: one table for the page."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cellsignal.data.tables.wells import Tables
from cellsignal.tasks import RXRX1

WELL_TYPE = {"negcon": "negative_control", "poscon": "positive_control", "treatment": "treatment"}  # of Metadata_Control_Type
COLUMNS = ["id_code", "experiment", "cell_type", "plate", "well", "well_type", "sirna", "call", "confidence", "split", "set"]
ANSWER_COLUMNS = ["id_code", "split", "cell_type", "experiment", "sirna"]  # of answers.csv; the rungs follow, the last is what was decided
SET_COVERAGE = 0.9  # the nominal coverage of the prediction sets that are shown
SIRNAS = range(RXRX1.negative_control + 1)  # class numbers, those of controls included
PLACE = r"[A-P](?:0[1-9]|1[0-9]|2[0-4])"


def explored_wells(run: Path, tables: Tables | None, embeddings: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The wells of all experiments with an answer, controls included, and sentences on what is missing.

    `tables`: of the plates, None where they are not at hand; then the controls come from `embeddings` (columns Metadata_…, may be
    empty). Columns COLUMNS: `sirna` is the true one, `call` what was decided, `confidence` its stated probability, each missing where
    unknown; `set` the siRNAs of the prediction set. Sorted by cell type, experiment, plate and well.
    """
    answers, notes = _answers(run)
    if answers.empty:
        return pd.DataFrame(columns=COLUMNS), notes
    experiments = set(answers["experiment"])
    if tables is not None:
        known = tables.wells
    elif len(embeddings):
        known = _metadata_wells(embeddings)
    else:
        known = answers[:0]
        notes.append("Control wells are left out: neither the plates nor embeddings.parquet are there.")
    known = known[known["experiment"].isin(experiments)].drop_duplicates("id_code").set_index("id_code")
    wells = answers.set_index("id_code")
    for column in ("cell_type", "plate", "well", "well_type", "sirna"):  # answers know the truth of test wells, tables that of controls
        wells[column] = wells[column].where(wells[column].notna(), known[column].reindex(wells.index))
    others = known.loc[~known.index.isin(wells.index), [name for name in known.columns if name in COLUMNS]]
    wells = pd.concat([wells, others.reindex(columns=wells.columns)]) if len(others) else wells
    wells = wells.rename_axis("id_code").reset_index()
    wells = wells.astype({"plate": "int64", "sirna": "Int64", "call": "Int64", "confidence": "float64"})
    wells["well_type"] = wells["well_type"].fillna("treatment")
    return wells.sort_values(["cell_type", "experiment", "plate", "well"], ignore_index=True)[COLUMNS], notes


def outcomes(wells: pd.DataFrame) -> pd.Series:
    """`right`, `wrong` or `unknown` for each well with an answer; the type of control, or `no answer`, for others."""
    outcome = np.where(wells["sirna"].isna(), "unknown", np.where((wells["sirna"] == wells["call"]).fillna(False), "right", "wrong"))
    without = np.where(wells["well_type"] == "treatment", "no answer", wells["well_type"])
    return pd.Series(np.where(wells["call"].isna(), without, outcome), index=wells.index)


def _answers(run: Path) -> tuple[pd.DataFrame, list[str]]:
    """The wells with an answer; those of submission.csv were decided last, so they win over the rungs of answers.csv."""
    known, known_note = _read(run / "answers.csv", ANSWER_COLUMNS)
    decided, decided_note = _read(run / "submission.confidence.csv", ["id_code", "sirna", "confidence"])
    notes = [f"{known_note} So the siRNAs are not known, and held-out wells not there."] * bool(known_note)
    notes += [f"{decided_note} So test wells have no answer, or no confidence."] * bool(decided_note)
    rungs = [name for name in known.columns if name not in ANSWER_COLUMNS]
    known = known.assign(last=known[rungs].ffill(axis=1).iloc[:, -1] if rungs else None).drop_duplicates("id_code")
    wells = known.merge(decided.rename(columns={"sirna": "call"}).drop_duplicates("id_code"), on="id_code", how="outer")
    for column in ("sirna", "call", "last", "confidence"):
        values = pd.to_numeric(wells[column], errors="coerce")
        wells[column] = values.where(values.between(0, 1) if column == "confidence" else values.isin(SIRNAS))
    wells["call"] = wells["call"].fillna(wells["last"])
    wells[["experiment", "plate", "well"]] = wells["id_code"].str.extract(rf"^(.+)_(\d{{1,2}})_({PLACE})$")
    by_name = wells["experiment"].str.replace(r"-[^-]*$", "", regex=True)
    wells = wells.assign(cell_type=wells["cell_type"].where(wells["cell_type"].notna(), by_name), split=wells["split"].fillna("test"), well_type=None)
    wells["set"] = wells["id_code"].map(_prediction_sets(run / "submission.sets.parquet"))
    return wells[wells["experiment"].notna() & wells["call"].notna()], notes


def _read(path: Path, columns: Sequence[str]) -> tuple[pd.DataFrame, str]:
    """A CSV file as text, empty cells missing, and ""; without rows, and the reason, where it cannot be read."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        return pd.DataFrame(columns=columns), f"{path.name} is not there."
    except (ValueError, OSError):
        return pd.DataFrame(columns=columns), f"{path.name} is damaged."
    if not set(columns) <= set(table.columns):
        return pd.DataFrame(columns=columns), f"{path.name} is damaged."
    return table.where(table != ""), ""


def _prediction_sets(path: Path) -> pd.Series:
    """The siRNAs of each well's prediction set of SET_COVERAGE, the likeliest first, by id_code; empty where there is no such file."""
    try:
        table = pd.read_parquet(path, columns=["id_code", "coverage", "sirnas"])
        sets = table[np.isclose(table["coverage"], SET_COVERAGE)].drop_duplicates("id_code").set_index("id_code")["sirnas"]
        return sets.map(lambda sirnas: [int(sirna) for sirna in sirnas])
    except (ValueError, TypeError, OSError, KeyError):
        return pd.Series(dtype=object)


def _metadata_wells(embeddings: pd.DataFrame) -> pd.DataFrame:
    """The wells of a table of embeddings, with the columns of `Tables.wells`."""
    embeddings = embeddings[embeddings["Metadata_Well"].astype(str).str.fullmatch(PLACE)]
    plates = embeddings["Metadata_Plate"].astype(str)
    return pd.DataFrame({
        "id_code": plates + "_" + embeddings["Metadata_Well"].astype(str),
        "experiment": embeddings["Metadata_Batch"].astype(str),
        "cell_type": embeddings["Metadata_CellType"].astype(str),
        "plate": pd.to_numeric(plates.str.split("_").str[-1], errors="coerce"),
        "well": embeddings["Metadata_Well"].astype(str),
        "well_type": embeddings["Metadata_Control_Type"].map(WELL_TYPE),
        "sirna": pd.to_numeric(embeddings["Metadata_Perturbation"], errors="coerce").where(lambda sirna: sirna.isin(SIRNAS)),
    }).dropna(subset=["plate"])  # fmt: skip
