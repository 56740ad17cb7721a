"""The sites of one experiment through a network: log-probabilities and embeddings of its treatment wells."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import log_softmax
from torch import nn

from cellsignal.data.images import read_sites
from cellsignal.decide.passes import Controls, Passes, answers
from cellsignal.errors import InputError
from cellsignal.learn.batches import SiteImages, scope_rows
from cellsignal.learn.batchnorm import REFINEMENTS, STATISTICS
from cellsignal.learn.controls import CONTROLS
from cellsignal.learn.models import Card
from cellsignal.learn.told import Told
from cellsignal.tasks import RXRX1

Read = Callable[[pd.DataFrame], np.ndarray]  # the images of some sites, uint8[N, C, H, W]


def predict_experiment(
    model: nn.Module, card: Card, root: Path, sites: pd.DataFrame, *, statistics: Sequence[str] = STATISTICS,
    basis: str = "adapted", views: int = 1, scope: str = "plate", batch_sizes: Sequence[int] = (32,),
    refinements: int = REFINEMENTS, precision: str = "auto", read: Read | None = None,
) -> dict[str, tuple[pd.DataFrame, dict]]:
    """Scores of one experiment's treatment wells, and how they came about, by kind of statistics.

    Beside kinds of statistics, `statistics` may name "views" and "embeddings", which rest on the kind `basis`
    (`passes.answers`). Images are decoded once for all and one scope at a time, which bounds the memory: a plate of
    512 px is 1 GB; `read` gives those of some sites where they lie elsewhere than below `root`. Scores have index id_code
    and one column per class number, float32; embeddings one column per feature. The facts: {"gathered": {how: number
    of scopes}, "sites", "images": sent through the network, "seconds"}, the seconds without reading.
    """
    read = read or (lambda mine: read_sites(root, mine))
    controls, sites = _controls(sites, card), counting(sites, card)
    told, classes = Told(model, root, sites), len(card.class_numbers)
    knobs = {"basis": basis, "views": views, "batch_sizes": batch_sizes, "refinements": refinements, "classes": classes}
    found: dict[str, np.ndarray] = {}
    facts = {kind: {"gathered": {}, "sites": len(sites), "images": 0, "seconds": 0.0} for kind in statistics}
    for rows in scope_rows(sites, scope):
        mine = sites.iloc[rows]
        referred = _referred(model, root, controls, mine, read=read) if card.control_features else None
        passes = Passes(model, read(mine), told=told[rows], controls=referred, precision=precision)
        sent, started = 0, time.perf_counter()
        for kind, answer, how in answers(passes, statistics, **knobs):
            found.setdefault(kind, np.empty((len(sites), answer.shape[1]), np.float32))[rows] = answer
            _count(facts[kind], how, images=passes.sent - sent, seconds=time.perf_counter() - started)
            sent, started = passes.sent, time.perf_counter()
    return {kind: (_wells(found[kind], sites, card, kind), facts[kind]) for kind in statistics}


def score_images(model: nn.Module, card: Card, data: SiteImages, controls: SiteImages | None = None, *, scope: str = "plate",
                 precision: str = "auto") -> pd.DataFrame:
    """Scores under adapted statistics of the treatment wells of `data`, whose images may be in memory.

    `controls`: control sites, of which those of the experiments in `data` count where their kind filled the training
    batches, or are referred to. Index id_code, columns class numbers, log-probabilities float32. Weights, running
    statistics and random numbers stay as they are.
    """
    sets = [data] if controls is None else [data, controls]
    sites = pd.concat([one.sites for one in sets]).drop_duplicates("stem")
    sites = sites[sites["experiment"].isin(data.sites["experiment"])]
    ways = {"statistics": ("adapted",), "scope": scope, "precision": precision, "read": _reader(sets)}
    tables = [predict_experiment(model, card, data.root, mine, **ways)["adapted"][0]
              for _, mine in sites.groupby("experiment", sort=True)]
    return pd.concat(tables)


def well_scores(logits: np.ndarray, id_codes: pd.Series, *, class_numbers: list[int]) -> pd.DataFrame:
    """Mean log-probabilities over the sites of each treatment well, made to sum to one again.

    Classes of controls are left out, and the rest sums to one without them: no treatment well holds a control.
    """
    columns = [place for place, number in enumerate(class_numbers) if number not in RXRX1.controls] or range(len(class_numbers))
    table = pd.DataFrame(log_softmax(logits[:, columns], axis=1), columns=[class_numbers[place] for place in columns])
    mean = table.groupby(id_codes.to_numpy(), sort=False).mean()
    mean[:] = log_softmax(mean.to_numpy(), axis=1)
    return mean.astype(np.float32).rename_axis("id_code")


def counting(sites: pd.DataFrame, card: Card) -> pd.DataFrame:
    """The sites whose wells are of a kind that filled the training batches."""
    # Statistics must come from that mixture of wells: on plates of 24 treatment and 62 control
    # sites, adding controls to the statistics of networks that were trained without them took
    # the accuracy from 0.70 to 0.49.
    return sites[sites["well_type"].isin(card.well_types)].reset_index(drop=True)


def _wells(values: np.ndarray, sites: pd.DataFrame, card: Card, kind: str) -> pd.DataFrame:
    """From the sites to the treatment wells."""
    treatment = (sites["well_type"] == "treatment").to_numpy()
    id_codes = sites.loc[treatment, "id_code"]
    if kind == "embeddings":
        table = pd.DataFrame(values[treatment])
        return table.groupby(id_codes.to_numpy(), sort=False).mean().astype(np.float32).rename_axis("id_code")
    return well_scores(values[treatment], id_codes, class_numbers=card.class_numbers)


def _count(facts: dict[str, Any], how: str, *, images: int, seconds: float) -> None:
    facts["images"] += images
    facts["seconds"] += seconds
    facts["gathered"][how] = facts["gathered"].get(how, 0) + 1


def _controls(sites: pd.DataFrame, card: Card) -> pd.DataFrame:
    """The control sites that a network with control features refers to; none for others."""
    return sites[sites["well_type"].isin(CONTROLS) & card.control_features].reset_index(drop=True)


def _referred(model: nn.Module, root: Path, controls: pd.DataFrame, asked: pd.DataFrame, *, read: Read) -> Controls:
    """The controls on the plates of `asked`."""
    mine = controls[controls["plate"].isin(asked["plate"])].reset_index(drop=True)
    if len(mine) < 2:
        raise InputError(f"{len(mine)} control sites, and this network refers to controls", where=asked["experiment"].iloc[0],
                         cure="add the plate's controls to the tables, or train without control_features")
    moments = Told(model, root, mine)[np.arange(len(mine))].get("moments")
    positive = torch.from_numpy((mine["well_type"] == CONTROLS[0]).to_numpy(copy=True))
    plates, wanted = (torch.from_numpy(table["plate"].to_numpy(np.int64, copy=True)) for table in (mine, asked))
    return Controls(read(mine), moments, positive, plates, wanted)


def _reader(sets: Sequence[SiteImages]) -> Read:
    """Images from memory where all sets keep theirs there, else from disk, many at once."""
    if any(one.cached is None for one in sets):
        return lambda mine: read_sites(sets[0].root, mine, channels=sets[0].channels)
    places = {stem: (one, row) for one in sets for row, stem in enumerate(one.stems)}
    return lambda mine: np.stack([one.image(row) for one, row in map(places.__getitem__, mine["stem"])])
