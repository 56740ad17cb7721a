"""Simulated experimental designs: which siRNA is in which well of which plate, as in RxRx1."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cellsignal.data.microscope.cell_types import POSITIVE_CONTROLS, UNTREATED, stream
from cellsignal.data.tables.plate_design import duplicate_layouts, plate_groups, rotations
from cellsignal.errors import InputError

ROWS = "BCDEFGHIJKLMNO"  # of a 384-well plate; its outer rows and columns stay empty
COLUMNS = range(2, 24)
WELLS = [f"{row}{column:02d}" for row in ROWS for column in COLUMNS]
CONTROL_WELLS = [f"{row}{column:02d}" for row in "CFHJM" for column in (3, 7, 11, 15, 19, 22)]
UNTREATED_WELL = "B02"
PLATES = 4
UNSEEN_ROTATION = 3  # the rotation that occurs in test experiments only


def draw_design(
    seed: int, cell_types: tuple[str, ...], *, classes: int, train: int, test: int,
    repeats: tuple[tuple[str, str], ...] = (), missing: int = 0,
) -> pd.DataFrame:
    """Draw a complete design: one row per well, columns as in `Tables.wells`.

    `train` and `test` count experiments per cell type; `repeats` names (experiment, source) pairs that
    share a layout up to the order of their plates; `missing` treatment wells are lost at random.
    """
    order = stream(seed, "groups").permutation(classes)
    groups = np.array_split(order, PLATES)
    rotation_of = {name: rotation for cell_type in cell_types for name, rotation in _rotations(cell_type, train=train, test=test)}
    layouts = {name: experiment_layout(seed, name, groups=groups, rotation=rotation) for name, rotation in rotation_of.items()}
    for name, source in repeats:
        layouts[name] = repeat_layout(layouts[source], shift=(rotation_of[source] - rotation_of[name]) % PLATES)
    wells = pd.concat([_with_names(layout, name, train=train) for name, layout in layouts.items()])
    return _drop_wells(stream(seed, "missing"), wells, missing=missing)


def _rotations(cell_type: str, *, train: int, test: int) -> list[tuple[str, int]]:
    """Experiments of one cell type and how far their plate groups are rotated; the last test one is unseen."""
    rotations = [k % UNSEEN_ROTATION for k in range(train)] + [k % UNSEEN_ROTATION for k in range(test - 1)] + [UNSEEN_ROTATION] * (test > 0)
    return [(f"{cell_type}-{k + 1:02d}", rotation) for k, rotation in enumerate(rotations)]


def experiment_layout(seed: int, experiment: str, *, groups: list[np.ndarray], rotation: int) -> pd.DataFrame:
    """Columns plate, well, sirna: each treatment once, each positive control on every plate."""
    plates = []
    for plate in range(1, PLATES + 1):
        rng = stream(seed, "layout", experiment, plate)
        group = groups[(plate - 1 + rotation) % PLATES]
        free = [well for well in WELLS if well not in CONTROL_WELLS and well != UNTREATED_WELL]
        wells = [UNTREATED_WELL, *CONTROL_WELLS, *rng.permutation(free)[: len(group)]]
        sirnas = [UNTREATED, *rng.permutation(list(POSITIVE_CONTROLS)), *group]
        plates.append(pd.DataFrame({"plate": plate, "well": wells, "sirna": sirnas}))
    return pd.concat(plates)


def repeat_layout(layout: pd.DataFrame, *, shift: int) -> pd.DataFrame:
    """The same wells with the plates moved on by `shift`."""
    return layout.assign(plate=(layout.plate - 1 + shift) % PLATES + 1)


def _with_names(layout: pd.DataFrame, experiment: str, *, train: int) -> pd.DataFrame:
    cell_type, number = experiment.rsplit("-", 1)
    well_types = np.select(
        [layout.sirna == UNTREATED, layout.sirna.isin(POSITIVE_CONTROLS)], ["negative_control", "positive_control"],
        "treatment",
    )
    return layout.assign(
        id_code=[f"{experiment}_{plate}_{well}" for plate, well in zip(layout.plate, layout.well, strict=True)],
        experiment=experiment,
        cell_type=cell_type,
        well_type=well_types,
        dataset="train" if int(number) <= train else "test",
    )


def _drop_wells(rng: np.random.Generator, wells: pd.DataFrame, *, missing: int) -> pd.DataFrame:
    """Sort as the competition does and drop some treatment wells."""
    keys = ["dataset", "experiment", "plate", "well"]
    wells = wells.sort_values(keys, ascending=[False, True, True, True], ignore_index=True)
    treated = np.flatnonzero(wells.well_type == "treatment")
    lost = rng.choice(treated, missing, replace=False)
    columns = ["id_code", "experiment", "cell_type", "plate", "well", "well_type", "sirna", "dataset"]
    return wells.drop(index=lost).reset_index(drop=True)[columns]


# Classes for real test wells, whose true ones are unknown: drawn by the rules of the experimental design.


def complete_labels(wells: pd.DataFrame, *, seed: int, solution: pd.Series | None = None) -> pd.DataFrame:
    """`wells` with a class in every row: the known one, else a drawn one.

    Within a test experiment each class occurs at most once and each plate holds one plate group; groups
    are rotated over the plates as the known classes say, else at random, the last experiment of each cell
    type in a way that training never saw. A test experiment with the layout of a training experiment
    repeats its classes. Raises InputError when a plate has no group, or more treatment wells than its
    group has classes left.
    """
    sirna = wells["sirna"].astype("Int64")
    if solution is not None:
        sirna = sirna.fillna(wells["id_code"].map(solution).astype("Int64"))
    wells = wells.assign(sirna=sirna)
    wells = wells.assign(sirna=wells["sirna"].fillna(_repeat_classes(wells, seed=seed)))
    orders = _group_orders(wells)
    drawn_classes = [
        _draw_classes(hidden, known, seed=seed, groups=_choose_order(hidden, known, seed=seed, orders=orders, last=last))
        for hidden, known, last in _unlabelled_experiments(wells)
    ]
    return wells.assign(sirna=wells["sirna"].fillna(pd.concat([pd.Series(dtype="Int64"), *drawn_classes])).astype(int))


def _group_orders(wells: pd.DataFrame) -> list[list[list[int]]]:
    """All cyclic orders of the plate groups over the plates, those unseen in training last."""
    groups = plate_groups(wells)
    if not groups:
        all_classes = sorted(wells.loc[wells["well_type"] == "treatment", "sirna"].dropna().unique().tolist())
        return [[all_classes]]
    seen = [tuple(rotation) for rotation in rotations(wells, groups).values() if -1 not in rotation]
    first_order = seen[0] if seen else tuple(range(len(groups)))
    orders = [first_order[k:] + first_order[:k] for k in range(len(first_order))]
    return [[groups[index] for index in rotation] for rotation in sorted(orders, key=lambda rotation: rotation not in seen)]


def _unlabelled_experiments(wells: pd.DataFrame) -> list[tuple[pd.DataFrame, pd.DataFrame, bool]]:
    """Wells without a class by experiment, its treatments with one, and whether it is the last such experiment of its cell type."""
    hidden, known = wells[wells["sirna"].isna()], wells[wells["sirna"].notna() & (wells["well_type"] == "treatment")]
    last = set(hidden.groupby("cell_type")["experiment"].max())
    return [(part, known[known["experiment"] == name], name in last) for name, part in hidden.groupby("experiment")]


def _choose_order(
    hidden: pd.DataFrame, known: pd.DataFrame, *, seed: int, orders: Sequence[list[list[int]]], last: bool
) -> list[list[int]]:
    """The order of an experiment's plate groups that most of its `known` wells agree with, else the drawn one."""
    experiment = hidden["experiment"].iloc[0]
    choice = -1 if last else int(stream(seed, "rotation", experiment).integers(len(orders)))
    places = list(zip(known["plate"] - 1, known["sirna"]))

    def agreement(order: list[list[int]]) -> int:
        return sum(sirna in order[plate] for plate, sirna in places if plate < len(order))

    return max([orders[choice], *orders], key=agreement)


def _draw_classes(hidden: pd.DataFrame, known: pd.DataFrame, *, seed: int, groups: list[list[int]]) -> pd.Series:
    """One experiment's classes, by the wells' index; none that one of its `known` wells has."""
    if len(groups) > 1 and hidden["plate"].max() > len(groups):
        where = hidden.loc[hidden["plate"] > len(groups), "id_code"].iloc[0]
        raise InputError(f"training has {len(groups)} plate groups, and none for this plate", where=where, cure="take the plate out of the tables")
    parts = [hidden] if len(groups) == 1 else [part for _, part in hidden.groupby("plate")]
    numbers = [0] if len(groups) == 1 else [plate - 1 for plate in sorted(hidden["plate"].unique())]
    used = set(known["sirna"])
    answers = [
        _deal_classes(part, [sirna for sirna in groups[number] if sirna not in used], rng=stream(seed, "truth", str(part["id_code"].iloc[0])))
        for number, part in zip(numbers, parts, strict=True)
    ]
    return pd.concat(answers)


def _deal_classes(wells: pd.DataFrame, group: list[int], *, rng: np.random.Generator) -> pd.Series:
    if len(wells) > len(group):
        what = f"{len(wells)} treatment wells for {len(group)} classes"
        raise InputError(what, where=wells["id_code"].iloc[0], cure="give each class one well of an experiment")
    return pd.Series(rng.permutation(group)[: len(wells)], index=wells.index, dtype="Int64")


def _repeat_classes(wells: pd.DataFrame, *, seed: int) -> pd.Series:
    """Classes of test wells whose experiment has a training experiment's layout, <NA> elsewhere."""
    repeated = pd.Series(pd.NA, index=wells.index, dtype="Int64")
    plates = int(wells["plate"].max())
    classes = wells.set_index(["experiment", "plate", "well"])["sirna"]
    for pair in duplicate_layouts(wells):
        (reference, other), shift = pair["experiments"], pair["plate_shift"]
        hidden, known = (wells[(wells["experiment"] == other) & is_hidden] for is_hidden in (wells["sirna"].isna(), wells["sirna"].notna()))

        def reference_classes(part: pd.DataFrame, shift: int) -> pd.Series:
            source = [[reference] * len(part), (part["plate"] - 1 - shift) % plates + 1, part["well"]]
            return pd.Series(classes.reindex(pd.MultiIndex.from_arrays(source)).array, index=part.index)

        if shift is None:  # the controls leave it open; the known treatments may tell
            drawn = int(stream(seed, "shift", other).integers(plates))
            shift = max([drawn, *range(plates)], key=lambda shift: (reference_classes(known, shift) == known["sirna"]).sum())
        repeated.loc[hidden.index] = reference_classes(hidden, shift)
    return repeated
