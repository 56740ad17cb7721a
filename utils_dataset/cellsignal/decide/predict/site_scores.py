"""Scores of single sites, for a benchmark that scores each image alone: by one network, under the statistics of their plates."""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cellsignal.budget import Budget, TimeSpent
from cellsignal.data.images.reader import folder_fingerprints, read_sites
from cellsignal.decide.predict.inference import InferenceOptions, PlateInference, infer_statistics
from cellsignal.decide.predict.predict import remove_other_networks
from cellsignal.decide.scores.cache import PREDICT_AGAIN, ScoreCache, identity_with_code, read_receipt
from cellsignal.decide.scores.files import read_scores
from cellsignal.decide.settings import PredictionSettings
from cellsignal.errors import InputError
from cellsignal.files import sha256
from cellsignal.learn import devices
from cellsignal.learn.batches.dataset import scope_rows
from cellsignal.learn.networks.batchnorm import batchnorm_layers
from cellsignal.learn.networks.classifier import Classifier, load_weights
from cellsignal.learn.settings import MachineSettings
from cellsignal.progress_bars import progress_bar


def score_kinds(settings: PredictionSettings) -> list[str]:
    """The kinds of scores that are made: under running statistics, under those of the settings, and of these the mean over views."""
    return list(dict.fromkeys(("running", settings.statistics, *["views"] * (settings.tta_views > 1))))


def score_sites(root: Path, sites: pd.DataFrame, settings: PredictionSettings = PredictionSettings(), *, weights: Path, channels: Sequence[str],
                out: Path, machine: MachineSettings = MachineSettings(device="cpu"), budget: Budget | None = None) -> dict[str, pd.DataFrame]:
    """Log-probabilities of every class at each of `sites`, by kind (`score_kinds`): index id_code, columns class numbers, float32.

    `sites`: columns id_code, experiment, plate and stem; the statistics of a plate are those of its sites in this table. `channels`: the
    suffix of each channel. Writes `<out>/<kind>/<experiment>.parquet`; complete scores of the same weights, sites and options are
    reused. Raises TimeSpent before an experiment that would end after the deadline of `budget`; the same call then continues.
    """
    budget, device = budget or Budget(), devices.pick_device(machine.device)
    precision = devices.resolve_precision(device, machine.precision)
    options = InferenceOptions(settings.statistics_scope, tuple(settings.batch_sizes), precision=precision, basis=settings.statistics, views=settings.tta_views)
    model, config = load_weights(weights, channels=len(channels))
    model, kinds, experiments = model.to(device), score_kinds(settings), dict(iter(sites.groupby("experiment", sort=False)))
    remove_other_networks(out, kinds)
    fingerprints = {name: folder_fingerprints(root, table["stem"]) for name, table in experiments.items()}
    caches = {}
    for kind in kinds:
        way = {"statistics": kind, "scope": options.scope, "precision": precision, "device": device.type, **options.identity(kind)}
        facts = {**way, "weights": sha256(weights), "channels": list(channels)}
        caches[kind] = ScoreCache(out / kind, {name: _identity(table, fingerprints[name], facts) for name, table in experiments.items()}, **way)
    unfinished = [name for name in experiments if any(name in cache.missing for cache in caches.values())]
    for number, name in enumerate(progress_bar(unfinished, desc="predict", unit="experiment")):
        missing, started = [kind for kind in kinds if name in caches[kind].missing], time.monotonic()
        images = len(experiments[name]) * options.num_passes(missing, adapts=bool(batchnorm_layers(model)))
        if not budget.fits_part(images):
            raise TimeSpent(f"scored {len(experiments) - len(unfinished) + number} of {len(experiments)} experiments")
        for kind, table, facts in _experiment_scores(model, config.class_numbers, root, experiments[name], missing, options, channels=channels):
            caches[kind].add(name, table, facts)
        budget.record_part(images, time.monotonic() - started)
    return {kind: cache.stacked() for kind, cache in caches.items()}


def stored_site_scores(out: Path, sites: pd.DataFrame, settings: PredictionSettings = PredictionSettings()) -> dict[str, pd.DataFrame]:
    """The scores of `sites` in `out`, whatever network made them; InputError if some are missing or differ from what metadata.json names."""
    return {kind: pd.concat([_stored(out / kind, name, table) for name, table in sites.groupby("experiment", sort=False)]) for kind in score_kinds(settings)}


def _stored(folder: Path, experiment: str, sites: pd.DataFrame) -> pd.DataFrame:
    path = folder / f"{experiment}.parquet"
    if not path.is_file() or sha256(path) != read_receipt(folder).outputs.get(path.name):
        raise InputError("no such scores, or not those that metadata.json beside them names", where=path, cure=PREDICT_AGAIN)
    table = read_scores(path)
    if len(missing := pd.Index(sites["id_code"]).difference(table.index)):
        raise InputError(f"no scores of {len(missing)} sites, such as {missing[0]}", where=path, cure=PREDICT_AGAIN)
    return table.loc[sites["id_code"]]


def _experiment_scores(model: Classifier, class_numbers: list[int], root: Path, sites: pd.DataFrame, kinds: Sequence[str], options: InferenceOptions, *,
                       channels: Sequence[str]) -> Iterator[tuple[str, pd.DataFrame, dict[str, Any]]]:
    """Kind, scores and how they were made, of each kind of scores of one experiment; a plate's images are read once for all kinds."""
    values = {kind: np.empty((len(sites), len(class_numbers)), np.float32) for kind in kinds}
    facts = {kind: {"gathered": {}, "sites": len(sites), "images": 0, "seconds": 0.0} for kind in kinds}
    for rows in scope_rows(sites, options.scope):
        inference = PlateInference(model, read_sites(root, sites.iloc[rows], channels=channels), precision=options.precision)
        sent, started = 0, time.perf_counter()
        for kind, output, how in infer_statistics(inference, kinds, options, classes=len(class_numbers)):
            values[kind][rows] = output
            facts[kind]["images"] += inference.images_sent - sent
            facts[kind]["seconds"] += time.perf_counter() - started
            facts[kind]["gathered"][how] = facts[kind]["gathered"].get(how, 0) + 1
            sent, started = inference.images_sent, time.perf_counter()
    for kind in kinds:
        table = pd.DataFrame(values[kind], index=pd.Index(sites["id_code"], name="id_code"), columns=class_numbers)
        yield kind, table, facts[kind]


def _identity(sites: pd.DataFrame, images: Mapping[str, str], facts: dict[str, Any]) -> str:
    """The identity of an experiment's scores: a hash of everything they depend on."""
    text = sites[["id_code", "stem", "plate"]].to_csv(index=False)
    return identity_with_code({**facts, "sites": hashlib.sha256(text.encode()).hexdigest(), "images": dict(images)})
