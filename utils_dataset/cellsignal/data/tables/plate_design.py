"""The experimental design: plate groups, their rotations, and experiments with the same layout."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

UNKNOWN = -1  # a well without a known class, in layout arrays

# Two experiments share a layout when more than this part of the known wells hold the same classes.
# Measured on the 51 real ones, over all pairs and shifts: 0.98 or more for those that do
# and at most 0.14 for all others, by control wells; 1.00 against 0.01, by treatments.
SAME_LAYOUT_SHARE = 0.5


def plate_groups(wells: pd.DataFrame) -> list[list[int]]:
    """Sets of treatments that always share a plate, found in the training wells.

    Ascending lists of class numbers, ordered by their smallest. Empty when the treatments fall into
    no such sets, that is, when some would stand on two plates of one experiment, or when no two
    experiments with different layouts agree on them: one layout alone always looks like groups.
    """
    treatments = _labelled_treatments(wells)
    plates, _ = pd.factorize(_plate_names(treatments))
    classes, sirnas = pd.factorize(treatments["sirna"].astype("int64"))
    group_of = _components(classes, plates)
    treatments = treatments.assign(group=group_of[classes])
    plates_per_group = treatments.groupby(["experiment", "group"])["plate"].nunique()
    if treatments.empty or plates_per_group.max() > 1 or not _different_layouts(treatments):
        return []
    groups = pd.Series(sirnas).groupby(group_of).apply(lambda group: sorted(group.tolist()))
    return sorted(groups.tolist())


def rotations(wells: pd.DataFrame, groups: list[list[int]]) -> dict[str, list[int]]:
    """The index of the plate group on plates 1, 2, … of each training experiment; -1 on none."""
    treatments = _labelled_treatments(wells)
    group_of = {sirna: index for index, group in enumerate(groups) for sirna in group}
    treatments = treatments.assign(group=treatments["sirna"].map(group_of))
    table = treatments.dropna(subset="group").pivot_table(
        index="experiment", columns="plate", values="group", aggfunc="first"
    )
    table = table.reindex(columns=range(1, int(treatments["plate"].max()) + 1))
    return {str(name): row.fillna(-1).astype(int).tolist() for name, row in table.iterrows()}


def shifts(rotations: Mapping[str, Sequence[int]]) -> set[tuple[int, ...]]:
    """All cyclic shifts of the completely known layouts of `rotations`."""
    complete = {tuple(order) for order in rotations.values() if UNKNOWN not in order}
    return {order[k:] + order[:k] for order in complete for k in range(len(order))}


def duplicate_layouts(wells: pd.DataFrame) -> list[dict[str, Any]]:
    """Pairs of experiments whose wells hold the same classes, plates shifted.

    Each is {"experiments": [reference, other], "plate_shift": k}: plate p of the reference equals
    plate (p - 1 + k) % plates + 1 of the other. The reference is the training experiment with the
    most treatment wells. Training experiments are compared by their treatments, test experiments by
    their control wells; if every plate has its controls in the same wells, the shift is not identified
    and k is None.
    """
    is_control = wells["well_type"] != "treatment"
    training_experiments = set(wells.loc[wells["dataset"] == "train", "experiment"])
    by_treatments = _same_layout(wells.assign(sirna=wells["sirna"].mask(is_control)))
    by_controls = _same_layout(wells.assign(sirna=wells["sirna"].where(is_control)))
    of_test_experiments = {pair: k for pair, k in by_controls.items() if not training_experiments.issuperset(pair)}
    pairs = dict(by_treatments)
    # Controls identify a layout unless training experiments share them but not their treatments.
    if by_controls.keys() - of_test_experiments.keys() <= by_treatments.keys():
        pairs |= of_test_experiments
    return _by_reference(pairs, rank=_reference_rank(wells, training_experiments))


def layout(wells: pd.DataFrame) -> dict[str, Any]:
    """Groups, rotations and duplicate layouts, ready for JSON."""
    groups = plate_groups(wells)
    return {
        "groups": groups,
        "rotations": rotations(wells, groups) if groups else {},
        "duplicates": duplicate_layouts(wells),
    }


def layout_families(wells: pd.DataFrame) -> dict[str, str]:
    """For each training experiment the one whose layout it repeats, itself when it is the first."""
    training_experiments = wells.loc[wells["dataset"] == "train", "experiment"].unique()
    family = {str(name): str(name) for name in training_experiments}
    for pair in duplicate_layouts(wells[wells["dataset"] == "train"]):
        reference, other = pair["experiments"]
        family[other] = reference
    return family


def _different_layouts(wells: pd.DataFrame) -> bool:
    """Whether any experiment has another layout than the first."""
    names = wells["experiment"].unique()
    duplicates = {other for reference, other in _same_layout(wells) if reference == names[0]}
    return len(duplicates) + 1 < len(names)


def _labelled_treatments(wells: pd.DataFrame) -> pd.DataFrame:
    return wells[(wells["well_type"] == "treatment") & wells["sirna"].notna()]


def _plate_names(wells: pd.DataFrame) -> pd.Series:
    return wells["experiment"] + "/" + wells["plate"].astype(str)


def _components(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The connected component of each left node in the graph with edges (left[i], right[i])."""
    if len(left) == 0:
        return np.empty(0, int)
    first_right = left.max() + 1
    size = first_right + right.max() + 1
    edges = coo_array((np.ones(len(left)), (left, first_right + right)), shape=(size, size))
    return connected_components(edges, directed=False)[1][:first_right]


def _layouts(wells: pd.DataFrame) -> tuple[list[str], np.ndarray]:
    """Names of the experiments and their classes as int16[experiment, plate, well], or UNKNOWN."""
    experiments, names = pd.factorize(wells["experiment"], sort=True)
    well_index, well_names = pd.factorize(wells["well"])
    shape = (len(names), int(wells["plate"].max()), len(well_names))
    classes = np.full(shape, UNKNOWN, dtype=np.int16)
    classes[experiments, wells["plate"] - 1, well_index] = wells["sirna"].fillna(UNKNOWN)
    return [str(name) for name in names], classes


def _same_layout(wells: pd.DataFrame) -> dict[tuple[str, str], int | None]:
    """Pairs that agree under some shift of plates, and the shift when only one fits."""
    names, classes = _layouts(wells)
    matching_shifts: dict[tuple[str, str], list[int]] = {}
    labelled_wells = (classes != UNKNOWN).sum(axis=(1, 2))
    for shift in range(classes.shape[1]):
        shifted = np.roll(classes, -shift, axis=1)  # [:, p] is plate p + shift
        for reference, name in enumerate(names):
            equal = ((shifted == classes[reference]) & (shifted != UNKNOWN)).sum(axis=(1, 2))
            for other in np.flatnonzero(equal > SAME_LAYOUT_SHARE * np.minimum(labelled_wells, labelled_wells[reference])):
                if other != reference:
                    matching_shifts.setdefault((name, names[other]), []).append(shift)
    return {pair: shifts[0] if len(shifts) == 1 else None for pair, shifts in matching_shifts.items()}


def _reference_rank(wells: pd.DataFrame, training_experiments: set[str]) -> dict[str, tuple[bool, int, str]]:
    """A key that sorts the best reference first: training, most treatment wells, name."""
    counts = wells.loc[wells["well_type"] == "treatment", "experiment"].value_counts()
    names = wells["experiment"].unique()
    return {name: (name not in training_experiments, -int(counts.get(name, 0)), name) for name in names}


def _by_reference(
    pairs: dict[tuple[str, str], int | None], *, rank: dict[str, tuple[bool, int, str]]
) -> list[dict[str, Any]]:
    """Each experiment that repeats a layout, once, with the best reference it agrees with."""
    duplicates = []
    for other in sorted({name for pair in pairs for name in pair}):
        reference = min([a for a, b in pairs if b == other], key=rank.__getitem__)
        if rank[reference] < rank[other]:
            shift = pairs[reference, other]
            duplicates.append({"experiments": [reference, other], "plate_shift": shift})
    return sorted(duplicates, key=lambda pair: pair["experiments"])
