"""Assignment of one siRNA to each well, by scores and experimental design.

Each treatment siRNA is in one well of an experiment, and the four plates of an experiment hold four fixed groups of siRNAs
(Brodt's solution: "in one experiment there is only one class", "classes divided equally in 4 plates"). Each block of wells that
share siRNAs, a plate with groups or an experiment without, is an assignment problem of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from cellsignal.data.tables.plate_design import plate_groups, rotations, shifts
from cellsignal.decide.assign import solvers
from cellsignal.decide.assign.calibration import conflict_temperature
from cellsignal.decide.assign.group_temperature import GROUP_BETHE_FRACTION, GroupedExperiment, group_temperatures
from cellsignal.decide.assign.groups import GroupChoice, choose_groups, groups_obstacle, log_group_probabilities
from cellsignal.decide.assign.known_layouts import KnownLayout
from cellsignal.decide.assign.solvers import marginals, possible_columns, softmax
from cellsignal.decide.scores.files import MAX_SCORE, replace_masks
from cellsignal.decide.settings import AssignmentSettings
from cellsignal.errors import InputError

# Scores as arrays, and the blocks of wells that share siRNAs.


MAX_BLOCKS = 12  # from which the temperature of a cell type is estimated; more blocks change it by less than experiments differ
EXPERIMENT_DEVIATION = 0.3  # standard deviation of the log temperature of experiments of a cell type, where only conflicts tell it
# The fraction of the Bethe correction at a calibrated temperature. Trained networks often hesitate between two siRNAs, for which the
# full correction is far too confident: on 49 networks the cross-entropy of the test wells was 0.40 with the full correction, 0.32
# with this fraction, and 0.31 with half.
BETHE_FRACTION = 0.7
CERTAIN = 0.999  # posterior from which the other permutations are not considered
UNCERTAIN = 0.95  # posterior of the likeliest permutation below which a note says so


@dataclass(frozen=True)
class ScoreMatrix:
    """All scores, rows sorted by id_code and columns by class, so that results do not depend on the order of a file."""

    id_codes: np.ndarray
    classes: np.ndarray  # class number of each column
    values: np.ndarray  # float32 [wells, classes], log-probabilities
    plates: np.ndarray  # plate number of each row
    experiments: dict[str, np.ndarray]  # rows by experiment
    cell_types: dict[str, str]  # by experiment

    def select_rows(self, rows: np.ndarray) -> np.ndarray:
        """The scores of these rows, without a copy if they are contiguous."""
        contiguous = len(rows) == rows[-1] - rows[0] + 1
        return self.values[rows[0] : rows[-1] + 1] if contiguous else self.values[rows]


@dataclass(frozen=True)
class AssignmentProblem:
    """Wells and the siRNAs that may be in them, each at most once."""

    cell_type: str
    rows: np.ndarray  # of the score matrix
    columns: np.ndarray  # of the score matrix
    values: np.ndarray  # float32 [rows, columns]
    experiment: str
    group_probability: float = 1.0  # that these are the right columns
    parts: Sequence["AssignmentProblem"] = ()  # a plate with one of its probable groups each: the marginals are their mixture

    @property
    def excess_note(self) -> str:
        """A note if there are more wells than siRNAs, so that each well takes its best; else ""."""
        wells, sirnas = self.values.shape
        return f"{wells} wells share {sirnas} siRNAs: each well its best" if wells > sirnas else ""


def as_score_matrix(scores: pd.DataFrame, wells: pd.DataFrame) -> ScoreMatrix:
    """Scores, plates and experiments as arrays.

    Raises InputError for an unknown or duplicated well, an invalid score, an experiment with two cell types, and a table without
    wells or classes.
    """
    if not scores.size:
        raise InputError("no wells or no classes in it", where="scores", cure="give the scores of some wells")
    if not scores.index.is_monotonic_increasing:
        scores = scores.sort_index()
    if not scores.columns.is_monotonic_increasing:
        scores = scores.sort_index(axis=1)
    scored = _scored_wells(scores.index, wells)
    with np.errstate(over="ignore"):  # values beyond float32 become infinite
        values = replace_masks(scores.to_numpy(np.float32))
    _check_scores(values, scores)
    rows = scored.groupby("experiment", sort=False).indices
    return ScoreMatrix(
        id_codes=scores.index.to_numpy(), classes=scores.columns.to_numpy(int), values=values,
        plates=scored["plate"].to_numpy(int), experiments=rows,
        cell_types={name: str(scored["cell_type"].iloc[row[0]]) for name, row in rows.items()},
    )


def assignment_problem(matrix: ScoreMatrix, experiment: str, rows: np.ndarray, columns: np.ndarray, *, group_probability: float = 1.0) -> AssignmentProblem:
    """The block of some rows and columns, without columns that are -inf in every well.

    Such columns stay if without them wells would outnumber siRNAs: by elimination some well has them. If wells outnumber siRNAs
    anyway, such columns are dropped, unless no siRNA is possible at all.
    """
    values = np.ascontiguousarray(matrix.select_rows(rows)[:, columns])
    possible = possible_columns(values) if values.min() == -np.inf else np.ones(len(columns), bool)
    if len(rows) <= possible.sum() or len(rows) > len(columns) and possible.any():
        columns, values = columns[possible], np.ascontiguousarray(values[:, possible])
    return AssignmentProblem(matrix.cell_types[experiment], rows, columns, values, experiment, group_probability)


def normalise_scores(matrix: ScoreMatrix) -> ScoreMatrix:
    """The log-softmax of each row, so that scores are comparable between wells; rows of -inf alone stay as they are."""
    best = matrix.values.max(1, keepdims=True)
    values = matrix.values - np.where(np.isfinite(best), best, 0)
    total = np.exp(values).sum(1, keepdims=True)
    values -= np.log(total, out=np.zeros_like(total), where=total > 0)
    return replace(matrix, values=values)


@dataclass(frozen=True)
class TemperatureSource:
    """Where the temperature of each well comes from: held-out wells of its cell type, else the plate groups, else conflicts between wells.

    Temperatures from held-out wells are not changed by the test wells: over 46 trained networks, pooling them with conflicts made the
    probabilities worse on average. Pooling them with the plate groups has not been measured.
    """

    matrix: ScoreMatrix
    method: str
    calibrated: dict[str, float]  # by cell type, from held-out wells
    choices: dict[str, GroupChoice]  # by experiment, where groups fit the plates
    group_of_class: np.ndarray  # index of the group of each column of the matrix, -1 for none

    @cached_property
    def by_row(self) -> np.ndarray:
        """The temperature of each row of the matrix."""
        matrix = self.matrix
        temperatures = np.ones(len(matrix.id_codes))
        for name, rows in matrix.experiments.items():
            temperatures[rows] = self.calibrated.get(matrix.cell_types[name], 1.0)
        names = [name for name in self.choices if matrix.cell_types[name] not in self.calibrated]
        experiments = [self._grouped(name) for name in names]
        for name, one, found in zip(names, experiments, group_temperatures(experiments, method=self.method), strict=True):
            temperatures[matrix.experiments[name]] = found[one.plates]
        self._add_conflict_temperatures(temperatures)
        return temperatures

    def bethe_fraction(self, cell_type: str, experiment: str) -> float:
        """The fraction of the Bethe correction that belongs to the temperatures of an experiment."""
        return BETHE_FRACTION if cell_type in self.calibrated else GROUP_BETHE_FRACTION if experiment in self.choices else 1.0

    def _grouped(self, name: str) -> GroupedExperiment:
        rows, choice = self.matrix.experiments[name], self.choices[name]
        block = assignment_problem(self.matrix, name, rows, np.arange(len(self.matrix.classes)))
        plates = np.searchsorted(choice.plate_numbers, self.matrix.plates[rows])
        return GroupedExperiment(block.cell_type, block.values, self.group_of_class[block.columns], plates, choice.plate_posterior)

    def _add_conflict_temperatures(self, temperatures: np.ndarray) -> None:
        """Experiments without groups and without held-out wells: one temperature by experiment, near that of the cell type."""
        names = [name for name, cell_type in self.matrix.cell_types.items() if name not in self.choices and cell_type not in self.calibrated]
        blocks = [assignment_problem(self.matrix, name, self.matrix.experiments[name], np.arange(len(self.matrix.classes))) for name in names]
        for cell_type in sorted({block.cell_type for block in blocks}):
            chosen = [block for block in blocks if block.cell_type == cell_type and not block.excess_note]
            centre = conflict_temperature([block.values for block in chosen[:: -(-len(chosen) // MAX_BLOCKS)]]) if chosen else 1.0
            for block in blocks:
                if block.cell_type == cell_type:
                    temperatures[block.rows] = centre if block.excess_note else conflict_temperature([block.values], centre=centre, spread=EXPERIMENT_DEVIATION)


def _scored_wells(id_codes: pd.Index, wells: pd.DataFrame) -> pd.DataFrame:
    """Experiment, cell type and plate of every scored well."""
    duplicated = id_codes[id_codes.duplicated()]
    if len(duplicated):
        raise InputError(f"well {duplicated[0]} comes twice", where="scores", cure="keep one row per well")
    scored = wells.set_index("id_code")[["experiment", "cell_type", "plate"]].reindex(id_codes)
    unknown = id_codes[scored["plate"].isna()]
    if len(unknown):
        raise InputError(f"well {unknown[0]} is not in the data set ({len(unknown)} such)", where="scores",
                         cure="give the data set that these scores belong to")
    pairs = scored[["experiment", "cell_type"]].drop_duplicates()
    mixed = pairs["experiment"][pairs["experiment"].duplicated()]
    if len(mixed):
        first, second = pairs["cell_type"][pairs["experiment"] == mixed.iloc[0]].head(2)
        raise InputError(f"its wells are of two cell types, {first} and {second}", where=f"experiment {mixed.iloc[0]}",
                         cure="an experiment has one: mend the table of wells")
    return scored


def _check_scores(values: np.ndarray, scores: pd.DataFrame) -> None:
    """Raise InputError for NaN and huge scores; minimum and maximum find them without a copy of the table."""
    if np.isnan(values.min()) or values.max() > MAX_SCORE:
        row, column = np.argwhere(np.isnan(values) | (values > MAX_SCORE))[0]
        raise InputError(f"score {values[row, column]} of class {scores.columns[column]}", where=f"well {scores.index[row]}",
                         cure="give natural-log probabilities; -inf is one, NaN is none")


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
        by_conflicts = cell_type not in self.temperatures.calibrated and plan.experiment not in self.choices
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
    expected number of right wells. They work per plate with `groups`, lists of class numbers that share a plate, and per
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
    source = TemperatureSource(matrix, settings.method, dict(temperatures or {}), choices, _group_of_class(matrix, groups or []))
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
    note = f"the likeliest order of groups is too uncertain ({plan.choice.confidence:.2f}): no groups used"
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
