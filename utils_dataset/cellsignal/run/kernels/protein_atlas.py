"""The Protein Atlas, in the order of its notebook: tables, folds, networks, probabilities, thresholds, submission."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cellsignal.data.images.reader import read_sites, whole_sites
from cellsignal.data.simulated import is_simulated
from cellsignal.data.tables.labelled_sites import (
    FOLDS_PACKAGE,
    fold_shares,
    multi_hot,
    same_images,
    split_of,
    stratified_folds,
    write_labels,
)
from cellsignal.decide.labels.ladder import evaluate_label_ladder
from cellsignal.decide.labels.multilabel import apply_thresholds, labels_by_id, write_labelled_submission
from cellsignal.decide.labels.predict import LabelledSites, LabelScores, fold_name, score_folds, stored_label_scores
from cellsignal.decide.labels.thresholds import THRESHOLD_METHODS, Thresholds, labels_digest, write_thresholds
from cellsignal.files import sha256, write_json
from cellsignal.learn.batches.augment import build_augmentation
from cellsignal.learn.batches.dataset import make_train_held_out
from cellsignal.learn.networks.classifier import Classifier
from cellsignal.learn.networks.pretrained import load_pretrained
from cellsignal.learn.training.fit import TrainingSites
from cellsignal.run import inputs
from cellsignal.run.inputs import find_pretrained
from cellsignal.run.record.session import Session
from cellsignal.show.results import multilabel
from cellsignal.show.eda.plots import save, show_wells
from cellsignal.tasks import TASKS

NO_IMAGES = "decided on stored scores: no image is opened, and the folds are those of the scores"


class ProteinAtlas:
    """Trains a network for each fold, scores all sites, and decides by thresholds; the methods are in the order of the notebook.

    `session`: of the notebook. `start_from`: "weights" trains nothing, "scores" opens neither weights nor images. Raises InputError for
    tables or images with a fault.

    `task`: what is asked of the images; `labelled`, `test`: one row per site; `labels`: class numbers of each labelled site; `truth`:
    the same as bool[N, classes].
    """

    def __init__(self, session: Session, *, start_from: str = "") -> None:
        recipe = session.recipe
        self.session, self.folder, self.start_from, self.task = session, session.folder, start_from, TASKS[recipe.task]
        self.tables = inputs.open_sites(recipe.data, run=self.folder, preset=recipe.preset, seed=recipe.seed, task=self.task)
        self.root, sites, self.notes = self.tables.root, self.tables.sites, []
        if start_from != "scores":
            sites, self.notes = whole_sites(self.root, sites, channels=self.task.suffixes)
        self.labelled, self.test = (sites[sites["dataset"] == kind].reset_index(drop=True) for kind in ("train", "test"))
        self.labels = self.labelled["labels"].tolist()
        self.truth = multi_hot(self.labels, self.task.classes).astype(bool)
        self.counts = self.truth.sum(axis=0).tolist()

    def named_labels(self) -> pd.DataFrame:
        """Labels of each labelled site, as numbers and as names: columns id_code, labels, names."""
        names = [", ".join(self.task.class_names[number] for number in numbers) for numbers in self.labels]
        return self.labelled.assign(names=names)[["id_code", "labels", "names"]]

    def class_frequencies(self) -> Figure:
        """How often each class occurs, kept as eda/classes.png."""
        return save(multilabel.class_frequencies(self.labels, self.task), self.folder / "eda/classes.png")

    def label_cooccurrence(self) -> Figure:
        """How often labels occur together, kept as eda/companions.png."""
        return save(multilabel.label_cooccurrence(self.labels, self.task), self.folder / "eda/companions.png")

    def show_sites(self, rows: Sequence[int]) -> Figure | str:
        """Some labelled sites as composites beside their channels, kept as eda/sites.png; a sentence when no image is opened."""
        if self.start_from == "scores":
            return NO_IMAGES
        images = list(read_sites(self.root, self.labelled.iloc[rows], channels=self.task.suffixes))
        figure = show_wells(images, [write_labels(self.labels[row]) for row in rows], task=self.task)
        return save(figure, self.folder / "eda/sites.png")

    def make_folds(self) -> pd.DataFrame | str:
        """Stratify the labelled sites by folds, sites with the same image in the same fold; returns the number of sites of each class (column) in each fold (row)."""
        if self.start_from == "scores":
            return NO_IMAGES
        inputs.attach_wheel(FOLDS_PACKAGE)  # Kaggle's sessions may have no internet
        same = same_images(self.root, self.labelled["stem"].tolist(), suffixes=self.task.suffixes)
        recipe = self.session.recipe
        self.folds = stratified_folds(self.labels, folds=recipe.wells.folds, classes=self.task.classes, seed=recipe.seed, groups=same)
        print(f"{len(same) - len(set(same))} sites show the image of another one")
        return fold_shares(self.labels, self.folds, classes=self.task.classes).T

    @property
    def folds_to_train(self) -> range:
        """The numbers of the folds; none where weights or scores are stored."""
        return range(0 if self.start_from else self.session.recipe.wells.folds)

    def network(self, fold: int) -> Classifier:
        """The untrained network of a fold, with pretrained weights if the recipe names some."""
        recipe = self.session.recipe
        model = Classifier(recipe.network.labels, channels=len(self.task.suffixes), classes=self.task.classes, seed=recipe.seed + fold)
        if self._pretrained:
            load_pretrained(model, self._pretrained)
        return model

    @cached_property
    def _pretrained(self) -> Any:
        recipe = self.session.recipe
        return find_pretrained(recipe.network.pretrained, recipe.network.backbone) if recipe.network.pretrained else None

    def sites(self, fold: int) -> TrainingSites:
        """The sites of a fold's training: those of all other folds, augmented, and its own as held-out sites."""
        recipe = self.session.recipe
        change = build_augmentation(recipe.augmentation.labels, seed=recipe.seed)
        parts = self.labelled.assign(split=split_of(self.folds, fold))
        train, held_out = make_train_held_out(
            self.root, parts, augment=change, channels=self.task.suffixes, class_numbers=range(self.task.classes))
        return TrainingSites(train, held_out, task=self.task.name)

    def fit_options(self, fold: int) -> dict[str, Any]:
        """The arguments of `fit` for a fold: the path of its weights, the machine, the time budget."""
        name = fold_name(fold)
        return {"weights": self.folder / "weights" / name / "model.safetensors", "machine": self.session.recipe.machine,
                "budget": self.session.time_budget, "resume_folders": self.session.resume_folders("weights", name)}

    def score(self) -> LabelScores:
        """The probability of each class at each site; raises TimeSpent between two parts."""
        settings = self.session.recipe.prediction.labels
        if self.start_from == "scores":
            self.scores = stored_label_scores(self.folder / "scores", self.labelled, self.test, combine=settings.combine)
        else:
            sites = LabelledSites(self.root, self.labelled, self.test, self.folds, self.task.suffixes)
            self.scores = score_folds(sites, settings, weights=self.folder / "weights", out=self.folder / "scores",
                                      machine=self.session.recipe.machine, budget=self.session.time_budget)
        return self.scores

    def evaluate(self) -> list[dict]:
        """Macro F1 of each kind of thresholds and of the baselines, as `evaluate_label_ladder` gives it; of test sites too where there is a solution."""
        labels = pd.Series(dtype=object) if self.tables.solution is None else self.tables.solution.reindex(self.test["id_code"])
        known = labels.notna().to_numpy()
        test = multi_hot(labels[known].tolist(), self.task.classes).astype(bool) if known.any() else None
        self.rungs = evaluate_label_ladder(self.scores, self.truth, train_labels=self.labels, test=test, known=known)
        return self.rungs

    def submit(self) -> pd.DataFrame:
        """Write thresholds, metrics and submission; returns the answers and probabilities of the test sites, one row per site."""
        recipe = self.session.recipe
        method, probabilities, ids = recipe.assignment.thresholds, self.scores.test, self.test["id_code"].tolist()
        values = THRESHOLD_METHODS[method](self.scores.held_out, self.truth, probabilities)
        networks = {path.parent.name: sha256(path) for path in sorted((self.folder / "weights").glob("fold-*/model.safetensors"))}
        labels = labels_digest(self.labelled["id_code"].tolist(), self.labels)
        write_thresholds(self.folder / "weights/thresholds.json",
                         Thresholds(tuple(values.tolist()), method, labels, len(self.labelled), networks, recipe.prediction.combine))
        answers = labels_by_id(apply_thresholds(probabilities, values), ids)
        write_labelled_submission(self.folder / "submission.csv", answers, sample=self.tables.sample, task=self.task)
        below = int((~(probabilities >= values).any(axis=1)).sum())
        write_json(self.folder / "metrics.json", {
            "metric": self.task.metric, "task": self.task.name, "rungs": self.rungs, "thresholds": method, "counts": self.counts,
            "notes": [*self.notes, *[f"{below} sites reached no threshold"] * bool(below)], "simulated": is_simulated(self.root)})
        return pd.DataFrame({"labels": answers.map(write_labels), "largest probability": np.round(probabilities.max(axis=1), 2)})
