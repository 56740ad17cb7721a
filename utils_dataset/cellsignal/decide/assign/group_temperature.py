"""Temperatures without labels: those at which decisions made without the plate groups are as sure as they are right by the groups.

The groups are labels that a decision without them has not used. Each experiment is decided as a whole, every siRNA once, and the share of
these decisions that lie in the groups of their plates tells how many are right (`estimated_accuracy`). The temperature of each plate is
the one at which the mean confidence agrees with that. One plate tells its temperature badly, so that plates of an experiment, of a cell
type and of all share what they tell, by a hierarchical normal prior on the logarithm.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cellsignal.decide.assign.estimated_accuracy import MAX_CHANCE, chance_in_group
from cellsignal.decide.assign.solvers import fractional_marginals, one_to_one_weights, softmax

# The fraction of the Bethe correction. The whole of it suits simulated scores whose wells err independently, 0.7 those with families of
# similar siRNAs; at this one the calibration errors of both are alike. On draws that the tests do not use (seeds 100 to 102), with
# families at a raw accuracy of 0.28 and without at 0.50: 0.020 and 0.018 at 0.78; with one or two draws 0.017 and 0.022 at 0.74, 0.022
# and 0.016 at 0.82. The mean confidence cannot tell it from the temperature, and the covariance of confidence and rightness did not
# find it reliably either. Other temperatures for the assignment than for its confidences (hotter, one by experiment, mixed, or those
# of conflicts with the whole correction) gained less than draws and real networks' votes differ.
GROUP_BETHE_FRACTION = 0.78
# Standard deviations of the logarithm of the temperature: of all plates together, of cell types, of experiments and of plates.
LEVEL_DEVIATION, CELL_TYPE_DEVIATION, EXPERIMENT_DEVIATION, PLATE_DEVIATION = 1.5, 0.3, 0.2, 0.3
MIN_LOG_TEMPERATURE, MAX_LOG_TEMPERATURE = -5.0, 4.0
FIRST_PASSES, PASSES, TOLERANCE = 45, 25, 5e-2  # of the marginals: the mean of their largest values converges early
ITERATIONS, CONVERGED = 6, 0.03  # of Newton's method on all plates; root mean square of the last step
MIN_SLOPE, MAX_SLOPE, FIRST_SLOPE = -2.0, -0.02, -0.3  # of the mean confidence with respect to the logarithm of the temperature
CLOSE = 0.1  # difference of confidence and accuracy from which Newton's method starts


@dataclass
class GroupedExperiment:
    """One experiment whose plates have known, or probable, groups."""

    cell_type: str
    values: np.ndarray  # log-probabilities [wells, classes]
    group_of_class: np.ndarray  # -1 for none
    plates: np.ndarray  # index of each well's plate
    plate_posterior: np.ndarray  # probability of each group on each plate [plates, groups]
    factors: np.ndarray | None = field(default=None, repr=False)  # of the last marginals, from which the next ones start

    @property
    def one_to_one(self) -> bool:
        """Whether there are enough possible siRNAs for all wells."""
        return self.values.shape[0] <= self.values.shape[1]

    def agreement(self, log_temperatures: np.ndarray, *, method: str) -> np.ndarray:
        """Mean confidence, estimated accuracy and its variance of each plate [3, plates], decided at the plates' `log_temperatures`."""
        temperatures = np.exp(log_temperatures)[self.plates]
        if method == "raw" or not self.one_to_one:
            probabilities = softmax(self.values, temperature=temperatures)
        else:
            passes = FIRST_PASSES if self.factors is None else PASSES
            weights = one_to_one_weights(self.values, temperatures)
            probabilities, self.factors = fractional_marginals(weights, GROUP_BETHE_FRACTION, passes=passes, tolerance=TOLERANCE, factors=self.factors)
        groups, wells = self.group_of_class[probabilities.argmax(1)], np.bincount(self.plates)
        sizes = np.bincount(self.group_of_class[self.group_of_class >= 0], minlength=self.plate_posterior.shape[1])
        counts = np.zeros(self.plate_posterior.shape)
        np.add.at(counts, (self.plates[groups >= 0], groups[groups >= 0]), 1)
        chance = np.minimum(self.plate_posterior @ chance_in_group(counts, wells, self.plate_posterior, sizes), MAX_CHANCE)
        share = (counts * self.plate_posterior).sum(1) / wells
        smoothed = (share * wells + 1) / (wells + 2)  # so that no plate is certain
        variance = smoothed * (1 - smoothed) / wells / (1 - chance) ** 2
        return np.stack([np.bincount(self.plates, probabilities.max(1)) / wells, (share - chance) / (1 - chance), variance])


def group_temperatures(experiments: Sequence[GroupedExperiment], *, method: str) -> list[np.ndarray]:
    """The temperature of each plate of each experiment.

    `method`: of the assignment; "raw" calibrates the wells' own probabilities. Each step of Newton's method makes an observation of each
    plate's log temperature, with a variance, and takes the posterior mean of all of them under the hierarchical prior.
    """
    if not experiments:
        return []
    plates = [len(experiment.plate_posterior) for experiment in experiments]
    ends = np.cumsum(plates)[:-1]
    prior = _prior_covariance(experiments)
    logs = np.full(sum(plates), _common_start(experiments, method=method))
    slopes, previous = np.full(len(logs), FIRST_SLOPE), None
    for _ in range(ITERATIONS):
        parts = [one.agreement(own, method=method) for one, own in zip(experiments, np.split(logs, ends), strict=True)]
        confidence, accuracy, variance = np.concatenate(parts, axis=1)
        if previous is not None:
            moved = logs - previous[0]
            slopes = np.where(np.abs(moved) > 0.05, (confidence - previous[1]) / np.where(moved == 0, 1, moved), slopes).clip(MIN_SLOPE, MAX_SLOPE)
        previous = logs, confidence
        observed, noise = logs - (confidence - accuracy) / slopes, np.diag(variance / slopes**2)
        target = prior @ np.linalg.solve(prior + noise, observed)
        logs = (logs + (target - logs).clip(-1, 1)).clip(MIN_LOG_TEMPERATURE, MAX_LOG_TEMPERATURE)
        if np.sqrt(((logs - previous[0]) ** 2).mean()) < CONVERGED:
            break
    return np.split(np.exp(logs), ends)


def _prior_covariance(experiments: Sequence[GroupedExperiment]) -> np.ndarray:
    """Covariance [plates, plates] of the logarithm of temperatures, whose mean is 0."""
    numbers = np.repeat(np.arange(len(experiments)), [len(one.plate_posterior) for one in experiments])
    cell_types = np.array([one.cell_type for one in experiments])[numbers]
    same_cell_type, same_experiment = cell_types[:, None] == cell_types, numbers[:, None] == numbers
    return (LEVEL_DEVIATION**2 + CELL_TYPE_DEVIATION**2 * same_cell_type + EXPERIMENT_DEVIATION**2 * same_experiment
            + PLATE_DEVIATION**2 * np.eye(len(numbers)))


def _common_start(experiments: Sequence[GroupedExperiment], *, method: str) -> float:
    """The logarithm of a common temperature of some experiments, one of each cell type, by bisection; 0 if that is close."""
    sample = list({one.cell_type: one for one in experiments}.values())

    def excess(log_temperature: float) -> float:
        pairs = [one.agreement(np.full(len(one.plate_posterior), log_temperature), method=method)[:2].mean(1) for one in sample]
        return float(np.mean([confidence - accuracy for confidence, accuracy in pairs]))

    at_zero = excess(0.0)
    if abs(at_zero) < CLOSE:
        return 0.0
    low, high = (0.0, 2.5) if at_zero > 0 else (-4.0, 0.0)
    for _ in range(5):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return (low + high) / 2
