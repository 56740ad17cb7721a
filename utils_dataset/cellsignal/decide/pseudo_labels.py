"""Pseudo-labels: what the exact assignment says of unlabelled wells, the surest first, for a network to learn from.

The winner of the competition took 40 % of the test wells and 1.5 % more each epoch, by the margin between the two
best classes of a greedy assignment (discussion 110543, +0.7 points for a single network). Here the assignment is
exact, and the confidence is the probability that the answer is right given all constraints.
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
MIN_HELD_OUT_SHARE = 0.5  # of a plate's treatment wells have to be held out for its statistics to be the plate's: pictures may be missing


@dataclass(frozen=True)
class PseudoLabels:
    """Labels for the sites of unlabelled experiments, made anew by the network before each epoch (for `train.fit`).

    `data`: the treatment sites to be labelled; `controls`: those of the same plates (and of the held-out ones), which
    count for the statistics where their kind filled the training batches, and which a network with control features
    refers to; `held_out`: labelled sites that the network does not learn from, which measure the temperature of the
    confidences where whole plates (or what `scope` says) are held out; without them the plates' own quarrels do.
    `wells`: columns as in `Tables.wells`; `design`: arguments of `assign.decide`, as `plate_design` gives them. Of the wells,
    `training.pseudo_label_share` are used in the first of the last `pseudo_label_epochs` epochs, and `pseudo_label_step` more in each
    one after it. `predict`: `predict.score_images`, or what answers like it.
    """

    data: SiteImages
    wells: pd.DataFrame
    design: Mapping[str, Any]
    training: TrainingSettings = TrainingSettings()
    precision: str = "auto"
    controls: SiteImages | None = None
    held_out: SiteImages | None = None
    predict: ScoreImages = field(default=score_images)

    def __call__(self, model: nn.Module, card: ModelConfig, epoch: int) -> np.ndarray:
        """Class index of each site of `data`, int64, -1 where it is not used; hangs on weights and epoch alone."""
        answers, confidence = self.answers(model, card)
        surest = confidence.sort_values(ascending=False, kind="stable").index[: self.count(len(confidence), epoch)]
        numbers = self.data.sites["id_code"].map(answers.loc[surest])
        return pd.Index(card.class_numbers).get_indexer(numbers.astype("Int64").fillna(-1)).astype(np.int64)

    @property
    def facts(self) -> dict[str, Any]:
        """What the labels hang on beside weights, epoch and pictures, for JSON."""
        known = {"design": sorted(self.design.items()), "wells": sites_fingerprint(self.wells.assign(stem=self.wells["id_code"]))}
        sets = {name: None if some is None else sites_fingerprint(some.sites) for name, some in (("controls", self.controls), ("held_out", self.held_out))}
        text = json.dumps({**known, **sets}, sort_keys=True, default=str)
        return {"training": self.training.model_dump(), "precision": self.precision,
                "known": hashlib.sha256(text.encode()).hexdigest()[:16]}

    @property
    def images(self) -> int:
        """How many pictures a labelling sends through the network, where no plate fits the memory as one batch."""
        return (1 + REFINEMENTS) * sum(len(some) for some in (self.data, self.controls, self.held_out) if some is not None)

    def count(self, wells: int, epoch: int) -> int:
        """How many of so many wells are used in an epoch."""
        settings = self.training
        since = settings.epochs - settings.pseudo_label_epochs
        return round(wells * min(1.0, settings.pseudo_label_share + settings.pseudo_label_step * max(0, epoch - since)))

    def answers(self, model: nn.Module, card: ModelConfig) -> tuple[pd.Series, pd.Series]:
        """siRNA and confidence of every unlabelled well, by id_code in ascending order."""
        scores = self._scores(model, card, self.data).sort_index()
        decision = decide(scores, self.wells, temperatures=self._temperatures(model, card), **self.design)
        return decision.predictions, decision.confidence

    def _temperatures(self, model: nn.Module, card: ModelConfig) -> dict[str, float]:
        labelled = self._measured()
        if labelled.empty:
            return {}
        scores = self._scores(model, card, self.held_out)
        return decided_temperatures(scores, labelled.astype({"sirna": "int64"}), self.wells, **self.design)

    def _measured(self) -> pd.DataFrame:
        """The held-out treatment wells whose scope is held out whole; index id_code."""
        # A few wells of a plate, as a random split holds out, have other statistics than the plate, and so other scores:
        # their temperature would be that of a predictor that answers nowhere.
        if self.held_out is None:
            return pd.DataFrame()
        sites, keys = self.held_out.sites, SCOPES[self.training.batch_scope] or SCOPES["experiment"]
        mine = sites[sites["well_type"] == "treatment"].drop_duplicates("id_code").set_index("id_code")
        there = self.wells[self.wells["well_type"] == "treatment"].groupby(keys).size().rename("there")
        return mine[mine.groupby(keys)["stem"].transform("size") >= MIN_HELD_OUT_SHARE * mine.join(there, on=keys)["there"].fillna(0)]

    def _scores(self, model: nn.Module, card: ModelConfig, data: SiteImages) -> pd.DataFrame:
        return self.predict(model, card, data, self.controls, scope=self.training.batch_scope, precision=self.precision)
