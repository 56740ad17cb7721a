"""Train, held-out and test splits: by experiment or by random wells, never with one layout in two splits."""

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
    training_wells = wells[wells["dataset"] == "train"]
    cell_type = training_wells.drop_duplicates("experiment").set_index("experiment")["cell_type"]
    can_hold_out = {name: min(held_out, count - 1) for name, count in cell_type.value_counts().items()}
    held_out_experiments: list[str] = []
    for family in _shuffled_families(training_wells, seed=seed):
        family_counts = cell_type[family].value_counts()
        if all(count <= can_hold_out[name] for name, count in family_counts.items()):
            held_out_experiments += family
            can_hold_out |= {name: can_hold_out[name] - count for name, count in family_counts.items()}
    return _split_column(wells, wells["experiment"].isin(held_out_experiments))


def split_random(wells: pd.DataFrame, *, fraction: float = 0.05, seed: int = 0) -> pd.Series:
    """Hold out a fraction of the training wells of each layout, at random.

    The same well of experiments with the same layout gets the same split. Returns "train",
    "held_out" or "test" for each well; InputError unless 0 < fraction < 1.
    """
    if not 0 < fraction < 1:
        raise InputError(f"fraction is {fraction}", cure="give a number between 0 and 1")
    layout_positions = _layout_positions(wells[wells["dataset"] == "train"])
    random_keys = _random_keys(layout_positions["family"] + "_" + layout_positions["place"], seed=seed)
    unique = pd.DataFrame({"family": layout_positions["family"], "lot": random_keys}).drop_duplicates()
    sizes = unique.groupby("family")["lot"].transform("size")
    order = unique.groupby("family")["lot"].rank(method="first")
    held_out_keys = unique.loc[order <= (fraction * sizes).round(), "lot"]
    is_held_out = random_keys.isin(held_out_keys).reindex(wells.index, fill_value=False)
    return _split_column(wells, is_held_out)


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


def _shuffled_families(training_wells: pd.DataFrame, *, seed: int) -> list[list[str]]:
    """Training experiments in random order, those of one layout together."""
    family = pd.Series(layout_families(training_wells), dtype=object)
    random_keys = _random_keys(pd.Series(family.index, index=family.index), seed=seed)
    # A family has the largest key of its members: the order of the others then hardly depends on it.
    largest_key = random_keys.groupby(family).max().sort_values()
    return [family.index[family == name].tolist() for name in largest_key.index]


def _layout_positions(training_wells: pd.DataFrame) -> pd.DataFrame:
    """For each well, the experiment whose layout it follows and its plate and well in that one."""
    family = training_wells["experiment"].map(layout_families(training_wells))
    pairs = duplicate_layouts(training_wells)
    shift = {pair["experiments"][1]: pair["plate_shift"] for pair in pairs}
    unknown_shift = {pair["experiments"][0] for pair in pairs if pair["plate_shift"] is None}
    shifts = training_wells["experiment"].map(lambda name: shift.get(name) or 0).astype("int64")
    plate = (training_wells["plate"] - 1 - shifts) % training_wells["plate"].max() + 1
    # Where the shift is not known, the well counts alone, on whatever plate.
    plate = plate.mask(family.isin(unknown_shift), 0)
    return pd.DataFrame({"family": family, "place": plate.astype(str) + "_" + training_wells["well"]})


def _random_keys(names: pd.Series, *, seed: int) -> pd.Series:
    """A number for each name that depends on the name and the seed alone."""
    values = names.to_numpy(dtype=object)
    return pd.Series(hash_array(values, hash_key=f"{seed:016d}"[-16:]), index=names.index)


def _split_column(wells: pd.DataFrame, is_held_out: pd.Series) -> pd.Series:
    split = np.where(wells["dataset"] == "test", TEST, np.where(is_held_out, HELD_OUT, TRAIN))
    return pd.Series(split, index=wells.index, name="split")


# Which sites a network learns from: cleaned, of one cell type or all, with the classes that are asked for.


ALL = "all"  # the cell type of a network that serves all of them
ROWS, COLUMNS = ("A", "P"), ("01", "24")  # the outermost of a plate of 384 wells


def on_edge(wells: pd.Series) -> pd.Series:
    """Whether each well ("B03") lies in one of the plate's outer rows or columns, where evaporation and heat disturb it."""
    return wells.str[:1].isin(ROWS) | wells.str[1:].isin(COLUMNS)


def inner_wells(sites: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The sites without those at the plates' edge, and a note of what was left out.

    RxRx1 uses no such well; plates of other laboratories may (Moreau's data cleaning). Treatments of the
    test experiments stay, because each needs a prediction.
    """
    needs_prediction = (sites["dataset"] == "test") & (sites["well_type"] == "treatment")
    excluded = on_edge(sites["well"]) & ~needs_prediction
    count = sites.loc[excluded, "id_code"].nunique()
    return sites[~excluded], [f"{count:,} wells at the plates' edge are left out"] * bool(count)


def of_cell_type(sites: pd.DataFrame, cell_type: str, *, cell_types: Collection[str] = ()) -> pd.DataFrame:
    """The sites of one cell type; "all" stands for all of `cell_types`, which are every one when empty.

    Raises InputError for one that no site has.
    """
    present = sorted(sites["cell_type"].unique())
    chosen = list(cell_types or present) if cell_type == ALL else [cell_type]
    if unknown := [name for name in chosen if name not in present]:
        raise InputError(f"no cell_type {unknown[0]!r}", cure=f"choose from {', '.join(present)}, or {ALL} for one network of all")
    return sites[sites["cell_type"].isin(chosen)]


def training_sites(sites: pd.DataFrame, *, classes: str = "treatments") -> pd.DataFrame:
    """The labelled sites, by their column `split`.

    Treatments of training and held-out wells; with `classes` "all" also the controls of every experiment as training
    sites, because their siRNAs are known in held-out and test experiments too (1st place's 1,139 classes).
    """
    treatment = sites["well_type"] == "treatment"
    labelled = sites[treatment & (sites["split"] != TEST)]
    if classes == "treatments":
        return labelled
    return pd.concat([labelled, sites[~treatment & sites["sirna"].notna()].assign(split=TRAIN)])
