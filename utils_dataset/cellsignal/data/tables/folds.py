"""Stratified folds of multi-label sites: classes are spread evenly, and identical images stay in one fold."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from cellsignal.data.images.reader import image_content
from cellsignal.data.tables.labelled_sites import Labels, multi_hot
from cellsignal.errors import InputError

PACKAGE = "iterative-stratification"
HELD_OUT, TRAIN = "held_out", "train"


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
        cure = f"pip install {PACKAGE}; on Kaggle without internet attach a data set or notebook output that holds its wheel"
        raise InputError(f"the package {PACKAGE} is not installed", where="folds", cure=cure) from None
    return MultilabelStratifiedKFold


def split_of(folds: np.ndarray, fold: int) -> np.ndarray:
    """"held_out" for the sites of one fold and "train" for all others, object[N]."""
    return np.where(folds == fold, HELD_OUT, TRAIN).astype(object)


def same_images(root: Path, stems: Sequence[str], *, suffixes: Sequence[str]) -> np.ndarray:
    """A number for each site, int64[N], equal for sites whose files are identical byte for byte.

    Only sites whose files have equal sizes are read. Re-encoded or cropped copies are not detected.
    """
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
