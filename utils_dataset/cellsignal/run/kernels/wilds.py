"""The benchmark RxRx1-WILDS, in the order of its notebook: tables, one network, scores of sites, accuracy by split, predictions."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from cellsignal.data.images.reader import read_sites, whole_sites
from cellsignal.data.simulated import is_simulated
from cellsignal.data.tables.wells import EVALUATED_SPLITS, TRAIN_SPLIT, VALIDATION_SPLIT
from cellsignal.decide.evaluate.split_accuracy import evaluate_splits, write_predictions, write_site_answers
from cellsignal.decide.predict.site_scores import score_sites, stored_site_scores
from cellsignal.files import write_json
from cellsignal.learn.batches.augment import build_augmentation
from cellsignal.learn.batches.dataset import make_train_held_out
from cellsignal.learn.networks.classifier import Classifier
from cellsignal.learn.networks.pretrained import load_pretrained
from cellsignal.learn.training.fit import TrainingSites
from cellsignal.run import inputs
from cellsignal.run.record.session import Session
from cellsignal.show.eda.plots import save, show_wells
from cellsignal.tasks import TASKS

NO_IMAGES = "decided on stored scores: no image is opened"


class SplitBenchmark:
    """Trains one network on the training sites, scores each other site alone, and measures by split; the methods are in the notebook's order.

    `session`: of the notebook. `start_from`: "weights" trains nothing, "scores" opens neither weights nor images. Raises InputError for
    tables or images with a fault, and for settings that the benchmark cannot have.

    `sites`: one row per site as `read_benchmark_sites` gives them; `class_numbers`: the classes of the training sites.
    """

    def __init__(self, session: Session, *, start_from: str = "") -> None:
        recipe = session.recipe
        inputs.check_one_network(recipe.prediction.statistics, recipe.network.standardise)
        self.session, self.folder, self.start_from, self.task = session, session.folder, start_from, TASKS[recipe.task]
        self.root, self.sites = inputs.open_benchmark_sites(recipe.data, run=self.folder, task=self.task)
        if start_from != "scores":
            whole_sites(self.root, self.sites, channels=self.task.suffixes)  # each id is of one site, so a missing image is an error
        self.class_numbers = sorted(self.sites.loc[self.sites["split"] == TRAIN_SPLIT, "sirna"].unique().tolist())
        self.weights = self.folder / "weights" / recipe.task / "model.safetensors"

    def splits(self) -> pd.DataFrame:
        """Experiments, plates, wells, sites and classes of each split."""
        plates = self.sites["experiment"] + "_" + self.sites["plate"].astype(str)
        by_split = self.sites.assign(plate_id=plates).groupby("split")
        table = pd.DataFrame({name: by_split[column].nunique() for name, column in (
            ("experiments", "experiment"), ("plates", "plate_id"), ("wells", "well_id"), ("sites", "id_code"), ("classes", "sirna"))})
        return table.reindex([TRAIN_SPLIT, *EVALUATED_SPLITS])

    def show_sites(self) -> Figure | str:
        """A training site of each cell type as a composite beside its channels, kept as eda/training_sites.png; a sentence when no image is opened."""
        if self.start_from == "scores":
            return NO_IMAGES
        shown = self.sites[self.sites["split"] == TRAIN_SPLIT].drop_duplicates("cell_type").sort_values("cell_type")
        images = list(read_sites(self.root, shown, channels=self.task.suffixes))
        return save(show_wells(images, shown["experiment"].tolist(), task=self.task), self.folder / "eda/training_sites.png")

    @property
    def networks_to_train(self) -> range:
        """One network; none where weights or scores are stored."""
        return range(0 if self.start_from else 1)

    def network(self) -> Classifier:
        """The untrained network, with pretrained weights if the recipe names some."""
        recipe = self.session.recipe
        model = Classifier(recipe.network.labels, channels=len(self.task.suffixes), classes=len(self.class_numbers), seed=recipe.seed)
        if recipe.network.pretrained:
            load_pretrained(model, inputs.find_pretrained(recipe.network.pretrained, recipe.network.backbone))
        return model

    def training_sites(self) -> TrainingSites:
        """The training sites, augmented, and those of the validation split, by which the best epoch is chosen.

        Epochs are scored under the statistics that the prediction will have: running ones, or those of the held-out sites of a plate.
        """
        recipe = self.session.recipe
        names = {TRAIN_SPLIT: "train", VALIDATION_SPLIT: "held_out"}
        parts = self.sites[self.sites["split"].isin(names)].assign(split=self.sites["split"].map(names))
        train, held_out = make_train_held_out(self.root, parts, augment=build_augmentation(recipe.augmentation.labels, seed=recipe.seed),
                                              channels=self.task.suffixes, class_numbers=self.class_numbers)
        statistics = "running" if recipe.prediction.statistics == "running" else "batch"
        return TrainingSites(train, held_out, task=self.task.name, held_out_statistics=statistics)

    def fit_options(self) -> dict[str, Any]:
        """The arguments of `fit`: the path of the weights, the machine, the time budget."""
        return {"weights": self.weights, "machine": self.session.recipe.machine, "budget": self.session.time_budget,
                "resume_folders": self.session.resume_folders("weights", self.task.name)}

    def score(self) -> dict[str, pd.DataFrame]:
        """The scores of every site of the evaluated splits by kind, the last of which is the recipe's; raises TimeSpent between two experiments."""
        recipe = self.session.recipe
        asked, settings, out = self.sites[self.sites["split"].isin(EVALUATED_SPLITS)], recipe.prediction.sites, self.folder / "scores/model"
        if self.start_from == "scores":
            self.scores = stored_site_scores(out, asked, settings)
        else:
            self.scores = score_sites(self.root, asked, settings, weights=self.weights, channels=self.task.suffixes, out=out,
                                      machine=recipe.machine, budget=self.session.time_budget)
        return self.scores

    def evaluate(self) -> list[dict]:
        """Accuracy by split of each kind of scores, as `evaluate_splits` gives it; the last rows of a split are the recipe's."""
        rows = [row for kind, scores in self.scores.items() for row in evaluate_splits(scores, self.sites, rung=kind)]
        self.rows = sorted(rows, key=lambda row: EVALUATED_SPLITS.index(row["split"]))
        return self.rows

    def submit(self) -> pd.DataFrame:
        """Write submission.csv, the benchmark's own files of predictions, and metrics.json; returns the answers beside the truth."""
        answers = list(self.scores.values())[-1].idxmax(axis=1)
        write_json(self.folder / "metrics.json", {"metric": self.task.metric, "task": self.task.name, "splits": self.rows,
                                                  "notes": [], "simulated": is_simulated(self.root)})
        write_predictions(self.folder / "predictions", answers, sites=self.sites, seed=self.session.recipe.seed)
        write_site_answers(self.folder / "submission.csv", answers, sites=self.sites, task=self.task)
        asked = self.sites[self.sites["id_code"].isin(answers.index)].set_index("id_code")
        return asked[["split", "sirna"]].assign(answer=answers.reindex(asked.index))
