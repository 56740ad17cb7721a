"""Probabilities of multi-label sites by the network of each fold, for its held-out sites and for the test sites."""

import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cellsignal.budget import Budget, TimeSpent
from cellsignal.data.images.reader import folder_fingerprints
from cellsignal.decide.predict.inference import apply_view
from cellsignal.decide.scores.cache import PREDICT_AGAIN, ScoreCache, identity_with_code, read_receipt
from cellsignal.decide.scores.files import METADATA, read_scores
from cellsignal.decide.settings import PredictionSettings
from cellsignal.errors import InputError
from cellsignal.files import sha256
from cellsignal.learn import devices
from cellsignal.learn.batches.dataset import SiteImages, read_batches
from cellsignal.learn.networks.classifier import Classifier, load_weights, read_config
from cellsignal.learn.settings import MachineSettings
from cellsignal.progress_bars import progress_bar
from cellsignal.receipts import Receipt

MIN_PROBABILITY = 1e-30  # lower bound of probabilities before the logarithm
BATCH_SIZE = 64  # sites per batch; the size does not change the probabilities
HELD_OUT_PART, TEST_PART = "held-out", "test"
_PART_NAME = re.compile(rf"fold-\d{{1,4}}-({HELD_OUT_PART}|{TEST_PART})")
# How the probabilities of several views, and of several networks, are combined.
COMBINE_FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda probabilities: probabilities.mean(axis=0), "max": lambda probabilities: probabilities.max(axis=0),
}


@dataclass(frozen=True)
class LabelScores:
    """Probabilities of all sites, and the fold of each labelled site."""

    held_out: np.ndarray  # float64[N, K], of the labelled sites, each by the network of its fold
    test: np.ndarray  # float64[M, K], combined over all networks
    folds: np.ndarray  # int64[N]


@dataclass(frozen=True)
class LabelledSites:
    """Sites to score: `labelled` and `test` with columns id_code and stem, and the fold of each labelled one."""

    root: Path
    labelled: pd.DataFrame
    test: pd.DataFrame
    folds: np.ndarray  # int64[N]
    suffixes: Sequence[str]

    def parts(self) -> dict[str, pd.DataFrame]:
        """The sites to score, by the name of the scores, one network after the other."""
        return {
            name: table
            for fold in range(int(self.folds.max()) + 1)
            for name, table in ((_part_name(fold, HELD_OUT_PART), self.labelled[self.folds == fold]), (_part_name(fold, TEST_PART), self.test))
        }


def fold_name(fold: int) -> str:
    """The folder of a fold's network in `weights`, and its name in thresholds."""
    return f"fold-{fold}"


def score_folds(
    sites: LabelledSites, settings: PredictionSettings = PredictionSettings(), *, weights: Path, out: Path,
    machine: MachineSettings = MachineSettings(device="cpu"), budget: Budget | None = None,
) -> LabelScores:
    """Score held-out sites by their fold's network and test sites by every network, under running statistics.

    `weights`: the folder with `fold-<number>/model.safetensors`. `settings.combine`: "mean", or "max" (first place of the
    competition).

    Writes `<out>/fold-<number>-{held-out,test}.parquet`, natural-log probabilities, and metadata.json. Complete scores of the same
    weights, sites and options are reused; others are replaced. Raises TimeSpent before a part that would end after the deadline of
    `budget`; the same call then continues.
    """
    budget = budget or Budget()
    device, views = devices.pick_device(machine.device), settings.tta_views
    options = {"views": views, "combine": settings.combine, "precision": devices.resolve_precision(device, machine.precision)}
    parts = sites.parts()
    images = folder_fingerprints(sites.root, pd.concat([sites.labelled, sites.test])["stem"])
    identities = {name: _part_identity(table, images, _fold_weights(weights, name), **options, channels=list(sites.suffixes)) for name, table in parts.items()}
    cache = ScoreCache(out, identities, **options)
    for name in progress_bar(cache.missing, desc="predict", unit="part"):
        table, started = parts[name], time.monotonic()
        if not budget.fits_part(len(table) * views):
            raise TimeSpent(f"scored {len(parts) - len(cache.missing)} of {len(parts)} parts")
        model, config = load_weights(_fold_weights(weights, name), channels=len(sites.suffixes))
        data = SiteImages(sites.root, table, class_numbers=config.class_numbers, channels=sites.suffixes)
        probabilities = site_probabilities(model.to(device), data, settings, machine=machine)
        scores = pd.DataFrame(np.log(np.maximum(probabilities, MIN_PROBABILITY)), table["id_code"].tolist(), config.class_numbers, np.float32)
        seconds = time.monotonic() - started
        cache.add(name, scores, {"gathered": {"running": 1}, "sites": len(table), "images": len(table) * views, "seconds": seconds})
        budget.record_part(len(table) * views, seconds)
    return _combine_parts(cache.tables, sites.labelled, sites.test, sites.folds, combine=settings.combine, where=out)


@torch.inference_mode()
def site_probabilities(
    model: Classifier, data: SiteImages, settings: PredictionSettings = PredictionSettings(), *, machine: MachineSettings = MachineSettings()
) -> np.ndarray:
    """The probability of each class at each site (a sigmoid), float32[N, K], combined over views."""
    model, device = model.eval(), next(model.parameters()).device
    batches = np.array_split(np.arange(len(data)), max(1, -(-len(data) // BATCH_SIZE)))
    probabilities = []
    with devices.autocast(device, machine.precision):
        for images, _ in read_batches(data, batches, workers=machine.num_workers, device=device):
            logits = torch.stack([model(apply_view(images, view)).float() for view in range(settings.tta_views)])
            probabilities.append(COMBINE_FUNCTIONS[settings.combine](logits.sigmoid().cpu().numpy()))
    return np.concatenate(probabilities)


def stored_label_scores(out: Path, labelled: pd.DataFrame, test: pd.DataFrame, *, combine: str = "mean") -> LabelScores:
    """The scores in `out`, whatever made them, without weights and images; the folds come from the files too.

    Raises InputError if some are missing, or differ from the SHA-256 in metadata.json.
    """
    receipt = read_receipt(out)
    names = [name.removesuffix(".parquet") for name in receipt.outputs]
    if unknown := next((name for name in names if not _PART_NAME.fullmatch(name)), None):
        raise InputError(f"names {unknown!r}, which is no part of a prediction", where=out / METADATA, cure=PREDICT_AGAIN)
    tables = {name: _read_stored(out / f"{name}.parquet", receipt) for name in names}
    fold_of = {site: int(name.split("-")[1]) for name, table in tables.items() if name.endswith(HELD_OUT_PART) for site in table.index}
    if missing := [site for site in labelled["id_code"] if site not in fold_of]:
        raise InputError(f"no scores of {len(missing)} sites, such as {missing[0]}", where=out, cure=PREDICT_AGAIN)
    folds = labelled["id_code"].map(fold_of).to_numpy(np.int64)
    return _combine_parts(tables, labelled, test, folds, combine=combine, where=out)


def _read_stored(path: Path, receipt: Receipt) -> pd.DataFrame:
    if not path.is_file() or sha256(path) != receipt.outputs.get(path.name):
        raise InputError("not the scores that metadata.json beside them names", where=path, cure=PREDICT_AGAIN)
    return read_scores(path)


def _combine_parts(
    tables: Mapping[str, pd.DataFrame], labelled: pd.DataFrame, test: pd.DataFrame, folds: np.ndarray, *, combine: str, where: Path
) -> LabelScores:
    """The probabilities of all parts, in the order of `labelled` and `test`."""
    held_out = pd.concat([table for name, table in tables.items() if name.endswith(HELD_OUT_PART)])
    tests = [table.reindex(test["id_code"]).to_numpy(np.float64) for name, table in tables.items() if name.endswith(TEST_PART)]
    if not tests or any(np.isnan(table).any() for table in tests):
        raise InputError("no scores of some test sites", where=where, cure=PREDICT_AGAIN)
    probabilities = np.exp(held_out.loc[labelled["id_code"]].to_numpy(np.float64))
    return LabelScores(probabilities, COMBINE_FUNCTIONS[combine](np.exp(np.stack(tests))), folds)


def _part_name(fold: int, part: str) -> str:
    return f"{fold_name(fold)}-{part}"


def _fold_weights(weights: Path, name: str) -> Path:
    return Path(weights) / "-".join(name.split("-")[:2]) / "model.safetensors"


def _part_identity(sites: pd.DataFrame, images: Mapping[str, str], weights: Path, **options: object) -> str:
    """The identity of the scores of a part: a hash of everything they depend on."""
    read_config(weights)
    facts = {
        **options,
        "weights": sha256(weights),
        "sites": hashlib.sha256(sites[["id_code", "stem"]].to_csv(index=False).encode()).hexdigest(),
        "images": {folder: images[folder] for folder in sites["stem"].str.rpartition("/")[0].unique()},
    }
    return identity_with_code(facts)
