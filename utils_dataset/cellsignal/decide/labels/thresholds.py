"""Thresholds of multi-label classes: fitted on held-out sites, and stored beside the weights."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cellsignal.data.tables.labelled_sites import Labels, write_labels
from cellsignal.files import write_json

DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class Thresholds:
    """The threshold of each class, and how they were chosen: predictions depend on them as on the weights."""

    values: tuple[float, ...]  # by class number; a class is predicted from its threshold on
    method: str
    fitted_on: str  # SHA-256 of the held-out labels, by id
    sites: int  # number of sites for fitting
    weights: Mapping[str, str]  # SHA-256 of each network's weights, by name
    combined: str  # how networks and views were combined: "mean" or "max"


def best_f1_thresholds(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """For each class the threshold with the best F1 on these sites, float64[K]; 0.5 for a class that none of them has.

    `probabilities`: float[N, K]; `truth`: bool[N, K]. Candidates are the midpoints between neighbouring probabilities; of equally
    good ones the midpoint of the widest gap is taken, which depends the least on these sites.
    """
    return np.array([_best_cut(p, t) for p, t in zip(probabilities.T.astype(np.float64), np.asarray(truth, bool).T)])


def _best_cut(probabilities: np.ndarray, truth: np.ndarray) -> float:
    if not truth.any():
        return DEFAULT_THRESHOLD
    order = np.argsort(-probabilities, kind="stable")
    values = np.append(probabilities[order], 0.0)
    f1 = 2 * np.cumsum(truth[order]) / (np.arange(1, len(order) + 1) + truth.sum())
    gaps = values[:-1] - values[1:]
    cut = max(np.flatnonzero(gaps > 0), key=lambda k: (f1[k], gaps[k]), default=len(order) - 1)
    return float((values[cut] + values[cut + 1]) / 2)


def matching_thresholds(probabilities: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """For each class the threshold at which the share of positive sites is nearest to `shares`, float64[K].

    Equal probabilities are on the same side of a threshold; otherwise the share is exact to half a site. As in the first and the
    third place of the competition.
    """
    return np.array([_share_cut(p, share) for p, share in zip(probabilities.T.astype(np.float64), shares)])


def _share_cut(probabilities: np.ndarray, share: float) -> float:
    values = np.concatenate([[1.001], -np.sort(-probabilities), [0.0]])  # above all of them no site is positive
    cuts = np.flatnonzero(values[:-1] > values[1:])  # numbers of positive sites
    cut = cuts[np.abs(cuts - share * len(probabilities)).argmin()]
    return float((values[cut] + values[cut + 1]) / 2)


def fitted_thresholds(held_out: np.ndarray, truth: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The thresholds with the best F1 on held-out sites."""
    return best_f1_thresholds(held_out, truth)


def share_thresholds(held_out: np.ndarray, truth: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The thresholds at which each class has the same share of positive sites as among the held-out sites."""
    return matching_thresholds(probabilities, np.asarray(truth).mean(axis=0))


def half_thresholds(held_out: np.ndarray, truth: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """0.5 for every class."""
    return np.full(truth.shape[1], DEFAULT_THRESHOLD)


# From probabilities and truth of held-out sites, and the probabilities to be labelled, to thresholds.
THRESHOLD_METHODS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {"fitted": fitted_thresholds, "shares": share_thresholds, "half": half_thresholds}


def cross_fitted_answers(probabilities: np.ndarray, truth: np.ndarray, folds: np.ndarray, *, method: str) -> np.ndarray:
    """Labels bool[N, K] of held-out sites, where the thresholds for each fold are fitted on the other folds.

    Thresholds that are evaluated on the sites on which they were fitted look better than they are.
    """
    from cellsignal.decide.labels.multilabel import apply_thresholds

    labels = np.zeros(truth.shape, bool)
    for fold in np.unique(folds):
        in_fold = folds == fold
        values = THRESHOLD_METHODS[method](probabilities[~in_fold], truth[~in_fold], probabilities[in_fold])
        labels[in_fold] = apply_thresholds(probabilities[in_fold], values)
    return labels


def labels_digest(ids: Sequence[str], labels: Sequence[Labels]) -> str:
    """SHA-256 of labelled sites, independent of their order."""
    lines = sorted(f"{name},{write_labels(site_labels)}\n" for name, site_labels in zip(ids, labels, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_thresholds(path: Path, thresholds: Thresholds) -> Path:
    """Write thresholds as JSON, atomically."""
    write_json(path, asdict(thresholds))
    return path
