"""Simulated scores whose truth is known, on the real test layout, and real networks' choices as scores.

Seeds are explicit everywhere. The harder noise is one of about twenty that were tried: over them `expected` gained 0.0 to
1.5 points on `exact`, half of the time less than one. So its gain is a fact about this noise and no law.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from cellsignal.data.tables.plate_design import plate_groups, rotations
from cellsignal.data.microscope.layout import complete_labels
from cellsignal.data.tables.wells import read_tables

CLASSES = 1108


@cache
def real_layout(folder: Path) -> tuple[pd.DataFrame, pd.Series, list[list[int]], dict[str, list[int]]]:
    """The real tables' wells, a truth for the test wells that keeps the rules, the plate groups and the rotations."""
    tables = read_tables(folder)
    drawn = complete_labels(tables.wells, seed=0, solution=tables.solution).set_index("id_code")
    truth = drawn.loc[(drawn["dataset"] == "test") & (drawn["well_type"] == "treatment"), "sirna"]
    groups = plate_groups(tables.wells)
    return tables.wells, truth.astype(int), groups, rotations(tables.wells, groups)


def group_on_plate(truth: pd.Series, groups: list[list[int]]) -> dict[str, list[int]]:
    """The number of the group, from 1, on each plate of each experiment of a truth."""
    of = {sirna: number for number, group in enumerate(groups, 1) for sirna in group}
    plates = truth.index.str.rsplit("_", n=1).str[0]
    first = truth.groupby(plates).first().map(of)
    return first.groupby(first.index.str.rsplit("_", n=1).str[0]).apply(list).to_dict()


def gaussian(truth: pd.Series, *, accuracy: float, seed: int, overconfidence: float = 1.0) -> pd.DataFrame:
    """Independent normal scores of variance 1; the true class gets the shift that makes the raw accuracy just so.

    A well is right once the shift exceeds its margin, so the shift is a quantile of the margins. Times the shift, such
    scores are the log-probabilities of the classes up to a constant: calibrated at the temperature 1, or at
    `overconfidence` when they are multiplied by that.
    """
    scores = np.random.default_rng(seed).standard_normal((len(truth), CLASSES), dtype=np.float32)
    at = np.arange(len(truth)), truth.to_numpy()
    own, scores[at] = scores[at], -np.inf
    shift = np.float32(np.quantile(scores.max(1) - own, accuracy))
    scores[at] = own + shift
    return _log_softmax(truth, scores * shift * np.float32(overconfidence))


def families(truth: pd.Series, *, seed: int, noise: float = 0.35) -> pd.DataFrame:
    """A harder noise: confusions within families, errors shared by the sites of a well, calibration drifting by plate.

    siRNAs are points on a sphere in 32 dimensions, in families of 12 over all plate groups (so that about 3 share a
    plate) with the correlation 0.7. A site shows its siRNA's point plus noise, half of whose variance it shares with
    the other site of the well. Its probabilities are a softmax of the squared distances that is twice too sure, times a
    factor that drifts by plate (log-normal, 0.3); those of the two sites are averaged, as public kernels do.
    `noise`: its standard deviation per dimension; 0.35 gives a raw accuracy of 0.28, 0.30 one of 0.42.
    """
    rng = np.random.default_rng(seed)
    family = rng.permutation(CLASSES) // 12
    centres, own = rng.normal(size=(family.max() + 1, 32)), rng.normal(size=(CLASSES, 32))
    points = np.sqrt(0.7) * centres[family] + np.sqrt(0.3) * own
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    _, plates = np.unique(truth.index.str.rsplit("_", n=1).str[0], return_inverse=True)
    sureness = 2 * np.exp(0.3 * rng.normal(size=plates.max() + 1))[plates] / noise**2
    shared = rng.normal(size=(len(truth), 32))
    sites = [
        points[truth] + noise * (np.sqrt(0.5) * shared + np.sqrt(0.5) * rng.normal(size=shared.shape)) for _ in range(2)
    ]
    first, second = (_log_softmax(truth, (site @ points.T * sureness[:, None]).astype(np.float32)) for site in sites)
    return np.logaddexp(first, second) - np.float32(np.log(2))


def votes(path: Path, networks: list[str]) -> pd.DataFrame:
    """Log of the share of votes that real networks give each class, a thousandth of a vote added to each."""
    choices = pd.read_csv(path, index_col="id_code")[networks]
    counts = np.full((len(choices), CLASSES), 1e-3, dtype=np.float32)
    np.add.at(counts, (np.arange(len(choices))[:, None], choices.to_numpy()), 1)
    return pd.DataFrame(np.log(counts / counts.sum(1, keepdims=True)), index=choices.index, columns=range(CLASSES))


def _log_softmax(truth: pd.Series, scores: np.ndarray) -> pd.DataFrame:
    scores -= scores.max(1, keepdims=True)
    scores -= np.log(np.exp(scores).sum(1, keepdims=True))
    return pd.DataFrame(scores, index=truth.index, columns=range(CLASSES))
