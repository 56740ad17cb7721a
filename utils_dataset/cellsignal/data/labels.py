"""Labels as text and as numbers: `16 0` to (0, 16) and to a row of zeros and ones, and back."""

import re
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from cellsignal.data.problems import Problem
from cellsignal.tasks import Task

Labels = tuple[int, ...]
MOST = {"one": 1, "many": None}  # labels of a row, by what a task says


def read_labels(column: pd.Series, task: Task) -> tuple[pd.Series, list[Problem]]:
    """Class numbers of each cell, ascending and each once, and one problem for each cell that holds anything else.

    `column`: texts, indexed by (file, line), named as in the file. Order and repetitions in a cell mean nothing.
    """
    read = {text: parse(text, task) for text in column.unique()}
    labels = column.map(read)
    cure = f"write class numbers from 0 to {task.classes - 1}" + (", separated by spaces" if MOST[task.labels] is None else ", one a row")
    wrong = column[labels.isna()].items()
    return labels, [Problem(f"{file}:{line}:{column.name}", f"{_short(text)} is no label of this task", cure) for (file, line), text in wrong]


def parse(text: str, task: Task) -> Labels | None:
    """The class numbers in a text; None when a word is no class number, or there are none or too many."""
    words = [word for word in text.split(" ") if word]
    if not all(re.fullmatch("0|[1-9][0-9]{0,8}", word) for word in words):
        return None
    found = {int(word) for word in words}
    if not found or max(found) >= task.classes or len(found) > (MOST[task.labels] or task.classes):
        return None
    return tuple(sorted(found))


def write_labels(labels: Iterable[int]) -> str:
    """Class numbers as a submission has them: ascending, separated by spaces."""
    return " ".join(map(str, sorted(set(labels))))


def multi_hot(labels: Sequence[Labels], classes: int) -> np.ndarray:
    """Zeros and ones, uint8[N, classes]."""
    table = np.zeros((len(labels), classes), np.uint8)
    for row, mine in enumerate(labels):
        table[row, list(mine)] = 1
    return table


def _short(text: str) -> str:
    return repr(text if len(text) <= 50 else f"{text[:46]}...")
