"""Prediction sets: for each well the siRNAs among which the right one is, with a nominal coverage; and how right the surest wells are.

Without held-out experiments the set of a well takes up siRNAs, the likeliest first, until their probabilities reach the nominal coverage.
With them the wells of an experiment take up theirs together, until the mean probability of the sets reaches a level: so a hard experiment
has larger sets than an easy one, although nobody has labelled either. The level is the split-conformal quantile (Vovk et al. 2005; Romano
et al. 2020) of the levels at which the sets of held-out wells of the cell type begin to hold their siRNA. That counts wells as
exchangeable, and experiments are not: one that is easier than the test experiments would make their sets too small. Therefore the level
is never below the nominal coverage.

Probabilities have the temperature that the plate groups of their own experiment tell, where plates have groups, also where held-out wells
tell another: so the experiments are alike but for what groups cannot tell. Over nine runs on simulated plates (`hard` with two recipes,
and `demo`, three seeds each), each with one held-out experiment a cell type, sets stated at 0.80, 0.90 and 0.95 covered 0.86, 0.90 and 0.94
of the test wells, and 0.83, 0.88 and 0.93 on `hard` alone. At the temperature of the held-out wells they covered 0.92, 0.96 and 0.98.
Without held-out experiments the sets covered 0.89, 0.92 and 0.94.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from cellsignal.decide.assign.assign import Decision
from cellsignal.errors import InputError
from cellsignal.files import write_parquet

COVERAGES = (0.80, 0.90, 0.95)
SHARES = tuple(number / 20 for number in range(1, 21))  # of the wells that are kept, the surest first
SET_COLUMNS = ["id_code", "coverage", "size", "sirnas"]  # of a file of sets
UNREACHED = 2.0  # the level of a well whose siRNA no set can hold; sets at this level have all siRNAs
ROUNDING = 1e-6  # of sums of float32 probabilities


@dataclass(frozen=True)
class RankedExperiment:
    """The siRNAs that each well of an experiment may have, the likeliest first."""

    name: str
    id_codes: np.ndarray
    sirnas: np.ndarray  # int32 [wells, siRNAs], -1 after the last one of a well
    probabilities: np.ndarray  # float32 [wells, siRNAs], given all constraints

    @cached_property
    def before(self) -> np.ndarray:
        """The probability that comes before each siRNA in its well; -1 for the first, so that no set is empty, and inf after the last."""
        before = np.full(self.sirnas.shape, -1.0)
        before[:, 1:] = np.cumsum(self.probabilities[:, :-1], axis=1, dtype=float)
        return np.where(self.sirnas < 0, np.inf, before)

    @cached_property
    def growth(self) -> tuple[np.ndarray, np.ndarray]:
        """The values of `before`, sorted, and the mean probability of sets with all siRNAs up to each."""
        order = np.argsort(self.before, axis=None, kind="stable")
        return self.before.ravel()[order], np.cumsum(self.probabilities.ravel()[order], dtype=float) / len(self.id_codes)

    def levels(self, truth: pd.Series) -> np.ndarray:
        """The level at which the set of each well begins to hold its siRNA of `truth`: 0 if that is the likeliest, UNREACHED if none does."""
        before, level = self.growth
        is_true = self.sirnas == truth.reindex(self.id_codes).to_numpy()[:, None]
        needed = before.searchsorted(np.where(is_true, self.before, np.inf).min(1), side="right") - 1
        return np.where(is_true[:, 0], 0.0, np.where(is_true.any(1), level[needed], UNREACHED))

    def sizes(self, coverage: float) -> np.ndarray:
        """The number of siRNAs in the set of each well if each reaches this probability."""
        return (self.before < coverage - ROUNDING).sum(1)

    def common_sizes(self, level: float) -> np.ndarray:
        """The number of siRNAs in the set of each well if all together reach this mean probability; all that it may have if none does."""
        before, levels = self.growth
        last = levels.searchsorted(level - ROUNDING)
        return (self.before <= (before[last] if last < len(before) else np.finfo(float).max)).sum(1)


def ranked_experiments(decision: Decision) -> Iterator[RankedExperiment]:
    """The siRNAs of each experiment's wells by their probability in a decision; equally likely ones in the order of their numbers.

    The probabilities have temperatures from the plate groups where these fit (`Decision.with_group_temperatures`).
    """
    decision = decision.with_group_temperatures
    matrix, probabilities = decision.matrix, decision.block_probabilities
    for plan in decision.plans:
        parts = [(block.rows, matrix.classes[block.columns], next(probabilities)) for block in plan.blocks]
        parts += [(np.array([row]), np.array([sirna]), np.array([[plan.fixed_confidence]])) for row, sirna in plan.fixed_sirnas.items()]
        rows = matrix.experiments[plan.experiment]
        shape = len(rows), max(len(classes) for _, classes, _ in parts)
        sirnas, sorted_probabilities = np.full(shape, -1, np.int32), np.zeros(shape, np.float32)
        for own_rows, classes, values in parts:
            order = np.argsort(-values, axis=1, kind="stable")
            place = np.searchsorted(rows, own_rows)[:, None], np.arange(len(classes))
            sirnas[place], sorted_probabilities[place] = classes[order], np.take_along_axis(values, order, axis=1)
        yield RankedExperiment(plan.experiment, matrix.id_codes[rows], sirnas, sorted_probabilities)


def held_out_levels(decision: Decision, truth: pd.Series) -> pd.DataFrame:
    """The levels at which the sets of held-out wells begin to hold their siRNA: index id_code; experiment, cell_type, level.

    `decision`: on held-out wells, decided like the test wells; `truth`: siRNA by id_code, of all or some of them.
    """
    tables = [pd.DataFrame({"experiment": one.name, "cell_type": decision.matrix.cell_types[one.name], "level": one.levels(truth)}, index=one.id_codes)
              for one in ranked_experiments(decision)]
    table = pd.concat(tables)
    return table[table.index.isin(truth.index)]


def conformal_level(levels: np.ndarray, coverage: float) -> float:
    """The level at which the set of a further well holds its siRNA with a probability of `coverage`, but at least `coverage`.

    `levels`: of n held-out wells, of which the ⌈(n + 1) coverage⌉-th in order is taken; NaN with fewer wells than that.
    """
    rank = int(np.ceil((len(levels) + 1) * coverage - ROUNDING))
    return max(coverage, float(np.sort(levels)[rank - 1])) if 0 < rank <= len(levels) else np.nan


def prediction_sets(decision: Decision, held_out: pd.DataFrame | None = None, *, coverages: Sequence[float] = COVERAGES) -> pd.DataFrame:
    """The set of each decided well at each coverage: columns id_code, experiment, coverage, level, size, sirnas (the likeliest first).

    `held_out`: of `held_out_levels`; an experiment is calibrated on the other ones of its cell type, never on itself. `level` is NaN where
    these have too few wells for the highest coverage, so that each well reaches every coverage by its own probabilities, and a higher
    coverage never has a smaller set. Raises InputError for a coverage that is not between 0 and 1.
    """
    if wrong := [coverage for coverage in coverages if not 0 < coverage < 1]:
        raise InputError(f"a coverage of {wrong[0]:g}", where="prediction sets", cure="give shares between 0 and 1, such as 0.9")
    parts = []
    for one in ranked_experiments(decision):
        levels = np.array([])
        if held_out is not None:
            others = (held_out["cell_type"] == decision.matrix.cell_types[one.name]) & (held_out["experiment"] != one.name)
            levels = held_out.loc[others, "level"].to_numpy()
        calibrated = not np.isnan(conformal_level(levels, max(coverages)))
        for coverage in coverages:
            level = conformal_level(levels, coverage) if calibrated else np.nan
            sizes = one.common_sizes(level) if calibrated else one.sizes(coverage)
            sirnas = [some[:size].tolist() for some, size in zip(one.sirnas, sizes)]
            parts.append(pd.DataFrame({"id_code": one.id_codes, "experiment": one.name, "coverage": coverage, "level": level, "size": sizes, "sirnas": sirnas}))
    return pd.concat(parts, ignore_index=True)


def coverage_table(sets: pd.DataFrame, truth: pd.Series | None = None) -> pd.DataFrame:
    """Sets by experiment and over all, in this order: experiment ("all" at last), coverage, level, wells, mean_size, covered.

    `covered`: the share of sets that hold the siRNA of `truth` (by id_code), of the wells that are in it; NaN without any. A level above 1
    stands for sets with all siRNAs, NaN for uncalibrated ones. `level` of "all" is the mean over calibrated wells.
    """
    known = pd.Series(np.nan, sets.index) if truth is None else sets["id_code"].map(truth)
    covered = pd.Series([sirna in some for sirna, some in zip(known, sets["sirnas"])], sets.index, dtype=float).where(known.notna())
    table = sets.assign(covered=covered)
    tables = [part.groupby(["experiment", "coverage"], sort=True).agg(
        level=("level", "mean"), wells=("size", "size"), mean_size=("size", "mean"), covered=("covered", "mean")).reset_index()
        for part in (table, table.assign(experiment="all"))]
    return pd.concat(tables, ignore_index=True)


def most_confident_wells(confidence: pd.Series, right: pd.Series | None = None, *, shares: Sequence[float] = SHARES) -> pd.DataFrame:
    """Accuracy if only the surest wells are kept: columns share, wells, least_confidence, stated (mean confidence), accuracy (NaN if unknown).

    `confidence`: by id_code; `right`: whether the answer is right, by id_code.
    """
    order = confidence.sort_values(ascending=False, kind="stable")
    counts = sorted({max(1, round(share * len(order))) for share in shares}) if len(order) else []
    known = None if right is None else right.reindex(order.index).to_numpy(float)
    return pd.DataFrame(
        [(count / len(order), count, order.iloc[count - 1], order.iloc[:count].mean(), np.nan if known is None else known[:count].mean()) for count in counts],
        columns=["share", "wells", "least_confidence", "stated", "accuracy"])


def write_prediction_sets(path: Path, sets: pd.DataFrame, *, order: Sequence[str]) -> Path:
    """Write sets as Parquet, atomically: a row for each well in this order and each coverage, with the columns SET_COLUMNS; a well's siRNAs are a list."""
    rows = sets.iloc[np.lexsort((sets["coverage"], pd.Index(order).get_indexer(sets["id_code"])))]
    write_parquet(path, rows[SET_COLUMNS].astype({"size": "int32"}))
    return path
