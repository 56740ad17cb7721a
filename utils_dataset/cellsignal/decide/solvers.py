"""One siRNA for each well of a block of scores: four ways to choose, on arrays."""

import numpy as np
from scipy.optimize import linear_sum_assignment

from cellsignal.decide.marginals import possible_columns


def raw(scores: np.ndarray) -> np.ndarray:
    """The best siRNA of each well, whatever the others take: column numbers by row."""
    return scores.argmax(1)


def greedy(scores: np.ndarray) -> np.ndarray:
    """Take the best score of all, strike out its well and its siRNA, and go on (Brodt's solution).

    A score that is the best of its row and of its column will be taken whatever comes before it, so all
    such are taken at once. Returns column numbers by row; needs at least as many columns as rows.
    """
    left = possible(scores)
    rows, columns = np.arange(left.shape[0]), np.arange(left.shape[1])
    chosen = np.empty(len(rows), dtype=int)
    while len(rows):
        best, suitor = left.argmax(1), left.argmax(0)
        mutual = suitor[best] == np.arange(len(rows))
        chosen[rows[mutual]] = columns[best[mutual]]
        free = np.ones(len(columns), dtype=bool)
        free[best[mutual]] = False
        left, rows, columns = left[np.ix_(~mutual, free)], rows[~mutual], columns[free]
    return chosen


def exact(scores: np.ndarray) -> np.ndarray:
    """The one-to-one assignment with the largest sum of scores: column numbers by row.

    Needs at least as many columns as rows; -inf is taken only where nothing else is left.
    """
    return linear_sum_assignment(possible(scores), maximize=True)[1]


def expected(scores: np.ndarray, marginals: np.ndarray) -> np.ndarray:
    """The one-to-one assignment with the largest expected number of right wells: column numbers by row.

    That number is the sum of the `marginals` of what is assigned, whatever joint distribution they come
    from; -inf in `scores` is taken only where nothing else is left. A siRNA that is -inf for all wells says
    nothing about any of them: there the marginals stand.
    """
    return exact(np.where((scores == -np.inf) & possible_columns(scores), -np.inf, marginals))


def possible(scores: np.ndarray) -> np.ndarray:
    """float64 scores whose -inf cost more than all else could win back, so that a problem stays feasible."""
    scores = scores.astype(np.float64)
    impossible = scores == -np.inf
    if impossible.any():
        finite = scores[~impossible]
        span = np.ptp(finite) if finite.size else 0.0
        scores[impossible] = (finite.min() if finite.size else 0.0) - (len(scores) + 1) * (span + 1)
    return scores
