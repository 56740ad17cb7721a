"""The controls that a network with control features is shown beside each batch."""

import numpy as np
import pandas as pd
import torch

from cellsignal.errors import InputError
from cellsignal.learn.batches import SiteImages, serve
from cellsignal.learn.batchnorm import unnoticed
from cellsignal.learn.controls import CONTROLS, plate_means
from cellsignal.learn.inputs import resized
from cellsignal.learn.models import Classifier
from cellsignal.learn.told import Told

STREAM = 6  # keeps the choice of controls apart from other draws
NEGATIVE = 0.25  # share of the controls beside a training batch that are negative, where a plate has as many
Means = tuple[torch.Tensor, torch.Tensor]


class References:
    """Control sites of the plates that `sites` lie on, and what they tell a network of each of these sites.

    Raises InputError for a plate with fewer than two control sites, which have no batch statistics.
    """

    def __init__(self, model: Classifier, controls: SiteImages, sites: pd.DataFrame) -> None:
        self.model, self.controls, self.told = model, controls, Told(model, controls.root, controls.sites)
        places = pd.MultiIndex.from_frame(pd.concat([sites, controls.sites])[["experiment", "plate"]])
        codes = torch.from_numpy(places.factorize()[0])
        self.asked, self.plates = codes[:len(sites)], codes[len(sites):]
        self.positive = torch.from_numpy((controls.sites["well_type"] == CONTROLS[0]).to_numpy(copy=True))
        few = torch.bincount(self.plates, minlength=len(codes))[self.asked] < 2
        if few.any():
            place = sites.iloc[int(few.nonzero()[0])]
            raise InputError("fewer than two control sites, and this network refers to controls",
                             where=f"{place['experiment']}, plate {place['plate']}", cure="add the plate's controls, or train without control_features")

    def beside(self, rows: torch.Tensor, *, count: int | None = None, key: tuple[int, ...] = ()) -> np.ndarray:
        """Which controls to show beside sites `rows`: all of their plates, or `count` of them, chosen by `key`."""
        mine = np.flatnonzero(np.isin(self.plates, self.asked[rows]))
        if count is None or count >= len(mine):
            return mine
        mine = np.random.default_rng((*key, STREAM)).permutation(mine)
        positive, negative = mine[self.positive[mine].numpy()], mine[~self.positive[mine].numpy()]
        fewer = negative[:max(1, round(NEGATIVE * count), count - len(positive))]
        return np.sort(np.concatenate([fewer, positive[:count - len(fewer)]]))

    def means(self, rows: torch.Tensor, beside: np.ndarray, *, epoch: int = 0, size: int | None = None) -> Means:
        """Mean features of the positive and negative controls `beside`, for each of the sites `rows`: two of [N, F].

        They are a batch of their own, normalised by itself, and no running statistic takes notice.
        """
        device = next(self.model.parameters()).device
        [(images, _)] = serve(self.controls, [beside], epoch=epoch, device=device)
        with unnoticed(self.model):
            prepared = self.model.prepare(images, self.told[beside].get("moments"))
            features = self.model.embed(resized(prepared, size)).float()
        there = {"positive": self.positive[beside], "plates": self.plates[beside], "asked": self.asked[rows]}
        return plate_means(features, **{name: tensor.to(device, non_blocking=True) for name, tensor in there.items()})
