"""Calibration of scores: temperatures, and the calibration error."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

from cellsignal.decide.assign.solvers import MIN_LOG_WEIGHT, marginals, softmax
from cellsignal.errors import InputError

MIN_ERRORS = 20  # among the labelled wells; without errors all low temperatures fit equally well
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0  # beyond these, scores are a hard choice, or uniform
LOG_TEMPERATURE_STEP = 0.2  # of the search for a root, which is then interpolated


def fit_temperature(scores: pd.DataFrame, truth: pd.Series) -> float:
    """The temperature at which held-out wells' scores have the least cross-entropy (Guo et al. 2017).

    `scores`: index id_code, columns class numbers, log-probabilities; `truth`: siRNA by id_code. Wells in only one of them are
    ignored, and wells whose true siRNA scores -inf, which is impossible at any temperature. Raises InputError if no well
    remains.
    """
    truth = _possible_truth(scores, truth)
    if truth.empty:
        raise InputError("no scored well has a known siRNA", where="temperature",
                         cure="give the scores and the solution of the same held-out experiments")
    values = below_best(scores.loc[truth.index].to_numpy(np.float32))
    true_score = values[np.arange(len(truth)), scores.columns.get_indexer(truth)].mean()

    def cross_entropy(log_temperature: float) -> float:
        inverse = np.float32(np.exp(-log_temperature))
        return float(np.log(np.exp(values * inverse).sum(1)).mean() - true_score * inverse)

    bounds = (np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE))
    return float(np.exp(minimize_scalar(cross_entropy, bounds=bounds, method="bounded").x))


def fit_temperatures(scores: pd.DataFrame, labelled: pd.DataFrame) -> dict[str, float]:
    """The temperature of each cell type with at least MIN_ERRORS errors among its labelled wells.

    `labelled`: index id_code, columns cell_type and sirna, of wells outside the training set.
    """
    labelled = labelled.loc[_possible_truth(scores, labelled["sirna"]).index]
    likeliest = scores.columns[scores.loc[labelled.index].to_numpy().argmax(axis=1)] if len(labelled) else []
    wrong = labelled["sirna"].ne(pd.Series(likeliest, labelled.index)).groupby(labelled["cell_type"]).sum()
    return {
        str(cell_type): fit_temperature(scores, group["sirna"])
        for cell_type, group in labelled.groupby("cell_type") if wrong[cell_type] >= MIN_ERRORS
    }


def conflict_temperature(blocks: Sequence[np.ndarray], *, centre: float = 1.0, spread: float = 0.5) -> float:
    """The temperature at which scores fit best that no siRNA is in two wells; needs no labels.

    `blocks`: log-probabilities [wells, siRNAs], each with a one-to-one assignment. Wells that draw their siRNAs independently from
    the tempered scores draw a one-to-one assignment with the probability perm(softmax). It is largest where the expected score
    under the one-to-one marginals equals that under the softmax: overconfident wells conflict about siRNAs, which raises the
    temperature; underconfident ones gain information from other wells, which lowers it. A normal prior on the logarithm, with
    the mean log(`centre`) and the deviation `spread`, decides if the scores have little information. A well that must take a
    siRNA of -inf contradicts its scores at any temperature and does not count.
    """

    def slope(log_temperature: float) -> float:
        """The derivative of log perm(softmax) plus the log prior with respect to the logarithm of 1 / temperature."""
        temperature = float(np.exp(log_temperature))
        conflict = sum(_conflict(block, temperature) for block in blocks)
        return conflict / temperature + (log_temperature - np.log(centre)) / spread**2

    return float(np.exp(_nearest_root(slope, np.log(centre))))


def expected_calibration_error(confidence: pd.Series | np.ndarray, correct: pd.Series | np.ndarray, *, bins: int = 15) -> float:
    """Mean difference between confidence and accuracy over bins of equal width, weighted by wells (Guo et al. 2017).

    `confidence`: probabilities in [0, 1]; `correct`: whether each prediction is right, in the same order. Raises InputError
    without wells.
    """
    confidence, correct = np.asarray(confidence, float), np.asarray(correct, float)
    if len(confidence) == 0:
        raise InputError("no well to compare", where="calibration", cure="give the predictions of labelled wells")
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    return float(np.abs(np.bincount(bin_of, confidence - correct)).sum() / len(confidence))


def below_best(scores: np.ndarray) -> np.ndarray:
    """Scores minus the best of their row, at least MIN_LOG_WEIGHT."""
    best = scores.max(1, keepdims=True)
    return np.maximum(scores - np.where(np.isfinite(best), best, 0), MIN_LOG_WEIGHT)


def _possible_truth(scores: pd.DataFrame, truth: pd.Series) -> pd.Series:
    """The true siRNAs, as int64, of scored wells in which they are possible."""
    truth = truth[truth.index.isin(scores.index) & truth.isin(scores.columns)].dropna().astype("int64")
    rows, columns = scores.index.get_indexer(truth.index), scores.columns.get_indexer(truth)
    return truth[scores.to_numpy()[rows, columns] > -np.inf]


def _conflict(block: np.ndarray, temperature: float) -> float:
    """The expected sum of possible scores under the one-to-one marginals minus that under the softmax."""
    joint, independent = marginals(block, temperature=temperature, tolerance=1e-2), softmax(block, temperature=temperature)
    values = below_best(block)
    if (impossible := block == -np.inf).any():
        joint[impossible] = 0
        values -= (independent * values).sum(1, keepdims=True)
        return float((joint * values).sum())
    return float(((joint - independent) * values).sum())


def _nearest_root(slope: Callable[[float], float], start: float) -> float:
    """The root nearest to `start` of a slope that is negative at low and positive at high temperatures."""
    position, value = start, slope(start)
    step = LOG_TEMPERATURE_STEP if value < 0 else -LOG_TEMPERATURE_STEP
    while np.log(MIN_TEMPERATURE) < position + step < np.log(MAX_TEMPERATURE):
        next_value = slope(position + step)
        if (next_value < 0) != (value < 0):
            return position + step * value / (value - next_value)
        position, value = position + step, next_value
    return position
