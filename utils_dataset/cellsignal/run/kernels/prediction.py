"""The prediction of a run, in the order of its notebook: plates, scores, refinements, plate groups, ladder, decision, submission."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from cellsignal.budget import TimeSpent
from cellsignal.data.control_separation import channel_means, control_separation, separation_lines
from cellsignal.data.images.reader import whole_sites
from cellsignal.data.simulated import is_simulated
from cellsignal.data.tables.splits import inner_wells, split_sites
from cellsignal.data.tables.wells import read_pixel_stats, select
from cellsignal.decide.assign.assign import Decision, assign, decide, plain_records, plate_design
from cellsignal.decide.assign.calibration import expected_calibration_error
from cellsignal.decide.assign.estimated_accuracy import estimate_accuracy
from cellsignal.decide.assign.known_layouts import known_layouts
from cellsignal.decide.assign.temperature import decided_temperatures
from cellsignal.decide.embeddings import FEATURE, write_embeddings
from cellsignal.decide.evaluate.answers import ANSWERS_FILE, design_digest, known_answers, without_answers, write_known_answers
from cellsignal.decide.evaluate.baseline import linear_baseline
from cellsignal.decide.evaluate.ladder import BRODT, evaluate_ladder
from cellsignal.decide.evaluate.prediction_sets import (
    coverage_table, held_out_levels, prediction_sets, most_confident_wells, write_prediction_sets,
)
from cellsignal.decide.predict.predict import ScoringOptions, auto_note, embed_experiments, scope_note, score_networks, statistics_note
from cellsignal.decide.predict.weights import trained_cell_types
from cellsignal.decide.refine import average_scores, refine_scores
from cellsignal.decide.settings import PLATE_STATISTICS, AssignmentSettings
from cellsignal.decide.submission import remove_submission, sets_path, write_submission
from cellsignal.errors import InputError
from cellsignal.files import write_json
from cellsignal.run import inputs
from cellsignal.run.recipe import ensemble_members, last_weights_name
from cellsignal.run.record.session import Session
from cellsignal.show.prediction import experiments_to_map

EMBEDDINGS_FILE = "embeddings.parquet"
MAP_NETWORK = "model"  # whose embeddings are on the map
MAX_MAP_SIRNAS = 100  # whose wells are all on a map of embeddings
PSEUDO_LABEL_NOTE = "networks learned from pseudo-labels, which are chosen with the plate groups: accuracies and confidences estimated from the groups may be too high"
NO_IMAGES = "assigned from stored scores: no image was opened, so missing images are not reported"


class Predictor:
    """Scores the plates of a run with its networks, and decides. Call the methods in their order: each needs those before it.

    `session`: of the notebook. `start_from`: "scores" decides on the scores in the run folder, and opens neither weights nor images.
    `score_only`: experiments to score without a decision; empty for all. Raises InputError for tables, weights or images with a fault.

    `root`: the data set. `wells`: the wells of the cell types that have networks, with their split ("train", "held_out", "test");
    `known_wells`: the same with the siRNAs of the solution, where there is one. `sites`: all sites of these wells that are complete;
    `images`: those that may be opened, none with stored scores. `truth`: siRNA by id_code of the wells that measure the prediction: test
    wells if a solution is there, else held-out ones.
    """

    def __init__(self, session: Session, *, start_from: str = "", score_only: Sequence[str] = ()) -> None:
        recipe = self.recipe = session.recipe
        self.session, self.folder, self.stored, self.score_only = session, session.folder, start_from == "scores", score_only
        self.all_tables = inputs.open_tables(
            recipe.data, run=self.folder, preset=recipe.preset, seed=recipe.seed, experiments=recipe.wells.experiments,
            packed_size=0 if self.stored else recipe.wells.packed_size)
        self.requested_tables = select(self.all_tables, cell_types=recipe.wells.cell_types)
        self.members = list(ensemble_members(recipe.network.backbone, recipe.network.ensemble))
        self.finals = [last_weights_name(name, final=True) for name in self.members if recipe.training.final_epochs]
        self.embedded_network = (self.finals or self.members)[0]  # the submission's first one, whose embeddings are written
        self.networks = [*["plain"] * recipe.training.ablate_virtual_batch, *self.members, *self.finals]
        cell_types, self.left_out = sorted(self.requested_tables.wells["cell_type"].unique()), ""
        if not self.stored:
            cell_types, self.left_out = trained_cell_types(
                self.folder / "weights", cell_types, networks=self.networks, explicit=bool(recipe.wells.cell_types), joint=recipe.network.one_network)
        self.tables = select(self.requested_tables, cell_types=cell_types)
        self.root = self.tables.root
        self.wells = self.tables.wells.assign(split=split_sites(self.all_tables.wells, self.tables.wells, recipe.wells.held_out, seed=recipe.seed))
        self._find_sites()
        self.embeddings = pd.DataFrame()
        self.truths = self._truths()
        self.truth = next(iter(self.truths.values()), pd.Series(dtype=int))

    def _find_sites(self) -> None:
        recipe = self.recipe
        chosen, on_edge = inner_wells(self.tables.sites) if recipe.wells.drop_edge_wells else (self.tables.sites, [])
        if self.score_only:
            chosen = chosen[chosen["experiment"].isin(self.score_only)]
        self.sites, incomplete = (chosen.copy(), [NO_IMAGES]) if self.stored else whole_sites(self.root, chosen)
        self.sites["split"] = split_sites(self.all_tables.wells, self.sites, recipe.wells.held_out, seed=recipe.seed)
        self.images = self.sites.iloc[:0] if self.stored else self.sites
        self.notes = [*incomplete, *on_edge, *[self.left_out] * bool(self.left_out)]
        unseen = self.sites.loc[self.sites["split"] != "train", "experiment"]
        self.sites_to_score = self.sites[self.sites["experiment"].isin(unseen)]

    def _truths(self) -> dict[str, pd.Series]:
        """siRNA by id_code of the wells whose answers measure the prediction, by split."""
        treatment = self._treatment
        held_out = treatment.loc[(treatment["split"] == "held_out") & treatment.index.isin(self.sites["id_code"]), "sirna"].astype(int)
        truths = {"test": self.tables.solution, "held_out": held_out}
        return {name: truth for name, truth in truths.items() if truth is not None and len(truth)}

    @property
    def _treatment(self) -> pd.DataFrame:
        return self.wells[self.wells["well_type"] == "treatment"].set_index("id_code")

    @cached_property
    def known_wells(self) -> pd.DataFrame:
        """`wells` with the siRNAs of the solution, for figures alone: nothing is learnt or decided from these."""
        solution = self.tables.solution
        return self.wells if solution is None else self.wells.assign(sirna=self.wells["sirna"].fillna(self.wells["id_code"].map(solution)))

    def experiments(self) -> pd.DataFrame:
        """The experiments to score by cell type and split, how many plates and wells they have, and whether their answers are known.

        Prints what was left out.
        """
        print(*self.notes or ["every site is complete"], sep="\n")
        some = self.sites_to_score
        plates = (some["experiment"] + "_" + some["plate"].astype(str)).groupby([some["cell_type"], some["split"]])
        by_split = some.groupby(["cell_type", "split"])
        table = by_split["experiment"].unique().map(", ".join).to_frame("experiments")
        known = [split in self.truths for _, split in table.index]
        return table.assign(plates=plates.nunique(), wells=by_split["id_code"].nunique(), known=known)

    @property
    def scoring(self) -> ScoringOptions:
        """How every network scores wells."""
        recipe = self.session.recipe
        return ScoringOptions(self.folder / "weights", recipe.network.one_network, recipe.prediction.wells, machine=recipe.machine)

    def score(self) -> dict[str, pd.DataFrame]:
        """The scores of each kind of statistics, by the first network of the ladder; those of the others are kept for the next methods.

        Index id_code, columns class numbers, natural-log probabilities; see `decide.predict.predict.score_experiments`. Ends the session
        when only some experiments were to be scored. Raises TimeSpent between two experiments.
        """
        recipe = self.recipe
        settings, first = recipe.prediction.wells, self.networks[0]
        answered = {name for truth in self.truths.values() for name in self._treatment["experiment"].reindex(truth.index).dropna()}
        if not self.stored:
            cell_types = self.sites_to_score["cell_type"].unique()
            note = scope_note(self.folder / "weights", cell_types, first, settings.statistics_scope, joint=recipe.network.one_network)
            self.notes += [note] * bool(note)
        training_sites = self.sites if settings.prototype_weight else None  # their embeddings make the prototypes
        scoring = replace(self.scoring, embedded_sites=training_sites, batch_experiments=None if settings.statistics == "batch" else answered)
        options = {name: replace(scoring, all_statistics=name == first) for name in self.networks}
        if not self.stored:
            embedded = replace(options[self.embedded_network], embedded_sites=self.sites_to_score if training_sites is None else training_sites)
            options[self.embedded_network] = replace(embedded, embed_controls=True)
        if "plain" in options:  # a rung of its own, without what comes above it
            options["plain"] = replace(options["plain"], settings=settings.model_copy(update={"tta_views": 1}), embedded_sites=None)
        self.scores = score_networks(
            self.root, self.sites_to_score, options, out=self.folder / "scores", budget=self.session.time_budget, stored=self.stored)
        if self.score_only:
            self.session.finish_early(f"scored {', '.join(self.score_only)}; the whole prediction decides")
        self.statistics_note = statistics_note(self.folder / "scores" / first)
        if note := auto_note(self.folder / "scores" / first):
            self.notes.append(note)
            print(note)
        return {kind: self.scores[first][kind] for kind in self.scores[first] if kind in PLATE_STATISTICS}

    def write_embeddings(self) -> pd.DataFrame:
        """Write embeddings.parquet: every well of the scored experiments, and of those that prototypes need (`decide.embeddings`); returns the table.

        Of the first network of the submission, under its statistics. Prints why, and returns no row, for stored scores without embeddings.
        """
        try:
            self.embeddings = write_embeddings(
                self.folder / EMBEDDINGS_FILE, self.folder / "scores" / self.embedded_network / "embeddings", self.wells_as_learnt(self.embedded_network),
                network=self.embedded_network, one_network=self.recipe.network.one_network, simulated=is_simulated(self.root))
        except InputError as error:
            if not self.stored:
                raise
            print(f"no {EMBEDDINGS_FILE}: {error}")
        return self.embeddings

    def wells_as_learnt(self, network: str) -> pd.DataFrame:
        """`known_wells`, where held-out wells count as training wells of a network that was trained further on all labelled wells."""
        return self.known_wells.replace({"split": {"held_out": "train"}}) if network in self.finals else self.known_wells

    def embed(self, statistics: Sequence[str] = ("running", "adapted")) -> dict[str, pd.DataFrame]:
        """Embeddings of some wells of one cell type under each kind of statistics, for a map: index id_code, one column per feature.

        Of up to six experiments whose siRNAs are known; of those with many wells only the plates that hold the first plate group, which has
        the same siRNAs in each. Those that `write_embeddings` has are taken over, and no image is read for them. Prints why, and returns none,
        when no image is opened or no time is left: a map is not worth another session.
        """
        settings, known = self.recipe.prediction.wells, self.known_wells
        plates = known[known["experiment"].isin(experiments_to_map(known))]
        groups = self.plate_design["groups"]
        if groups and settings.statistics_scope == "plate" and plates["sirna"].nunique() > MAX_MAP_SIRNAS:
            plates = plates[plates["sirna"].isin(groups[0])]
        chosen = self.images.merge(plates[["experiment", "plate"]].drop_duplicates())
        if chosen.empty:
            print(NO_IMAGES if self.stored else "no experiment has known siRNAs")
            return {}
        try:
            scoring = replace(self.scoring, settings=settings.model_copy(update={"tta_views": 1}))
            with TemporaryDirectory() as folder:  # for the map alone: no output of the run
                maps = {}
                for kind in statistics:
                    written = self._written_embeddings(chosen, kind)
                    others = chosen[~chosen["experiment"].isin(set(chosen.loc[chosen["id_code"].isin(written.index), "experiment"]))]
                    computed = embed_experiments(self.root, others, scoring, out=Path(folder), statistics=[kind], budget=self.session.time_budget) if len(others) else {}
                    maps[kind] = pd.concat([written, *computed.values()])
                    maps[kind] = maps[kind].loc[[name for name in chosen["id_code"].unique() if name in maps[kind].index]]
                return maps
        except TimeSpent:
            print("no time was left for these embeddings; another run of this notebook makes them")
            return {}

    def _written_embeddings(self, sites: pd.DataFrame, statistics: str) -> pd.DataFrame:
        """Embeddings of treatments in `sites` as `embed` makes them, from embeddings.parquet; no row where that is of another network, statistics or views."""
        settings = self.recipe.prediction.wells
        if self.embeddings.empty or (self.embedded_network, settings.statistics, settings.tta_views) != (MAP_NETWORK, statistics, 1):
            return pd.DataFrame()
        features = self.embeddings.set_index("Metadata_Id").filter(like=FEATURE).rename_axis("id_code")
        return features[features.index.isin(sites.loc[sites["well_type"] == "treatment", "id_code"])].set_axis(range(features.shape[1]), axis=1)

    def refine(self) -> pd.DataFrame:
        """Refine the scores of each network by views and prototypes, and average the networks; returns a row for each network.

        Columns, by network: refinements, and the scale of its cosines to the prototypes (missing without prototypes).
        """
        settings, one_network = self.recipe.prediction.wells, self.recipe.network.one_network
        refined = {name: refine_scores(self.scores[name], self.wells, settings, joint=one_network) for name in self.members}
        for final, name in zip(self.finals, self.members):  # a network that has learnt from the held-out wells cannot fit a scale on them
            fitted = settings.model_copy(update={"prototype_scale": refined[name].scale})
            refined[final] = refine_scores(self.scores[final], self.wells, fitted, joint=one_network)
        self.validated_scores = average_scores([refined[name].scores for name in self.members])  # held-out wells are new to these
        self.final_scores = average_scores([refined[name].scores for name in self.finals]) if self.finals else None
        self.rungs = {"virtual batch": self.scores["model"][settings.statistics]} if "plain" in self.networks else {}
        self.rungs |= {**refined["model"].rungs, **({"ensemble": self.validated_scores} if len(self.members) > 1 else {})}
        rows = {name: {"refinements": ", ".join(one.rungs) or "none", **({"scale": one.scale} if one.scale else {})} for name, one in refined.items()}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("network")

    @cached_property
    def plate_design(self) -> dict[str, Any]:
        """The plate design in the tables: the assignment's settings, groups of siRNAs that share a plate, and rotations by experiment."""
        return plate_design(self.all_tables.wells, self.recipe.assignment.wells)

    @cached_property
    def design(self) -> dict[str, Any]:
        """The arguments of `decide` that hold for all experiments: `plate_design`, and a temperature for each cell type whose held-out wells have errors."""
        treatment = self._treatment
        held_out = treatment[treatment["split"] == "held_out"]
        temperatures = decided_temperatures(self.validated_scores, held_out, self.all_tables.wells, **self.plate_design)
        return {**self.plate_design, "temperatures": temperatures}

    def decide(self) -> Decision:
        """A siRNA for every test well, by the last networks' scores and the plate design; from a known layout where the recipe allows it."""
        scores = (self.validated_scores if self.final_scores is None else self.final_scores).loc[self.tables.sample]
        layouts = known_layouts(self.all_tables.wells, scores) if self.recipe.assignment.known_layouts else {}
        self.decision = decide(scores, self.tables.wells, known_layouts=layouts, **self.design)
        return self.decision

    def evaluate(self) -> list[dict]:
        """The ladder: every rung's accuracy on the test and held-out wells whose siRNA is known, as `evaluate_ladder` gives it."""
        self.ladder = []
        for split, truth in self.truths.items():
            final = self._final_rungs if split == "test" else {}  # these have learnt the held-out wells
            self.ladder += evaluate_ladder(self.scores[self.networks[0]], self.wells, truth, statistics=self.recipe.prediction.statistics, split=split,
                                         design=self.design, refined=self.rungs, final=final)
        return self.ladder

    @property
    def _final_rungs(self) -> dict[str, pd.DataFrame]:
        """The scores of the networks that were trained further on all labelled wells, by rung."""
        last = "mixup" if self.recipe.augmentation.mixup_alpha else "all data"
        return {} if self.final_scores is None else {last: self.final_scores}

    @cached_property
    def estimated_accuracy(self) -> pd.DataFrame:
        """Accuracy of the test wells' raw answers on each raw rung, estimated from the plate groups and without labels.

        As `estimated_accuracy.estimate_accuracy` gives it, the true accuracy beside it where the siRNAs are known; no row if plates have no groups.
        """
        scores = {kind: table for kind, table in self.scores[self.networks[0]].items() if kind in PLATE_STATISTICS}
        tables = {rung: table[table.index.isin(self.tables.sample)] for rung, table in {**scores, **self.rungs, **self._final_rungs}.items()}
        answers = {rung: assign(table, self.wells, AssignmentSettings(method="raw")) for rung, table in tables.items() if len(table)}
        return estimate_accuracy(answers, self.wells, groups=self.design["groups"], choices=self.decision.choices, truth=self.truths.get("test"))

    @property
    def baseline_accuracy(self) -> float | None:
        """Accuracy of the linear baseline."""
        return self.linear_baseline and self.linear_baseline["accuracy"]

    @cached_property
    def linear_baseline(self) -> dict | None:
        """A logistic regression on channel means and deviations (`baseline.linear_baseline`); None without known answers."""
        stats = read_pixel_stats(self.root) if len(self.truth) else None
        return None if stats is None else linear_baseline(stats, self.wells, self.truth, train=self.wells["split"] == "train")

    @cached_property
    def control_separation(self) -> dict[str, pd.DataFrame]:
        """How far each plate's controls are apart (`control_separation`), by pixel_stats.csv and by the embeddings, where there are any."""
        tables = {}
        if read_pixel_stats(self.root) is not None:
            tables["channel means"] = control_separation(channel_means(self.root, self.sites), self.wells)
        if len(self.embeddings):
            features = self.embeddings.set_index("Metadata_Id").filter(like=FEATURE)
            tables["embeddings"] = control_separation(features, self.wells)
        return tables

    def check_answers(self) -> pd.DataFrame:
        """Answers to wells whose siRNA is known, test wells if there are such, else held-out ones decided in the same way.

        Index id_code; columns predicted, confidence, sirna, right.
        """
        decision = self.decision if "test" in self.truths else self.held_out_decision or self.decision
        answers = pd.DataFrame({"predicted": decision.predictions, "confidence": decision.confidence}).reindex(self.truth.index)
        return answers.assign(sirna=self.truth, right=answers["predicted"] == self.truth)

    @cached_property
    def held_out_decision(self) -> Decision | None:
        """The decision on held-out wells whose siRNA is known, made like that on test wells; None without such wells."""
        held_out = self.truths.get("held_out")
        return None if held_out is None else decide(self.validated_scores.loc[held_out.index], self.tables.wells, **self.design)

    @cached_property
    def sets(self) -> pd.DataFrame:
        """The prediction sets of the test wells, calibrated on the held-out experiments: see `prediction_sets.prediction_sets`."""
        return prediction_sets(self.decision, self._held_out_levels)

    @cached_property
    def _held_out_levels(self) -> pd.DataFrame | None:
        held_out = self.held_out_decision
        return None if held_out is None else held_out_levels(held_out, self.truths["held_out"])

    @cached_property
    def set_coverage(self) -> pd.DataFrame:
        """Size and coverage of the prediction sets by experiment, of test wells and of held-out ones, each experiment calibrated on the others.

        Columns: split, then those of `prediction_sets.coverage_table`.
        """
        tables = {"test": coverage_table(self.sets, self.truths.get("test"))}
        if (held_out := self.held_out_decision) is not None:
            tables["held_out"] = coverage_table(prediction_sets(held_out, self._held_out_levels), self.truths["held_out"])
        return pd.concat([table.assign(split=split) for split, table in tables.items()], ignore_index=True)

    @cached_property
    def most_confident_wells(self) -> pd.DataFrame:
        """Accuracy if only the surest wells are kept (`prediction_sets.most_confident_wells`), of the wells that `check_answers` checks, else of test wells."""
        answers = self.check_answers()
        return most_confident_wells(answers["confidence"], answers["right"]) if len(answers) else most_confident_wells(self.decision.confidence)

    def submit(self) -> pd.DataFrame:
        """Write the submission, its confidences and prediction sets, the metrics, and the answers for a comparison of runs; returns the submission.

        Without an answer for every test well there is no submission, and that of an earlier run is removed.
        """
        decision, solution = self.decision, self.tables.solution
        learned = self.recipe.training.pseudo_label_epochs > 0 and len(self.design["groups"]) > 1
        notes = [*self.notes, *[PSEUDO_LABEL_NOTE] * learned, *(line for name, table in self.control_separation.items() for line in separation_lines(table, name))]
        known = [] if solution is None else decision.predictions.index.intersection(solution.index)
        right = decision.predictions[known].eq(solution[known]) if len(known) else None
        write_json(self.folder / "metrics.json", {
            "ladder": without_answers(self.ladder), "brodt": BRODT, "statistics_note": self.statistics_note, "linear_baseline": self.linear_baseline,
            "notes": notes, "calibration_error": None if right is None else expected_calibration_error(decision.confidence[known], right),
            "estimated_accuracy": plain_records(self.estimated_accuracy), "prediction_sets": plain_records(self.set_coverage),
            "most_confident_wells": plain_records(self.most_confident_wells),
            "controls": {name: plain_records(table) for name, table in self.control_separation.items()},
            "experiments": decision.records, "plate_groups": self.design["groups"], "data": design_digest(self.root),
            "simulated": is_simulated(self.root)})
        write_known_answers(self.folder / ANSWERS_FILE, known_answers(self.ladder, self.truths, self.wells))
        answers = pd.DataFrame({"sirna": decision.predictions, "confidence": decision.confidence})
        unanswered = len(self.requested_tables.sample) - len(self.tables.sample)
        if unanswered:
            remove_submission(self.folder / "submission.csv")  # perhaps of an earlier run
            print(f"no submission, because {unanswered} test wells have no answer: {self.left_out}; "
                  "train these, attach the outputs, and run this again")
            return answers.iloc[:0]
        write_submission(self.folder / "submission.csv", decision.predictions, decision.confidence, sample=self.tables.sample)
        write_prediction_sets(sets_path(self.folder / "submission.csv"), self.sets, order=self.tables.sample)
        return answers
