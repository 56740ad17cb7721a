"""Pseudo-labels: the assigned siRNAs of unlabelled wells, the most confident first, as labels for training.

The winner of the competition used 40 % of the test wells and 1.5 % more in each epoch, ranked by the margin between the two
best classes of a greedy assignment (discussion 110543, +0.7 points for a single network). Here the assignment is one-to-one, and
the confidence is the probability that the siRNA is right given all constraints.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from cellsignal.decide.assign.assign import decide
from cellsignal.decide.assign.temperature import decided_temperatures
from cellsignal.decide.predict.inference import score_images
from cellsignal.learn.batches.dataset import SCOPES, SiteImages, sites_fingerprint
from cellsignal.learn.networks.batchnorm import REFINEMENTS
from cellsignal.learn.networks.classifier import ModelConfig
from cellsignal.learn.settings import TrainingSettings

ScoreImages = Callable[..., pd.DataFrame]
MIN_HELD_OUT_SHARE = 0.5  # of a plate's treatment wells, for its statistics to be the plate's (images may be missing)


@dataclass(frozen=True)
class PseudoLabels:
    """Labels of the sites of unlabelled experiments, predicted anew by the network before each epoch (for `learn.training.fit`).

    `data`: the treatment sites to be labelled. `controls`: control sites of the same plates (and of the held-out ones), which
    count for the statistics if their kind was in the training batches, and serve a network with control features. `held_out`:
    labelled sites outside the training set; they calibrate the temperature if whole plates (or what the batch scope says) are
    held out, otherwise conflicts between wells do. `wells`: columns as in `Tables.wells`. `design`: arguments of
    `assign.decide` from `plate_design`. The first of the last `training.pseudo_label_epochs` epochs uses the share
    `pseudo_label_share` of the wells, every later one `pseudo_label_increment` more. `predict`: `score_images`, or a function with
    the same signature.
    """

    data: SiteImages
    wells: pd.DataFrame
    design: Mapping[str, Any]
    training: TrainingSettings = TrainingSettings()
    precision: str = "auto"
    controls: SiteImages | None = None
    held_out: SiteImages | None = None
    predict: ScoreImages = field(default=score_images)

    def __call__(self, model: nn.Module, config: ModelConfig, epoch: int) -> np.ndarray:
        """The class index of each site of `data`, int64, -1 for unused sites; it depends on weights and epoch alone."""
        predictions, confidence = self.predict_wells(model, config)
        most_confident = confidence.sort_values(ascending=False, kind="stable").index[: self.num_wells(len(confidence), epoch)]
        numbers = self.data.sites["id_code"].map(predictions.loc[most_confident])
        return pd.Index(config.class_numbers).get_indexer(numbers.astype("Int64").fillna(-1)).astype(np.int64)

    @property
    def facts(self) -> dict[str, Any]:
        """What the labels depend on besides weights, epoch and images, for JSON."""
        tables = {"design": sorted(self.design.items()), "wells": sites_fingerprint(self.wells.assign(stem=self.wells["id_code"]))}
        sets = {name: None if images is None else sites_fingerprint(images.sites)
                for name, images in (("controls", self.controls), ("held_out", self.held_out))}
        text = json.dumps({**tables, **sets}, sort_keys=True, default=str)
        return {"training": self.training.model_dump(), "precision": self.precision,
                "known": hashlib.sha256(text.encode()).hexdigest()[:16]}

    @property
    def images_per_labelling(self) -> int:
        """The number of forward passes of an image in a labelling, if no plate fits in memory as one batch."""
        return (1 + REFINEMENTS) * sum(len(images) for images in (self.data, self.controls, self.held_out) if images is not None)

    def num_wells(self, wells: int, epoch: int) -> int:
        """The number of wells, out of `wells`, that are used in an epoch."""
        settings = self.training
        first_epoch = settings.epochs - settings.pseudo_label_epochs
        return round(wells * min(1.0, settings.pseudo_label_share + settings.pseudo_label_increment * max(0, epoch - first_epoch)))

    def predict_wells(self, model: nn.Module, config: ModelConfig) -> tuple[pd.Series, pd.Series]:
        """siRNA and confidence of every unlabelled well, by id_code in ascending order."""
        scores = self._scores(model, config, self.data).sort_index()
        decision = decide(scores, self.wells, temperatures=self._temperatures(model, config), **self.design)
        return decision.predictions, decision.confidence

    def _temperatures(self, model: nn.Module, config: ModelConfig) -> dict[str, float]:
        labelled = self._calibration_wells()
        if labelled.empty:
            return {}
        scores = self._scores(model, config, self.held_out)
        return decided_temperatures(scores, labelled.astype({"sirna": "int64"}), self.wells, **self.design)

    def _calibration_wells(self) -> pd.DataFrame:
        """The held-out treatment wells of plates (or other scopes) that are held out as a whole; index id_code."""
        # A few wells of a plate, as a random split holds out, have other statistics than the plate, and so other scores: their
        # temperature would not be that of the test wells.
        if self.held_out is None:
            return pd.DataFrame()
        sites, keys = self.held_out.sites, SCOPES[self.training.batch_scope] or SCOPES["experiment"]
        held_out = sites[sites["well_type"] == "treatment"].drop_duplicates("id_code").set_index("id_code")
        scope_sizes = self.wells[self.wells["well_type"] == "treatment"].groupby(keys).size().rename("wells_in_scope")
        num_wells = held_out.join(scope_sizes, on=keys)["wells_in_scope"].fillna(0)
        return held_out[held_out.groupby(keys)["stem"].transform("size") >= MIN_HELD_OUT_SHARE * num_wells]

    def _scores(self, model: nn.Module, config: ModelConfig, data: SiteImages) -> pd.DataFrame:
        return self.predict(model, config, data, self.controls, scope=self.training.batch_scope, precision=self.precision)
