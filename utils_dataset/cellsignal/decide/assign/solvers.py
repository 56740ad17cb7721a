"""One siRNA for each well of a block of scores: four ways to choose, on arrays."""

import numpy as np
from scipy.optimize import linear_sum_assignment

# How likely each siRNA is for each well when no siRNA may stand in two wells.


MIN_LOG_WEIGHT = np.float32(-60)  # log-probability below a well's best that stands for -inf: small, yet products of it stay in float32
MIN_COMPLEMENT = np.float32(1e-6)  # what float32 can tell from 0 in 1 - probability
SUM_MARGIN = np.float32(1 + 1e-6)  # a sum in float32 is taken to be larger than its largest part by at least this


def marginals(scores: np.ndarray, *, temperature: float = 1.0, fraction: float = 1.0, passes: int = 200, tolerance: float = 1e-3) -> np.ndarray:
    """Probability of each siRNA for each well over all one-to-one assignments.

    `scores`: log-probabilities [wells, siRNAs], at least as many siRNAs as wells; a siRNA without a well is
    allowed. They are divided by `temperature`; an assignment's probability is proportional to exp of the sum
    of its scores. Its marginals are approximated by sum-product on the complete bipartite graph (Huang and Jebara
    2009, "Approximating the permanent with belief propagation"), which converges on it undamped (Vontobel
    2013, "The Bethe permanent of a nonnegative matrix"). That is right where every well doubts many siRNAs, and far
    too sure where two wells contest two siRNAs and nobody else does. A `fraction` below 1 takes so much of the Bethe
    correction (Chertkov and Yedidia 2013, "Approximating the permanent with fractional belief propagation", its -gamma):
    1/2 is exact for such a pair, 0 is Sinkhorn's scaling.

    Ends when no siRNA's expected number of wells, or with a fraction no probability, moves by `tolerance`, or after
    `passes`. Where the siRNAs that any well has a score for are fewer than the wells, those that are -inf everywhere go
    to the wells that are left over: of them nothing is known, and they are as likely for one well as for another.

    Returns float32 [wells, siRNAs]; each row sums to 1.
    """
    weights = _weights(scores, temperature)
    if len(scores) > (named := possible_columns(scores)).sum():
        weights[:, ~named] = weights[:, named].sum(1, keepdims=True) / len(scores) if named.any() else 1
    belief, factors = _bethe(weights, passes=passes, tolerance=tolerance)
    return belief if fraction == 1 else _fractional(weights, fraction, belief, factors, passes=passes, tolerance=tolerance)


def _bethe(weights: np.ndarray, *, passes: int, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and the factor of each siRNA: a probability is weight, well's and siRNA's factor by 1 - itself."""
    spare = np.float32(weights.shape[1] > weights.shape[0])  # the weight of a siRNA that stands in no well
    wishes, bids = weights.copy(), np.empty_like(weights)  # in place: a plate then stays in the processor's cache
    load, bid = np.zeros(weights.shape[1], np.float32), np.ones(weights.shape[1], np.float32)
    for _ in range(passes):
        total = wishes.sum(1, keepdims=True)
        before, load = load, (1 / total[:, 0]) @ wishes
        if np.abs(load - before).max() < tolerance:
            break
        # How much a well wants a siRNA against all other siRNAs, then a siRNA a well against all other wells.
        np.divide(weights, np.subtract(total * SUM_MARGIN, wishes, out=bids), out=bids)
        bid = bids.sum(0) + spare
        np.divide(weights, np.subtract(bid * SUM_MARGIN, bids, out=wishes), out=wishes)
    return wishes / wishes.sum(1, keepdims=True), 1 / bid


def _fractional(
    weights: np.ndarray, fraction: float, belief: np.ndarray, factors: np.ndarray, *, passes: int, tolerance: float
) -> np.ndarray:
    """From Bethe's solution on: (1 - probability) and a siRNA's share of no well count to the power of the fraction."""
    spare = weights.shape[1] > weights.shape[0]
    for _ in range(passes):
        raised = weights * np.maximum(1 - belief, MIN_COMPLEMENT) ** np.float32(-fraction)
        raised /= (raised @ factors)[:, None]
        wanted = raised.sum(0)
        factors = _column_factors(wanted, factors, 1 / fraction) if spare else 1 / wanted
        before, belief = belief, raised * factors
        belief /= belief.sum(1, keepdims=True)
        if np.abs(belief - before).max() < tolerance * (1 - fraction):  # what is left shrinks by the fraction in each pass
            break
    return belief


def _column_factors(wanted: np.ndarray, factors: np.ndarray, power: float) -> np.ndarray:
    """Newton's step to the factors at which wanted * factor + factor ** power, the share of no well, is 1."""
    left = factors ** (power - 1)
    step = factors - (wanted * factors + left * factors - 1) / (wanted + power * left)
    return np.minimum(step, np.minimum(1 / wanted, 1)).astype(np.float32)


def possible_columns(scores: np.ndarray) -> np.ndarray:
    """Which siRNAs at least one well has a score above -inf for."""
    return scores.max(0) > -np.inf


def softmax(scores: np.ndarray, *, temperature: float = 1.0) -> np.ndarray:
    """Probability of each siRNA for each well when wells know nothing of each other; float32, rows sum to 1."""
    weights = _weights(scores, temperature)
    return weights / weights.sum(1, keepdims=True)


def _weights(scores: np.ndarray, temperature: float) -> np.ndarray:
    """exp of the tempered scores, at most 1 in each row and never 0."""
    best = scores.max(1, keepdims=True)
    best = np.where(np.isfinite(best), best, 0)  # a well that no siRNA is possible for: all are alike
    return np.exp(np.maximum((scores - best) / temperature, MIN_LOG_WEIGHT), dtype=np.float32)


def raw(scores: np.ndarray) -> np.ndarray:
    """The best siRNA of each well, whatever the others take: column numbers by row."""
    return scores.argmax(1)


def greedy(scores: np.ndarray) -> np.ndarray:
    """Take the best score of all, strike out its well and its siRNA, and go on (Brodt's solution).

    A score that is the best of its row and of its column will be taken whatever comes before it, so all
    such are taken at once. Returns column numbers by row; needs at least as many columns as rows.
    """
    left = finite_scores(scores)
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
    return linear_sum_assignment(finite_scores(scores), maximize=True)[1]


def expected(scores: np.ndarray, marginals: np.ndarray) -> np.ndarray:
    """The one-to-one assignment with the largest expected number of right wells: column numbers by row.

    That number is the sum of the `marginals` of what is assigned, whatever joint distribution they come
    from; -inf in `scores` is taken only where nothing else is left. A siRNA that is -inf for all wells says
    nothing about any of them: there the marginals stand.
    """
    return exact(np.where((scores == -np.inf) & possible_columns(scores), -np.inf, marginals))


def finite_scores(scores: np.ndarray) -> np.ndarray:
    """float64 scores whose -inf cost more than all else could win back, so that a problem stays feasible."""
    scores = scores.astype(np.float64)
    impossible = scores == -np.inf
    if impossible.any():
        finite = scores[~impossible]
        span = np.ptp(finite) if finite.size else 0.0
        scores[impossible] = (finite.min() if finite.size else 0.0) - (len(scores) + 1) * (span + 1)
    return scores
