"""Log-probabilities of wells, averaged over their sites, under each kind of statistics."""

import shutil
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from cellsignal.budget import Budget, TimeSpent
from cellsignal.data.images.reader import folder_fingerprints
from cellsignal.decide.predict.inference import EXTRA_OUTPUTS, InferenceOptions, predict_experiment, statistics_sites
from cellsignal.decide.predict.weights import weights_path
from cellsignal.decide.scores.cache import ScoreCache, cache_key, read_embeddings, read_notes, read_stored_scores
from cellsignal.decide.scores.files import read_scores
from cellsignal.decide.settings import PLATE_STATISTICS, STATISTICS, PredictionSettings
from cellsignal.learn import devices
from cellsignal.learn.networks.batchnorm import NO_BATCHNORM, NO_BATCHNORM_NOTE, REFINEMENTS, batchnorm_layers
from cellsignal.learn.networks.classifier import ModelConfig, load_weights, read_config
from cellsignal.learn.networks.covariates import CONTROL_TYPES
from cellsignal.learn.networks.standardise import stats_source
from cellsignal.learn.settings import MachineSettings
from cellsignal.progress_bars import progress_bar
from cellsignal.tasks import RXRX1

Networks = dict[str, tuple[nn.Module, ModelConfig]]


@dataclass(frozen=True)
class ScoringOptions:
    """What one network scores, and how.

    `weights`: the folder with the network of each cell type, or if `joint` of all (`weights_path`). `settings.statistics`: the
    kind of statistics; `all_statistics` adds those of STATISTICS. `settings.statistics_scope`: plate or experiment, over which
    statistics are gathered; another scope than in training is warned of (`scope_note`). `settings.tta_views`: above 1, also
    scores averaged over so many of `inference.VIEWS`, called "views". `embedded_sites`: also compute "embeddings" of their
    experiments and of the scored ones, one column per feature; both rest on `settings.statistics`. `embed_controls`: also of the
    controls on their plates. `batch_experiments`: the experiments for which the many passes of "batch" are worth their time, None for all.
    """

    weights: Path
    joint: bool | None = None
    settings: PredictionSettings = PredictionSettings()
    all_statistics: bool = True
    embedded_sites: pd.DataFrame | None = None
    embed_controls: bool = False
    batch_experiments: Collection[str] | None = None
    machine: MachineSettings = MachineSettings(device="cpu")


def score_experiments(root: Path, sites: pd.DataFrame, scoring: ScoringOptions, *, out: Path, name: str = "model",
                      budget: Budget | None = None, stored: bool = False) -> dict[str, pd.DataFrame]:
    """Score the treatment wells of every experiment in `sites` with the network `name`.

    Writes `<out>/<kind>/<experiment>.parquet` and, after each experiment, `<out>/<kind>/metadata.json`: how the statistics of
    each experiment were gathered, the number of images that passed through the network, the seconds, and the identity of the
    scores. Complete scores of the same weights, sites and options are reused; others are replaced. `stored`: read back the
    scores in `out`, whatever made them (`read_stored_scores`).

    Returns the scores of all experiments by kind, in the order of the ladder. Raises TimeSpent before an experiment that would
    end after the deadline of `budget`; the same call then continues.
    """
    settings = scoring.settings
    # A stable sort: the chosen kind comes last.
    scored = {*STATISTICS, settings.statistics} if scoring.all_statistics else {settings.statistics}
    kinds = sorted((kind for kind in PLATE_STATISTICS if kind in scored), key=settings.statistics.__eq__)
    embedded = _embedded_sites(sites, scoring.embedded_sites)
    kind_sites = {kind: sites for kind in (*kinds, *["views"] * (settings.tta_views > 1))}
    if scoring.batch_experiments is not None and "batch" in kind_sites:
        kind_sites["batch"] = sites[sites["experiment"].isin(scoring.batch_experiments)]
    kind_sites |= {} if scoring.embedded_sites is None else {"embeddings": pd.concat([sites, embedded])}
    if stored:
        return {kind: read_stored_scores(out / kind, some_sites, read=_score_reader(kind)) for kind, some_sites in kind_sites.items()}
    device = devices.pick_device(scoring.machine.device)
    options = _inference_options(scoring, device)
    networks = _load_networks(scoring, pd.concat([sites, embedded])["cell_type"].unique(), name=name, device=device)
    if note := scope_note(scoring.weights, list(networks), name, options.scope, joint=scoring.joint):
        warnings.warn(note, stacklevel=2)
    experiments = {name: table for part in (sites, embedded) for name, table in _sites_by_experiment(part, networks, uses_controls=options.uses_controls or options.embed_controls).items()}
    images = {experiment: folder_fingerprints(root, table["stem"]) for experiment, table in experiments.items()}
    caches = {}
    for kind, some_sites in kind_sites.items():
        kind_experiments = {experiment: experiments[experiment] for experiment in experiments if experiment in set(some_sites["experiment"])}
        identities = _identities(kind, networks, root, kind_experiments, images, options, device=device)
        caches[kind] = _score_cache(out / kind, kind, networks, identities, options, network=name, note=note, device=device)
    for kind in {*PLATE_STATISTICS, *EXTRA_OUTPUTS} - set(caches):
        ScoreCache(out / kind, {})  # removes the scores of an earlier prediction
    _score_missing(root, experiments, networks, caches, options, budget=budget or Budget(), name=name)
    return {kind: caches[kind].stacked() for kind in caches}


def embedding_identities(root: Path, sites: pd.DataFrame, scoring: ScoringOptions, *, name: str = "model") -> dict[str, str]:
    """The identity of the embeddings of each experiment in `sites`, as `score_experiments` records it, without computing any."""
    device = devices.pick_device(scoring.machine.device)
    options = _inference_options(scoring, device)
    networks = _load_networks(scoring, sites["cell_type"].unique(), name=name, device=device)
    experiments = _sites_by_experiment(sites, networks, uses_controls=options.uses_controls or options.embed_controls)
    images = {experiment: folder_fingerprints(root, table["stem"]) for experiment, table in experiments.items()}
    return _identities("embeddings", networks, root, experiments, images, options, device=device)


def score_networks(root: Path, sites: pd.DataFrame, networks: Mapping[str, ScoringOptions], *, out: Path, budget: Budget | None = None,
                   stored: bool = False) -> dict[str, dict[str, pd.DataFrame]]:
    """Scores by network, in `<out>/<name>` as `score_experiments` makes them; `networks`: the options of each network by name.

    Scores of other networks in `out` are removed unless `stored`. Before TimeSpent is raised, outdated scores of all networks
    are removed, so that none of them passes for a result.
    """
    if not stored:
        remove_other_networks(out, networks)
    scores, time_spent = {}, None
    for name, scoring in networks.items():
        try:
            scores[name] = score_experiments(root, sites, scoring, name=name, out=out / name, budget=budget, stored=stored)
        except TimeSpent as error:
            time_spent, budget = time_spent or error, Budget(0.0)
    if time_spent is not None:
        raise time_spent
    return scores


def embed_experiments(root: Path, sites: pd.DataFrame, scoring: ScoringOptions, *, out: Path,
                      statistics: Sequence[str] = ("running", "adapted"), budget: Budget | None = None) -> dict[str, pd.DataFrame]:
    """The embeddings of the treatment wells in `sites` under each kind of `statistics`: index id_code, one column per feature.

    The scores go to `<out>/<kind>/`. Networks of different cell types have different features, so that embeddings are
    comparable within a cell type only. Raises TimeSpent as `score_experiments` does.
    """
    embeddings = {}
    for kind in statistics:
        settings = scoring.settings.model_copy(update={"statistics": kind})
        kind_scoring = replace(scoring, settings=settings, all_statistics=False, embedded_sites=sites)
        embeddings[kind] = score_experiments(root, sites, kind_scoring, out=out / kind, budget=budget)["embeddings"]
    return embeddings


def _score_missing(root: Path, experiments: Mapping[str, pd.DataFrame], networks: Networks, caches: Mapping[str, ScoreCache],
                   options: InferenceOptions, *, budget: Budget, name: str) -> None:
    """Score what the caches lack, experiment by experiment."""
    for experiment, sites in progress_bar(experiments.items(), desc="predict", unit="experiment"):
        kinds = [kind for kind in caches if experiment in caches[kind].missing]
        model, config = networks[sites["cell_type"].iloc[0]]
        scored = sites if options.uses_controls or config.control_features else statistics_sites(sites, config)
        images = len(scored) * options.num_passes(kinds, adapts=bool(batchnorm_layers(model)))
        images += (len(sites) - len(scored)) * ("embeddings" in kinds)  # controls that are embedded only
        if kinds and not budget.fits_part(images):
            done = len(experiments) - len({missing for kind in caches for missing in caches[kind].missing})
            raise TimeSpent(f"scored {done} of {len(experiments)} experiments with {name}")
        if kinds:
            started = time.monotonic()
            results = predict_experiment(model, config, root, sites, kinds=kinds, options=options)
            for kind, (table, facts) in results.items():
                caches[kind].add(experiment, table, facts)
            budget.record_part(sum(facts["images"] for _, facts in results.values()), time.monotonic() - started)


def _sites_by_experiment(sites: pd.DataFrame, networks: Networks, *, uses_controls: bool) -> dict[str, pd.DataFrame]:
    """The sites that a network needs, by experiment: those that it scores and its controls, where it or the statistics use them."""
    tables = {}
    for (cell_type, experiment), table in sites.groupby(["cell_type", "experiment"], sort=True):
        config = networks[cell_type][1]
        well_types = {*config.well_types, *(CONTROL_TYPES if config.control_features or uses_controls else ())}
        tables[experiment] = table[table["well_type"].isin(well_types)].reset_index(drop=True)
    return tables


def _embedded_sites(sites: pd.DataFrame, embedded: pd.DataFrame | None) -> pd.DataFrame:
    """The sites of the experiments that are embedded and not scored; of the cell types in `sites`, if there are any."""
    if embedded is None or sites.empty:
        return sites.iloc[:0] if embedded is None else embedded
    return embedded[embedded["cell_type"].isin(sites["cell_type"]) & ~embedded["experiment"].isin(sites["experiment"])]


def _score_reader(kind: str) -> Callable[[Path], pd.DataFrame]:
    return read_embeddings if kind == "embeddings" else read_scores


def scope_note(weights: Path, cell_types: Collection[str], name: str, scope: str, *, joint: bool | None = None) -> str:
    """A note if statistics are gathered over another scope than that of the training batches; "" if over the same.

    Reads the JSON beside the weights (`weights_path`); InputError if one is missing.
    """
    trained = {cell_type: read_config(weights_path(weights, cell_type, name, joint=joint)).scope for cell_type in sorted(cell_types)}
    # Experiments are scored one by one, so that "mixed" statistics are those of the experiment.
    differing = [cell_type for cell_type, training_scope in trained.items() if (training_scope != "plate") != (scope != "plate")]
    if not differing:
        return ""
    matching = "experiment" if scope == "plate" else "plate"
    return (f"statistics are gathered by {scope}, but {', '.join(differing)} learned from {trained[differing[0]]} batches, and "
            f"accuracy suffers; predict with statistics_scope: {matching}, or train with batch_scope: {scope}")


def statistics_note(folder: Path) -> str:
    """A note if all kinds of statistics give the same scores, because the network has no batch normalisation; otherwise "".

    Reads the notes of the scores in `<folder>/<statistics>/`.
    """
    notes = [note for kind in STATISTICS for note in read_notes(Path(folder) / kind).values()]
    return NO_BATCHNORM_NOTE if any(NO_BATCHNORM in note.get("gathered", {}) for note in notes) else ""


def auto_note(folder: Path) -> str:
    """Which statistics "auto" took for how many plates, as the notes of the scores in `<folder>/auto/` say; "" without such scores."""
    plates: dict[str, list[str]] = {}
    for experiment, note in read_notes(Path(folder) / "auto").items():
        for plate, choice in note.get("plates", {}).items():
            statistics, _, reason = choice.partition(": ")
            plates.setdefault(statistics, []).append(f"{experiment} plate {plate}, {reason}")
    return "; ".join(f"statistics: auto took {statistics} for {len(names)} plates, such as {names[0]}" for statistics, names in plates.items())


def remove_other_networks(folder: Path, names: Collection[str]) -> None:
    """Remove the scores of every network but those called `names` from `folder`, which holds `<name>/<statistics>/`.

    An earlier run may have had more networks, and every file in the folder counts as an output of this run.
    """
    for path in Path(folder).glob("*/"):
        if path.name not in names:
            shutil.rmtree(path)


def _load_networks(scoring: ScoringOptions, cell_types: Sequence[str], *, name: str, device: torch.device) -> Networks:
    """Every network at once, so that a missing one is reported before hours of prediction."""
    paths = {cell_type: weights_path(scoring.weights, cell_type, name, joint=scoring.joint) for cell_type in sorted(cell_types)}
    loaded = {path: load_weights(path, channels=len(RXRX1.suffixes)) for path in dict.fromkeys(paths.values())}  # a joint network once
    return {cell_type: (loaded[path][0].to(device), loaded[path][1]) for cell_type, path in paths.items()}


def _inference_options(scoring: ScoringOptions, device: torch.device) -> InferenceOptions:
    settings = scoring.settings
    return InferenceOptions(settings.statistics_scope, tuple(settings.batch_sizes), REFINEMENTS, devices.resolve_precision(device, scoring.machine.precision),
                            settings.statistics, settings.tta_views, scoring.embed_controls)


def _identities(kind: str, networks: Networks, root: Path, experiments: Mapping[str, pd.DataFrame], images: Mapping[str, Mapping[str, str]],
                options: InferenceOptions, *, device: torch.device) -> dict[str, str]:
    """The identity of each experiment's scores of one kind; `images`: the fingerprints of its images."""
    made_by = {cell_type: {"weights": model.origin, "config": vars(config), **stats_source(root, config.standardise)}
               for cell_type, (model, config) in networks.items()}
    return {
        experiment: cache_key(sites, images[experiment], **_way(kind, options), device=device.type, **made_by[sites["cell_type"].iloc[0]])
        for experiment, sites in experiments.items()
    }


def _way(kind: str, options: InferenceOptions) -> dict[str, Any]:
    return {"statistics": kind, "scope": options.scope, "precision": options.precision, **options.identity(kind)}


def _score_cache(folder: Path, kind: str, networks: Networks, identities: Mapping[str, str], options: InferenceOptions, *,
                 device: torch.device, **facts: Any) -> ScoreCache:
    """The scores of one kind in `folder` that belong to these networks, experiments and options."""
    facts |= {"values": "features, mean over the sites of a well", "weights": {name: model.origin for name, (model, _) in networks.items()}} if kind == "embeddings" else {}
    return ScoreCache(
        folder, identities, read=_score_reader(kind), **facts, **_way(kind, options), device=str(device),
        training_scope={cell_type: config.scope for cell_type, (_, config) in networks.items()},
        averaged="log-probabilities, over passes and over the sites of a well")
