"""All that a network is told of sites beside their images, ready to be picked by rows."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cellsignal.learn.covariates import codes, one_hots
from cellsignal.learn.models import Classifier
from cellsignal.learn.standardise import BY_PLACE, moments


class Told:
    """What `model` wants to know of each of `sites`; `told[rows]` are keyword arguments of its call.

    "covariates": float32[n, D], one-hot; "moments": float32[n, C, 2], of the plate or experiment. Only what the network
    was built for is there: a network that looks at images alone is told nothing.
    """

    def __init__(self, model: Classifier, root: Path, sites: pd.DataFrame) -> None:
        self.levels = model.covariates
        self.codes = codes(sites, self.levels)
        by = model.standardise
        self.moments = moments(root, sites, by, model.channels) if by in BY_PLACE and len(sites) else None

    def __getitem__(self, rows: torch.Tensor | np.ndarray) -> dict[str, torch.Tensor]:
        rows = torch.as_tensor(rows)
        told = {"covariates": one_hots(self.codes[rows], self.levels)} if self.levels else {}
        return told | ({} if self.moments is None else {"moments": self.moments[rows]})
