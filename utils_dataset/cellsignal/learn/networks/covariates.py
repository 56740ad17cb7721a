"""What a network is told of a site beside its image, and what it may learn amiss from that."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cellsignal.data.tables.plate_design import shifts
from cellsignal.errors import InputError
from cellsignal.learn.networks.classifier import Classifier
from cellsignal.learn.networks.standardise import BY_PLACE, channel_stats
from cellsignal.learn.settings import COVARIATES

# Sites of test experiments, and of wells that hold no treatment in training, have levels that training never shows. So that
# "unseen" is a thing that the network has seen, training hides these levels now and then.
HIDDEN = {"experiment": 0.2, "well": 0.2}
STREAM = 2  # keeps these draws apart from those of MixUp and of augmentations
Levels = Mapping[str, Sequence[str]]


def covariate_levels(sites: pd.DataFrame, names: Sequence[str]) -> dict[str, list[str]]:
    """The levels of each covariate among the sites that a network is trained on, as texts in their order.

    Raises InputError for a covariate that does not exist, or that the sites do not have.
    """
    for name in names:
        if name not in COVARIATES or name not in sites:
            cure = f"use some of: {', '.join(each for each in COVARIATES if each in sites)}"
            raise InputError(f"unknown covariate {name!r}", where="covariates", cure=cure)
    return {name: [str(level) for level in sorted(sites[name].unique())] for name in names}


def covariate_codes(sites: pd.DataFrame, known: Levels) -> torch.Tensor:
    """The index of the level of each covariate of each site, int64[N, K]; -1 where the level is unknown."""
    columns = [pd.Index(list(known[name])).get_indexer(sites[name].astype(str)) for name in known]
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.int64)) if columns else torch.empty(len(sites), 0, dtype=torch.int64)


def one_hots(indices: torch.Tensor, known: Levels) -> torch.Tensor:
    """One-hot blocks float32[N, D], one a covariate in their order, of what `codes` gives; an unknown level is all zeros."""
    blocks = [(indices[:, [place]] == torch.arange(len(known[name]))).float() for place, name in enumerate(known)]
    return torch.cat(blocks, dim=1) if blocks else torch.empty(len(indices), 0)


def encode(sites: pd.DataFrame, known: Levels) -> torch.Tensor:
    """What is told of each site: one-hot blocks float32[N, D] in the order of `known`; an unseen level is all zeros."""
    return one_hots(covariate_codes(sites, known), known)


def mask_covariates(told: torch.Tensor, known: Levels, *, key: tuple[int, ...]) -> torch.Tensor:
    """Training's view of `told`, [N, D]: the level of an experiment or a well is all zeros for a share of the sites (HIDDEN).

    Which sites depends on `key` (seed, epoch, number of the batch) alone.
    """
    if not set(HIDDEN) & set(known):
        return told
    generator, told, first = np.random.default_rng((*key, STREAM)), told.clone(), 0
    for name in known:
        if name in HIDDEN:
            rows = torch.from_numpy(generator.random(len(told)) < HIDDEN[name]).to(told.device)
            told[rows, first:first + len(known[name])] = 0
        first += len(known[name])
    return told


def unseen_rotations(rotations: dict[str, list[int]]) -> list[list[int]]:
    """The cyclic shifts of the seen layouts that no experiment has, in order.

    `rotations`: the index of the plate group on plates 1, 2, ... of each training experiment
    (data.plates.rotations); those with an unknown plate, -1, tell nothing.
    """
    return [list(order) for order in sorted(shifts(rotations) - {tuple(order) for order in rotations.values()})]


def plate_warning(rotations: dict[str, list[int]]) -> str:
    """What the plate as a covariate will cost, in words; empty where the experiments are known to show every rotation.

    `rotations` of the experiments that the network is trained on, and of no others: the fourth rotation of
    RxRx1 occurs in its test experiments only. Without plate groups nothing is known of them, which is said too.
    """
    if not shifts(rotations):
        return ("warning: the rotations are not known, because no training experiment has a plate group on every plate. "
                "A network that is told the plate may learn which siRNAs lie there, and name hardly a well of a test "
                "experiment laid out in another way: leave plate out of the covariates.")
    if not (unseen := unseen_rotations(rotations)):
        return ""
    orders = "; ".join(" ".join(str(group + 1) for group in order) for order in unseen)
    plates = " ".join(str(plate + 1) for plate in range(len(unseen[0])))
    return (f"warning: none of the {len(rotations)} training experiments has the plate groups {orders} on plates {plates}. "
            "A network that is told the plate learns which siRNAs lie there, "
            "and names hardly a well of a test experiment laid out that way: leave plate out of the covariates.")


# All that a network is told of sites beside their images, ready to be picked by rows.


class SideInputs:
    """What `model` wants to know of each of `sites`; `told[rows]` are keyword arguments of its call.

    "covariates": float32[n, D], one-hot; "moments": float32[n, C, 2], of the plate or experiment. Only what the network
    was built for is there: a network that looks at images alone is told nothing.
    """

    def __init__(self, model: Classifier, root: Path, sites: pd.DataFrame) -> None:
        self.levels = model.covariates
        self.codes = covariate_codes(sites, self.levels)
        by = model.settings.standardise
        self.moments = channel_stats(root, sites, by, model.channels) if by in BY_PLACE and len(sites) else None

    def __getitem__(self, rows: torch.Tensor | np.ndarray) -> dict[str, torch.Tensor]:
        rows = torch.as_tensor(rows)
        told = {"covariates": one_hots(self.codes[rows], self.levels)} if self.levels else {}
        return told | ({} if self.moments is None else {"moments": self.moments[rows]})


# Features of a plate's controls, beside which its other wells are seen (Brodt's list of what was not better).


CONTROLS = ("positive_control", "negative_control")  # well types


def plate_means(features: torch.Tensor, *, positive: torch.Tensor, plates: torch.Tensor,
                asked: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean features of the positive and of the negative controls of each asked site's plate, two of [N, F].

    `features`: [M, F] of control sites; `positive`: bool[M]; `plates`: int[M], by any numbers; `asked`: int[N], the plate of
    each site that is to be classified. Zeros, which tell nothing, where a plate has no such control. Differentiable.
    """
    same = asked[:, None] == plates[None, :]
    return tuple(_mean(features, (same & kind).to(features)) for kind in (positive, ~positive))


def _mean(features: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    return shares / shares.sum(1, keepdim=True).clamp(min=1) @ features
