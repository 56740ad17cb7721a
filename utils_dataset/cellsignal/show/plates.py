"""Plates as maps: a number or the layout, well by well."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from cellsignal.show.style import WELL_TYPES, blank, keys, picture, styled

ROWS, COLUMNS = "BCDEFGHIJKLMNO", range(2, 24)  # the outer wells of a 384-well plate stay empty


def plate_grid(wells: pd.Series, values: pd.Series) -> np.ndarray:
    """`values` of one plate laid out as float[14,22], NaN where there is no well ("B03" is [0,1])."""
    grid = np.full((len(ROWS), len(COLUMNS)), np.nan)
    for well, value in zip(wells, values):
        grid[ROWS.index(well[0]), int(well[1:]) - COLUMNS[0]] = value
    return grid


@styled
def plate_heatmap(table: pd.DataFrame, value: str, *, title: str = "", label: str = "") -> Figure:
    """The plates of one experiment as maps of a number per well.

    `table`: plate, well and the column `value`; colours run from the 1st to the 99th percentile.
    """
    if table.empty:
        return blank("No wells to show.")
    low, high = np.nanpercentile(table[value].astype(float), (1, 99))
    figure, grid = _plates(table, title)
    for axes, (_, some) in zip(grid, table.groupby("plate")):
        cells = plate_grid(some["well"], some[value])
        axes.set_facecolor(WELL_TYPES["missing"])
        image = axes.imshow(cells, cmap="viridis", vmin=low, vmax=max(high, low + 1))
    figure.colorbar(image, ax=grid, label=label or value, shrink=0.7, pad=0.01)
    return figure


@styled
def plate_layout(wells: pd.DataFrame, *, title: str = "") -> Figure:
    """What lies in each well of one experiment: treatments, controls, and what is missing.

    `wells`: plate, well, well_type.
    """
    names = list(WELL_TYPES)
    codes = wells["well_type"].map(names.index)
    figure, grid = _plates(wells, title)
    colours = ListedColormap(list(WELL_TYPES.values()))
    for axes, (_, some) in zip(grid, wells.groupby("plate")):
        cells = np.nan_to_num(plate_grid(some["well"], codes[some.index]), nan=len(names) - 1)
        axes.imshow(cells, cmap=colours, vmin=-0.5, vmax=len(names) - 0.5)
    names[-1] = "no well"
    keys(figure, dict(zip((name.replace("_", " ") for name in names), WELL_TYPES.values())))
    return figure


def _plates(table: pd.DataFrame, title: str) -> tuple[Figure, np.ndarray]:
    """Axes for each plate of `table`, two in a row, with the letters and numbers of the wells."""
    plates = sorted(table["plate"].unique())
    rows = -(-len(plates) // 2)
    figure = picture(12, 0.8 + 3.75 * rows)
    figure.suptitle(title, x=0.01, ha="left")
    grid = figure.subplots(rows, 2, squeeze=False).ravel()
    for axes in grid[len(plates) :]:
        axes.set_visible(False)
    for axes, plate in zip(grid, plates):
        _wells(axes, f"plate {plate}")
    return figure, grid[: len(plates)]


def _wells(axes: Axes, title: str) -> None:
    axes.set_title(title)
    axes.set_yticks(range(len(ROWS)), ROWS, fontsize=8)
    axes.set_xticks(range(len(COLUMNS)), COLUMNS, fontsize=8)
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
