"""From which probability on a class is answered: fitted on held-out sites, kept beside the weights."""

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
    """A threshold a class, and how they came about: predictions depend on them as on the weights."""

    values: tuple[float, ...]  # by class number; a class is answered from its threshold on
    method: str
    fitted_on: str  # SHA-256 of the held-out labels, by id
    sites: int  # that they were fitted on
    weights: Mapping[str, str]  # SHA-256 of each network's weights, by name
    combined: str  # how networks and views became one probability: "mean" or "max"


def best_f1_thresholds(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """For each class the threshold that has the best F1 on these sites, float64[K]; 0.5 for a class that none of them has.

    `probabilities` float[N, K], `truth` bool[N, K]. All cuts are tried: between two neighbouring probabilities, in
    their middle. Of equally good ones the middle of the widest gap counts, which is the least particular to these sites.
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
    """For each class the threshold at which the share of sites that are answered is nearest to `shares`, float64[K].

    Equal probabilities stay on one side; else the share is right to half a site. The first and the third place of
    the competition set theirs so.
    """
    return np.array([_share_cut(p, share) for p, share in zip(probabilities.T.astype(np.float64), shares)])


def _share_cut(probabilities: np.ndarray, share: float) -> float:
    values = np.concatenate([[1.001], -np.sort(-probabilities), [0.0]])  # above all of them nobody is answered
    cuts = np.flatnonzero(values[:-1] > values[1:])  # so many sites are answered
    cut = cuts[np.abs(cuts - share * len(probabilities)).argmin()]
    return float((values[cut] + values[cut + 1]) / 2)


def fitted_thresholds(held_out: np.ndarray, truth: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """By the F1 of held-out sites."""
    return best_f1_thresholds(held_out, truth)


def share_thresholds(held_out: np.ndarray, truth: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """So that each class has the same share of the sites that are asked for as of the held-out ones."""
    return matching_thresholds(asked, np.asarray(truth).mean(axis=0))


def half_thresholds(held_out: np.ndarray, truth: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """0.5 for every class."""
    return np.full(truth.shape[1], DEFAULT_THRESHOLD)


# Probabilities and truth of held-out sites, and the probabilities that are to be decided on, to thresholds.
THRESHOLD_METHODS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {"fitted": fitted_thresholds, "shares": share_thresholds, "half": half_thresholds}


def cross_fitted_answers(probabilities: np.ndarray, truth: np.ndarray, folds: np.ndarray, *, method: str) -> np.ndarray:
    """Answers bool[N, K] for held-out sites, those of each fold by thresholds that the other folds' sites gave.

    Thresholds judged on the sites that they were fitted on look better than they are.
    """
    from cellsignal.decide.labels.multilabel import apply_thresholds

    answers = np.zeros(truth.shape, bool)
    for fold in np.unique(folds):
        mine = folds == fold
        values = THRESHOLD_METHODS[method](probabilities[~mine], truth[~mine], probabilities[mine])
        answers[mine] = apply_thresholds(probabilities[mine], values)
    return answers


def labels_digest(ids: Sequence[str], labels: Sequence[Labels]) -> str:
    """SHA-256 of labelled sites, in whatever order they come."""
    lines = sorted(f"{name},{write_labels(mine)}\n" for name, mine in zip(ids, labels, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_thresholds(path: Path, thresholds: Thresholds) -> Path:
    """Write thresholds as JSON, atomically."""
    write_json(path, asdict(thresholds))
    return path
