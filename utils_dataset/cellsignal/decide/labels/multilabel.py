"""Multi-label sites: macro F1, labels from probabilities and thresholds, baselines, and the submission."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import logit

from cellsignal.data.tables import headers
from cellsignal.data.tables.labelled_sites import SAMPLE, Labels, multi_hot, read_labelled_solution, write_labels
from cellsignal.errors import InputError, Problem, raise_if_any
from cellsignal.files import write_text
from cellsignal.tasks import Task

PROBABILITY_MARGIN = 1e-7  # probabilities are clipped to this distance from 0 and 1 before the logit


def f1_by_class(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """F1 of each class, float64[K], of `truth` and `predicted`, both bool[N, K] or zeros and ones.

    A class that no site has and that is predicted for none counts 0, as in scikit-learn (zero_division=0) and on Kaggle.
    """
    truth, predicted = np.asarray(truth, bool), np.asarray(predicted, bool)
    true_positives, positives = (truth & predicted).sum(axis=0), truth.sum(axis=0) + predicted.sum(axis=0)
    return np.divide(2.0 * true_positives, positives, out=np.zeros(truth.shape[1]), where=positives > 0)


def macro_f1(truth: np.ndarray, predicted: np.ndarray) -> float:
    """The mean of `f1_by_class`, the metric of the competition: rare classes count as much as frequent ones."""
    return float(np.average(f1_by_class(truth, predicted)))


def apply_thresholds(probabilities: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Labels bool[N, K] from probabilities [N, K] and thresholds [K]; every site gets at least one label.

    A site below all thresholds gets the class closest to its threshold in log odds. Empty rows lost real teams many points: one
    silver ensemble had 407 of them.
    """
    labels = probabilities >= thresholds
    empty = ~labels.any(axis=1)
    margin = _log_odds(probabilities[empty]) - _log_odds(thresholds)
    labels[np.flatnonzero(empty), margin.argmax(axis=1)] = True
    return labels


def _log_odds(values: np.ndarray) -> np.ndarray:
    return logit(np.clip(np.asarray(values, np.float64), PROBABILITY_MARGIN, 1 - PROBABILITY_MARGIN))


def label_baselines(truth: np.ndarray, train_labels: Sequence[Labels]) -> dict[str, float]:
    """Macro F1 of constant predictions: all labels, the most frequent label, the two most frequent ones.

    `train_labels`: the labels of the training sites, from which frequencies are counted.
    """
    by_frequency = [label for label, _ in Counter(label for labels in train_labels for label in labels).most_common()]
    constants = {"all labels": by_frequency, "most frequent label": by_frequency[:1], "two most frequent labels": by_frequency[:2]}
    return {name: macro_f1(truth, np.repeat(multi_hot([tuple(labels)], truth.shape[1]), len(truth), axis=0)) for name, labels in constants.items()}


def write_labelled_submission(path: Path, labels: pd.Series, *, sample: Sequence[str], task: Task) -> Path:
    """Write the submission of a multi-label task, such as `Id,Predicted`, in the order of the sample.

    `labels`: class numbers by id. Raises InputError for a missing, unknown or duplicated id, for a site without a label and for
    an unknown class; then nothing is written.
    """
    _check_ids(labels.index, sample, where=path)
    for name, site_labels in labels.items():
        if not len(site_labels) or not all(0 <= label < task.classes for label in site_labels):
            cure = f"give it one class or more from 0 to {task.classes - 1}"
            raise InputError(f"site {name} has {'no label' if not len(site_labels) else f'the labels {write_labels(site_labels)}'}", where=path, cure=cure)
    texts = labels.reindex(list(sample)).map(write_labels)
    write_text(path, texts.rename(task.answer_column).rename_axis(task.id_column).to_csv(lineterminator="\n"))
    return path


def check_labelled_submission(path: Path, *, sample: Sequence[str], task: Task) -> int:
    """Check that Kaggle will score a submission correctly; returns the number of its sites.

    Checks header, ids, their order and every class number. Raises InputError that names the first fault.
    """
    labels = read_labelled_submission(path, task)
    _check_ids(labels.index, sample, where=path)
    if (wrong := next((i for i, (name, expected) in enumerate(zip(labels.index, sample)) if name != expected), None)) is not None:
        what = f"{labels.index[wrong]} stands where {SAMPLE} has {sample[wrong]}"
        raise InputError(what, where=f"{path}:{wrong + 2}:{task.id_column}", cure="keep the order of the sample")
    return len(labels)


def read_labelled_submission(path: Path, task: Task) -> pd.Series:
    """Class numbers by id of a submission; InputError with file, line and column of the first fault."""
    extra = [name for name in headers.read_header(path, exact=True).names if name not in task.submission_columns]
    raise_if_any([Problem(f"{path}:1", f"there is a column {name!r}", f"keep only {','.join(task.submission_columns)}") for name in extra[:1]])
    return read_labelled_solution(path, task, column=task.answer_column, exact=True)


def labels_by_id(labels: np.ndarray, ids: Sequence[str]) -> pd.Series:
    """Class numbers by id of labels bool[N, K]."""
    return pd.Series([tuple(np.flatnonzero(row).tolist()) for row in labels], index=pd.Index(ids, name="id_code"))


def score_labels(predictions: pd.Series, truth: pd.Series, task: Task) -> dict:
    """Macro F1 of predicted class numbers by id, and F1 by class name; a missing prediction has no labels."""
    predicted = multi_hot([labels if isinstance(labels, tuple) else () for labels in predictions.reindex(truth.index)], task.classes)
    true = multi_hot(truth.tolist(), task.classes)
    names = task.class_names or tuple(map(str, range(task.classes)))
    return {"macro_f1": macro_f1(true, predicted), "sites": len(truth), "by_class": dict(zip(names, f1_by_class(true, predicted).tolist()))}


def _check_ids(ids: pd.Index, sample: Sequence[str], *, where: object) -> None:
    expected = pd.Index(sample)
    for names, fault in ((ids[ids.duplicated()], "stands twice"), (expected.difference(ids), "is missing"), (ids.difference(expected), "is no site of the test set")):
        if len(names):
            cure = f"the submission must hold exactly the ids of {SAMPLE}"
            raise InputError(f"{names[0]} {fault} ({len(names)} such)", where=where, cure=cure)
