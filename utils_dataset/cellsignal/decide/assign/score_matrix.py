"""Scores of wells as one array, and the blocks of wells that share siRNAs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from cellsignal.decide.assign.solvers import possible_columns
from cellsignal.decide.scores.files import MAX_SCORE, replace_masks
from cellsignal.errors import InputError


@dataclass(frozen=True)
class ScoreMatrix:
    """All scores, rows sorted by id_code and columns by class, so that results do not depend on the order of a file."""

    id_codes: np.ndarray
    classes: np.ndarray  # class number of each column
    values: np.ndarray  # float32 [wells, classes], log-probabilities
    plates: np.ndarray  # plate number of each row
    experiments: dict[str, np.ndarray]  # rows by experiment
    cell_types: dict[str, str]  # by experiment

    def select_rows(self, rows: np.ndarray) -> np.ndarray:
        """The scores of these rows, without a copy if they are contiguous."""
        contiguous = len(rows) == rows[-1] - rows[0] + 1
        return self.values[rows[0] : rows[-1] + 1] if contiguous else self.values[rows]


@dataclass(frozen=True)
class AssignmentProblem:
    """Wells and the siRNAs that may be in them, each at most once."""

    cell_type: str
    rows: np.ndarray  # of the score matrix
    columns: np.ndarray  # of the score matrix
    values: np.ndarray  # float32 [rows, columns]
    experiment: str
    group_probability: float = 1.0  # that these are the right columns
    parts: Sequence["AssignmentProblem"] = ()  # a plate with one of its probable groups each: the marginals are their mixture

    @property
    def excess_note(self) -> str:
        """A note if there are more wells than siRNAs, so that each well takes its best; else ""."""
        wells, sirnas = self.values.shape
        return f"{wells} wells share {sirnas} siRNAs: each well its best" if wells > sirnas else ""


def as_score_matrix(scores: pd.DataFrame, wells: pd.DataFrame) -> ScoreMatrix:
    """Scores, plates and experiments as arrays.

    Raises InputError for an unknown or duplicated well, an invalid score, an experiment with two cell types, and a table without
    wells or classes.
    """
    if not scores.size:
        raise InputError("no wells or no classes in it", where="scores", cure="give the scores of some wells")
    if not scores.index.is_monotonic_increasing:
        scores = scores.sort_index()
    if not scores.columns.is_monotonic_increasing:
        scores = scores.sort_index(axis=1)
    scored = _scored_wells(scores.index, wells)
    with np.errstate(over="ignore"):  # values beyond float32 become infinite
        values = replace_masks(scores.to_numpy(np.float32))
    _check_scores(values, scores)
    rows = scored.groupby("experiment", sort=False).indices
    return ScoreMatrix(
        id_codes=scores.index.to_numpy(), classes=scores.columns.to_numpy(int), values=values,
        plates=scored["plate"].to_numpy(int), experiments=rows,
        cell_types={name: str(scored["cell_type"].iloc[row[0]]) for name, row in rows.items()},
    )


def assignment_problem(matrix: ScoreMatrix, experiment: str, rows: np.ndarray, columns: np.ndarray, *, group_probability: float = 1.0) -> AssignmentProblem:
    """The block of some rows and columns, without columns that are -inf in every well.

    Such columns stay if without them wells would outnumber siRNAs: by elimination some well has them. If wells outnumber siRNAs
    anyway, such columns are dropped, unless no siRNA is possible at all.
    """
    values = np.ascontiguousarray(matrix.select_rows(rows)[:, columns])
    possible = possible_columns(values) if values.min() == -np.inf else np.ones(len(columns), bool)
    if len(rows) <= possible.sum() or len(rows) > len(columns) and possible.any():
        columns, values = columns[possible], np.ascontiguousarray(values[:, possible])
    return AssignmentProblem(matrix.cell_types[experiment], rows, columns, values, experiment, group_probability)


def normalise_scores(matrix: ScoreMatrix) -> ScoreMatrix:
    """The log-softmax of each row, so that scores are comparable between wells; rows of -inf alone stay as they are."""
    best = matrix.values.max(1, keepdims=True)
    values = matrix.values - np.where(np.isfinite(best), best, 0)
    total = np.exp(values).sum(1, keepdims=True)
    values -= np.log(total, out=np.zeros_like(total), where=total > 0)
    return replace(matrix, values=values)


def _scored_wells(id_codes: pd.Index, wells: pd.DataFrame) -> pd.DataFrame:
    """Experiment, cell type and plate of every scored well."""
    duplicated = id_codes[id_codes.duplicated()]
    if len(duplicated):
        raise InputError(f"well {duplicated[0]} comes twice", where="scores", cure="keep one row per well")
    scored = wells.set_index("id_code")[["experiment", "cell_type", "plate"]].reindex(id_codes)
    unknown = id_codes[scored["plate"].isna()]
    if len(unknown):
        raise InputError(f"well {unknown[0]} is not in the data set ({len(unknown)} such)", where="scores",
                         cure="give the data set that these scores belong to")
    pairs = scored[["experiment", "cell_type"]].drop_duplicates()
    mixed = pairs["experiment"][pairs["experiment"].duplicated()]
    if len(mixed):
        first, second = pairs["cell_type"][pairs["experiment"] == mixed.iloc[0]].head(2)
        raise InputError(f"its wells are of two cell types, {first} and {second}", where=f"experiment {mixed.iloc[0]}",
                         cure="an experiment has one: mend the table of wells")
    return scored


def _check_scores(values: np.ndarray, scores: pd.DataFrame) -> None:
    """Raise InputError for NaN and huge scores; minimum and maximum find them without a copy of the table."""
    if np.isnan(values.min()) or values.max() > MAX_SCORE:
        row, column = np.argwhere(np.isnan(values) | (values > MAX_SCORE))[0]
        raise InputError(f"score {values[row, column]} of class {scores.columns[column]}", where=f"well {scores.index[row]}",
                         cure="give natural-log probabilities; -inf is one, NaN is none")
