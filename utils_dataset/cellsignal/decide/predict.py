"""Log-probabilities per well: the sites of a well averaged, under each kind of statistics."""

import shutil
import time
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import log_softmax
from torch import nn
from tqdm.auto import tqdm

from cellsignal.data.images import read_sites
from cellsignal.decide.kept import Kept, identity
from cellsignal.decide.passes import Controls, Passes, log_probabilities
from cellsignal.decide.stored import stored_scores
from cellsignal.decide.trained import place
from cellsignal.errors import InputError
from cellsignal.learn import devices
from cellsignal.learn.batches import SCOPES, scope_rows
from cellsignal.learn.batchnorm import REFINEMENTS, STATISTICS
from cellsignal.learn.budget import Budget
from cellsignal.learn.controls import CONTROLS
from cellsignal.learn.models import Card, load_weights, read_card
from cellsignal.learn.told import Told
from cellsignal.tasks import RXRX1

Networks = dict[str, tuple[nn.Module, Card]]


@dataclass(frozen=True)
class Knobs:
    """How the scores of an experiment are made from its images."""

    scope: str = "plate"
    batch_sizes: tuple[int, ...] = (32,)
    refinements: int = REFINEMENTS
    precision: str = "auto"

    def of(self, kind: str) -> dict[str, Any]:
        """Those that count for one kind of statistics alone."""
        return {"batch": {"batch_sizes": list(self.batch_sizes)}, "adapted": {"refinements": self.refinements}}.get(kind, {})

    def passes(self, kind: str) -> int:
        """How often an image is sent through the network for one kind, at most."""
        return {"batch": len(self.batch_sizes), "adapted": 1 + self.refinements}.get(kind, 1)


def score_experiments(
    root: Path, sites: pd.DataFrame, *, weights: Path, out: Path, name: str = "model",
    statistics: Sequence[str] = STATISTICS, scope: str = "plate", batch_sizes: Sequence[int] = (32,),
    batch_for: Collection[str] | None = None, refinements: int = REFINEMENTS, precision: str = "auto",
    device: torch.device = torch.device("cpu"), budget: Budget | None = None, stored: bool = False,
) -> dict[str, pd.DataFrame]:
    """Score the treatment wells of every experiment in `sites` under each kind of `statistics`.

    `weights`: the folder with the network of each cell type (`trained.place`). `scope`: plate or experiment,
    over which statistics are gathered; of another one than the training batches had is warned
    (`scope_note`). `batch_sizes`: of the passes that "batch" averages; `batch_for`: the experiments that
    are worth them, None for all; `refinements`: of "adapted" where a scope is too large for one batch
    (`log_probabilities`).

    Writes `<out>/<statistics>/<experiment>.parquet` and, after each experiment,
    `<out>/<statistics>/metadata.json`: how the statistics of each experiment were gathered, how many
    images went through the network, how long that took, and what identifies the scores. Scores that lie
    there whole, made by the same weights from the same sites in the same way, are kept; others give way.
    Before an experiment that would end after the deadline of `budget` it stops, and `budget.spent` says
    so: the same call goes on. Returns the stacked scores by kind of statistics, in the order of the
    ladder; when it stopped, those of the experiments so far.
    """
    _check(statistics, scope, batch_sizes, refinements)
    if stored:
        answered = sites if batch_for is None else sites[sites["experiment"].isin(batch_for)]
        return {kind: stored_scores(out / kind, answered if kind == "batch" else sites) for kind in statistics}
    budget = budget or Budget()
    knobs = Knobs(scope, tuple(batch_sizes), refinements, devices.resolve(device, precision))
    networks = _networks(weights, sites["cell_type"].unique(), name=name, device=device)
    if note := scope_note(weights, list(networks), name, scope):
        warnings.warn(note, stacklevel=2)
    asked = {experiment: _wanted(mine, networks[cell_type][1])
             for (cell_type, experiment), mine in sites.groupby(["cell_type", "experiment"], sort=True)}
    kept = {}
    for kind in statistics:
        mine = {each: asked[each] for each in asked if kind != "batch" or batch_for is None or each in batch_for}
        kept[kind] = _kept(out / kind, kind, networks, root, mine, knobs, network=name, note=note, device=device)
    for other in set(STATISTICS) - set(statistics):
        Kept(out / other, {})  # what an earlier prediction left there gives way too
    for experiment, mine in tqdm(asked.items(), desc="predict", unit="experiment"):
        kinds = [kind for kind in statistics if experiment in kept[kind].missing]
        if kinds and not budget.fits_part(len(mine) * sum(map(knobs.passes, kinds))):
            done = len(asked) - len({each for kind in statistics for each in kept[kind].missing})
            budget.stop(budget.note or f"scored {done} of {len(asked)} experiments with {name}")
            break
        if kinds:
            began = time.monotonic()
            answers = predict_experiment(*networks[mine["cell_type"].iloc[0]], root, mine, statistics=kinds, **vars(knobs))
            for kind, (table, facts) in answers.items():
                kept[kind].add(experiment, table, facts)
            budget.took(sum(facts["images"] for _, facts in answers.values()), time.monotonic() - began)
    return {kind: kept[kind].stacked() for kind in statistics}


def predict_experiment(
    model: nn.Module, card: Card, root: Path, sites: pd.DataFrame, *, statistics: Sequence[str] = STATISTICS,
    scope: str = "plate", batch_sizes: Sequence[int] = (32,), refinements: int = REFINEMENTS, precision: str = "auto",
) -> dict[str, tuple[pd.DataFrame, dict]]:
    """Scores of one experiment's treatment wells, and how they came about, by kind of statistics.

    Images are decoded once for all kinds and one scope at a time, which bounds the memory: a plate of
    512 px is 1 GB. Scores have index id_code and one column per class number, float32. The facts:
    {"gathered": {how: number of scopes}, "sites", "images": sent through the network, "seconds"},
    the seconds without reading.
    """
    controls, sites = _controls(sites, card), _counting(sites, card)
    told = Told(model, root, sites)
    answers = {kind: np.empty((len(sites), len(card.class_numbers)), np.float32) for kind in statistics}
    facts = {kind: {"gathered": {}, "sites": len(sites), "images": 0, "seconds": 0.0} for kind in statistics}
    for rows in scope_rows(sites, scope):
        mine = sites.iloc[rows]
        referred = _referred(model, root, controls, mine) if card.control_features else None
        passes = Passes(model, read_sites(root, mine, channels=card.channels), told=told[rows], controls=referred, precision=precision)
        for kind in statistics:
            sent, started = passes.sent, time.perf_counter()
            answers[kind][rows], how = log_probabilities(passes, kind, batch_sizes=batch_sizes, refinements=refinements)
            facts[kind]["seconds"] += time.perf_counter() - started
            facts[kind]["images"] += passes.sent - sent
            facts[kind]["gathered"][how] = facts[kind]["gathered"].get(how, 0) + 1
    treatment = (sites["well_type"] == "treatment").to_numpy()
    id_codes = sites.loc[treatment, "id_code"]
    return {kind: (well_scores(answers[kind][treatment], id_codes, class_numbers=card.class_numbers), facts[kind])
            for kind in statistics}


def well_scores(logits: np.ndarray, id_codes: pd.Series, *, class_numbers: list[int]) -> pd.DataFrame:
    """Mean log-probabilities over the sites of each treatment well, made to sum to one again.

    Classes of controls are left out, and the rest sums to one without them: no treatment well holds a control.
    """
    treatments = [column for column, number in enumerate(class_numbers) if number not in RXRX1.controls] or range(len(class_numbers))
    table = pd.DataFrame(log_softmax(logits[:, treatments], axis=1), columns=[class_numbers[column] for column in treatments])
    mean = table.groupby(id_codes.to_numpy(), sort=False).mean()
    mean[:] = log_softmax(mean.to_numpy(), axis=1)
    return mean.astype(np.float32).rename_axis("id_code")


def scope_note(weights: Path, cell_types: Collection[str], name: str, scope: str) -> str:
    """What to know when statistics are gathered over another scope than the training batches came from; "" when over the same.

    Reads the JSON beside the weights (`trained.place`); InputError when one is missing.
    """
    trained = {cell_type: read_card(place(weights, cell_type, name)).scope for cell_type in sorted(cell_types)}
    # Within an experiment "mixed" has nothing wider to gather over than the experiment itself.
    wide = scope != "plate"
    others = [cell_type for cell_type, its in trained.items() if (its != "plate") != wide]
    if not others:
        return ""
    right = "experiment" if scope == "plate" else "plate"
    return (f"statistics are gathered by {scope}, but {', '.join(others)} learned from {trained[others[0]]} batches, and "
            f"accuracy suffers; predict with scope: {right}, or train with batches: {scope}")


def keep_only(folder: Path, names: Collection[str]) -> None:
    """Remove the scores of every network but those called `names` from `folder`, which holds `<name>/<statistics>/`.

    An earlier run may have asked for more networks, and whatever lies there counts as an output of this one.
    """
    for path in Path(folder).glob("*/"):
        if path.name not in names:
            shutil.rmtree(path)


def _check(statistics: Sequence[str], scope: str, batch_sizes: Sequence[int], refinements: int) -> None:
    unknown = [("statistics", "kind", kind, STATISTICS) for kind in statistics if kind not in STATISTICS]
    unknown += [("scope", "scope", scope, SCOPES)] if scope not in SCOPES else []
    for where, what, value, known in unknown:
        raise InputError(f"unknown {what} {value!r}", where=where, cure=f"use one of: {', '.join(known)}")
    if not len(batch_sizes) or min(batch_sizes) < 2:
        raise InputError(f"batches of {', '.join(map(str, batch_sizes)) or 'no size'}", where="batch_sizes",
                         cure="name one size or more, each of 2 images at least")
    if refinements < 0:
        raise InputError(f"{refinements} refinements", where="refinements", cure="ask for none (0) or more")


def _networks(weights: Path, cell_types: Sequence[str], *, name: str, device: torch.device) -> Networks:
    """Every network at once, so that a missing one is told before hours of prediction."""
    paths = {cell_type: place(weights, cell_type, name) for cell_type in sorted(cell_types)}
    found = {path: load_weights(path) for path in dict.fromkeys(paths.values())}  # a joint one once
    return {cell_type: (found[path][0].to(device), found[path][1]) for cell_type, path in paths.items()}


def _counting(sites: pd.DataFrame, card: Card) -> pd.DataFrame:
    """The sites whose wells are of a kind that filled the training batches."""
    # Statistics must come from that mixture of wells: on plates of 24 treatment and 62 control
    # sites, adding controls to the statistics of networks that were trained without them took
    # the accuracy from 0.70 to 0.49.
    return sites[sites["well_type"].isin(card.well_types)].reset_index(drop=True)


def _controls(sites: pd.DataFrame, card: Card) -> pd.DataFrame:
    """The control sites that a network with control features refers to; none for others."""
    return sites[sites["well_type"].isin(CONTROLS) & card.control_features].reset_index(drop=True)


def _wanted(sites: pd.DataFrame, card: Card) -> pd.DataFrame:
    """The sites that count, and those that are referred to."""
    known = {*card.well_types, *(CONTROLS if card.control_features else ())}
    return sites[sites["well_type"].isin(known)].reset_index(drop=True)


def _referred(model: nn.Module, root: Path, controls: pd.DataFrame, asked: pd.DataFrame) -> Controls:
    """The controls on the plates of `asked`, read from disk."""
    mine = controls[controls["plate"].isin(asked["plate"])].reset_index(drop=True)
    if len(mine) < 2:
        raise InputError(f"{len(mine)} control sites, and this network refers to controls", where=asked["experiment"].iloc[0],
                         cure="add the plate's controls to the tables, or train without control_features")
    moments = Told(model, root, mine)[np.arange(len(mine))].get("moments")
    positive = torch.from_numpy((mine["well_type"] == CONTROLS[0]).to_numpy(copy=True))
    plates, wanted = (torch.from_numpy(table["plate"].to_numpy(np.int64)) for table in (mine, asked))
    return Controls(read_sites(root, mine, channels=model.channels), moments, positive, plates, wanted)


def _kept(
    folder: Path, kind: str, networks: Networks, root: Path, asked: Mapping[str, pd.DataFrame], knobs: Knobs, *,
    device: torch.device, **facts: Any,
) -> Kept:
    """What `folder` holds of the scores of one kind that are asked for."""
    way = {"statistics": kind, "scope": knobs.scope, "precision": knobs.precision, **knobs.of(kind)}
    made_by = {cell_type: {"weights": model.origin, "card": vars(card)} for cell_type, (model, card) in networks.items()}
    identities = {
        experiment: identity(root, mine, **way, device=device.type, **made_by[mine["cell_type"].iloc[0]])
        for experiment, mine in asked.items()
    }
    return Kept(
        folder, identities, **facts, **way, device=str(device),
        training_scope={cell_type: card.scope for cell_type, (_, card) in networks.items()},
        averaged="log-probabilities, over passes and over the sites of a well")
