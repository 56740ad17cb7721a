"""Who is held out: whole experiments, or wells at random; never one layout on both sides."""

from collections.abc import Collection

import numpy as np
import pandas as pd
from pandas.util import hash_array

from cellsignal.data.settings import WellSettings
from cellsignal.data.tables.plate_design import duplicate_layouts, layout_families
from cellsignal.errors import InputError

TRAIN, HELD_OUT, TEST = "train", "held_out", "test"


def split_by_experiment(wells: pd.DataFrame, *, held_out: int = 1, seed: int = 0) -> pd.Series:
    """Hold out whole training experiments, `held_out` of each cell type but never all of them.

    Experiments with the same layout move together. Returns "train", "held_out" or "test" for each
    well; a cell type with one training experiment holds out none. InputError when `held_out` is
    negative.
    """
    if held_out < 0:
        raise InputError(f"held_out is {held_out}", cure="hold out 0 or more experiments")
    trained = wells[wells["dataset"] == "train"]
    cell_type = trained.drop_duplicates("experiment").set_index("experiment")["cell_type"]
    room = {name: min(held_out, count - 1) for name, count in cell_type.value_counts().items()}
    chosen: list[str] = []
    for family in _drawn_families(trained, seed=seed):
        needed = cell_type[family].value_counts()
        if all(count <= room[name] for name, count in needed.items()):
            chosen += family
            room |= {name: room[name] - count for name, count in needed.items()}
    return _sides(wells, wells["experiment"].isin(chosen))


def split_random(wells: pd.DataFrame, *, fraction: float = 0.05, seed: int = 0) -> pd.Series:
    """Hold out a fraction of the training wells of each layout, at random.

    Wells at the same place of experiments with the same layout stay on one side. Returns "train",
    "held_out" or "test" for each well; InputError unless 0 < fraction < 1.
    """
    if not 0 < fraction < 1:
        raise InputError(f"fraction is {fraction}", cure="give a number between 0 and 1")
    places = _places(wells[wells["dataset"] == "train"])
    lots = _lots(places["family"] + "_" + places["place"], seed=seed)
    unique = pd.DataFrame({"family": places["family"], "lot": lots}).drop_duplicates()
    sizes = unique.groupby("family")["lot"].transform("size")
    order = unique.groupby("family")["lot"].rank(method="first")
    chosen = unique.loc[order <= (fraction * sizes).round(), "lot"]
    held = lots.isin(chosen).reindex(wells.index, fill_value=False)
    return _sides(wells, held)


def split_sites(
    wells: pd.DataFrame, sites: pd.DataFrame, settings: WellSettings = WellSettings(), *, seed: int = 0
) -> pd.Series:
    """The split of each site, by whole experiments or at random as `settings.split` says.

    Give it the wells of all cell types, even where only one is trained: a layout may be shared
    across cell types, and every kernel of a run must come to the same split.
    """
    if settings.split == "experiment":
        split = split_by_experiment(wells, held_out=settings.validation_experiments, seed=seed)
    else:
        split = split_random(wells, seed=seed)
    return sites["id_code"].map(dict(zip(wells["id_code"], split))).rename("split")


def _drawn_families(trained: pd.DataFrame, *, seed: int) -> list[list[str]]:
    """Training experiments, those of one layout together, in the order of their lots."""
    family = pd.Series(layout_families(trained), dtype=object)
    lots = _lots(pd.Series(family.index, index=family.index), seed=seed)
    # A family draws the worst lot of its members: the others' order then hardly depends on it.
    last = lots.groupby(family).max().sort_values()
    return [family.index[family == name].tolist() for name in last.index]


def _places(trained: pd.DataFrame) -> pd.DataFrame:
    """For each well, the experiment whose layout it follows and its plate and well in that one."""
    family = trained["experiment"].map(layout_families(trained))
    pairs = duplicate_layouts(trained)
    shift = {pair["experiments"][1]: pair["plate_shift"] for pair in pairs}
    unsure = {pair["experiments"][0] for pair in pairs if pair["plate_shift"] is None}
    steps = trained["experiment"].map(lambda name: shift.get(name) or 0).astype("int64")
    plate = (trained["plate"] - 1 - steps) % trained["plate"].max() + 1
    # Where the shift is not known, the well counts alone, on whatever plate.
    plate = plate.mask(family.isin(unsure), 0)
    return pd.DataFrame({"family": family, "place": plate.astype(str) + "_" + trained["well"]})


def _lots(names: pd.Series, *, seed: int) -> pd.Series:
    """A number for each name that depends on the name and the seed alone."""
    values = names.to_numpy(dtype=object)
    return pd.Series(hash_array(values, hash_key=f"{seed:016d}"[-16:]), index=names.index)


def _sides(wells: pd.DataFrame, held: pd.Series) -> pd.Series:
    sides = np.where(wells["dataset"] == "test", TEST, np.where(held, HELD_OUT, TRAIN))
    return pd.Series(sides, index=wells.index, name="split")


# Which sites a network learns from: cleaned, of one cell type or all, with the classes that are asked for.


ALL = "all"  # the cell type of a network that serves all of them
ROWS, COLUMNS = ("A", "P"), ("01", "24")  # the outermost of a plate of 384 wells


def on_edge(wells: pd.Series) -> pd.Series:
    """Whether each well ("B03") lies in one of the plate's outer rows or columns, where evaporation and heat disturb it."""
    return wells.str[:1].isin(ROWS) | wells.str[1:].isin(COLUMNS)


def inner_wells(sites: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The sites without those at the plates' edge, and a note of what was left out.

    RxRx1 uses no such well; plates of other laboratories may (Moreau's data cleaning, seed 002). Treatments of the
    test experiments stay, because each of them wants an answer.
    """
    asked = (sites["dataset"] == "test") & (sites["well_type"] == "treatment")
    left_out = on_edge(sites["well"]) & ~asked
    count = sites.loc[left_out, "id_code"].nunique()
    return sites[~left_out], [f"{count:,} wells at the plates' edge are left out"] * bool(count)


def of_cell_type(sites: pd.DataFrame, cell_type: str, *, cell_types: Collection[str] = ()) -> pd.DataFrame:
    """The sites of one cell type; "all" stands for all of `cell_types`, which are every one when empty.

    Raises InputError for one that no site has.
    """
    there = sorted(sites["cell_type"].unique())
    wanted = list(cell_types or there) if cell_type == ALL else [cell_type]
    if unknown := [name for name in wanted if name not in there]:
        raise InputError(f"no cell_type {unknown[0]!r}", cure=f"choose from {', '.join(there)}, or {ALL} for one network of all")
    return sites[sites["cell_type"].isin(wanted)]


def training_sites(sites: pd.DataFrame, *, classes: str = "treatments") -> pd.DataFrame:
    """The sites whose siRNA a network may be taught, by their column `split`.

    Treatments of training and held-out wells; with `classes` "all" the controls of every experiment too, whose siRNAs
    are always given, to train on: those of the held-out experiments like those of the test (1st place's 1,139 classes).
    """
    treatment = sites["well_type"] == "treatment"
    taught = sites[treatment & (sites["split"] != TEST)]
    if classes == "treatments":
        return taught
    return pd.concat([taught, sites[~treatment & sites["sirna"].notna()].assign(split=TRAIN)])
