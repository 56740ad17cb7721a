"""The work of the training notebooks: the wells of one cell type, their images, a network, and the phases that train it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd

from cellsignal.data.images.reader import whole_sites
from cellsignal.data.tables.plate_design import plate_groups, rotations
from cellsignal.data.tables.splits import TEST, TRAIN, inner_wells, of_cell_type, split_sites
from cellsignal.learn.batches.augment import build_augmentation
from cellsignal.learn.batches.dataset import SiteImages, concat_images, make_train_held_out, same_data_set
from cellsignal.learn.devices import pick_device
from cellsignal.learn.networks.batchnorm import no_batchnorm_note
from cellsignal.learn.networks.classifier import Classifier, load_body, load_weights
from cellsignal.learn.networks.covariates import covariate_levels, plate_warning
from cellsignal.learn.networks.pretrained import load_pretrained
from cellsignal.learn.settings import NetworkSettings
from cellsignal.learn.training.fit import History, TrainingSites, fit
from cellsignal.learn.training.phase import Phase
from cellsignal.run.inputs import find_pretrained, open_tables
from cellsignal.run.recipe import network_seed, phase_prefix, pretrained_weights_name
from cellsignal.run.record.session import Session
from cellsignal.show.curves import LiveCurves


class NetworkTraining:
    """The training of one network on one cell type ("all" for all of them), as the recipe of a session describes it.

    `root`: the folder of the images; `wells`: those of every cell type; `sites`: one row per site of this cell type that has all its
    images, with its `split` ("train", "held_out", "test"); `notes`: what was left out, in lines; `seed`: of weights and batches,
    another one for each member of an ensemble. Raises InputError for a cell type that does not exist, and as `open_tables` does.
    """

    def __init__(self, session: Session, *, cell_type: str, network_name: str) -> None:
        recipe = session.recipe
        tables = open_tables(recipe.data, run=session.folder, preset=recipe.preset, seed=recipe.seed, experiments=recipe.wells.experiments,
                             packed_size=recipe.wells.packed_size)
        sites, on_edge = of_cell_type(tables.sites, cell_type, cell_types=recipe.wells.cell_types), []
        if recipe.wells.drop_edge_wells:
            sites, on_edge = inner_wells(sites)
        sites, incomplete = whole_sites(tables.root, sites)
        self.session, self.cell_type, self.network_name = session, cell_type, network_name
        self.root, self.wells, self.seed = tables.root, tables.wells, network_seed(recipe.seed, network_name)
        self.sites = sites.assign(split=split_sites(tables.wells, sites, recipe.wells.held_out, seed=recipe.seed))
        self.notes = "\n".join([*on_edge, *(incomplete or ["every site is complete"])])

    def data_sets(self, sites: pd.DataFrame) -> tuple[SiteImages, SiteImages]:
        """The training and the held-out sites of a table, with common classes; only the training sites are augmented."""
        augment = build_augmentation(self.session.recipe.augmentation.pretraining, seed=self.seed)
        return make_train_held_out(self.root, sites, augment=augment)

    def control_network(self, train: SiteImages) -> Classifier:
        """A network for the classes of the controls, its body from `network.pretrained` where the recipe names weights."""
        recipe = self.session.recipe
        return self._with_pretrained_body(self._classifier(recipe.network.pretraining, train))

    def treatment_network(self, train: SiteImages) -> Classifier:
        """A network with a new head, its body from the training on the controls, else from `network.pretrained`, else from the seed."""
        recipe = self.session.recipe
        model = self._classifier(recipe.network.classifier, train)
        if recipe.training.pretrain_epochs:
            load_body(model, self.weights_path("controls"))
            return model
        return self._with_pretrained_body(model)

    def _classifier(self, settings: NetworkSettings, train: SiteImages) -> Classifier:
        levels = covariate_levels(train.sites, settings.covariates)
        return Classifier(settings, channels=len(train.channels), classes=len(train.class_numbers), seed=self.seed, levels=levels)

    def _with_pretrained_body(self, model: Classifier) -> Classifier:
        recipe = self.session.recipe
        if recipe.network.pretrained:
            load_pretrained(model, find_pretrained(recipe.network.pretrained, recipe.network.backbone))
        return model

    def describe(self, model: Classifier) -> str:
        """The origin of a network's body, its inputs besides the image, and warnings, in lines."""
        lines = [f"body from {model.origin}", no_batchnorm_note(model)]
        if model.covariates:
            lines.append(f"inputs besides the image: {', '.join(model.covariates)}")
        if "plate" in model.covariates:
            trained_sites = self.sites[(self.sites["split"] == TRAIN) & (self.sites["well_type"] == "treatment")]
            trained_wells = self.wells[self.wells["experiment"].isin(trained_sites["experiment"])]
            lines.append(plate_warning(rotations(trained_wells, plate_groups(self.wells))))
        return "\n".join(filter(None, lines))

    def with_controls_and_test_wells(self, train: SiteImages, held_out: SiteImages) -> TrainingSites:
        """The sites of a training, with the controls that `control_features` refers to, and test wells for `pseudo_label_epochs`."""
        recipe = self.session.recipe
        uses_controls, pseudo_labels = recipe.network.control_features, recipe.training.pseudo_label_epochs > 0
        references = self.sites[self.sites["well_type"] != "treatment"]
        controls = same_data_set(train, references) if (uses_controls or pseudo_labels) and len(references) else None
        sites = TrainingSites(train, held_out, controls=controls if uses_controls else None)
        test = self.sites[(self.sites["split"] == TEST) & (self.sites["well_type"] == "treatment")]
        if not pseudo_labels or test.empty:
            return sites
        from cellsignal.decide.assign.assign import plate_design  # here, because most trainings decide nothing
        from cellsignal.decide.pseudo_labels import PseudoLabels

        unlabelled = same_data_set(train, test, augment=train.augment)
        relabel = PseudoLabels(unlabelled, self.wells, plate_design(self.wells, recipe.assignment.pseudo_labels), training=recipe.training.whole,
                               precision=recipe.machine.precision, controls=controls, held_out=held_out)
        return replace(sites, unlabelled=unlabelled, relabel=relabel)

    def fit_controls(self, model: Classifier, sites: TrainingSites) -> History:
        """Train a network on the controls; see `fit`."""
        recipe = self.session.recipe
        return self.fit(model, sites, Phase(name="controls", training=recipe.training.pretraining, augmentation=recipe.augmentation.pretraining, seed=self.seed))

    def fit_head(self, model: Classifier, sites: TrainingSites) -> None:
        """Train the head alone for `head_epochs` epochs; see `fit`."""
        recipe = self.session.recipe
        if recipe.training.head_epochs:
            self.fit(model, sites, Phase(
                name="head", training=recipe.training.head, augmentation=recipe.augmentation.pretraining, seed=self.seed, trainable="head"))

    def fit_whole(self, model: Classifier, sites: TrainingSites) -> History:
        """Train the whole network; see `fit`."""
        recipe = self.session.recipe
        return self.fit(model, sites, Phase(name="whole", training=recipe.training.whole, augmentation=recipe.augmentation.whole, seed=self.seed))

    def fit_all_wells(self, model: Classifier, sites: TrainingSites) -> History:
        """Train on the held-out wells too, for `final_epochs` epochs; see `fit`. Without such epochs an empty history."""
        recipe = self.session.recipe
        if not recipe.training.final_epochs:
            return []
        all_wells = replace(sites, train=concat_images(sites.train, sites.held_out), held_out=None)
        return self.fit(model, all_wells, Phase(name="final", training=recipe.training.final, augmentation=recipe.augmentation.final, seed=self.seed))

    def fit(self, model: Classifier, sites: TrainingSites, phase: Phase) -> History:
        """Train a network through one phase, within the time budget, from the checkpoints of earlier sessions, and draw its curves.

        Without test wells there are no epochs with pseudo-labels. Returns the history of all phases so far; see `fit.fit`.
        """
        if sites.relabel is None:
            phase = phase.model_copy(update={"training": phase.training.model_copy(update={"pseudo_label_epochs": 0})})
        weights, session = self.weights_path(phase.name), self.session
        return fit(model, sites, phase, weights=weights, machine=session.recipe.machine, budget=session.time_budget,
                   resume_folders=session.resume_folders("weights", self.cell_type), on_epoch=LiveCurves(title=f"{self.cell_type}: {weights.stem}"))

    def weights_path(self, phase: str) -> Path:
        """The path of the weights of a phase: "controls", "head", "whole" or "final"."""
        names = {"controls": pretrained_weights_name(self.network_name), "whole": self.network_name}
        name = names.get(phase, f"{phase_prefix(self.network_name)}{phase}")
        return self.session.folder / "weights" / self.cell_type / f"{name}.safetensors"

    def predict(self, wells: SiteImages) -> pd.Series:
        """The siRNA of each treatment well with the highest score of the best weights of the whole network, by id_code.

        With adapted statistics of the kinds of wells that were in the training batches. Empty when there are no wells.
        """
        if not len(wells):
            return pd.Series(dtype="int64")
        from cellsignal.decide.predict.inference import score_images

        recipe = self.session.recipe
        model, config = load_weights(self.weights_path("whole"))
        controls = self.sites[(self.sites["well_type"] != "treatment") & self.sites["experiment"].isin(wells.sites["experiment"])]
        controls = controls[controls["well_type"].isin(config.well_types) | config.control_features]
        scores = score_images(model.to(pick_device(recipe.machine.device)), config, wells, same_data_set(wells, controls) if len(controls) else None,
                              scope=recipe.training.batch_scope, precision=recipe.machine.precision)
        return scores.idxmax(axis=1)
