"""Classes for real test wells, whose own are unknown: drawn by the rules of the experimental design."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cellsignal.data.phenotypes import stream
from cellsignal.data.plates import duplicate_layouts, plate_groups, rotations
from cellsignal.errors import InputError


def completed(wells: pd.DataFrame, *, seed: int, solution: pd.Series | None = None) -> pd.DataFrame:
    """`wells` with a class in every row: the known one, else one drawn for it.

    Within a test experiment each class occurs at most once and each plate holds one plate group; groups
    are rotated over the plates, the last experiment of each cell type in a way that training never saw.
    A test experiment with the layout of a training experiment repeats its classes. Raises InputError when
    a plate has more treatment wells than its group has classes.
    """
    known = wells["sirna"].astype("Int64")
    if solution is not None:
        known = known.fillna(wells["id_code"].map(solution).astype("Int64"))
    wells = wells.assign(sirna=known)
    wells = wells.assign(sirna=wells["sirna"].fillna(_repeated(wells, seed=seed)))
    orders = _orders(wells)
    drawn = [
        _drawn(part, seed=seed, groups=_rotated(part, seed=seed, orders=orders, last=last))
        for part, last in _unlabelled(wells)
    ]
    return wells.assign(sirna=wells["sirna"].fillna(pd.concat([pd.Series(dtype="Int64"), *drawn])).astype(int))


def _orders(wells: pd.DataFrame) -> list[list[list[int]]]:
    """All cyclic orders of the plate groups over the plates, those unseen in training last."""
    groups = plate_groups(wells)
    if not groups:
        everything = sorted(wells.loc[wells["well_type"] == "treatment", "sirna"].dropna().unique().tolist())
        return [[everything]]
    seen = [tuple(turn) for turn in rotations(wells, groups).values() if -1 not in turn]
    first = seen[0] if seen else tuple(range(len(groups)))
    turns = [first[k:] + first[:k] for k in range(len(first))]
    return [[groups[index] for index in turn] for turn in sorted(turns, key=lambda turn: turn not in seen)]


def _unlabelled(wells: pd.DataFrame) -> list[tuple[pd.DataFrame, bool]]:
    """Wells without a class by experiment, and whether it is the last such experiment of its cell type."""
    hidden = wells[wells["sirna"].isna()]
    last = set(hidden.groupby("cell_type")["experiment"].max())
    return [(part, name in last) for name, part in hidden.groupby("experiment")]


def _rotated(
    wells: pd.DataFrame, *, seed: int, orders: Sequence[list[list[int]]], last: bool
) -> list[list[int]]:
    experiment = wells["experiment"].iloc[0]
    choice = -1 if last else int(stream(seed, "rotation", experiment).integers(len(orders)))
    return orders[choice]


def _drawn(wells: pd.DataFrame, *, seed: int, groups: list[list[int]]) -> pd.Series:
    """One experiment's classes, by the wells' index."""
    parts = [wells] if len(groups) == 1 else [part for _, part in wells.groupby("plate")]
    numbers = [0] if len(groups) == 1 else [plate - 1 for plate in sorted(wells["plate"].unique())]
    answers = [
        _dealt(part, groups[number], rng=stream(seed, "truth", str(part["id_code"].iloc[0])))
        for number, part in zip(numbers, parts, strict=True)
    ]
    return pd.concat(answers)


def _dealt(wells: pd.DataFrame, group: list[int], *, rng: np.random.Generator) -> pd.Series:
    if len(wells) > len(group):
        what = f"{len(wells)} treatment wells for {len(group)} classes"
        raise InputError(what, where=wells["id_code"].iloc[0], cure="give each class one well of an experiment")
    return pd.Series(rng.permutation(group)[: len(wells)], index=wells.index, dtype="Int64")


def _repeated(wells: pd.DataFrame, *, seed: int) -> pd.Series:
    """Classes of test wells whose experiment has a training experiment's layout, <NA> elsewhere."""
    answers = pd.Series(pd.NA, index=wells.index, dtype="Int64")
    plates = int(wells["plate"].max())
    classes = wells.set_index(["experiment", "plate", "well"])["sirna"]
    for pair in duplicate_layouts(wells):
        (reference, other), shift = pair["experiments"], pair["plate_shift"]
        if shift is None:  # the controls leave it open
            shift = int(stream(seed, "shift", other).integers(plates))
        part = wells[(wells["experiment"] == other) & wells["sirna"].isna()]
        source = pd.MultiIndex.from_arrays(
            [[reference] * len(part), (part["plate"] - 1 - shift) % plates + 1, part["well"]]
        )
        answers.loc[part.index] = classes.reindex(source).array
    return answers
