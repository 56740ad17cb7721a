"""Anybody's scores as arrays, and the blocks of wells that share siRNAs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from cellsignal.decide.calibrate import agreed_temperature
from cellsignal.decide.marginals import possible_columns
from cellsignal.decide.scores import HUGE, without_masks
from cellsignal.errors import InputError

POOLED = 12  # blocks that set the temperature of a cell type; more of them move it by less than plates differ
UNSEEN, PLATES = 0.5, 0.3  # deviation of the logarithm of the temperature: of a cell type that was not measured; of its plates


@dataclass(frozen=True)
class Screen:
    """All scores, rows sorted by id_code and columns by class, so that no answer hangs on the order of a file."""

    id_codes: np.ndarray
    classes: np.ndarray  # class number of each column
    values: np.ndarray  # float32 [wells, classes], log-probabilities
    plates: np.ndarray  # plate number of each row
    experiments: dict[str, np.ndarray]  # rows by experiment
    cell_types: dict[str, str]  # by experiment

    def of(self, rows: np.ndarray) -> np.ndarray:
        """The scores of these rows, uncopied where they lie together."""
        together = len(rows) == rows[-1] - rows[0] + 1
        return self.values[rows[0] : rows[-1] + 1] if together else self.values[rows]


@dataclass(frozen=True)
class Block:
    """Wells and the siRNAs that may lie in them, each at most once."""

    cell_type: str
    rows: np.ndarray  # of the screen
    columns: np.ndarray  # of the screen
    values: np.ndarray  # float32 [rows, columns]
    trust: float = 1.0  # probability that these are the right columns

    @property
    def crowded(self) -> str:
        """That there are more wells than siRNAs, in words, or nothing; then each well takes its best."""
        wells, sirnas = self.values.shape
        return f"{wells} wells share {sirnas} siRNAs: each well its best" if wells > sirnas else ""


def as_screen(scores: pd.DataFrame, wells: pd.DataFrame) -> Screen:
    """Scores and their places as arrays.

    InputError names a well that is unknown, comes twice or has a score that is none, an experiment of two cell
    types, and a table without wells or classes.
    """
    if not scores.size:
        raise InputError("no wells or no classes in it", where="scores", cure="give the scores of some wells")
    if not scores.index.is_monotonic_increasing:
        scores = scores.sort_index()
    if not scores.columns.is_monotonic_increasing:
        scores = scores.sort_index(axis=1)
    places = _places(scores.index, wells)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        values = without_masks(scores.to_numpy(np.float32))
    _check(values, scores)
    rows = places.groupby("experiment", sort=False).indices
    return Screen(
        id_codes=scores.index.to_numpy(), classes=scores.columns.to_numpy(int), values=values,
        plates=places["plate"].to_numpy(int), experiments=rows,
        cell_types={name: str(places["cell_type"].iloc[row[0]]) for name, row in rows.items()},
    )


def block(screen: Screen, experiment: str, rows: np.ndarray, columns: np.ndarray, *, trust: float = 1.0) -> Block:
    """The block of some rows and columns, less the columns that no well can have by its scores.

    Where wells would then outnumber siRNAs and would not otherwise, those columns stay: by elimination some well has
    them. A crowd, which outnumbers them anyway, loses them, unless no siRNA at all is possible.
    """
    values = np.ascontiguousarray(screen.of(rows)[:, columns])
    named = possible_columns(values) if values.min() == -np.inf else np.ones(len(columns), bool)
    if len(rows) <= named.sum() or len(rows) > len(columns) and named.any():
        columns, values = columns[named], np.ascontiguousarray(values[:, named])
    return Block(screen.cell_types[experiment], rows, columns, values, trust)


def normalised(screen: Screen) -> Screen:
    """The same with log-softmaxes, so that the scores of two wells can be compared; a well of -inf alone stays as it is."""
    best = screen.values.max(1, keepdims=True)
    values = screen.values - np.where(np.isfinite(best), best, 0)
    total = np.exp(values).sum(1, keepdims=True)
    values -= np.log(total, out=np.zeros_like(total), where=total > 0)
    return replace(screen, values=values)


def block_temperatures(blocks: Sequence[Block], measured: dict[str, float]) -> np.ndarray:
    """The temperature of each block: what was `measured` of its cell type, else its own, held near that of its cell type.

    Quarrels of wells do not move what was measured: over 46 trained networks that made the probabilities worse on average.
    """
    temperatures = np.array([measured.get(part.cell_type, 1.0) for part in blocks], float)
    cell_types = np.array([part.cell_type for part in blocks])
    alone = np.array([not part.crowded and part.cell_type not in measured for part in blocks], bool)
    for cell_type in np.unique(cell_types[alone]):
        mine = np.flatnonzero(alone & (cell_types == cell_type))
        some = [blocks[k].values for k in mine[:: -(-len(mine) // POOLED)]]
        centre = agreed_temperature(some, spread=UNSEEN)
        temperatures[cell_types == cell_type] = centre  # a crowd has no quarrels of its own
        temperatures[mine] = [agreed_temperature([blocks[k].values], centre=centre, spread=PLATES) for k in mine]
    return temperatures


def _places(id_codes: pd.Index, wells: pd.DataFrame) -> pd.DataFrame:
    """Experiment, cell type and plate of every scored well."""
    twice = id_codes[id_codes.duplicated()]
    if len(twice):
        raise InputError(f"well {twice[0]} comes twice", where="scores", cure="keep one row per well")
    places = wells.set_index("id_code")[["experiment", "cell_type", "plate"]].reindex(id_codes)
    unknown = id_codes[places["plate"].isna()]
    if len(unknown):
        raise InputError(f"well {unknown[0]} is not in the data set ({len(unknown)} such)", where="scores",
                         cure="give the data set that these scores belong to")
    kinds = places[["experiment", "cell_type"]].drop_duplicates()
    mixed = kinds["experiment"][kinds["experiment"].duplicated()]
    if len(mixed):
        first, second = kinds["cell_type"][kinds["experiment"] == mixed.iloc[0]].head(2)
        raise InputError(f"its wells are of two cell types, {first} and {second}", where=f"experiment {mixed.iloc[0]}",
                         cure="an experiment has one: mend the table of wells")
    return places


def _check(values: np.ndarray, scores: pd.DataFrame) -> None:
    """Refuse what is neither a number nor -inf; minimum and maximum tell it without a copy of the table."""
    if np.isnan(values.min()) or values.max() > HUGE:
        row, column = np.argwhere(np.isnan(values) | (values > HUGE))[0]
        raise InputError(f"score {values[row, column]} of class {scores.columns[column]}", where=f"well {scores.index[row]}",
                         cure="give natural-log probabilities; -inf is one, NaN is none")
