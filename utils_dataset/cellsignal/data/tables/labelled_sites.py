"""Tables of sites that carry labels of their own, such as the Protein Atlas: one row per site, no wells, no plates."""

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from cellsignal.data.images import packed_store
from cellsignal.data.images.reader import image_content
from cellsignal.data.tables import headers, schema
from cellsignal.errors import InputError, Problem, raise_if_any
from cellsignal.files import entries
from cellsignal.tasks import RXRX1, TASKS, Task

# Labels as text and as numbers: `16 0` to (0, 16) and to a row of zeros and ones, and back.


Labels = tuple[int, ...]
MAX_LABELS = {"one": 1, "many": None}  # labels of a row, by what a task says


def read_labels(column: pd.Series, task: Task) -> tuple[pd.Series, list[Problem]]:
    """Class numbers of each cell, ascending and each once, and one problem for each cell that holds anything else.

    `column`: texts, indexed by (file, line), named as in the file. Order and repetitions in a cell mean nothing.
    """
    parsed = {text: parse_labels(text, task) for text in column.unique()}
    labels = column.map(parsed)
    cure = f"write class numbers from 0 to {task.classes - 1}" + (", separated by spaces" if MAX_LABELS[task.labels] is None else ", one a row")
    invalid = column[labels.isna()].items()
    return labels, [Problem(f"{file}:{line}:{column.name}", f"{_short(text)} is no label of this task", cure) for (file, line), text in invalid]


def parse_labels(text: str, task: Task) -> Labels | None:
    """The class numbers in a text; None when a word is no class number, or there are none or too many."""
    words = [word for word in text.split(" ") if word]
    if not all(re.fullmatch("0|[1-9][0-9]{0,8}", word) for word in words):
        return None
    numbers = {int(word) for word in words}
    if not numbers or max(numbers) >= task.classes or len(numbers) > (MAX_LABELS[task.labels] or task.classes):
        return None
    return tuple(sorted(numbers))


def write_labels(labels: Iterable[int]) -> str:
    """Class numbers as a submission has them: ascending, separated by spaces."""
    return " ".join(map(str, sorted(set(labels))))


def multi_hot(labels: Sequence[Labels], classes: int) -> np.ndarray:
    """Zeros and ones, uint8[N, classes]."""
    table = np.zeros((len(labels), classes), np.uint8)
    for row, row_labels in enumerate(labels):
        table[row, list(row_labels)] = 1
    return table


def _short(text: str) -> str:
    return repr(text if len(text) <= 50 else f"{text[:46]}...")


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
    """The task whose tables lie in a folder, told by a column that marks them, or by a value in it; RxRx1 where none does."""
    for task in sorted(TASKS.values(), key=lambda task: not task.identifying_value):
        if any(column and headers.is_table_of(Path(root) / name, column, task) for name, column in task.identifying_tables):
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
    raise_if_any(_id_problems(pd.concat([train["id_code"], test["id_code"]]), task))
    solution = read_labelled_solution(root / SOLUTION, task) if (root / SOLUTION).exists() else None
    if solution is not None:
        _refuse_unknown_ids(root / SOLUTION, solution.index, set(test["id_code"]))
    sites = pd.concat([train.assign(dataset="train"), test.assign(dataset="test", labels=[()] * len(test))], ignore_index=True)
    return SiteTables(root, _with_stems(root, sites), test["id_code"].tolist(), solution)


def read_labelled_solution(path: Path, task: Task, *, column: str = "", exact: bool = False) -> pd.Series:
    """Labels by id_code, from a table with answers in `column`, the task's own when empty; raises InputError.

    `exact`: as in `schema.read_rows`.
    """
    frame = _labelled(Path(path), task, column or task.label_column, exact=exact)
    raise_if_any(_id_problems(frame["id_code"], task))
    return frame.set_index("id_code")["labels"]


def read_sample(path: Path, task: Task) -> list[str]:
    """The ids of a sample submission, in its order; raises InputError."""
    frame = _ids(Path(path), task)
    raise_if_any(_id_problems(frame["id_code"], task))
    return frame["id_code"].tolist()


def _labelled(path: Path, task: Task, column: str, *, exact: bool = False) -> pd.DataFrame:
    """id_code and labels of a table, indexed by (file, line)."""
    frame = _read(path, (task.id_column, column), exact=exact)
    labels, problems = read_labels(frame[column], task)
    raise_if_any(problems)
    return pd.DataFrame({"id_code": frame[task.id_column], "labels": labels})


def _ids(path: Path, task: Task) -> pd.DataFrame:
    frame = _read(path, (task.id_column,))
    return pd.DataFrame({"id_code": frame[task.id_column]})


def _read(path: Path, columns: Iterable[str], *, exact: bool = False) -> pd.DataFrame:
    """The texts of some columns of a CSV file, which has a row at least."""
    frame, problems = schema.read_rows(path, TypedDict("Row", {name: schema.Text for name in columns}), exact=exact)
    raise_if_any(problems or ([] if len(frame) else [Problem(str(path), "no row below the header", "copy it again")]))
    return frame


def _id_problems(ids: pd.Series, task: Task) -> list[Problem]:
    frame = ids.rename(task.id_column).to_frame()
    invalid, duplicated = ~ids.str.fullmatch(_NAME), ids.duplicated()
    return schema.flag(frame, invalid, task.id_column, "is no name of a file", "write letters, digits, hyphens") + schema.flag(
        frame, duplicated, task.id_column, "stands in an earlier row or table too", "keep one of the rows"
    )


def _refuse_unknown_ids(path: Path, ids: pd.Index, test_ids: set[str]) -> None:
    if unknown := [name for name in ids if name not in test_ids]:
        what = f"{unknown[0]} is not in {SAMPLE} ({len(unknown)} such)"
        raise InputError(what, where=path, cure="take the tables of one and the same data set")


def _with_stems(root: Path, sites: pd.DataFrame) -> pd.DataFrame:
    """Add the path of each site below the root, in the tree that is there, else the usual."""
    existing = [tree for tree in _TREES[:-1] if (root / tree.format(dataset="train")).is_dir()]
    tree = next(iter(existing), _TREES[-1] if any(entry.name.endswith(".png") for entry in entries(root)) or (root / packed_store.ROOT_PART).is_dir() else _TREES[0])
    return sites.assign(stem=[tree.format(dataset=kind) + name for kind, name in zip(sites["dataset"], sites["id_code"])])


# Stratified folds of multi-label sites: classes are spread evenly, and identical images stay in one fold.

FOLDS_PACKAGE = "iterative-stratification"
HELD_OUT_SITE, TRAINING_SITE = "held_out", "train"


def stratified_folds(labels: Sequence[Labels], *, folds: int, classes: int, seed: int = 0, groups: np.ndarray | None = None) -> np.ndarray:
    """The fold, from 0, of each site, int64[N]; sites of one of the `groups` (int64[N]) share theirs.

    Iterative stratification (Sechidis et al. 2011) spreads every class evenly, the rarest first; plain random folds
    leave some without the rare ones. The second place of the competition reports that it is better than plain folds.
    A group counts once, with the labels of all its sites. InputError for fewer groups than folds, or if the package
    iterative-stratification is not installed.
    """
    groups = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    count = int(groups.max(initial=-1)) + 1
    if not 2 <= folds <= count:
        raise InputError(f"{folds} folds of {count} different labelled sites", where="folds", cure="choose 2 or more, and fewer than sites")
    table = np.zeros((count, classes), np.uint8)
    np.maximum.at(table, groups, multi_hot(labels, classes))
    fold_of_group = np.empty(count, np.int64)
    for fold, (_, held_out) in enumerate(_stratifier_class()(folds, shuffle=True, random_state=seed).split(table, table)):
        fold_of_group[held_out] = fold
    return fold_of_group[groups]


def _stratifier_class() -> type:
    """The library's class; InputError where it is absent, as on Kaggle's image."""
    try:
        from iterstrat.ml_stratifiers import MultilabelStratifiedKFold
    except ModuleNotFoundError:
        cure = f"pip install {FOLDS_PACKAGE}; on Kaggle without internet attach a data set or notebook output that holds its wheel"
        raise InputError(f"the package {FOLDS_PACKAGE} is not installed", where="folds", cure=cure) from None
    return MultilabelStratifiedKFold


def split_of(folds: np.ndarray, fold: int) -> np.ndarray:
    """"held_out" for the sites of one fold and "train" for all others, object[N]."""
    return np.where(folds == fold, HELD_OUT_SITE, TRAINING_SITE).astype(object)


def same_images(root: Path, stems: Sequence[str], *, suffixes: Sequence[str]) -> np.ndarray:
    """A number for each site, int64[N], equal for sites whose files are identical byte for byte, or whose checksums are in a store.

    Only files of equal sizes are read. Re-encoded or cropped copies are not detected among files.
    """
    if store := packed_store.find_store(root):
        checksums = [store.checksum(stem) for stem in stems]
        return pd.factorize(pd.Series([stem if checksum is None else checksum for stem, checksum in zip(stems, checksums)]))[0].astype(np.int64)
    with ThreadPoolExecutor() as pool:
        sizes = pd.Series(list(pool.map(lambda stem: _sizes(root, stem, suffixes), stems)))
        same_size = sizes.duplicated(keep=False).to_numpy()
        digests = dict(zip(np.flatnonzero(same_size), pool.map(lambda row: _digest(root, stems[row], suffixes), np.flatnonzero(same_size))))
    return pd.factorize(pd.Series([digests.get(row, str(row)) for row in range(len(stems))]))[0].astype(np.int64)


def _sizes(root: Path, stem: str, suffixes: Sequence[str]) -> tuple[int, ...]:
    try:
        return tuple(os.path.getsize(f"{root}/{stem}{suffix}") for suffix in suffixes)
    except FileNotFoundError as error:
        raise InputError("no such file", where=error.filename, cure="add the image or take its row out of the tables") from None


def _digest(root: Path, stem: str, suffixes: Sequence[str]) -> str:
    parts = [hashlib.sha256(image_content(Path(f"{root}/{stem}{suffix}"))).hexdigest() for suffix in suffixes]
    return "-".join(parts)


def fold_shares(labels: Sequence[Labels], folds: np.ndarray, *, classes: int) -> pd.DataFrame:
    """Sites of each class (rows) in each fold (columns)."""
    table = multi_hot(labels, classes).astype(np.int64)
    return pd.DataFrame({fold: table[folds == fold].sum(axis=0) for fold in np.unique(folds)}).rename_axis("class")
