"""Inputs of a network besides the image of a site, and the mistakes that it may learn from them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cellsignal.data.tables.plate_design import shifts
from cellsignal.errors import InputError
from cellsignal.learn.networks.classifier import Classifier
from cellsignal.learn.networks.standardise import CHANNEL_STATISTICS_SCOPES, channel_stats
from cellsignal.learn.settings import COVARIATES

# Sites of test experiments, and of wells without a treatment in the training set, have levels that never occur in training.
# Training therefore masks these levels for a share of the sites, so that the network knows unknown levels.
MASKED_SHARES = {"experiment": 0.2, "well": 0.2}
MASK_STREAM = 2  # separates these random numbers from those of MixUp and of augmentations
Levels = Mapping[str, Sequence[str]]


def covariate_levels(sites: pd.DataFrame, names: Sequence[str]) -> dict[str, list[str]]:
    """The sorted levels of each covariate in the training sites, as text.

    Raises InputError for an unknown covariate, and for one that is no column of `sites`.
    """
    for name in names:
        if name not in COVARIATES or name not in sites:
            cure = f"use some of: {', '.join(column for column in COVARIATES if column in sites)}"
            raise InputError(f"unknown covariate {name!r}", where="covariates", cure=cure)
    return {name: [str(level) for level in sorted(sites[name].unique())] for name in names}


def covariate_codes(sites: pd.DataFrame, levels: Levels) -> torch.Tensor:
    """The index of each site's level of each covariate, int64[N, K]; -1 for an unknown level."""
    columns = [pd.Index(list(levels[name])).get_indexer(sites[name].astype(str)) for name in levels]
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.int64)) if columns else torch.empty(len(sites), 0, dtype=torch.int64)


def one_hot_codes(codes: torch.Tensor, levels: Levels) -> torch.Tensor:
    """One-hot blocks float32[N, D], one per covariate, of `covariate_codes`; an unknown level is all zeros."""
    blocks = [(codes[:, [column]] == torch.arange(len(levels[name]))).float() for column, name in enumerate(levels)]
    return torch.cat(blocks, dim=1) if blocks else torch.empty(len(codes), 0)


def encode_covariates(sites: pd.DataFrame, levels: Levels) -> torch.Tensor:
    """One-hot blocks float32[N, D] of the covariates of each site, in the order of `levels`; an unknown level is all zeros."""
    return one_hot_codes(covariate_codes(sites, levels), levels)


def mask_covariates(covariates: torch.Tensor, levels: Levels, *, key: tuple[int, ...]) -> torch.Tensor:
    """Covariates [N, D] in which experiment and well are set to zero for a random share of the sites (MASKED_SHARES).

    The choice of sites depends on `key` (seed, epoch, number of the batch) alone.
    """
    if not set(MASKED_SHARES) & set(levels):
        return covariates
    generator, masked, first = np.random.default_rng((*key, MASK_STREAM)), covariates.clone(), 0
    for name in levels:
        if name in MASKED_SHARES:
            rows = torch.from_numpy(generator.random(len(masked)) < MASKED_SHARES[name]).to(masked.device)
            masked[rows, first:first + len(levels[name])] = 0
        first += len(levels[name])
    return masked


def unseen_rotations(rotations: dict[str, list[int]]) -> list[list[int]]:
    """The cyclic shifts of the training layouts that no training experiment has, sorted.

    `rotations`: the index of the plate group on plates 1, 2, ... of each training experiment (`plate_design.rotations`);
    experiments with an unknown plate, -1, are ignored.
    """
    return [list(order) for order in sorted(shifts(rotations) - {tuple(order) for order in rotations.values()})]


def plate_warning(rotations: dict[str, list[int]]) -> str:
    """A warning about the plate as a covariate; "" if the training experiments show every rotation.

    `rotations`: of the training experiments only, because the fourth rotation of RxRx1 occurs in test experiments alone.
    Without plate groups the rotations are unknown, which is another warning.
    """
    if not shifts(rotations):
        return ("warning: the rotations are not known, because no training experiment has a plate group on every plate. "
                "A network with the plate as a covariate may learn which siRNAs lie there, and fail on test experiments "
                "with another layout: leave plate out of the covariates.")
    if not (unseen := unseen_rotations(rotations)):
        return ""
    orders = "; ".join(" ".join(str(group + 1) for group in order) for order in unseen)
    plates = " ".join(str(plate + 1) for plate in range(len(unseen[0])))
    return (f"warning: none of the {len(rotations)} training experiments has the plate groups {orders} on plates {plates}. "
            "A network with the plate as a covariate learns which siRNAs lie there, "
            "and fails on test experiments with such a layout: leave plate out of the covariates.")


# The inputs of a network besides the images, by site.


class SideInputs:
    """Covariates and channel statistics of `sites` for `model`; indexing with rows returns keyword arguments of its call.

    "covariates": float32[n, D], one-hot; "channel_statistics": float32[n, C, 2], of the plate or experiment. Only inputs that the network
    uses are there, so none for a network of images alone.
    """

    def __init__(self, model: Classifier, root: Path, sites: pd.DataFrame) -> None:
        self.levels = model.covariates
        self.codes = covariate_codes(sites, self.levels)
        scope = model.settings.standardise
        self.channel_statistics = channel_stats(root, sites, scope, model.channels) if scope in CHANNEL_STATISTICS_SCOPES and len(sites) else None

    def __getitem__(self, rows: torch.Tensor | np.ndarray) -> dict[str, torch.Tensor]:
        rows = torch.as_tensor(rows)
        inputs = {"covariates": one_hot_codes(self.codes[rows], self.levels)} if self.levels else {}
        return inputs | ({} if self.channel_statistics is None else {"channel_statistics": self.channel_statistics[rows]})


# Mean features of a plate's controls, as inputs for its other wells (Brodt's list of what was not better).


CONTROL_TYPES = ("positive_control", "negative_control")  # well types


def plate_means(features: torch.Tensor, *, positive: torch.Tensor, control_plates: torch.Tensor,
                site_plates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean features of the positive and of the negative controls on the plate of each site, two of [N, F]; differentiable.

    `features`: [M, F] of control sites; `positive`: bool[M]; `control_plates`: int[M], any numbering; `site_plates`: int[N], the
    plate of each site to be classified. Zeros for a plate without such controls.
    """
    same = site_plates[:, None] == control_plates[None, :]
    weights = ((same & controls).to(features) for controls in (positive, ~positive))
    return tuple(weight / weight.sum(1, keepdim=True).clamp(min=1) @ features for weight in weights)
