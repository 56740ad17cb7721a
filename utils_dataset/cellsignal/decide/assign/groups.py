"""Plate groups: the posterior of all permutations of groups over the plates of an experiment, from its scores.

The sum of the wells' log-likelihoods gives the best permutation, but not its confidence: wells of a plate share their errors, so
that 1,108 wells are not 1,108 independent observations. The confidence comes from the fit of the table of plates x groups to a
permutation. The entries of the table are the mean log-probabilities of each group on each plate, minus the means of the plate and
of the group; the residual of a permutation is the noise, whatever its source.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from math import perm

import numpy as np
from scipy.special import gammainc, stdtr

from cellsignal.errors import InputError

MIN_LOG_PROBABILITY = np.log(1e-3)  # lower bound for a well: extreme scores are the least calibrated ones
MAX_PERMUTATIONS = 40320  # the number for eight groups


@dataclass(frozen=True)
class GroupChoice:
    """The likeliest permutation of one experiment, and its posterior."""

    group_on_plate: tuple[int, ...]  # index of the group, plate by plate
    confidence: float  # posterior probability of this permutation
    rotation: bool | None  # whether it is one of the given rotations; None without any
    surprise_bits: float  # log2 likelihood ratio of the best permutation to the best rotation
    permutations: np.ndarray  # all permutations, index of the group by plate, int [permutations, plates]
    posterior: np.ndarray  # probability of each of `permutations`
    plate_numbers: tuple[int, ...] = ()  # as in the tables, in the order of the plates here

    @property
    def plate_posterior(self) -> np.ndarray:
        """Probability of each group on each plate [plates, groups]."""
        groups = np.arange(self.permutations.max() + 1)
        return np.einsum("k,kpg->pg", self.posterior, self.permutations[:, :, None] == groups)


def choose_groups(
    log_groups: np.ndarray, plates: np.ndarray, *, rotations: Sequence[tuple[int, ...]] = (), rotation_prior: float = 0.99
) -> GroupChoice:
    """The likeliest permutation of groups over the plates of one experiment, with the posterior of all permutations.

    `log_groups`: log-probability of each group for each well, [wells, groups], from `log_group_probabilities`; `plates`: index of
    each well's plate from 0. `rotations`: the layouts (groups by plate) that share `rotation_prior`; all others share the rest.
    Without rotations the prior is uniform. Raises InputError if there are more plates than groups, or more than MAX_PERMUTATIONS.
    """
    orders = _permutations(int(plates.max()) + 1, log_groups.shape[1])
    likelihood = log_likelihoods(log_groups, plates, orders)
    is_rotation = np.array([tuple(order) in set(rotations) for order in orders.tolist()])
    posterior = np.exp(likelihood - likelihood.max()) * _permutation_prior(is_rotation, rotation_prior)
    posterior /= posterior.sum()
    best = int(posterior.argmax())
    surprise = (likelihood.max() - likelihood[is_rotation].max()) / np.log(2) if is_rotation.any() else 0.0
    return GroupChoice(
        tuple(orders[best].tolist()), float(posterior[best]),
        rotation=bool(is_rotation[best]) if is_rotation.any() else None, surprise_bits=float(surprise), permutations=orders, posterior=posterior,
    )


def log_group_probabilities(scores: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Log-probability of each group for each well, float64 [wells, groups], at least MIN_LOG_PROBABILITY.

    `scores`: log-probabilities [wells, classes]; `members`: float32 [classes, groups], 1 if a class is in a group. Classes in no
    group do not count; if no group is possible, all are equally likely.
    """
    best = scores.max(1, keepdims=True)
    odds = np.exp(scores - np.where(np.isfinite(best), best, 0)) @ members
    total = odds.sum(1, keepdims=True)
    share = np.divide(odds, total, out=np.full_like(odds, 1 / members.shape[1]), where=total > 0)
    return np.log(np.maximum(share, np.exp(MIN_LOG_PROBABILITY)), dtype=np.float64)


def log_likelihoods(log_groups: np.ndarray, plates: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Log-likelihood of each permutation in `orders` [permutations, plates], up to a constant.

    Model: the doubly centred table is the pattern of a permutation times an unknown positive strength, plus normal noise whose
    standard deviation is at least that of independent wells. With flat priors on the strength and (up to its largest value) on
    the reciprocal of the deviation, both integrate out: the result is an incomplete gamma function of the residual sum of
    squares, times approximately the probability that the strength is positive.
    """
    table, weights, noise = _group_table(log_groups, plates)
    patterns = _doubly_centred((orders[:, :, None] == np.arange(table.shape[1])).astype(float), weights)
    size = np.sqrt((patterns**2).sum((1, 2)))
    fit = np.divide((patterns * table).sum((1, 2)), size, out=np.zeros(len(orders)), where=size > 0)
    degrees = max(len(table) - 1, 1) * (table.shape[1] - 1) or 1
    residual = np.maximum((table**2).sum() - fit**2, 1e-9 * noise)
    positive = stdtr(degrees, fit / np.sqrt(np.maximum(residual / degrees, noise)))
    noise_term = np.log(gammainc(degrees / 2, residual / (2 * noise))) - degrees / 2 * np.log(residual)
    return noise_term + np.log(np.maximum(positive, 1e-300))


def _group_table(log_groups: np.ndarray, plates: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Centred means [plates, groups], the weights of the plates, and the variance for independent wells."""
    wells = np.bincount(plates)
    weights = wells / wells.mean()
    # Minus the well's own mean, a value is the preference of a well for a group, not its confidence.
    values = log_groups - log_groups.mean(1, keepdims=True)
    means = np.stack([np.bincount(plates, column) for column in values.T], axis=1) / wells[:, None]
    variance = ((values - means[plates]) ** 2).sum() / (max(len(values) - len(wells), 1) * values.shape[1])
    noise = max(variance / wells.mean(), 1e-9 * (means**2).mean(), 1e-30)  # identical wells have no variance
    return _doubly_centred(means, weights), weights, float(noise)


def _doubly_centred(tables: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Tables [..., plates, groups] minus the mean of each plate and, with two or more plates, of each group.

    Plates are weighted by their number of wells; entries are multiplied by the root of the weight, so that all have the same
    variance.
    """
    tables = tables - tables.mean(-1, keepdims=True)
    weights = weights[:, None]
    if len(weights) > 1:
        tables = tables - (tables * weights).sum(-2, keepdims=True) / weights.sum()
    return tables * np.sqrt(weights)


def groups_obstacle(plates: int, groups: int) -> str:
    """Why the permutations of these numbers of groups and plates cannot be enumerated; "" if they can."""
    if plates > groups:
        return f"{plates} plates but {groups} plate groups"
    count = perm(groups, plates)
    return f"{count} permutations of {groups} plate groups over {plates} plates" if count > MAX_PERMUTATIONS else ""


def _permutations(plates: int, groups: int) -> np.ndarray:
    if obstacle := groups_obstacle(plates, groups):
        raise InputError(obstacle, where="experiment", cure="assign without groups (--no-groups)")
    return np.array(list(permutations(range(groups), plates)))


def _permutation_prior(is_rotation: np.ndarray, rotation_prior: float) -> np.ndarray:
    """Prior of each permutation: rotations share `rotation_prior`, the others the rest."""
    if is_rotation.all() or not is_rotation.any():
        return np.full(len(is_rotation), 1 / len(is_rotation))
    return np.where(is_rotation, rotation_prior / is_rotation.sum(), (1 - rotation_prior) / (~is_rotation).sum())
