"""Several labels a site: macro F1, answers from probabilities and thresholds, the floors, the submission."""

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

PROBABILITY_MARGIN = 1e-7  # probabilities keep this far from 0 and 1 where their logit is asked for


def f1_by_class(truth: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """F1 of each class, float64[K], of `truth` and `answers`, both bool[N, K] or zeros and ones.

    A class that no site has and that is answered for none counts 0, as in scikit-learn (zero_division=0) and on Kaggle.
    """
    truth, answers = np.asarray(truth, bool), np.asarray(answers, bool)
    right, all_ = (truth & answers).sum(axis=0), truth.sum(axis=0) + answers.sum(axis=0)
    return np.divide(2.0 * right, all_, out=np.zeros(truth.shape[1]), where=all_ > 0)


def macro_f1(truth: np.ndarray, answers: np.ndarray) -> float:
    """The mean of `f1_by_class`: rare classes count as much as frequent ones (the competition's measure)."""
    return float(np.average(f1_by_class(truth, answers)))


def apply_thresholds(probabilities: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Answers bool[N, K] from probabilities [N, K] and thresholds [K]; every site gets one label at least.

    A site that reaches no threshold gets the class that comes closest to its own, in log odds. Blank rows cost real
    teams dearly: one silver ensemble had 407 of them.
    """
    answers = probabilities >= thresholds
    blank = ~answers.any(axis=1)
    margin = _log_odds(probabilities[blank]) - _log_odds(thresholds)
    answers[np.flatnonzero(blank), margin.argmax(axis=1)] = True
    return answers


def _log_odds(values: np.ndarray) -> np.ndarray:
    return logit(np.clip(np.asarray(values, np.float64), PROBABILITY_MARGIN, 1 - PROBABILITY_MARGIN))


def label_baselines(truth: np.ndarray, taught: Sequence[Labels]) -> dict[str, float]:
    """Macro F1 of answers that look at no picture: all labels, the most frequent label, the two most frequent.

    `taught`: the labels of the training sites, by which frequency is judged.
    """
    often = [label for label, _ in Counter(label for labels in taught for label in labels).most_common()]
    same = {"all labels": often, "most frequent label": often[:1], "two most frequent labels": often[:2]}
    return {name: macro_f1(truth, np.repeat(multi_hot([tuple(labels)], truth.shape[1]), len(truth), axis=0)) for name, labels in same.items()}


def write_labelled_submission(path: Path, answers: pd.Series, *, sample: Sequence[str], task: Task) -> Path:
    """Write the submission of a task with many labels, such as `Id,Predicted`, in the order of the sample.

    `answers`: class numbers by id. Raises InputError for an id that is missing, strange or there twice, for a site
    without a label and for a class that does not exist; then nothing is written.
    """
    _check_ids(answers.index, sample, where=path)
    for name, labels in answers.items():
        if not len(labels) or not all(0 <= label < task.classes for label in labels):
            cure = f"give it one class or more from 0 to {task.classes - 1}"
            raise InputError(f"site {name} has {'no label' if not len(labels) else f'the labels {write_labels(labels)}'}", where=path, cure=cure)
    texts = answers.reindex(list(sample)).map(write_labels)
    write_text(path, texts.rename(task.answer_column).rename_axis(task.id_column).to_csv(lineterminator="\n"))
    return path


def check_labelled_submission(path: Path, *, sample: Sequence[str], task: Task) -> int:
    """Refuse a submission that Kaggle would score wrongly or not at all; gives the number of its sites.

    Header, ids, their order and every class number are looked at. Raises InputError that names the first fault.
    """
    answers = read_labelled_submission(path, task)
    _check_ids(answers.index, sample, where=path)
    if (wrong := next((i for i, (mine, asked) in enumerate(zip(answers.index, sample)) if mine != asked), None)) is not None:
        what = f"{answers.index[wrong]} stands where {SAMPLE} has {sample[wrong]}"
        raise InputError(what, where=f"{path}:{wrong + 2}:{task.id_column}", cure="keep the order of the sample")
    return len(answers)


def read_labelled_submission(path: Path, task: Task) -> pd.Series:
    """Class numbers by id of a submission; InputError names file, line and column of the first fault."""
    extra = [name for name in headers.read_header(path, exact=True).names if name not in task.submission_columns]
    raise_if_any([Problem(f"{path}:1", f"there is a column {name!r}", f"keep only {','.join(task.submission_columns)}") for name in extra[:1]])
    return read_labelled_solution(path, task, column=task.answer_column, exact=True)


def labels_by_id(answers: np.ndarray, ids: Sequence[str]) -> pd.Series:
    """Class numbers by id of answers bool[N, K]."""
    return pd.Series([tuple(np.flatnonzero(row).tolist()) for row in answers], index=pd.Index(ids, name="id_code"))


def score_labels(answers: pd.Series, truth: pd.Series, task: Task) -> dict:
    """Macro F1 of class numbers by id against the true ones, and F1 by class name; a missing answer names nothing."""
    mine = multi_hot([labels if isinstance(labels, tuple) else () for labels in answers.reindex(truth.index)], task.classes)
    true = multi_hot(truth.tolist(), task.classes)
    names = task.class_names or tuple(map(str, range(task.classes)))
    return {"macro_f1": macro_f1(true, mine), "sites": len(truth), "by_class": dict(zip(names, f1_by_class(true, mine).tolist()))}


def _check_ids(ids: pd.Index, sample: Sequence[str], *, where: object) -> None:
    twice, asked = ids[ids.duplicated()], pd.Index(sample)
    for names, fault in ((twice, "stands twice"), (asked.difference(ids), "is missing"), (ids.difference(asked), "is no site of the test set")):
        if len(names):
            cure = f"the submission must hold exactly the ids of {SAMPLE}"
            raise InputError(f"{names[0]} {fault} ({len(names)} such)", where=where, cure=cure)
