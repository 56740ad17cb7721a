"""What a score is worth: the temperature that makes it a probability, and how far it is from being one."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

from cellsignal.decide.assign.solvers import MIN_LOG_WEIGHT, marginals, softmax
from cellsignal.errors import InputError

MIN_ERRORS = 20  # errors among the labelled wells: without any, every temperature below some is as good
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0  # beyond these temperatures scores are a mere choice, or nothing
LOG_TEMPERATURE_STEP = 0.2  # between temperatures that are tried, in their logarithm; the root is interpolated


def fit_temperature(scores: pd.DataFrame, truth: pd.Series) -> float:
    """The temperature at which held-out wells' scores have the least cross-entropy (Guo et al. 2017).

    `scores`: index id_code, columns class numbers, log-probabilities; `truth`: siRNA by id_code. Wells in
    only one of them do not count, nor those whose truth scores -inf: no temperature makes it possible. Raises
    InputError when no scored well has a truth among its possible classes.
    """
    truth = _possible_truth(scores, truth)
    if truth.empty:
        raise InputError("no scored well has a known siRNA", where="temperature",
                         cure="give the scores and the solution of the same held-out experiments")
    values = below_best(scores.loc[truth.index].to_numpy(np.float32))
    right = values[np.arange(len(truth)), scores.columns.get_indexer(truth)].mean()

    def cross_entropy(log_temperature: float) -> float:
        cold = np.float32(np.exp(-log_temperature))
        return float(np.log(np.exp(values * cold).sum(1)).mean() - right * cold)

    bounds = (np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE))
    return float(np.exp(minimize_scalar(cross_entropy, bounds=bounds, method="bounded").x))


def fit_temperatures(scores: pd.DataFrame, labelled: pd.DataFrame) -> dict[str, float]:
    """The temperature of each cell type whose labelled wells show enough errors to tell one.

    `labelled`: index id_code, columns cell_type and sirna, of wells that the network has not seen in training.
    """
    labelled = labelled.loc[_possible_truth(scores, labelled["sirna"]).index]
    likeliest = scores.columns[scores.loc[labelled.index].to_numpy().argmax(axis=1)] if len(labelled) else []
    wrong = labelled["sirna"].ne(pd.Series(likeliest, labelled.index)).groupby(labelled["cell_type"]).sum()
    return {
        str(cell_type): fit_temperature(scores, mine["sirna"])
        for cell_type, mine in labelled.groupby("cell_type") if wrong[cell_type] >= MIN_ERRORS
    }


def conflict_temperature(blocks: Sequence[np.ndarray], *, centre: float = 1.0, spread: float = 0.5) -> float:
    """The temperature at which scores agree best with the fact that no siRNA stands in two wells; needs no labels.

    `blocks`: log-probabilities [wells, siRNAs], each to be assigned one to one. Wells that draw their siRNAs
    independently, from the tempered scores, draw a one-to-one assignment with the probability perm(softmax).
    It is largest where the mean score expected under the one-to-one marginals equals the one expected under
    the softmax: overconfident scores quarrel about siRNAs, which raises the temperature; timid ones are told
    more by their neighbours than they dare to say, which lowers it. A normal prior on the logarithm, at that of
    `centre` with the deviation `spread`, decides where wells know next to nothing. A well that must take a siRNA
    of -inf, since nothing else is left for it, contradicts its scores at any temperature and does not count.
    """

    def slope(log_temperature: float) -> float:
        """Of log perm(softmax) plus the prior, along the logarithm of 1 / temperature."""
        temperature = float(np.exp(log_temperature))
        quarrel = sum(_conflict(block, temperature) for block in blocks)
        return quarrel / temperature + (log_temperature - np.log(centre)) / spread**2

    return float(np.exp(_nearest_root(slope, np.log(centre))))


def expected_calibration_error(confidence: pd.Series | np.ndarray, right: pd.Series | np.ndarray, *, bins: int = 15) -> float:
    """Mean distance between confidence and accuracy over bins of equal width, weighted by wells (Guo et al. 2017).

    `confidence`: probabilities in [0, 1]; `right`: whether each came true, in the same order. Raises
    InputError when there are none.
    """
    confidence, right = np.asarray(confidence, float), np.asarray(right, float)
    if len(confidence) == 0:
        raise InputError("no well to compare", where="calibration", cure="give the predictions of labelled wells")
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    return float(np.abs(np.bincount(bin_of, confidence - right)).sum() / len(confidence))


def below_best(scores: np.ndarray) -> np.ndarray:
    """Scores less the best of their row, -inf made merely very unlikely."""
    best = scores.max(1, keepdims=True)
    return np.maximum(scores - np.where(np.isfinite(best), best, 0), MIN_LOG_WEIGHT)


def _possible_truth(scores: pd.DataFrame, truth: pd.Series) -> pd.Series:
    """The truth of the scored wells for which it is possible, as int64."""
    truth = truth[truth.index.isin(scores.index) & truth.isin(scores.columns)].dropna().astype("int64")
    rows, columns = scores.index.get_indexer(truth.index), scores.columns.get_indexer(truth)
    return truth[scores.to_numpy()[rows, columns] > -np.inf]


def _conflict(block: np.ndarray, temperature: float) -> float:
    """Sum of possible scores expected under the one-to-one marginals less the one expected under the softmax."""
    together, alone = marginals(block, temperature=temperature, tolerance=1e-2), softmax(block, temperature=temperature)
    values = below_best(block)
    if (impossible := block == -np.inf).any():
        together[impossible] = 0
        values -= (alone * values).sum(1, keepdims=True)
        return float((together * values).sum())
    return float(((together - alone) * values).sum())


def _nearest_root(slope: Callable[[float], float], start: float) -> float:
    """Where a slope that is negative at low and positive at high temperatures changes its sign next to `start`."""
    here, value = start, slope(start)
    step = LOG_TEMPERATURE_STEP if value < 0 else -LOG_TEMPERATURE_STEP
    while np.log(MIN_TEMPERATURE) < here + step < np.log(MAX_TEMPERATURE):
        there = slope(here + step)
        if (there < 0) != (value < 0):
            return here + step * value / (value - there)
        here, value = here + step, there
    return here
