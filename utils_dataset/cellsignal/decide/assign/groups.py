"""Which plate group lies on which plate: all permutations weighed by the scores of a whole experiment.

The sum of the wells' log-likelihoods knows the best permutation but not how sure it is: wells of a plate share
their errors, so 1,108 of them are no 1,108 witnesses. What tells is how well the table of plates x groups fits
a permutation at all: its entries are the mean log-probability of each group on each plate, less what is common
to a plate and to a group, and what a permutation leaves unexplained is the noise, wherever it came from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from math import perm

import numpy as np
from scipy.special import gammainc, stdtr

from cellsignal.errors import InputError

MIN_LOG_PROBABILITY = np.log(1e-3)  # no well may speak louder against a group: scores are surest where they are least calibrated
MAX_PERMUTATIONS = 40320  # permutations that are tried one by one: those of eight groups


@dataclass(frozen=True)
class GroupChoice:
    """The likeliest permutation of one experiment and what is known of it."""

    group_on_plate: tuple[int, ...]  # index of the group, plate by plate
    confidence: float  # posterior probability of this permutation
    on_its_plate: np.ndarray  # posterior probability that each plate, by itself, has its group
    rotation: bool | None  # whether it is one of the layouts given as rotations; None without any
    surprise_bits: float  # by how much the scores alone like another layout better than any rotation
    orders: np.ndarray  # every permutation, index of the group by plate, int [permutations, plates]
    posterior: np.ndarray  # probability of each of `orders`


def choose_groups(
    log_groups: np.ndarray, plates: np.ndarray, *, rotations: Sequence[tuple[int, ...]] = (), rotation_prior: float = 0.99
) -> GroupChoice:
    """Weigh all permutations of groups over the plates of one experiment.

    `log_groups`: log-probability of each group for each well, [wells, groups], as `log_group_probabilities` gives
    it; `plates`: index of each well's plate from 0. `rotations`: the layouts, group by plate, that share
    `rotation_prior`; the others share the rest, and without any all are alike. Raises InputError when there
    are more plates than groups, or too many of both to try all permutations.
    """
    orders = _permutations(int(plates.max()) + 1, log_groups.shape[1])
    likelihood = log_likelihoods(log_groups, plates, orders)
    usual = np.array([tuple(order) in set(rotations) for order in orders.tolist()])
    posterior = np.exp(likelihood - likelihood.max()) * _permutation_prior(usual, rotation_prior)
    posterior /= posterior.sum()
    best = int(posterior.argmax())
    on_its_plate = ((orders == orders[best]) * posterior[:, None]).sum(0)
    surprise = (likelihood.max() - likelihood[usual].max()) / np.log(2) if usual.any() else 0.0
    return GroupChoice(
        tuple(orders[best].tolist()), float(posterior[best]), on_its_plate,
        rotation=bool(usual[best]) if usual.any() else None, surprise_bits=float(surprise), orders=orders, posterior=posterior,
    )


def log_group_probabilities(scores: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Log-probability of each group for each well, float64 [wells, groups], no lower than FAINTEST.

    `scores`: log-probabilities [wells, classes]; `members`: float32 [classes, groups], 1 where a class is in
    a group. A class in no group does not count; where no group is possible all are alike.
    """
    best = scores.max(1, keepdims=True)
    odds = np.exp(scores - np.where(np.isfinite(best), best, 0)) @ members
    total = odds.sum(1, keepdims=True)
    share = np.divide(odds, total, out=np.full_like(odds, 1 / members.shape[1]), where=total > 0)
    return np.log(np.maximum(share, np.exp(MIN_LOG_PROBABILITY)), dtype=np.float64)


def log_likelihoods(log_groups: np.ndarray, plates: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Log-likelihood of each permutation in `orders` [permutations, plates], up to a constant.

    The doubly centred table is a permutation's pattern times an unknown positive strength, plus normal noise whose
    deviation is at least the one that independent wells would cause. With flat priors on the strength and, up
    to its largest value, on the reciprocal of the deviation both integrate out: an incomplete gamma function of
    the sum of squares that a permutation leaves, times about the probability that its strength is positive.
    """
    table, weights, noise = _group_table(log_groups, plates)
    patterns = _doubly_centred((orders[:, :, None] == np.arange(table.shape[1])).astype(float), weights)
    size = np.sqrt((patterns**2).sum((1, 2)))
    fit = np.divide((patterns * table).sum((1, 2)), size, out=np.zeros(len(orders)), where=size > 0)
    degrees = max(len(table) - 1, 1) * (table.shape[1] - 1) or 1
    left = np.maximum((table**2).sum() - fit**2, 1e-9 * noise)
    positive = stdtr(degrees, fit / np.sqrt(np.maximum(left / degrees, noise)))
    spread = np.log(gammainc(degrees / 2, left / (2 * noise))) - degrees / 2 * np.log(left)
    return spread + np.log(np.maximum(positive, 1e-300))


def _group_table(log_groups: np.ndarray, plates: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Centred means [plates, groups], the weights of the plates, and the variance if wells were independent."""
    wells = np.bincount(plates)
    weights = wells / wells.mean()
    # Without the well's own mean a value says which group it prefers, not how sure it is.
    values = log_groups - log_groups.mean(1, keepdims=True)
    means = np.stack([np.bincount(plates, column) for column in values.T], axis=1) / wells[:, None]
    spread = ((values - means[plates]) ** 2).sum() / (max(len(values) - len(wells), 1) * values.shape[1])
    noise = max(spread / wells.mean(), 1e-9 * (means**2).mean(), 1e-30)  # copies of one well are no witnesses
    return _doubly_centred(means, weights), weights, float(noise)


def _doubly_centred(tables: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Tables [..., plates, groups] less the mean of each plate and, with two plates or more, of each group.

    Plates count by their wells, so that each entry times the root of its weight has the same variance.
    """
    tables = tables - tables.mean(-1, keepdims=True)
    weights = weights[:, None]
    if len(weights) > 1:
        tables = tables - (tables * weights).sum(-2, keepdims=True) / weights.sum()
    return tables * np.sqrt(weights)


def groups_obstacle(plates: int, groups: int) -> str:
    """Why the permutations of so many groups over so many plates cannot be weighed, or nothing."""
    if plates > groups:
        return f"{plates} plates but {groups} plate groups"
    ways = perm(groups, plates)
    return f"{ways} ways to lay {groups} plate groups on {plates} plates" if ways > MAX_PERMUTATIONS else ""


def _permutations(plates: int, groups: int) -> np.ndarray:
    if what := groups_obstacle(plates, groups):
        raise InputError(what, where="experiment", cure="assign without groups (--no-groups)")
    return np.array(list(permutations(range(groups), plates)))


def _permutation_prior(usual: np.ndarray, rotation_prior: float) -> np.ndarray:
    """Prior of each permutation: rotations share `rotation_prior`, the others the rest."""
    if usual.all() or not usual.any():
        return np.full(len(usual), 1 / len(usual))
    return np.where(usual, rotation_prior / usual.sum(), (1 - rotation_prior) / (~usual).sum())
