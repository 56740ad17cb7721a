"""How likely each siRNA is for each well when no siRNA may stand in two wells."""

import numpy as np

LOWEST = np.float32(-60)  # log-probability below a well's best that stands for -inf: small, yet products of it stay in float32
MARGIN = np.float32(1 + 1e-6)  # a sum in float32 is taken to be larger than its largest part by at least this


def marginals(scores: np.ndarray, *, temperature: float = 1.0, passes: int = 200, tolerance: float = 1e-3) -> np.ndarray:
    """Probability of each siRNA for each well over all one-to-one assignments.

    `scores`: log-probabilities [wells, siRNAs], at least as many siRNAs as wells; a siRNA without a well is
    allowed. They are divided by `temperature`; an assignment's probability is proportional to exp of the sum
    of its scores. Its marginals are found by sum-product on the complete bipartite graph (Huang and Jebara
    2009, "Approximating the permanent with belief propagation"), which converges on it undamped (Vontobel
    2013, "The Bethe permanent of a nonnegative matrix"); it ends when the number of wells that any siRNA is
    expected in moves by less than `tolerance`, or after `passes`.

    Where the siRNAs that any well has a score for are fewer than the wells, those that are -inf everywhere go
    to the wells that are left over: of them nothing is known, and they are as likely for one well as for another.

    Returns float32 [wells, siRNAs]; each row sums to 1.
    """
    weights = _weights(scores, temperature)
    if len(scores) > (named := possible_columns(scores)).sum():
        weights[:, ~named] = weights[:, named].sum(1, keepdims=True) / len(scores) if named.any() else 1
    spare = np.float32(scores.shape[1] > scores.shape[0])  # the weight of a siRNA that stands in no well
    wishes, bids = weights.copy(), np.empty_like(weights)  # in place: a plate then stays in the processor's cache
    load = np.zeros(scores.shape[1], np.float32)
    for _ in range(passes):
        total = wishes.sum(1, keepdims=True)
        before, load = load, (1 / total[:, 0]) @ wishes
        if np.abs(load - before).max() < tolerance:
            break
        # How much a well wants a siRNA against all other siRNAs, then a siRNA a well against all other wells.
        np.divide(weights, np.subtract(total * MARGIN, wishes, out=bids), out=bids)
        np.divide(weights, np.subtract((bids.sum(0) + spare) * MARGIN, bids, out=wishes), out=wishes)
    return wishes / wishes.sum(1, keepdims=True)


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
    return np.exp(np.maximum((scores - best) / temperature, LOWEST), dtype=np.float32)
