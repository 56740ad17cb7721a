"""Tables of sites that carry labels of their own, such as the Protein Atlas: one row per site, no wells, no plates."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from cellsignal.data import headers, rows, store
from cellsignal.data.folders import entries
from cellsignal.data.labels import read_labels
from cellsignal.data.problems import Problem, refuse
from cellsignal.errors import InputError
from cellsignal.tasks import RXRX1, TASKS, Task

TRAIN, SAMPLE, SOLUTION = "train.csv", "sample_submission.csv", "solution.csv"
_NAME = r"[\w+-][\w.+-]*"  # ids become the names of files
_TREES = ("{dataset}/", "images/{dataset}/", "images/", "")  # where images may lie below the root


@dataclass(frozen=True)
class SiteTables:
    """A data set of labelled sites without its pixels."""

    root: Path  # folder of the data set
    sites: pd.DataFrame  # id_code, labels (class numbers, ascending; () in the test set), dataset, stem: train first, else as in the files
    sample: list[str]  # ids of the test sites, in the order a submission has
    solution: pd.Series | None  # labels by id_code of test sites, where they are known


def task_of(root: Path) -> Task:
    """The task whose tables lie in a folder, told by a column that marks them; RxRx1 where none does."""
    for task in TASKS.values():
        if any(column and headers.has_columns(Path(root) / name, column) for name, column in task.marks):
            return task
    return RXRX1


def read_site_tables(root: Path, task: Task) -> SiteTables:
    """Read train.csv, sample_submission.csv and, where it is there, solution.csv, as `task` names their columns.

    Labels in any order and labels that stand twice are read rightly. Raises InputError naming file, line and column
    of the first fault: a class that does not exist, a row without labels, an id that stands twice or is no file name.
    """
    root = Path(root)
    if not (root / TRAIN).exists():
        what = f"{TRAIN} is not there" if root.is_dir() else "no such folder"
        raise InputError(what, where=root, cure="name the folder that holds the tables")
    train, test = _labelled(root / TRAIN, task, task.label_column), _ids(root / SAMPLE, task)
    refuse(_id_problems(pd.concat([train["id_code"], test["id_code"]]), task))
    solution = read_labelled_solution(root / SOLUTION, task) if (root / SOLUTION).exists() else None
    if solution is not None:
        _refuse_strangers(root / SOLUTION, solution.index, set(test["id_code"]))
    sites = pd.concat([train.assign(dataset="train"), test.assign(dataset="test", labels=[()] * len(test))], ignore_index=True)
    return SiteTables(root, _with_stems(root, sites), test["id_code"].tolist(), solution)


def read_labelled_solution(path: Path, task: Task, *, column: str = "", exact: bool = False) -> pd.Series:
    """Labels by id_code, from a table with answers in `column`, the task's own when empty; raises InputError.

    `exact`: as in `rows.read_rows`.
    """
    frame = _labelled(Path(path), task, column or task.label_column, exact=exact)
    refuse(_id_problems(frame["id_code"], task))
    return frame.set_index("id_code")["labels"]


def read_sample(path: Path, task: Task) -> list[str]:
    """The ids of a sample submission, in its order; raises InputError."""
    frame = _ids(Path(path), task)
    refuse(_id_problems(frame["id_code"], task))
    return frame["id_code"].tolist()


def _labelled(path: Path, task: Task, column: str, *, exact: bool = False) -> pd.DataFrame:
    """id_code and labels of a table, indexed by (file, line)."""
    frame = _read(path, (task.id_column, column), exact=exact)
    labels, problems = read_labels(frame[column], task)
    refuse(problems)
    return pd.DataFrame({"id_code": frame[task.id_column], "labels": labels})


def _ids(path: Path, task: Task) -> pd.DataFrame:
    frame = _read(path, (task.id_column,))
    return pd.DataFrame({"id_code": frame[task.id_column]})


def _read(path: Path, columns: Iterable[str], *, exact: bool = False) -> pd.DataFrame:
    """The texts of some columns of a CSV file, which has a row at least."""
    frame, problems = rows.read_rows(path, TypedDict("Row", {name: rows.Text for name in columns}), exact=exact)
    refuse(problems or ([] if len(frame) else [Problem(str(path), "no row below the header", "copy it again")]))
    return frame


def _id_problems(ids: pd.Series, task: Task) -> list[Problem]:
    frame = ids.rename(task.id_column).to_frame()
    odd, twice = ~ids.str.fullmatch(_NAME), ids.duplicated()
    return rows.flag(frame, odd, task.id_column, "is no name of a file", "write letters, digits, hyphens") + rows.flag(
        frame, twice, task.id_column, "stands in an earlier row or table too", "keep one of the rows"
    )


def _refuse_strangers(path: Path, ids: pd.Index, asked: set[str]) -> None:
    if strange := [name for name in ids if name not in asked]:
        what = f"{strange[0]} is not in {SAMPLE} ({len(strange)} such)"
        raise InputError(what, where=path, cure="take the tables of one and the same data set")


def _with_stems(root: Path, sites: pd.DataFrame) -> pd.DataFrame:
    """Add the path of each site below the root, in the tree that is there, else the usual."""
    there = [tree for tree in _TREES[:-1] if (root / tree.format(dataset="train")).is_dir()]
    tree = next(iter(there), _TREES[-1] if any(entry.name.endswith(".png") for entry in entries(root)) or (root / store.BESIDE).is_dir() else _TREES[0])
    return sites.assign(stem=[tree.format(dataset=kind) + name for kind, name in zip(sites["dataset"], sites["id_code"])])
