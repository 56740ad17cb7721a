"""Log-probabilities per well: the sites of a well averaged, under each kind of statistics."""

import shutil
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from cellsignal.budget import Budget, TimeSpent
from cellsignal.decide.predict.inference import BESIDE, predict_experiment
from cellsignal.decide.predict.weights import weights_path
from cellsignal.decide.scores.cache import ScoreCache, cache_key, read_embeddings, read_notes, read_stored_scores
from cellsignal.decide.scores.files import read_scores
from cellsignal.decide.settings import PredictionSettings
from cellsignal.learn import devices
from cellsignal.learn.networks.batchnorm import NO_LAYERS, NO_LAYERS_NOTE, REFINEMENTS, STATISTICS, batchnorm_layers
from cellsignal.learn.networks.classifier import ModelConfig, load_weights, read_config
from cellsignal.learn.networks.covariates import CONTROLS
from cellsignal.learn.networks.standardise import stats_source
from cellsignal.learn.settings import MachineSettings
from cellsignal.progress_bars import progress_bar
from cellsignal.tasks import RXRX1

Networks = dict[str, tuple[nn.Module, ModelConfig]]


@dataclass(frozen=True)
class PredictionConfig:
    """How the scores of an experiment are made from its images."""

    scope: str = "plate"
    batch_sizes: tuple[int, ...] = (32,)
    refinements: int = REFINEMENTS
    precision: str = "auto"
    basis: str = "adapted"  # the kind of statistics that views and embeddings rest on
    views: int = 1

    def of(self, kind: str) -> dict[str, Any]:
        """Those that count for one kind alone."""
        if kind in BESIDE:
            return {"basis": self.basis, **self.of(self.basis)} | ({"views": self.views} if kind == "views" else {})
        return {"batch": {"batch_sizes": list(self.batch_sizes)}, "adapted": {"refinements": self.refinements}}.get(kind, {})

    def passes(self, kinds: Collection[str], *, adapts: bool = True) -> int:
        """How often an image is sent through the network for some kinds, at most; `adapts`: it has batch normalisation."""
        each = {"batch": len(self.batch_sizes), "adapted": 1 + self.refinements, "running": 1} if adapts else dict.fromkeys(STATISTICS, 1)
        needed = {self.basis if kind in BESIDE else kind for kind in kinds}
        return sum(map(each.__getitem__, needed)) + (self.views - 1) * each[self.basis] * ("views" in kinds)


def score_experiments(
    root: Path, sites: pd.DataFrame, *, weights: Path, out: Path, name: str = "model",
    settings: PredictionSettings = PredictionSettings(), all_statistics: bool = True, embedded: pd.DataFrame | None = None,
    batch_for: Collection[str] | None = None, machine: MachineSettings = MachineSettings(device="cpu"), budget: Budget | None = None,
    stored: bool = False, joint: bool | None = None,
) -> dict[str, pd.DataFrame]:
    """Score the treatment wells of every experiment in `sites` under `settings.statistics`, and with `all_statistics` each other kind.

    `weights`: the folder with the network of each cell type, or, if `joint`, of all (`weights.weights_path`). `settings.tta_views`:
    above 1, scores averaged over so many of `inference.VIEWS` too, called "views"; `embedded`: sites whose experiments are embedded,
    as those of `sites` then are: "embeddings", one column per feature (`decide.refine`). Both rest on `settings.statistics`.
    `settings.statistics_scope`: plate or experiment, over which statistics are gathered; a warning says when the training batches
    had another one (`scope_note`). `batch_for`: the experiments that are worth the passes of "batch", None for all. `stored`: read
    back what lies in `out`, whatever made it (`scores.cache.read_stored_scores`).

    Writes `<out>/<kind>/<experiment>.parquet` and, after each experiment,
    `<out>/<kind>/metadata.json`: how the statistics of each experiment were gathered, how many
    images went through the network, how long that took, and what identifies the scores. Scores that lie
    there whole, made by the same weights from the same sites in the same way, are kept; others give way.
    Raises TimeSpent before an experiment that would end after the deadline of `budget`: the same call goes on.
    Returns the stacked scores by kind, in the order of the ladder.
    """
    kinds = sorted(STATISTICS, key=settings.statistics.__eq__) if all_statistics else [settings.statistics]  # a stable sort: the chosen one last
    others = _embedded_sites(sites, embedded)
    by_kind = {kind: sites for kind in (*kinds, *["views"] * (settings.tta_views > 1))}
    if batch_for is not None and "batch" in by_kind:
        by_kind["batch"] = sites[sites["experiment"].isin(batch_for)]
    by_kind |= {} if embedded is None else {"embeddings": pd.concat([sites, others])}
    if stored:
        return {kind: read_stored_scores(out / kind, some, read=_reader(kind)) for kind, some in by_kind.items()}
    budget = budget or Budget()
    scope, device = settings.statistics_scope, devices.pick_device(machine.device)
    precision = devices.resolve_precision(device, machine.precision)
    config = PredictionConfig(scope, tuple(settings.batch_sizes), REFINEMENTS, precision, settings.statistics, settings.tta_views)
    networks = _networks(weights, pd.concat([sites, others])["cell_type"].unique(), name=name, device=device, joint=joint)
    if note := scope_note(weights, list(networks), name, scope, joint=joint):
        warnings.warn(note, stacklevel=2)
    by_experiment = _experiments(sites, networks) | _experiments(others, networks)
    caches = {kind: _score_cache(out / kind, kind, networks, root, {each: by_experiment[each] for each in by_experiment if each in set(some["experiment"])},
                        config, network=name, note=note, device=device) for kind, some in by_kind.items()}
    for other in {*STATISTICS, *BESIDE} - set(caches):
        ScoreCache(out / other, {})  # what an earlier prediction left there gives way too
    _score(root, by_experiment, networks, caches, config, budget=budget, name=name)
    return {kind: caches[kind].stacked() for kind in caches}


def score_networks(root: Path, sites: pd.DataFrame, networks: Mapping[str, Mapping[str, Any]], *, out: Path, budget: Budget | None = None,
                   stored: bool = False, **options: Any) -> dict[str, dict[str, pd.DataFrame]]:
    """Scores by network, as `score_experiments` makes them in `<out>/<name>`: `networks` holds the options of each, by name.

    Scores of other networks in `out` are removed unless they are `stored`. When the time is spent, those of other making have
    given way in the folders of all networks before TimeSpent is raised, so that nothing there passes for a result.
    """
    if not stored:
        keep_only(out, networks)
    scores, late = {}, None
    for name, own in networks.items():
        try:
            scores[name] = score_experiments(root, sites, name=name, out=out / name, budget=budget, stored=stored, **own, **options)
        except TimeSpent as spent:
            late, budget = late or spent, Budget(0.0)
    if late is not None:
        raise late
    return scores


def embed_experiments(root: Path, sites: pd.DataFrame, settings: PredictionSettings = PredictionSettings(), *, out: Path,
                      statistics: Sequence[str] = ("running", "adapted"), **options: Any) -> dict[str, pd.DataFrame]:
    """The embeddings of the treatment wells in `sites` under each kind of `statistics`: index id_code, one column per feature.

    `options`: other arguments of `score_experiments`, which writes to `<out>/<kind>/`. Networks of
    different cell types have different features, so that embeddings are to be compared within a cell type.
    """
    ways = {kind: settings.model_copy(update={"statistics": kind}) for kind in statistics}
    return {kind: score_experiments(root, sites, out=out / kind, settings=way, all_statistics=False, embedded=sites, **options)["embeddings"]
            for kind, way in ways.items()}


def _score(root: Path, by_experiment: Mapping[str, pd.DataFrame], networks: Networks, caches: Mapping[str, ScoreCache], config: PredictionConfig, *,
           budget: Budget, name: str) -> None:
    """Add what is missing, experiment by experiment."""
    for experiment, some in progress_bar(by_experiment.items(), desc="predict", unit="experiment"):
        kinds = [kind for kind in caches if experiment in caches[kind].missing]
        model, card = networks[some["cell_type"].iloc[0]]
        if kinds and not budget.fits_part(len(some) * config.passes(kinds, adapts=bool(batchnorm_layers(model)))):
            done = len(by_experiment) - len({each for kind in caches for each in caches[kind].missing})
            raise TimeSpent(f"scored {done} of {len(by_experiment)} experiments with {name}")
        if kinds:
            began = time.monotonic()
            answers = predict_experiment(model, card, root, some, statistics=kinds, **vars(config))
            for kind, (table, facts) in answers.items():
                caches[kind].add(experiment, table, facts)
            budget.record_part(sum(facts["images"] for _, facts in answers.values()), time.monotonic() - began)


def _experiments(sites: pd.DataFrame, networks: Networks) -> dict[str, pd.DataFrame]:
    """The sites that count, by experiment."""
    return {experiment: _counted_sites(some, networks[cell_type][1])
            for (cell_type, experiment), some in sites.groupby(["cell_type", "experiment"], sort=True)}


def _embedded_sites(sites: pd.DataFrame, embedded: pd.DataFrame | None) -> pd.DataFrame:
    """The sites of the experiments, of the cell types in `sites` if there are any, that are embedded and not scored."""
    if embedded is None or sites.empty:
        return sites.iloc[:0] if embedded is None else embedded
    return embedded[embedded["cell_type"].isin(sites["cell_type"]) & ~embedded["experiment"].isin(sites["experiment"])]


def _reader(kind: str) -> Callable[[Path], pd.DataFrame]:
    return read_embeddings if kind == "embeddings" else read_scores


def scope_note(weights: Path, cell_types: Collection[str], name: str, scope: str, *, joint: bool | None = None) -> str:
    """What to know when statistics are gathered over another scope than the training batches came from; "" when over the same.

    Reads the JSON beside the weights (`weights.weights_path`); InputError when one is missing.
    """
    trained = {cell_type: read_config(weights_path(weights, cell_type, name, joint=joint)).scope for cell_type in sorted(cell_types)}
    # Within an experiment "mixed" has nothing wider to gather over than the experiment itself.
    wide = scope != "plate"
    others = [cell_type for cell_type, its in trained.items() if (its != "plate") != wide]
    if not others:
        return ""
    right = "experiment" if scope == "plate" else "plate"
    return (f"statistics are gathered by {scope}, but {', '.join(others)} learned from {trained[others[0]]} batches, and "
            f"accuracy suffers; predict with statistics_scope: {right}, or train with batch_scope: {scope}")


def statistics_note(folder: Path) -> str:
    """What to know of kinds of statistics that are equal because the network has no batch normalisation; "" where it has.

    Reads the notes of the scores in `<folder>/<statistics>/`.
    """
    notes = [note for kind in STATISTICS for note in read_notes(Path(folder) / kind).values()]
    return NO_LAYERS_NOTE if any(NO_LAYERS in note.get("gathered", {}) for note in notes) else ""


def keep_only(folder: Path, names: Collection[str]) -> None:
    """Remove the scores of every network but those called `names` from `folder`, which holds `<name>/<statistics>/`.

    An earlier run may have asked for more networks, and whatever lies there counts as an output of this one.
    """
    for path in Path(folder).glob("*/"):
        if path.name not in names:
            shutil.rmtree(path)


def _networks(weights: Path, cell_types: Sequence[str], *, name: str, device: torch.device, joint: bool | None) -> Networks:
    """Every network at once, so that a missing one is noticed before hours of prediction."""
    paths = {cell_type: weights_path(weights, cell_type, name, joint=joint) for cell_type in sorted(cell_types)}
    found = {path: load_weights(path, channels=len(RXRX1.suffixes)) for path in dict.fromkeys(paths.values())}  # a joint one once
    return {cell_type: (found[path][0].to(device), found[path][1]) for cell_type, path in paths.items()}


def _counted_sites(sites: pd.DataFrame, card: ModelConfig) -> pd.DataFrame:
    """The sites that count, and those that are referred to."""
    known = {*card.well_types, *(CONTROLS if card.control_features else ())}
    return sites[sites["well_type"].isin(known)].reset_index(drop=True)


def _score_cache(
    folder: Path, kind: str, networks: Networks, root: Path, by_experiment: Mapping[str, pd.DataFrame], config: PredictionConfig, *,
    device: torch.device, **facts: Any,
) -> ScoreCache:
    """What `folder` holds of the scores of one kind that are asked for."""
    way = {"statistics": kind, "scope": config.scope, "precision": config.precision, **config.of(kind)}
    made_by = {cell_type: {"weights": model.origin, "card": vars(card), **stats_source(root, card.standardise)}
               for cell_type, (model, card) in networks.items()}
    identities = {
        experiment: cache_key(root, some, **way, device=device.type, **made_by[some["cell_type"].iloc[0]])
        for experiment, some in by_experiment.items()
    }
    facts |= {"values": "features, mean over the sites of a well"} if kind == "embeddings" else {}
    return ScoreCache(
        folder, identities, read=_reader(kind), **facts, **way, device=str(device),
        training_scope={cell_type: card.scope for cell_type, (_, card) in networks.items()},
        averaged="log-probabilities, over passes and over the sites of a well")
