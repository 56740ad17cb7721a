"""Four methods to assign siRNAs to the wells of a block of scores, on arrays."""

import numpy as np
from scipy.optimize import linear_sum_assignment

# The probability of each siRNA for each well if no siRNA is in two wells.


MIN_LOG_WEIGHT = np.float32(-60)  # used for -inf, relative to a well's best score: small, but products of its exponential do not underflow in float32
MIN_COMPLEMENT = np.float32(1e-6)  # smallest value of 1 - probability that float32 can represent
MIN_CORRECTED = np.float32(0.02)  # probabilities below it deviate by less than their square from the scaling of rows and columns
FIRST_CORRECTION, CORRECTION_INTERVAL = 4, 24  # passes before the larger probabilities are first, and again, looked for
SUM_MARGIN = np.float32(1 + 1e-6)  # least factor by which a float32 sum exceeds its largest term
# OpenBLAS now and then warns of NaN that is not in the result (numpy issue 24067): it has computed with the padding of small matrices.
ignore_padding = np.errstate(invalid="ignore")


@ignore_padding
def marginals(scores: np.ndarray, *, temperature: float | np.ndarray = 1.0, fraction: float = 1.0, passes: int = 200, tolerance: float = 1e-3) -> np.ndarray:
    """Probability of each siRNA for each well over all one-to-one assignments, float32 [wells, siRNAs]; rows sum to 1.

    `scores`: log-probabilities [wells, siRNAs], with at least as many siRNAs as wells; a siRNA may have no well. They are
    divided by `temperature`, one or one per well; the probability of an assignment is proportional to exp of the sum of its scores. The marginals
    are approximated by sum-product on the complete bipartite graph (Huang and Jebara 2009, "Approximating the permanent with
    belief propagation"), which converges without damping (Vontobel 2013, "The Bethe permanent of a nonnegative matrix"). The
    approximation is good if every well has many likely siRNAs, and far too confident if two wells compete for the same two
    siRNAs. A `fraction` below 1 takes a part of the Bethe correction (Chertkov and Yedidia 2013, "Approximating the permanent
    with fractional belief propagation", its -gamma): 1/2 is exact for such a pair, 0 is Sinkhorn's scaling.

    Stops when no siRNA's expected number of wells, or with a fraction no probability, changes by `tolerance`, or after `passes`.
    If fewer siRNAs have a score above -inf than there are wells, the others are equally likely for every remaining well.
    """
    weights = one_to_one_weights(scores, temperature)
    probabilities, factors = _bethe(weights, passes=passes, tolerance=tolerance)
    if fraction == 1:
        return probabilities
    return _fractional(weights, fraction, probabilities, factors, passes=passes, tolerance=tolerance)


def _bethe(weights: np.ndarray, *, passes: int, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and a factor of each siRNA: probability = weight * factor of the well * factor of the siRNA * (1 - probability)."""
    spare = np.float32(weights.shape[1] > weights.shape[0])  # the weight of a siRNA without a well
    well_messages, sirna_messages = weights.copy(), np.empty_like(weights)  # updated in place: a plate stays in the processor's cache
    load, total_messages = np.zeros(weights.shape[1], np.float32), np.ones(weights.shape[1], np.float32)
    for _ in range(passes):
        total = well_messages.sum(1, keepdims=True)
        previous, load = load, (1 / total[:, 0]) @ well_messages
        if np.abs(load - previous).max() < tolerance:
            break
        # From each well, a siRNA relative to all other siRNAs; then from each siRNA, a well relative to all other wells.
        np.divide(weights, np.subtract(total * SUM_MARGIN, well_messages, out=sirna_messages), out=sirna_messages)
        total_messages = sirna_messages.sum(0) + spare
        np.divide(weights, np.subtract(total_messages * SUM_MARGIN, sirna_messages, out=well_messages), out=well_messages)
    return well_messages / well_messages.sum(1, keepdims=True), 1 / total_messages


def _fractional(
    weights: np.ndarray, fraction: float, probabilities: np.ndarray, factors: np.ndarray, *, passes: int, tolerance: float
) -> np.ndarray:
    """Fractional belief propagation, started from Bethe's solution: the powers of (1 - probability) and of the share of no well are the fraction."""
    spare = weights.shape[1] > weights.shape[0]
    for _ in range(passes):
        raised = weights * np.maximum(1 - probabilities, MIN_COMPLEMENT) ** np.float32(-fraction)
        raised /= (raised @ factors)[:, None]
        demand = raised.sum(0)
        factors = _column_factors(demand, factors, 1 / fraction) if spare else 1 / demand
        previous, probabilities = probabilities, raised * factors
        probabilities /= probabilities.sum(1, keepdims=True)
        if np.abs(probabilities - previous).max() < tolerance * (1 - fraction):  # the error shrinks by the fraction in each pass
            break
    return probabilities


def _column_factors(demand: np.ndarray, factors: np.ndarray, power: float) -> np.ndarray:
    """Newton's step to the factors at which demand * factor + factor ** power (the share of no well) is 1."""
    slope = factors ** (power - 1)
    step = factors - (demand * factors + slope * factors - 1) / (demand + power * slope)
    return np.minimum(step, np.minimum(1 / demand, 1)).astype(np.float32)


@ignore_padding
def fractional_marginals(
    weights: np.ndarray, fraction: float, *, passes: int, tolerance: float, factors: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The probabilities of `marginals` with a `fraction` below 1, and the factors of the siRNAs: for whole experiments and coarse tolerances.

    Solved by scaling rows and columns alone, from a solution nearby if there is one.
    A probability is weight * factor of the well * factor of the siRNA / (1 - probability) ** `fraction`, below 1; the share of no well is the
    siRNA's factor to the power of 1 / `fraction`. `weights`: from `one_to_one_weights`; `factors`: from a call for similar weights, to start
    from. Most probabilities are so small that the denominator does not matter: it is kept up to date for those above MIN_CORRECTED alone,
    so that a pass is two products of a matrix and a vector.
    """
    wells, sirnas = weights.shape
    factors = np.ones(sirnas, np.float32) if factors is None else factors
    rows = columns = np.empty(0, int)
    extra, picked = np.zeros((2, 0), np.float32)
    for number in range(passes):
        well_factors = 1 / (weights @ factors + np.bincount(rows, extra * factors[columns], wells).astype(np.float32))
        demand = well_factors @ weights + np.bincount(columns, extra * well_factors[rows], sirnas).astype(np.float32)
        previous, factors = factors, _column_factors(demand, factors, 1 / fraction) if sirnas > wells else 1 / demand
        change = (np.abs(factors - previous) * demand).max()
        if number % CORRECTION_INTERVAL == FIRST_CORRECTION:
            probabilities = weights * well_factors[:, None] * factors
            probabilities[rows, columns] += extra * well_factors[rows] * factors[columns]
            rows, columns = np.nonzero(probabilities > MIN_CORRECTED)
            picked, previously = probabilities[rows, columns], np.zeros(len(rows), np.float32)
        elif number > FIRST_CORRECTION:
            previously, picked = picked, (weights[rows, columns] + extra) * well_factors[rows] * factors[columns]
            if max(change, np.abs(picked - previously).max(initial=0)) < tolerance * (1 - fraction):  # the error shrinks by the fraction in each pass
                break
        extra = weights[rows, columns] * (np.maximum(1 - picked, MIN_COMPLEMENT) ** np.float32(-fraction) - 1)
    probabilities = weights * well_factors[:, None]
    probabilities *= factors
    probabilities += np.float32(fraction) * probabilities**2
    probabilities[rows, columns] = picked
    probabilities /= probabilities.sum(1, keepdims=True)
    return probabilities, factors


def possible_columns(scores: np.ndarray) -> np.ndarray:
    """Whether a siRNA has a score above -inf in any well, bool [siRNAs]."""
    return scores.max(0) > -np.inf


def softmax(scores: np.ndarray, *, temperature: float | np.ndarray = 1.0) -> np.ndarray:
    """Probability of each siRNA for each well by itself; float32, rows sum to 1."""
    weights = tempered_weights(scores, temperature)
    return weights / weights.sum(1, keepdims=True)


def tempered_weights(scores: np.ndarray, temperature: float | np.ndarray) -> np.ndarray:
    """exp of the tempered scores, at most 1 in each row and never 0; `temperature`: one, or one per well."""
    temperature = temperature if np.ndim(temperature) == 0 else np.asarray(temperature, np.float32)[:, None]
    best = scores.max(1, keepdims=True)
    best = np.where(np.isfinite(best), best, 0)  # a well without a possible siRNA: all have the same weight
    return np.exp(np.maximum((scores - best) / temperature, MIN_LOG_WEIGHT), dtype=np.float32)


def one_to_one_weights(scores: np.ndarray, temperature: float | np.ndarray) -> np.ndarray:
    """`tempered_weights`; siRNAs that are -inf in all wells are equally likely for every well if wells outnumber the others."""
    weights = tempered_weights(scores, temperature)
    if len(scores) > (possible := possible_columns(scores)).sum():
        weights[:, ~possible] = weights[:, possible].sum(1, keepdims=True) / len(scores) if possible.any() else 1
    return weights


def raw(scores: np.ndarray) -> np.ndarray:
    """The best siRNA of each well, independently of other wells: column numbers by row."""
    return scores.argmax(1)


def greedy(scores: np.ndarray) -> np.ndarray:
    """Take the best of all scores, remove its well and its siRNA, and repeat (Brodt's solution): column numbers by row.

    A score that is the best of its row and of its column is taken in any case, so all such scores are taken at once. Needs at
    least as many columns as rows.
    """
    remaining = finite_scores(scores)
    rows, columns = np.arange(remaining.shape[0]), np.arange(remaining.shape[1])
    chosen = np.empty(len(rows), dtype=int)
    while len(rows):
        best, best_row = remaining.argmax(1), remaining.argmax(0)
        mutual = best_row[best] == np.arange(len(rows))
        chosen[rows[mutual]] = columns[best[mutual]]
        free = np.ones(len(columns), dtype=bool)
        free[best[mutual]] = False
        remaining, rows, columns = remaining[np.ix_(~mutual, free)], rows[~mutual], columns[free]
    return chosen


def exact(scores: np.ndarray) -> np.ndarray:
    """The one-to-one assignment with the largest sum of scores: column numbers by row.

    Needs at least as many columns as rows; -inf is taken only if nothing else is left.
    """
    return linear_sum_assignment(finite_scores(scores), maximize=True)[1]


def expected(scores: np.ndarray, marginals: np.ndarray) -> np.ndarray:
    """The one-to-one assignment with the largest expected number of right wells: column numbers by row.

    That number is the sum of the `marginals` of the assigned siRNAs; -inf in `scores` is taken only if nothing else is left.
    For siRNAs that are -inf in all wells the marginals count.
    """
    return exact(np.where((scores == -np.inf) & possible_columns(scores), -np.inf, marginals))


def finite_scores(scores: np.ndarray) -> np.ndarray:
    """float64 scores in which -inf is replaced by a finite value that outweighs all other scores, so that a problem stays feasible."""
    scores = scores.astype(np.float64)
    impossible = scores == -np.inf
    if impossible.any():
        finite = scores[~impossible]
        span = np.ptp(finite) if finite.size else 0.0
        scores[impossible] = (finite.min() if finite.size else 0.0) - (len(scores) + 1) * (span + 1)
    return scores
