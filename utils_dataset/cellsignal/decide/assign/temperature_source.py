"""Which temperature the scores of each well are divided by: from held-out wells, from the plate groups, or from conflicts between wells."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cellsignal.decide.assign.calibration import conflict_temperature
from cellsignal.decide.assign.estimated_accuracy import GroupEvidence, group_evidence, pool_evidence
from cellsignal.decide.assign.group_temperature import GROUP_BETHE_FRACTION, GroupedExperiment, group_temperatures
from cellsignal.decide.assign.groups import GroupChoice
from cellsignal.decide.assign.score_matrix import ScoreMatrix, assignment_problem

MAX_BLOCKS = 12  # from which the temperature of a cell type is estimated; more blocks change it by less than experiments differ
EXPERIMENT_DEVIATION = 0.3  # standard deviation of the log temperature of experiments of a cell type, where only conflicts tell it
# The fraction of the Bethe correction at a calibrated temperature. Trained networks often hesitate between two siRNAs, for which the
# full correction is far too confident: on 49 networks the cross-entropy of the test wells was 0.40 with the full correction, 0.32
# with this fraction, and 0.31 with half.
BETHE_FRACTION = 0.7


@dataclass(frozen=True)
class TemperatureSource:
    """Where the temperature of each well comes from: held-out wells of its cell type, else the plate groups, else conflicts between wells.

    Scores whose best classes have used the groups, or are all right, have no temperature that the groups could tell (`informative`).
    Temperatures from held-out wells are not changed by the test wells. Over 46 trained networks, pooling them with conflicts made the
    probabilities worse on average. Over 8 more (5 on `hard`, 3 on `demo`, simulated), the mean calibration error of the test wells was
    0.089 with held-out wells, 0.110 with the plate groups, and 0.104 with both (as the mean of the hierarchical prior, deviation 0.1).
    """

    matrix: ScoreMatrix
    method: str
    calibrated: dict[str, float]  # by cell type, from held-out wells
    choices: dict[str, GroupChoice]  # by experiment, where groups fit the plates
    group_of_class: np.ndarray  # index of the group of each column of the matrix, -1 for none

    @cached_property
    def informative(self) -> dict[str, GroupChoice]:
        """The choices that temperatures can come from: all, or none if the raw answers of all experiments together are not measurable by them."""
        evidence = [self._evidence(name) for name in self.choices]
        return {} if evidence and pool_evidence(evidence).obstacle else self.choices

    @cached_property
    def by_row(self) -> np.ndarray:
        """The temperature of each row of the matrix."""
        matrix = self.matrix
        temperatures = np.ones(len(matrix.id_codes))
        for name, rows in matrix.experiments.items():
            temperatures[rows] = self.calibrated.get(matrix.cell_types[name], 1.0)
        names = [name for name in self.informative if matrix.cell_types[name] not in self.calibrated]
        experiments = [self._grouped(name) for name in names]
        for name, one, found in zip(names, experiments, group_temperatures(experiments, method=self.method), strict=True):
            temperatures[matrix.experiments[name]] = found[one.plates]
        self._add_conflict_temperatures(temperatures)
        return temperatures

    def bethe_fraction(self, cell_type: str, experiment: str) -> float:
        """The fraction of the Bethe correction that belongs to the temperatures of an experiment."""
        return BETHE_FRACTION if cell_type in self.calibrated else GROUP_BETHE_FRACTION if experiment in self.informative else 1.0

    def _evidence(self, name: str) -> GroupEvidence:
        rows, choice, groups = self.matrix.experiments[name], self.choices[name], self.group_of_class
        best, sizes = self.matrix.select_rows(rows).argmax(1), np.bincount(groups[groups >= 0])
        return group_evidence(self.matrix.classes[best], groups[best], np.searchsorted(choice.plate_numbers, self.matrix.plates[rows]), choice, sizes=sizes)

    def _grouped(self, name: str) -> GroupedExperiment:
        rows, choice = self.matrix.experiments[name], self.choices[name]
        block = assignment_problem(self.matrix, name, rows, np.arange(len(self.matrix.classes)))
        plates = np.searchsorted(choice.plate_numbers, self.matrix.plates[rows])
        return GroupedExperiment(block.cell_type, block.values, self.group_of_class[block.columns], plates, choice.plate_posterior)

    def _add_conflict_temperatures(self, temperatures: np.ndarray) -> None:
        """Experiments without groups and without held-out wells: one temperature by experiment, near that of the cell type."""
        names = [name for name, cell_type in self.matrix.cell_types.items() if name not in self.informative and cell_type not in self.calibrated]
        blocks = [assignment_problem(self.matrix, name, self.matrix.experiments[name], np.arange(len(self.matrix.classes))) for name in names]
        for cell_type in sorted({block.cell_type for block in blocks}):
            chosen = [block for block in blocks if block.cell_type == cell_type and not block.excess_note]
            centre = conflict_temperature([block.values for block in chosen[:: -(-len(chosen) // MAX_BLOCKS)]]) if chosen else 1.0
            for block in blocks:
                if block.cell_type == cell_type:
                    temperatures[block.rows] = centre if block.excess_note else conflict_temperature([block.values], centre=centre, spread=EXPERIMENT_DEVIATION)
