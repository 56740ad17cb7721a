"""Temperatures calibrated on held-out wells, which are assigned in the same way as the test wells."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

from cellsignal.decide.assign.assign import Decision, decide
from cellsignal.decide.assign.calibration import fit_temperatures
from cellsignal.decide.assign.score_matrix import AssignmentProblem
from cellsignal.decide.assign.temperature_source import MAX_BLOCKS

# In the logarithm, around the temperature of single wells: the range of the search, its step, and the deviation of a normal prior.
# The prior matters only if hardly any prediction is wrong, when the lowest temperature would fit best.
SEARCH_RANGE, SEARCH_STEP, PRIOR_DEVIATION = 1.4, 0.2, 1.0
MIN_PROBABILITY = 1e-12  # lower bound of a probability, so that no well outweighs all others
LabelledBlock = tuple[AssignmentProblem, np.ndarray]  # and the true column of each of its wells, -1 without one


def decided_temperatures(scores: pd.DataFrame, labelled: pd.DataFrame, wells: pd.DataFrame, **design: Any) -> dict[str, float]:
    """The temperature of each cell type at which the assignment probabilities of its labelled wells have the least cross-entropy.

    A temperature that calibrates single wells (`calibration.fit_temperature`) need not calibrate the marginals over one-to-one
    assignments: wells err together, above all two that take each other's siRNA, and the marginals are approximate. Therefore the
    marginals themselves are compared with the truth, of whole plates if whole plates are held out.

    `scores`: index id_code, columns class numbers, log-probabilities; `labelled`: index id_code, columns cell_type and sirna, of
    wells outside the training set; `wells`, `design`: as in `assign.decide`. Cell types with fewer than MIN_ERRORS errors are left
    out. Raises what `assign.decide` raises.
    """
    labelled = labelled[labelled.index.isin(scores.index)]
    single_well = fit_temperatures(scores, labelled)
    labelled = labelled[labelled["cell_type"].isin(single_well)]
    if labelled.empty:
        return {}
    decision = decide(scores.loc[labelled.index], wells, temperatures=single_well, **design)
    return {cell_type: _fit_temperature(decision, _labelled_blocks(decision, labelled["sirna"], cell_type), start=start)
            for cell_type, start in single_well.items()}


def _labelled_blocks(decision: Decision, sirnas: pd.Series, cell_type: str) -> list[LabelledBlock]:
    """At most MAX_BLOCKS blocks of a cell type, each with the true column of every well."""
    blocks = [block for block in decision.blocks if block.cell_type == cell_type]
    numbers = sirnas.dropna().astype("int64").reindex(decision.matrix.id_codes).to_numpy()
    return [(block, pd.Index(decision.matrix.classes[block.columns]).get_indexer(numbers[block.rows])) for block in blocks[:: -(-len(blocks) // MAX_BLOCKS)]]


def _fit_temperature(decision: Decision, blocks: Sequence[LabelledBlock], *, start: float) -> float:
    centre = np.log(start)

    def cross_entropy(log_temperature: float) -> float:
        entropy = sum(_negative_log_likelihood(decision.probabilities(block, float(np.exp(log_temperature))), truth) for block, truth in blocks)
        return entropy + ((log_temperature - centre) / PRIOR_DEVIATION) ** 2 / 2

    return float(np.exp(_minimise(cross_entropy, centre)))


def _negative_log_likelihood(probabilities: np.ndarray, truth: np.ndarray) -> float:
    rows = np.flatnonzero(truth >= 0)
    return float(-np.log(np.maximum(probabilities[rows, truth[rows]], MIN_PROBABILITY), dtype=float).sum())


def _minimise(function: Callable[[float], float], centre: float) -> float:
    """The minimum, within SEARCH_RANGE of the centre, of a function that may have several local minima."""
    grid = np.arange(centre - SEARCH_RANGE, centre + SEARCH_RANGE + SEARCH_STEP / 2, SEARCH_STEP)
    best = grid[np.argmin([function(value) for value in grid])]
    return minimize_scalar(function, bounds=(best - SEARCH_STEP, best + SEARCH_STEP), method="bounded", options={"xatol": 0.01}).x
