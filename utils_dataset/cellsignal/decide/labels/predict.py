"""Probabilities of several labels a site, by the network of each fold: of the sites it has not seen, and of the test sites."""

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
from cellsignal.decide.predict.inference import apply_view
from cellsignal.decide.scores.cache import CURE, ScoreCache, read_receipt, with_code
from cellsignal.decide.scores.files import METADATA, read_scores
from cellsignal.decide.settings import PredictionSettings
from cellsignal.errors import InputError
from cellsignal.files import sha256
from cellsignal.learn import devices
from cellsignal.learn.batches.dataset import SiteImages, iter_batches
from cellsignal.learn.settings import MachineSettings
from cellsignal.learn.networks.classifier import Classifier, load_weights, read_config
from cellsignal.progress_bars import progress_bar
from cellsignal.receipts import Receipt

LEAST = 1e-30  # probability whose logarithm is kept
BATCH = 64  # sites sent through a network together; any number gives the same answer
HELD_OUT, TEST = "held-out", "test"
_PART = re.compile(rf"fold-\d{{1,4}}-({HELD_OUT}|{TEST})")
# How the answers of several views, and of several networks, become one.
COMBINED: dict[str, Callable[[np.ndarray], np.ndarray]] = {"mean": lambda answers: answers.mean(axis=0), "max": lambda answers: answers.max(axis=0)}


@dataclass(frozen=True)
class LabelScores:
    """Probabilities of all sites, and who is in which fold."""

    held_out: np.ndarray  # float64[N, K], labelled sites in the order asked for, each by the network that has not seen it
    test: np.ndarray  # float64[M, K], all networks' combined
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
        """What each network is asked, by the name of its scores, one network after the other."""
        return {
            name: table
            for fold in range(int(self.folds.max()) + 1)
            for name, table in ((_name(fold, HELD_OUT), self.labelled[self.folds == fold]), (_name(fold, TEST), self.test))
        }


def fold_name(fold: int) -> str:
    """The folder of a fold's network below `weights`, and its name in thresholds."""
    return f"fold-{fold}"


def score_folds(
    asked: LabelledSites, settings: PredictionSettings = PredictionSettings(), *, weights: Path, out: Path,
    machine: MachineSettings = MachineSettings(device="cpu"), budget: Budget | None = None,
) -> LabelScores:
    """Score held-out sites by their fold's network and test sites by every network.

    `weights`: the folder with one `fold-<number>/model.safetensors` each. Normalised by running statistics. `settings.combine`:
    "mean", or "max" (first place of the competition).

    Writes `<out>/fold-<number>-{held-out,test}.parquet`, natural-log probabilities, and metadata.json. Those that lie there
    whole, made by the same weights from the same sites in the same way, are kept; others give way. Raises TimeSpent
    before a part that would end after the deadline of `budget`: the same call goes on.
    """
    budget = budget or Budget()
    device, views = devices.pick_device(machine.device), settings.tta_views
    parts, knobs = asked.parts(), {"views": views, "combine": settings.combine, "precision": devices.resolve_precision(device, machine.precision)}
    kept = ScoreCache(out, {name: _identity(asked.root, table, _place(weights, name), asked.suffixes, **knobs) for name, table in parts.items()}, **knobs)
    for name in progress_bar(kept.missing, desc="predict", unit="part"):
        table, began = parts[name], time.monotonic()
        if not budget.fits_part(len(table) * views):
            raise TimeSpent(f"scored {len(parts) - len(kept.missing)} of {len(parts)} parts")
        model, card = load_weights(_place(weights, name), channels=len(asked.suffixes))
        data = SiteImages(asked.root, table, class_numbers=card.class_numbers, channels=asked.suffixes)
        answers = site_probabilities(model.to(device), data, settings, machine=machine)
        scores = pd.DataFrame(np.log(np.maximum(answers, LEAST)), table["id_code"].tolist(), card.class_numbers, np.float32)
        seconds = time.monotonic() - began
        kept.add(name, scores, {"gathered": {"running": 1}, "sites": len(table), "images": len(table) * views, "seconds": seconds})
        budget.record_part(len(table) * views, seconds)
    return _gathered(kept.tables, asked.labelled, asked.test, asked.folds, combine=settings.combine, where=out)


@torch.inference_mode()
def site_probabilities(
    model: Classifier, data: SiteImages, settings: PredictionSettings = PredictionSettings(), *, machine: MachineSettings = MachineSettings()
) -> np.ndarray:
    """The probability of each class at each site by itself (a sigmoid), float32[N, K], views combined."""
    model, device = model.eval(), next(model.parameters()).device
    batches = np.array_split(np.arange(len(data)), max(1, -(-len(data) // BATCH)))
    answers = []
    with devices.autocast(device, machine.precision):
        for images, _ in iter_batches(data, batches, workers=machine.num_workers, device=device):
            logits = torch.stack([model(apply_view(images, view)).float() for view in range(settings.tta_views)])
            answers.append(COMBINED[settings.combine](logits.sigmoid().cpu().numpy()))
    return np.concatenate(answers)


def stored_label_scores(out: Path, labelled: pd.DataFrame, test: pd.DataFrame, *, combine: str = "mean") -> LabelScores:
    """The scores that lie in `out`, whatever made them, without a look at weights or images; the folds are theirs too.

    Raises InputError when some are missing, or are not the files that metadata.json beside them names.
    """
    written = read_receipt(out)
    names = [name.removesuffix(".parquet") for name in written.outputs]
    if odd := next((name for name in names if not _PART.fullmatch(name)), None):
        raise InputError(f"names {odd!r}, which is no part of a prediction", where=out / METADATA, cure=CURE)
    tables = {name: _read(out / f"{name}.parquet", written) for name in names}
    fold_of = {site: int(name.split("-")[1]) for name, table in tables.items() if name.endswith(HELD_OUT) for site in table.index}
    if missing := [site for site in labelled["id_code"] if site not in fold_of]:
        raise InputError(f"no scores of {len(missing)} sites, such as {missing[0]}", where=out, cure=CURE)
    folds = labelled["id_code"].map(fold_of).to_numpy(np.int64)
    return _gathered(tables, labelled, test, folds, combine=combine, where=out)


def _read(path: Path, written: Receipt) -> pd.DataFrame:
    if not path.is_file() or sha256(path) != written.outputs.get(path.name):
        raise InputError("not the scores that metadata.json beside them names", where=path, cure=CURE)
    return read_scores(path)


def _gathered(
    tables: Mapping[str, pd.DataFrame], labelled: pd.DataFrame, test: pd.DataFrame, folds: np.ndarray, *, combine: str, where: Path
) -> LabelScores:
    """All parts in the order of the sites that were asked for."""
    held_out = pd.concat([table for name, table in tables.items() if name.endswith(HELD_OUT)])
    tests = [table.reindex(test["id_code"]).to_numpy(np.float64) for name, table in tables.items() if name.endswith(TEST)]
    if not tests or any(np.isnan(table).any() for table in tests):
        raise InputError("no scores of some test sites", where=where, cure=CURE)
    mine = np.exp(held_out.loc[labelled["id_code"]].to_numpy(np.float64))
    return LabelScores(mine, COMBINED[combine](np.exp(np.stack(tests))), folds)


def _name(fold: int, side: str) -> str:
    return f"{fold_name(fold)}-{side}"


def _place(weights: Path, name: str) -> Path:
    return Path(weights) / "-".join(name.split("-")[:2]) / "model.safetensors"


def _identity(root: Path, sites: pd.DataFrame, weights: Path, suffixes: Sequence[str], **knobs: object) -> str:
    """SHA-256 over all that decides the scores of a part; its first image stands for all of them."""
    read_config(weights)
    first = [Path(root) / f"{sites['stem'].iloc[0]}{suffix}" for suffix in suffixes] if len(sites) else []
    facts = {
        **knobs,
        "weights": sha256(weights),
        "sites": hashlib.sha256(sites[["id_code", "stem"]].to_csv(index=False).encode()).hexdigest(),
        "images": [sha256(path) if path.is_file() else "" for path in first],
    }
    return with_code(facts)
