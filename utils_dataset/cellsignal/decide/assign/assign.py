"""Assignment of one siRNA to each well, by scores and experimental design.

Each treatment siRNA is in one well of an experiment, and the four plates of an experiment hold four fixed groups of siRNAs
(Brodt's solution: "in one experiment there is only one class", "classes divided equally in 4 plates"). Each block of wells that
share siRNAs, a plate with groups or an experiment without, is an assignment problem of its own.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from cellsignal.data.tables.plate_design import plate_groups, rotations, shifts
from cellsignal.decide.assign import solvers
from cellsignal.decide.assign.groups import GroupChoice, choose_groups, groups_obstacle, log_group_probabilities
from cellsignal.decide.assign.known_layouts import KnownLayout
from cellsignal.decide.assign.score_matrix import AssignmentProblem, ScoreMatrix, as_score_matrix, assignment_problem, normalise_scores
from cellsignal.decide.assign.solvers import marginals, softmax
from cellsignal.decide.assign.temperature_source import TemperatureSource
from cellsignal.decide.settings import AssignmentSettings

CERTAIN = 0.999  # posterior from which the other permutations are not considered
UNCERTAIN = 0.95  # posterior of the likeliest permutation below which a note says so
# Networks that favour a few siRNAs in all wells cause conflicts without being overconfident: on the votes of real networks the
# temperature then rose to 4 and more, while simulated scores that were twice too confident stayed below 2.
MAX_PLAUSIBLE_TEMPERATURE = 3.0
UNSURE_NOTE = "confidences may be far too low, because many wells favour the same siRNAs; give scores of held-out wells too"
NO_LAYOUT = KnownLayout(pd.Series(dtype=int), confidence=np.nan)


@dataclass(frozen=True)
class AssignmentPlan:
    """How one experiment is assigned."""

    experiment: str
    route: str  # "raw" | "one-to-one" | "groups" | "known layout"
    blocks: list[AssignmentProblem]
    choice: GroupChoice | None = None
    note: str = ""
    fixed_sirnas: dict[int, int] = field(default_factory=dict)  # siRNA by row of the score matrix, from a known layout
    fixed_confidence: float = 1.0


@dataclass(frozen=True, repr=False)
class Decision:
    """The predicted siRNA of every well, its confidence, and how each experiment was assigned.

    Each of the three is computed at its first use, so that predictions of "exact" alone do not need probabilities.
    """

    matrix: ScoreMatrix
    plans: list[AssignmentPlan]
    method: str
    temperatures: TemperatureSource
    id_codes: pd.Index  # in the original order

    @cached_property
    def predictions(self) -> pd.Series:
        """siRNA by id_code, in the order of the scores."""
        sirnas = np.empty(len(self.matrix.id_codes), dtype=int)
        for block, chosen in zip(self.blocks, self._chosen_columns, strict=True):
            sirnas[block.rows] = self.matrix.classes[block.columns[chosen]]
        for plan in self.plans:
            sirnas[list(plan.fixed_sirnas)] = list(plan.fixed_sirnas.values())
        return self._by_id_code(sirnas, "sirna")

    @cached_property
    def confidence(self) -> pd.Series:
        """Probability that the predicted siRNA is right given all constraints, by id_code."""
        confidence = np.ones(len(self.matrix.id_codes))
        for block, probabilities, chosen in zip(self.blocks, self._block_probabilities, self._chosen_columns, strict=True):
            confidence[block.rows] = block.group_probability * probabilities[np.arange(len(chosen)), chosen]
        for plan in self.plans:
            confidence[list(plan.fixed_sirnas)] = plan.fixed_confidence
        return self._by_id_code(confidence, "confidence")

    @property
    def expected_right(self) -> float:
        """The expected number of right wells among those of the assignment problems."""
        triples = zip(self.blocks, self._block_probabilities, self._chosen_columns, strict=True)
        return sum(float(block.group_probability * probabilities[np.arange(len(chosen)), chosen].sum()) for block, probabilities, chosen in triples)

    @cached_property
    def experiments(self) -> pd.DataFrame:
        """One row per experiment; for the columns see `decide`."""
        return pd.DataFrame([self._experiment_row(plan) for plan in self.plans]).set_index("experiment").sort_index()

    @property
    def records(self) -> list[dict[str, Any]]:
        """The rows of `experiments` for JSON: plain values, None for missing ones."""
        return plain_records(self.experiments.reset_index())

    @cached_property
    def blocks(self) -> list[AssignmentProblem]:
        """The assignment problems of all experiments."""
        return [block for plan in self.plans for block in plan.blocks]

    @property
    def choices(self) -> dict[str, GroupChoice]:
        """The permutations of plate groups and their posterior, by experiment, where the groups fit the plates."""
        return self.temperatures.choices

    @cached_property
    def with_group_temperatures(self) -> "Decision":
        """The same plans with temperatures from the plate groups, for cell types whose experiments all have them; others keep their own."""
        source = self.temperatures
        ungrouped = {cell_type for name, cell_type in self.matrix.cell_types.items() if name not in source.informative}
        kept = {cell_type: temperature for cell_type, temperature in source.calibrated.items() if cell_type in ungrouped}
        return self if kept == source.calibrated else replace(self, temperatures=replace(source, calibrated=kept))

    @property
    def block_probabilities(self) -> Iterator[np.ndarray]:
        """The probability of each siRNA of each block for each of its wells, given all constraints, float32 [wells, siRNAs]."""
        return (block.group_probability * probabilities for block, probabilities in zip(self.blocks, self._block_probabilities, strict=True))

    @cached_property
    def _block_probabilities(self) -> list[np.ndarray]:
        return [self.probabilities(block) for block in self.blocks]

    @cached_property
    def _chosen_columns(self) -> list[np.ndarray]:
        if self.method == "expected":
            pairs = zip(self.blocks, self._block_probabilities, strict=True)
            return [solvers.raw(block.values) if block.excess_note else solvers.expected(block.values, probabilities)
                    for block, probabilities in pairs]
        return [getattr(solvers, self._block_method(block))(block.values) for block in self.blocks]

    def probabilities(self, block: AssignmentProblem, temperature: float | None = None) -> np.ndarray:
        """Probability of each siRNA of a block for each of its wells, float32 [wells, siRNAs]; `temperature`: instead of its own."""
        if block.parts:
            mixture = np.zeros(block.values.shape, np.float32)
            for part in block.parts:
                at = np.ix_(np.searchsorted(block.rows, part.rows), np.searchsorted(block.columns, part.columns))
                mixture[at] += part.group_probability * self.probabilities(part, temperature)
            return mixture
        temperatures = self.temperatures.by_row[block.rows] if temperature is None else temperature
        if self._block_method(block) == "raw":
            return softmax(block.values, temperature=temperatures)
        return marginals(block.values, temperature=temperatures, fraction=self.temperatures.bethe_fraction(block.cell_type, block.experiment))

    def _block_method(self, block: AssignmentProblem) -> str:
        return "raw" if block.excess_note else self.method

    def _by_id_code(self, values: np.ndarray, name: str) -> pd.Series:
        return pd.Series(values, pd.Index(self.matrix.id_codes, name=self.id_codes.name), name=name).reindex(self.id_codes)

    def _experiment_row(self, plan: AssignmentPlan) -> dict[str, Any]:
        choice, cell_type = plan.choice, self.matrix.cell_types[plan.experiment]
        groups_used = choice is not None and plan.route == "groups"
        rows = np.concatenate([block.rows for block in plan.blocks]) if plan.blocks else []
        temperature = float(np.exp(np.log(self.temperatures.by_row[rows]).mean())) if len(rows) else np.nan
        by_conflicts = cell_type not in self.temperatures.calibrated and plan.experiment not in self.temperatures.informative
        unsure = UNSURE_NOTE if temperature > MAX_PLAUSIBLE_TEMPERATURE and by_conflicts else ""
        return {
            "experiment": plan.experiment, "cell_type": cell_type,
            "wells": len(self.matrix.experiments[plan.experiment]), "route": plan.route, "method": self.method,
            "group_on_plate": [group + 1 for group in choice.group_on_plate] if groups_used else None,
            "group_posterior": choice.confidence if choice else np.nan,
            "rotation": choice.rotation if choice else None,
            "surprise_bits": choice.surprise_bits if choice else 0.0,
            "temperature": temperature, "note": _join_notes(plan.note, unsure),
        }  # fmt: skip


def plain_records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table for JSON: plain values, None for missing ones."""
    return [{key: None if value is None or value != value else value for key, value in row.items()}
            for row in table.astype(object).to_dict("records")]


def decide(
    scores: pd.DataFrame, wells: pd.DataFrame, settings: AssignmentSettings = AssignmentSettings(), *, groups: list[list[int]] | None = None,
    rotations: Mapping[str, list[int]] | None = None, temperatures: Mapping[str, float] | None = None,
    known_layouts: Mapping[str, KnownLayout] | None = None,
) -> Decision:
    """Assign a siRNA to every well, with its confidence.

    `scores`: index id_code, columns class numbers, natural-log probabilities; `wells`: has experiment, cell type and plate of each
    id_code. `settings.method`: "raw" takes the most likely class of each well; "greedy" the best of all scores, then the best of
    the rest; "exact" the one-to-one assignment with the largest summed log-probability; "expected" the one with the largest
    expected number of right wells. They work per plate with `groups`, two or more lists of class numbers that share a plate, and per
    experiment without. If wells outnumber siRNAs each takes its best; if the groups do not fit the plates none are used; `note`
    reports both.

    `rotations`: index of the group on plates 1, 2, ... of training experiments (`plate_design.rotations`); these layouts and their
    cyclic shifts share `settings.rotation_prior` among all permutations. "expected" weighs the groups of each plate by their posterior;
    the other methods take the likeliest permutation if more wells are expected to be right with it than without groups.
    `settings.min_group_posterior`: least posterior probability of the likeliest permutation for groups to be used at all.
    `temperatures`: by cell type, from held-out wells (`temperature.decided_temperatures`); for other cell types they come from the plate
    groups (`group_temperature`), or without these from conflicts between wells. `known_layouts`: by experiment
    (`known_layouts.known_layouts`).

    Columns of `experiments`, by experiment: cell_type; wells; route ("raw" | "one-to-one" | "groups" | "known layout"); method;
    group_on_plate (numbers of the groups from 1, plate by plate; None if unused); group_posterior (of the likeliest permutation;
    NaN without groups); rotation (whether that is a rotation; None without rotations); surprise_bits (log2 likelihood ratio of the
    best permutation to the best rotation); temperature (geometric mean over blocks); note (also about an implausible uncalibrated
    temperature). Raises InputError for an unknown well, an invalid score, an experiment with two cell types, and without scores.
    """
    matrix, layouts, plans, known_layouts = as_score_matrix(scores, wells), shifts(rotations or {}), [], known_layouts or {}
    groups = groups if groups and len(groups) > 1 else []  # one alone, of all siRNAs, says nothing
    if settings.method == "greedy" or matrix.values.min() == -np.inf:  # then scores of different wells are compared
        matrix = normalise_scores(matrix)
    for name, rows in matrix.experiments.items():
        layout = known_layouts.get(name, NO_LAYOUT)
        if len(layout.sirnas):
            plan = _plan_known_layout(matrix, name, rows, layout, method=settings.method)
        elif groups:
            plan = _plan_groups(matrix, name, rows, groups, settings=settings, layouts=layouts)
        else:
            plan = _plan_experiment(matrix, name, rows, method=settings.method)
        plans.append(replace(plan, note=_join_notes(layout.note, plan.note)))
    choices = {plan.experiment: plan.choice for plan in plans if plan.choice}
    source = TemperatureSource(matrix, settings.method, dict(temperatures or {}), choices, _group_of_class(matrix, groups))
    decision = Decision(matrix, plans, settings.method, source, scores.index)
    return decision if settings.method == "expected" else replace(decision, plans=[_keep_if_worth_it(decision, plan) for plan in plans])


def assign(scores: pd.DataFrame, wells: pd.DataFrame, settings: AssignmentSettings = AssignmentSettings(), **design: Any) -> pd.Series:
    """The predictions of `decide` alone, siRNA by id_code; `design`: its other arguments. Raises what it raises."""
    return decide(scores, wells, settings, **design).predictions


def _plan_experiment(matrix: ScoreMatrix, name: str, rows: np.ndarray, *, method: str,
                     choice: GroupChoice | None = None, note: str = "") -> AssignmentPlan:
    """All wells of an experiment share all siRNAs."""
    block = assignment_problem(matrix, name, rows, np.arange(len(matrix.classes)))
    excess_note = "" if method == "raw" else block.excess_note
    return AssignmentPlan(name, "raw" if excess_note or method == "raw" else "one-to-one", [block], choice, _join_notes(note, excess_note))


def _plan_groups(matrix: ScoreMatrix, name: str, rows: np.ndarray, groups: list[list[int]], *, settings: AssignmentSettings,
                 layouts: set[tuple[int, ...]]) -> AssignmentPlan:
    """Each plate with its group if the groups fit and the permutation is certain enough, else the whole experiment."""
    method = settings.method
    members = np.stack([np.isin(matrix.classes, group) for group in groups], axis=1)
    numbers, plates = np.unique(matrix.plates[rows], return_inverse=True)
    unscored = "" if members.any(0).all() else "a plate group without a scored siRNA"
    if obstacle := groups_obstacle(len(numbers), len(groups)) or unscored:
        return _plan_experiment(matrix, name, rows, method=method, note=f"{obstacle}: no groups used")
    plate_rotations = {tuple(layout[plate - 1] for plate in numbers) for layout in layouts if len(layout) >= numbers[-1]}
    log_groups = log_group_probabilities(matrix.select_rows(rows), members.astype(np.float32))
    choice = choose_groups(log_groups, plates, rotations=sorted(plate_rotations), rotation_prior=settings.rotation_prior)
    choice = replace(choice, plate_numbers=tuple(numbers.tolist()))
    if choice.confidence < settings.min_group_posterior:
        note = f"two permutations are too close ({choice.confidence:.2f}): no groups used"
        return _plan_experiment(matrix, name, rows, method=method, choice=choice, note=note)
    likeliest = {(plate, group) for plate, group in enumerate(choice.group_on_plate)}
    probable = {(int(plate), int(group)) for plate, group in np.argwhere(choice.plate_posterior > 1 - CERTAIN)}
    blocks = {
        (plate, group): assignment_problem(matrix, name, rows[plates == plate], np.flatnonzero(members[:, group]),
                                           group_probability=float(choice.plate_posterior[plate, group]))
        for plate, group in sorted(likeliest | (probable if method == "expected" else set()))}
    parts, excess = list(blocks.values()), any(block.excess_note for block in blocks.values())
    if probable <= likeliest or method != "expected" or excess:
        parts = [blocks[pair] for pair in sorted(likeliest)]
        notes = [f"plate {number}, {block.excess_note}" for number, block in zip(numbers, parts, strict=True) if block.excess_note]
        return AssignmentPlan(name, "groups", parts, choice, _join_notes(*notes) if method != "raw" else "")
    columns = np.unique(np.concatenate([part.columns for part in parts]))
    mixture = AssignmentProblem(matrix.cell_types[name], rows, columns, matrix.select_rows(rows)[:, columns], name, parts=parts)
    note = f"groups weighed by their posterior ({choice.confidence:.2f} for the likeliest order)" if choice.confidence < UNCERTAIN else ""
    return AssignmentPlan(name, "groups", [mixture], choice, note)


def _keep_if_worth_it(decision: Decision, plan: AssignmentPlan) -> AssignmentPlan:
    """The plan with the likeliest permutation, or without groups if fewer wells are expected to be right with it."""
    if plan.route != "groups" or plan.choice.confidence > CERTAIN:
        return plan
    plain = _plan_experiment(decision.matrix, plan.experiment, decision.matrix.experiments[plan.experiment], method=decision.method, choice=plan.choice)
    expected = [replace(decision, plans=[one]).expected_right for one in (plan, plain)]
    note = f"fewer wells are expected to be right with the likeliest order of groups (posterior {plan.choice.confidence:.4f}): no groups used"
    return plan if expected[0] > expected[1] else replace(plain, note=_join_notes(note, plain.note))


def _group_of_class(matrix: ScoreMatrix, groups: list[list[int]]) -> np.ndarray:
    numbers = np.full(len(matrix.classes), -1)
    for number, group in enumerate(groups):
        numbers[np.isin(matrix.classes, group)] = number
    return numbers


def _plan_known_layout(matrix: ScoreMatrix, name: str, rows: np.ndarray, layout: KnownLayout, *, method: str) -> AssignmentPlan:
    """The siRNAs of a known layout; wells outside it share the remaining siRNAs, or all if none remain."""
    sirnas = layout.sirnas.reindex(matrix.id_codes[rows])
    other_rows = rows[sirnas.isna().to_numpy()]
    fixed_sirnas = dict(zip(rows[sirnas.notna().to_numpy()].tolist(), sirnas.dropna().astype(int).tolist(), strict=True))
    remaining = np.flatnonzero(~np.isin(matrix.classes, list(fixed_sirnas.values())))
    columns = remaining if len(remaining) else np.arange(len(matrix.classes))
    blocks = [assignment_problem(matrix, name, other_rows, columns)] if len(other_rows) else []
    note = blocks[0].excess_note if blocks and method != "raw" else ""
    return AssignmentPlan(name, "known layout", blocks, note=note, fixed_sirnas=fixed_sirnas, fixed_confidence=layout.confidence)


def _join_notes(*notes: str) -> str:
    return "; ".join(filter(None, notes))


# The experimental design, from the tables.


def plate_design(wells: pd.DataFrame, settings: AssignmentSettings = AssignmentSettings()) -> dict[str, Any]:
    """The arguments of `decide` that hold for all experiments: settings, plate groups and rotations.

    `wells`: of all cell types, columns as in `Tables.wells`; only labelled ones count. Groups are empty without
    `settings.plate_groups`, or if the tables show none; then each siRNA is once in an experiment.
    """
    groups = plate_groups(wells) if settings.plate_groups else []
    return {"settings": settings, "groups": groups, "rotations": rotations(wells, groups) if groups else None}
