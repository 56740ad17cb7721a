"""Which sites a network learns from: cleaned, of one cell type or all, with the classes that are asked for."""

from collections.abc import Collection

import pandas as pd

from cellsignal.data.splits import TEST, TRAIN
from cellsignal.errors import InputError

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


def to_learn_from(sites: pd.DataFrame, *, classes: str = "treatments") -> pd.DataFrame:
    """The sites whose siRNA a network may be taught, by their column `split`.

    Treatments of training and held-out wells; with `classes` "all" the controls of every experiment too, whose siRNAs
    are always given, to train on: those of the held-out experiments like those of the test (1st place's 1,139 classes).
    """
    treatment = sites["well_type"] == "treatment"
    taught = sites[treatment & (sites["split"] != TEST)]
    if classes == "treatments":
        return taught
    return pd.concat([taught, sites[~treatment & sites["sirna"].notna()].assign(split=TRAIN)])
