"""From scores to one siRNA per well, using what the experimental design tells.

Each treatment siRNA stands in one well of an experiment, and the four plates of an experiment
carry four fixed groups of siRNAs (Brodt's solution: "in one experiment there is only one class", "classes
divided equally in 4 plates"). Blocks of wells that share siRNAs, a plate with groups and an experiment
without, are then solved one by one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from cellsignal.data.tables.plate_design import plate_groups, rotations, shifts
from cellsignal.decide.assign import solvers
from cellsignal.decide.assign.calibration import conflict_temperature
from cellsignal.decide.assign.groups import GroupChoice, choose_groups, groups_obstacle, log_group_probabilities
from cellsignal.decide.assign.known_layouts import KnownLayout
from cellsignal.decide.assign.solvers import marginals, possible_columns, softmax
from cellsignal.decide.scores.files import MAX_SCORE, replace_masks
from cellsignal.decide.settings import AssignmentSettings
from cellsignal.errors import InputError

# Anybody's scores as arrays, and the blocks of wells that share siRNAs.


MAX_BLOCKS = 12  # blocks that set the temperature of a cell type; more of them move it by less than plates differ
UNMEASURED_DEVIATION, PLATE_DEVIATION = 0.5, 0.3  # deviation of the logarithm of the temperature: of a cell type that was not measured; of its plates


@dataclass(frozen=True)
class ScoreMatrix:
    """All scores, rows sorted by id_code and columns by class, so that no answer hangs on the order of a file."""

    id_codes: np.ndarray
    classes: np.ndarray  # class number of each column
    values: np.ndarray  # float32 [wells, classes], log-probabilities
    plates: np.ndarray  # plate number of each row
    experiments: dict[str, np.ndarray]  # rows by experiment
    cell_types: dict[str, str]  # by experiment

    def of(self, rows: np.ndarray) -> np.ndarray:
        """The scores of these rows, uncopied where they lie together."""
        together = len(rows) == rows[-1] - rows[0] + 1
        return self.values[rows[0] : rows[-1] + 1] if together else self.values[rows]


@dataclass(frozen=True)
class AssignmentProblem:
    """Wells and the siRNAs that may lie in them, each at most once."""

    cell_type: str
    rows: np.ndarray  # of the screen
    columns: np.ndarray  # of the screen
    values: np.ndarray  # float32 [rows, columns]
    trust: float = 1.0  # probability that these are the right columns

    @property
    def crowded(self) -> str:
        """That there are more wells than siRNAs, in words, or nothing; then each well takes its best."""
        wells, sirnas = self.values.shape
        return f"{wells} wells share {sirnas} siRNAs: each well its best" if wells > sirnas else ""


def as_score_matrix(scores: pd.DataFrame, wells: pd.DataFrame) -> ScoreMatrix:
    """Scores and their places as arrays.

    InputError names a well that is unknown, comes twice or has a score that is none, an experiment of two cell
    types, and a table without wells or classes.
    """
    if not scores.size:
        raise InputError("no wells or no classes in it", where="scores", cure="give the scores of some wells")
    if not scores.index.is_monotonic_increasing:
        scores = scores.sort_index()
    if not scores.columns.is_monotonic_increasing:
        scores = scores.sort_index(axis=1)
    places = _scored_wells(scores.index, wells)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        values = replace_masks(scores.to_numpy(np.float32))
    _check_scores(values, scores)
    rows = places.groupby("experiment", sort=False).indices
    return ScoreMatrix(
        id_codes=scores.index.to_numpy(), classes=scores.columns.to_numpy(int), values=values,
        plates=places["plate"].to_numpy(int), experiments=rows,
        cell_types={name: str(places["cell_type"].iloc[row[0]]) for name, row in rows.items()},
    )


def assignment_problem(screen: ScoreMatrix, experiment: str, rows: np.ndarray, columns: np.ndarray, *, trust: float = 1.0) -> AssignmentProblem:
    """The block of some rows and columns, less the columns that no well can have by its scores.

    Where wells would then outnumber siRNAs and would not otherwise, those columns stay: by elimination some well has
    them. A crowd, which outnumbers them anyway, loses them, unless no siRNA at all is possible.
    """
    values = np.ascontiguousarray(screen.of(rows)[:, columns])
    named = possible_columns(values) if values.min() == -np.inf else np.ones(len(columns), bool)
    if len(rows) <= named.sum() or len(rows) > len(columns) and named.any():
        columns, values = columns[named], np.ascontiguousarray(values[:, named])
    return AssignmentProblem(screen.cell_types[experiment], rows, columns, values, trust)


def normalise_scores(screen: ScoreMatrix) -> ScoreMatrix:
    """The same with log-softmaxes, so that the scores of two wells can be compared; a well of -inf alone stays as it is."""
    best = screen.values.max(1, keepdims=True)
    values = screen.values - np.where(np.isfinite(best), best, 0)
    total = np.exp(values).sum(1, keepdims=True)
    values -= np.log(total, out=np.zeros_like(total), where=total > 0)
    return replace(screen, values=values)


def problem_temperatures(blocks: Sequence[AssignmentProblem], measured: dict[str, float]) -> np.ndarray:
    """The temperature of each block: what was `measured` of its cell type, else its own, held near that of its cell type.

    Quarrels of wells do not move what was measured: over 46 trained networks that made the probabilities worse on average.
    """
    temperatures = np.array([measured.get(part.cell_type, 1.0) for part in blocks], float)
    cell_types = np.array([part.cell_type for part in blocks])
    alone = np.array([not part.crowded and part.cell_type not in measured for part in blocks], bool)
    for cell_type in np.unique(cell_types[alone]):
        mine = np.flatnonzero(alone & (cell_types == cell_type))
        some = [blocks[k].values for k in mine[:: -(-len(mine) // MAX_BLOCKS)]]
        centre = conflict_temperature(some, spread=UNMEASURED_DEVIATION)
        temperatures[cell_types == cell_type] = centre  # a crowd has no quarrels of its own
        temperatures[mine] = [conflict_temperature([blocks[k].values], centre=centre, spread=PLATE_DEVIATION) for k in mine]
    return temperatures


def _scored_wells(id_codes: pd.Index, wells: pd.DataFrame) -> pd.DataFrame:
    """Experiment, cell type and plate of every scored well."""
    twice = id_codes[id_codes.duplicated()]
    if len(twice):
        raise InputError(f"well {twice[0]} comes twice", where="scores", cure="keep one row per well")
    places = wells.set_index("id_code")[["experiment", "cell_type", "plate"]].reindex(id_codes)
    unknown = id_codes[places["plate"].isna()]
    if len(unknown):
        raise InputError(f"well {unknown[0]} is not in the data set ({len(unknown)} such)", where="scores",
                         cure="give the data set that these scores belong to")
    kinds = places[["experiment", "cell_type"]].drop_duplicates()
    mixed = kinds["experiment"][kinds["experiment"].duplicated()]
    if len(mixed):
        first, second = kinds["cell_type"][kinds["experiment"] == mixed.iloc[0]].head(2)
        raise InputError(f"its wells are of two cell types, {first} and {second}", where=f"experiment {mixed.iloc[0]}",
                         cure="an experiment has one: mend the table of wells")
    return places


def _check_scores(values: np.ndarray, scores: pd.DataFrame) -> None:
    """Refuse what is neither a number nor -inf; minimum and maximum tell it without a copy of the table."""
    if np.isnan(values.min()) or values.max() > MAX_SCORE:
        row, column = np.argwhere(np.isnan(values) | (values > MAX_SCORE))[0]
        raise InputError(f"score {values[row, column]} of class {scores.columns[column]}", where=f"well {scores.index[row]}",
                         cure="give natural-log probabilities; -inf is one, NaN is none")


# Networks that favour a few siRNAs in all wells make these quarrel without being too sure: on the votes of real
# networks the temperature then ran to 4 and more, where simulated ones that were twice too sure stayed below 2.
MAX_PLAUSIBLE_TEMPERATURE = 3.0
UNSURE_NOTE = "confidences may be far too low, as wells quarrel about the same siRNAs; give scores of held-out wells too"
# Of the Bethe correction, where the temperature was measured with it. Trained networks doubt in pairs, for which the whole of
# it is far too sure: on 49 of them the cross-entropy of the test wells was 0.40 with the whole, 0.32 with this, 0.31 with half.
BETHE_FRACTION = 0.7
NO_LAYOUT = KnownLayout(pd.Series(dtype=int), confidence=np.nan)


@dataclass(frozen=True)
class AssignmentPlan:
    """How one experiment is decided."""

    experiment: str
    route: str  # "raw" | "one-to-one" | "groups" | "known layout"
    blocks: list[AssignmentProblem]
    choice: GroupChoice | None = None
    note: str = ""
    settled: dict[int, int] = field(default_factory=dict)  # siRNA by row of the screen, known beforehand
    settled_confidence: float = 1.0


@dataclass(frozen=True, repr=False)
class Decision:
    """What every well is taken for, how sure that is, and how each experiment was decided.

    Each of the three is worked out when it is first asked for: who wants the predictions of `exact` alone
    does not wait for probabilities.
    """

    screen: ScoreMatrix
    plans: list[AssignmentPlan]
    method: str
    measured: dict[str, float]  # temperature by cell type, from held-out wells
    order: pd.Index  # id_codes as they were given

    @cached_property
    def predictions(self) -> pd.Series:
        """siRNA by id_code, in the order of the scores."""
        sirnas = np.empty(len(self.screen.id_codes), dtype=int)
        for part, pick in zip(self.blocks, self._picks, strict=True):
            sirnas[part.rows] = self.screen.classes[part.columns[pick]]
        for plan in self.plans:
            sirnas[list(plan.settled)] = list(plan.settled.values())
        return self._by_id_code(sirnas, "sirna")

    @cached_property
    def confidence(self) -> pd.Series:
        """Probability that the predicted siRNA is right given all constraints used, by id_code."""
        sure = np.ones(len(self.screen.id_codes))
        for part, belief, pick in zip(self.blocks, self._beliefs, self._picks, strict=True):
            sure[part.rows] = part.trust * belief[np.arange(len(pick)), pick]
        for plan in self.plans:
            sure[list(plan.settled)] = plan.settled_confidence
        return self._by_id_code(sure, "confidence")

    @cached_property
    def experiments(self) -> pd.DataFrame:
        """One row per experiment; `decide` tells the columns."""
        heat = iter(self._temperatures)
        rows = [self._row(plan, [next(heat) for _ in plan.blocks]) for plan in self.plans]
        return pd.DataFrame(rows).set_index("experiment").sort_index()

    @property
    def records(self) -> list[dict[str, Any]]:
        """The rows of `experiments` for JSON: plain values, None where there is none."""
        table = self.experiments.reset_index().astype(object)
        return [{key: None if value is None or value != value else value for key, value in row.items()}
                for row in table.to_dict("records")]

    @cached_property
    def blocks(self) -> list[AssignmentProblem]:
        """Wells that share siRNAs, which were solved together."""
        return [part for plan in self.plans for part in plan.blocks]

    @cached_property
    def _temperatures(self) -> np.ndarray:
        return problem_temperatures(self.blocks, self.measured)

    @cached_property
    def _beliefs(self) -> list[np.ndarray]:
        return [self.belief(part, heat) for part, heat in zip(self.blocks, self._temperatures, strict=True)]

    @cached_property
    def _picks(self) -> list[np.ndarray]:
        if self.method == "expected":
            pairs = zip(self.blocks, self._beliefs, strict=True)
            return [solvers.raw(part.values) if part.crowded else solvers.expected(part.values, belief) for part, belief in pairs]
        return [getattr(solvers, self._method(part))(part.values) for part in self.blocks]

    def belief(self, part: AssignmentProblem, temperature: float) -> np.ndarray:
        """Probability of each siRNA of a block for each of its wells, float32 [wells, siRNAs]."""
        if self._method(part) == "raw":
            return softmax(part.values, temperature=temperature)
        return marginals(part.values, temperature=temperature, fraction=BETHE_FRACTION if part.cell_type in self.measured else 1.0)

    def _method(self, part: AssignmentProblem) -> str:
        return "raw" if part.crowded else self.method

    def _by_id_code(self, values: np.ndarray, name: str) -> pd.Series:
        return pd.Series(values, pd.Index(self.screen.id_codes, name=self.order.name), name=name).reindex(self.order)

    def _row(self, plan: AssignmentPlan, heat: list[float]) -> dict[str, Any]:
        choice, cell_type = plan.choice, self.screen.cell_types[plan.experiment]
        used = choice is not None and plan.route == "groups"
        temperature = float(np.exp(np.log(heat).mean())) if heat else np.nan
        doubt = UNSURE_NOTE if temperature > MAX_PLAUSIBLE_TEMPERATURE and cell_type not in self.measured else ""
        return {
            "experiment": plan.experiment, "cell_type": cell_type,
            "wells": len(self.screen.experiments[plan.experiment]), "route": plan.route, "method": self.method,
            "group_on_plate": [group + 1 for group in choice.group_on_plate] if used else None,
            "group_confidence": choice.confidence if choice else np.nan,
            "rotation": choice.rotation if choice else None,
            "surprise_bits": choice.surprise_bits if choice else 0.0,
            "temperature": temperature, "note": _join_notes(plan.note, doubt),
        }  # fmt: skip


def decide(
    scores: pd.DataFrame, wells: pd.DataFrame, settings: AssignmentSettings = AssignmentSettings(), *, groups: list[list[int]] | None = None,
    rotations: Mapping[str, list[int]] | None = None, temperatures: Mapping[str, float] | None = None,
    known: Mapping[str, KnownLayout] | None = None,
) -> Decision:
    """Choose a siRNA for every well and tell how sure that is.

    `scores`: index id_code, columns class numbers, natural-log probabilities; `wells` tells experiment, cell
    type and plate of each id_code. `settings.method`: "raw" takes the most likely class of each well; "greedy" the best
    score of all, then the best of what is left; "exact" the one-to-one assignment with the largest summed
    log-probability; "expected" the one with the largest expected number of right wells. They work per plate
    with `groups`, lists of class numbers that share a plate, and per experiment without. Where wells outnumber
    siRNAs each takes its best, and where groups do not fit the plates none are used; `note` says so.

    `rotations`: index of the group on plates 1, 2, ... of training experiments (`data.plates.rotations`); these
    layouts and their cyclic shifts share `settings.rotation_prior` among all permutations. `settings.min_group_posterior`: least
    posterior probability at which a permutation is believed; below it no groups are used for the experiment.
    `temperatures`: by cell type, from held-out wells (`temperatures.measured_temperatures`); of other cell types the
    wells' quarrels tell, block by block. `known`: by experiment, the layout where one is known (`known.known_layouts`).

    Columns of `experiments`, by experiment: cell_type; wells; route ("raw" | "one-to-one" | "groups" | "known
    layout"); method; group_on_plate (numbers of the groups from 1, plate by plate; None where none are used);
    group_confidence (of the likeliest permutation; NaN without groups); rotation (whether that is one; None
    where none is known); surprise_bits (by how much the scores alone like another permutation better than any
    rotation); temperature (geometric mean over blocks); note (also where a temperature that no
    labelled well measured is beyond belief). Raises InputError when a well is unknown, a
    score is no number, an experiment has two cell types, or nothing is scored.
    """
    screen, turns, plans, known = as_score_matrix(scores, wells), shifts(rotations or {}), [], known or {}
    if settings.method == "greedy" or screen.values.min() == -np.inf:  # then one well's scores are weighed against another's
        screen = normalise_scores(screen)
    for name, rows in screen.experiments.items():
        layout = known.get(name, NO_LAYOUT)
        if len(layout.sirnas):
            plan = _plan_known_layout(screen, name, rows, layout, method=settings.method)
        elif groups:
            plan = _plan_groups(screen, name, rows, groups, settings=settings, turns=turns)
        else:
            plan = _plan_experiment(screen, name, rows, method=settings.method)
        plans.append(replace(plan, note=_join_notes(layout.note, plan.note)))
    return Decision(screen, plans, settings.method, dict(temperatures or {}), scores.index)


def assign(scores: pd.DataFrame, wells: pd.DataFrame, settings: AssignmentSettings = AssignmentSettings(), **design: Any) -> pd.Series:
    """The predictions of `decide` alone, siRNA by id_code; `design`: its other arguments. Raises what it raises."""
    return decide(scores, wells, settings, **design).predictions


def _plan_experiment(screen: ScoreMatrix, name: str, rows: np.ndarray, *, method: str,
           choice: GroupChoice | None = None, note: str = "") -> AssignmentPlan:
    """All wells of an experiment share all siRNAs."""
    part = assignment_problem(screen, name, rows, np.arange(len(screen.classes)))
    crowd = "" if method == "raw" else part.crowded
    return AssignmentPlan(name, "raw" if crowd or method == "raw" else "one-to-one", [part], choice, _join_notes(note, crowd))


def _plan_groups(screen: ScoreMatrix, name: str, rows: np.ndarray, groups: list[list[int]], *, settings: AssignmentSettings,
               turns: set[tuple[int, ...]]) -> AssignmentPlan:
    """Each plate with its group where the groups fit and the permutation is certain enough, else the whole experiment."""
    method = settings.method
    members = np.stack([np.isin(screen.classes, group) for group in groups], axis=1)
    numbers, plates = np.unique(screen.plates[rows], return_inverse=True)
    unscored = "" if members.any(0).all() else "a plate group without a scored siRNA"
    if fault := groups_obstacle(len(numbers), len(groups)) or unscored:
        return _plan_experiment(screen, name, rows, method=method, note=f"{fault}: no groups used")
    here = {tuple(turn[plate - 1] for plate in numbers) for turn in turns if len(turn) >= numbers[-1]}
    likely = log_group_probabilities(screen.of(rows), members.astype(np.float32))
    choice = choose_groups(likely, plates, rotations=sorted(here), rotation_prior=settings.rotation_prior)
    if choice.confidence < settings.min_group_posterior:
        note = f"two permutations are too close ({choice.confidence:.2f}): no groups used"
        return _plan_experiment(screen, name, rows, method=method, choice=choice, note=note)
    parts = [
        assignment_problem(screen, name, rows[plates == plate], np.flatnonzero(members[:, group]), trust=float(trust))
        for plate, (group, trust) in enumerate(zip(choice.group_on_plate, choice.on_its_plate, strict=True))
    ]
    crowds = [f"plate {number}, {part.crowded}" for number, part in zip(numbers, parts, strict=True) if part.crowded]
    return AssignmentPlan(name, "groups", parts, choice, _join_notes(*crowds) if method != "raw" else "")


def _plan_known_layout(screen: ScoreMatrix, name: str, rows: np.ndarray, layout: KnownLayout, *, method: str) -> AssignmentPlan:
    """The siRNAs of a known layout; wells that it does not have share the siRNAs that are left, or all where none are."""
    sirnas = layout.sirnas.reindex(screen.id_codes[rows])
    rest = rows[sirnas.isna().to_numpy()]
    settled = dict(zip(rows[sirnas.notna().to_numpy()].tolist(), sirnas.dropna().astype(int).tolist(), strict=True))
    left = np.flatnonzero(~np.isin(screen.classes, list(settled.values())))
    parts = [assignment_problem(screen, name, rest, left if len(left) else np.arange(len(screen.classes)))] if len(rest) else []
    note = parts[0].crowded if parts and method != "raw" else ""
    return AssignmentPlan(name, "known layout", parts, note=note, settled=settled, settled_confidence=layout.confidence)


def _join_notes(*notes: str) -> str:
    return "; ".join(filter(None, notes))


# What the design of a screen tells the decision, from the tables.


def plate_design(wells: pd.DataFrame, settings: AssignmentSettings = AssignmentSettings()) -> dict[str, Any]:
    """The arguments of `assign.decide` that hold for a whole screen: the settings, plate groups and rotations.

    `wells`: of all cell types, columns as in `Tables.wells`; only labelled ones tell. Without `settings.plate_groups`, or where the
    tables show none, there are none, and each siRNA is once in an experiment.
    """
    known = plate_groups(wells) if settings.plate_groups else []
    return {"settings": settings, "groups": known, "rotations": rotations(wells, known) if known else None}
