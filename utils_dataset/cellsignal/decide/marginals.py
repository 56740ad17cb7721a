"""How likely each siRNA is for each well when no siRNA may stand in two wells."""

import numpy as np

LOWEST = np.float32(-60)  # log-probability below a well's best that stands for -inf: small, yet products of it stay in float32
LEAST = np.float32(1e-6)  # what float32 can tell from 0 in 1 - probability
MARGIN = np.float32(1 + 1e-6)  # a sum in float32 is taken to be larger than its largest part by at least this


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
        np.divide(weights, np.subtract(total * MARGIN, wishes, out=bids), out=bids)
        bid = bids.sum(0) + spare
        np.divide(weights, np.subtract(bid * MARGIN, bids, out=wishes), out=wishes)
    return wishes / wishes.sum(1, keepdims=True), 1 / bid


def _fractional(
    weights: np.ndarray, fraction: float, belief: np.ndarray, factors: np.ndarray, *, passes: int, tolerance: float
) -> np.ndarray:
    """From Bethe's solution on: (1 - probability) and a siRNA's share of no well count to the power of the fraction."""
    spare = weights.shape[1] > weights.shape[0]
    for _ in range(passes):
        raised = weights * np.maximum(1 - belief, LEAST) ** np.float32(-fraction)
        raised /= (raised @ factors)[:, None]
        wanted = raised.sum(0)
        factors = _shared(wanted, factors, 1 / fraction) if spare else 1 / wanted
        before, belief = belief, raised * factors
        belief /= belief.sum(1, keepdims=True)
        if np.abs(belief - before).max() < tolerance * (1 - fraction):  # what is left shrinks by the fraction in each pass
            break
    return belief


def _shared(wanted: np.ndarray, factors: np.ndarray, power: float) -> np.ndarray:
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
    return np.exp(np.maximum((scores - best) / temperature, LOWEST), dtype=np.float32)
