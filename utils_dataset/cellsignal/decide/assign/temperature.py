"""Temperatures measured on held-out wells that are decided as the test wells will be."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

from cellsignal.decide.assign.assign import MAX_BLOCKS, AssignmentProblem, Decision, decide
from cellsignal.decide.assign.calibration import fit_temperatures

# Around the temperature of single wells, in the logarithm: what is tried, how finely, and a normal prior, which
# matters only where hardly any decision is wrong: then scores as cold as can be would fit best.
SEARCH_RANGE, SEARCH_STEP, PRIOR_DEVIATION = 1.4, 0.2, 1.0
MIN_PROBABILITY = 1e-12  # the least probability that counts: one well must not outweigh all others
LabelledBlock = tuple[AssignmentProblem, np.ndarray]  # and the true column of each of its wells, -1 where it has none


def decided_temperatures(scores: pd.DataFrame, labelled: pd.DataFrame, wells: pd.DataFrame, **design: Any) -> dict[str, float]:
    """The temperature of each cell type at which what is decided of its labelled wells has the least cross-entropy.

    What makes the scores of single wells probabilities (`calibrate.fit_temperature`) need not make the marginals over
    one-to-one assignments such: wells err together, most of all two that take each other's siRNA, and the marginals are
    approximate. So it is these that are held against the truth, of whole plates where whole plates are held out.

    `scores`: index id_code, columns class numbers, log-probabilities; `labelled`: index id_code, columns cell_type and
    sirna, of wells that the network has not seen in training; `wells`, `design`: as for `assign.decide`. Cell types
    whose wells show too few errors to tell are left out. Raises what `assign.decide` raises.
    """
    labelled = labelled[labelled.index.isin(scores.index)]
    alone = fit_temperatures(scores, labelled)
    known = labelled[labelled["cell_type"].isin(alone)]
    if known.empty:
        return {}
    decision = decide(scores.loc[known.index], wells, temperatures=alone, **design)
    return {cell_type: _fit_temperature(decision, _labelled_blocks(decision, known["sirna"], cell_type), start=start) for cell_type, start in alone.items()}


def _labelled_blocks(decision: Decision, sirnas: pd.Series, cell_type: str) -> list[LabelledBlock]:
    """At most POOLED blocks of a cell type, each with the true column of every well."""
    mine = [part for part in decision.blocks if part.cell_type == cell_type]
    numbers = sirnas.dropna().astype("int64").reindex(decision.screen.id_codes).to_numpy()
    return [(part, pd.Index(decision.screen.classes[part.columns]).get_indexer(numbers[part.rows])) for part in mine[:: -(-len(mine) // MAX_BLOCKS)]]


def _fit_temperature(decision: Decision, truths: Sequence[LabelledBlock], *, start: float) -> float:
    centre = np.log(start)

    def cross_entropy(log_temperature: float) -> float:
        doubt = sum(_negative_log_likelihood(decision.belief(part, float(np.exp(log_temperature))), truth) for part, truth in truths)
        return doubt + ((log_temperature - centre) / PRIOR_DEVIATION) ** 2 / 2

    return float(np.exp(_minimise(cross_entropy, centre)))


def _negative_log_likelihood(belief: np.ndarray, truth: np.ndarray) -> float:
    rows = np.flatnonzero(truth >= 0)
    return float(-np.log(np.maximum(belief[rows, truth[rows]], MIN_PROBABILITY), dtype=float).sum())


def _minimise(function: Callable[[float], float], centre: float) -> float:
    """Where a function of perhaps several valleys is least within REACH of the centre."""
    places = np.arange(centre - SEARCH_RANGE, centre + SEARCH_RANGE + SEARCH_STEP / 2, SEARCH_STEP)
    best = places[np.argmin([function(place) for place in places])]
    return minimize_scalar(function, bounds=(best - SEARCH_STEP, best + SEARCH_STEP), method="bounded", options={"xatol": 0.01}).x
