"""Plates as maps: a number or the layout, well by well."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cellsignal.data.tables.splits import on_edge
from cellsignal.show.style import GROUPS, WELL_TYPES, blank_figure, cell_type_colour, colour_legend, new_figure, pale, styled

ROWS, COLUMNS = "ABCDEFGHIJKLMNOP", range(1, 25)  # of a 384-well plate, whose outer wells stay empty in the competition
Extent = tuple[str, range]  # the rows and columns of a map


def map_extent(wells: pd.Series) -> Extent:
    """The rows and columns of a map of these wells: all of a plate, or without the outer ones if those are empty."""
    return (ROWS, COLUMNS) if on_edge(wells).any() else (ROWS[1:-1], COLUMNS[1:-1])


def plate_grid(wells: pd.Series, values: pd.Series, extent: Extent) -> np.ndarray:
    """`values` of one plate laid out as float[rows,columns], NaN where there is no well."""
    rows, columns = extent
    grid = np.full((len(rows), len(columns)), np.nan)
    for well, value in zip(wells, values):
        grid[rows.index(well[0]), columns.index(int(well[1:]))] = value
    return grid


@styled
def plate_heatmap(table: pd.DataFrame, value: str, *, title: str = "", label: str = "") -> Figure:
    """The plates of one experiment as maps of a number per well.

    `table`: plate, well and the column `value`; colours run from the 1st to the 99th percentile.
    """
    if table.empty:
        return blank_figure("No wells to show.")
    low, high = np.nanpercentile(table[value].astype(float), (1, 99))
    figure, grid = _plates(table, title)
    for axes, (_, subset) in zip(grid, table.groupby("plate")):
        cells = plate_grid(subset["well"], subset[value], map_extent(table["well"]))
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
    for axes, (_, subset) in zip(grid, wells.groupby("plate")):
        cells = np.nan_to_num(plate_grid(subset["well"], codes[subset.index], map_extent(wells["well"])), nan=len(names) - 1)
        axes.imshow(cells, cmap=colours, vmin=-0.5, vmax=len(names) - 0.5)
    names[-1] = "no well"
    colour_legend(figure, dict(zip((name.replace("_", " ") for name in names), WELL_TYPES.values())))
    return figure


def _plates(table: pd.DataFrame, title: str) -> tuple[Figure, np.ndarray]:
    """Axes for each plate of `table`, two in a row, with the letters and numbers of the wells."""
    plates = sorted(table["plate"].unique())
    rows = -(-len(plates) // 2)
    figure = new_figure(12, 0.8 + 3.75 * rows)
    figure.suptitle(title, x=0.01, ha="left")
    grid = figure.subplots(rows, 2, squeeze=False).ravel()
    for axes in grid[len(plates) :]:
        axes.set_visible(False)
    for axes, plate in zip(grid, plates):
        _wells(axes, f"plate {plate}", map_extent(table["well"]))
    return figure, grid[: len(plates)]


def _wells(axes: Axes, title: str, extent: Extent) -> None:
    rows, columns = extent
    axes.set_title(title)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.set_xticks(range(len(columns)), columns, fontsize=8)
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)


# Experiments side by side: plate groups, wells per plate, wells per class.


@styled
def group_rotation_map(
    wells: pd.DataFrame, *, rotations: dict[str, list[int]] | None, duplicates: list[dict] = ()
) -> Figure:
    """Which plate group lies on which plate of each experiment; where unknown, the box is hatched.

    `wells`: experiment, cell_type, plate. `rotations`: group index on plates 1, 2, …, by experiment;
    -1 for none; None without plate groups.
    `duplicates`: {"experiments": [...], "plate_shift": k}; those that share a layout are named.
    """
    signs, plates = _layout_signs(duplicates), wells["plate"].max()
    figure, panels = _panels(wells)
    for axes, names in panels:
        # Rotations end at the last plate with a labelled treatment, which other experiments may exceed.
        cells = np.array([[*(rotations or {}).get(name, []), *[-1] * plates][:plates] for name in names], dtype=float)
        cells[cells < 0] = np.nan
        _boxes(axes, cells, colours=GROUPS)
        _numbers(axes, cells + 1)
        axes.set_yticks(range(len(names)), [name + signs.get(name, "") for name in names])
    groups = {f"group {number}": colour for number, colour in enumerate(GROUPS, 1)}
    note = "Experiments with the same symbol share one layout." if signs else ""
    colour_legend(figure, groups | {"hatched: to be inferred": "white"}, note=note)
    return figure


def _layout_signs(duplicates: list[dict]) -> dict[str, str]:
    """A sign behind the names of experiments that share a layout, one for each layout."""
    references = list(dict.fromkeys(pair["experiments"][0] for pair in duplicates))
    signs = dict(zip(references, (sign * count for count in range(1, len(references) + 1) for sign in "*†‡§¶")))
    return {name: " " + signs[pair["experiments"][0]] for pair in duplicates for name in pair["experiments"]}


def _panels(wells: pd.DataFrame) -> tuple[Figure, list[tuple[Axes, list[str]]]]:
    """One panel a cell type: a row for each of its experiments, a column for each plate."""
    by_type = wells.groupby("cell_type")["experiment"].unique().map(sorted)
    longest, plates = by_type.map(len).max(), wells["plate"].max()
    figure = new_figure(max(7.6, 3.1 * len(by_type)), 1.2 + 0.27 * longest)
    grid = figure.subplots(1, len(by_type), squeeze=False)[0]
    for axes, cell_type in zip(grid, by_type.index):
        axes.set_title(cell_type, color=cell_type_colour(cell_type), fontweight="bold")
        axes.xaxis.tick_top()
        axes.set_xticks(range(plates), [f"plate {plate + 1}" for plate in range(plates)], fontsize=8)
        axes.set(xlim=(-0.5, plates - 0.5), ylim=(longest - 0.5, -0.5))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.grid(False)
    return figure, list(zip(grid, by_type))


def _boxes(axes: Axes, cells: np.ndarray, *, colours: tuple[str, ...]) -> None:
    """A box per cell of float[rows,plates], coloured by its whole number; hatched where it is NaN."""
    for (row, column), value in np.ndenumerate(cells):
        known = np.isfinite(value)
        colour = dict(fc=colours[int(value) % len(colours)]) if known else dict(fc="white", hatch="/////")
        axes.add_patch(Rectangle((column - 0.47, row - 0.44), 0.94, 0.88, ec="#BBBBBB", lw=0, **colour))


def _numbers(axes: Axes, cells: np.ndarray) -> None:
    for (row, column), value in np.ndenumerate(cells):
        if np.isfinite(value):
            axes.text(column, row, f"{value:g}", ha="center", va="center", fontsize=8)


@styled
def plate_counts(wells: pd.DataFrame, *, well_type: str = "treatment") -> Figure:
    """How many wells of a type each plate of each experiment holds; what is unusual stands out.

    `wells`: experiment, cell_type, plate, well_type; "control" counts both kinds of controls.
    """
    subset = wells[wells["well_type"].str.contains(well_type)]
    counts = subset.groupby(["experiment", "plate"]).size().unstack(fill_value=0)
    plates = range(1, wells["plate"].max() + 1)
    counts = counts.reindex(index=wells["experiment"].unique(), columns=plates, fill_value=0)
    most_common = counts.stack().mode().iloc[0]
    colours = {"fewer": "#F0A868", "usual": "#F1F1F1", "more": "#9CCBEB"}
    figure, panels = _panels(wells)
    for axes, names in panels:
        cells = counts.loc[names].to_numpy(float)
        _boxes(axes, 1 + np.sign(cells - most_common), colours=tuple(colours.values()))
        _numbers(axes, cells)
        axes.set_yticks(range(len(names)), names)
    colour_legend(figure, {f"{name} ({most_common})" if name == "usual" else name: c for name, c in colours.items()})
    return figure


@styled
def experiment_counts(wells: pd.DataFrame) -> Figure:
    """Wells of each experiment as bars, in the colour of the cell type; pale in the test set.

    `wells`: experiment, cell_type, dataset.
    """
    counts = wells.groupby(["experiment", "cell_type", "dataset"]).size().reset_index(name="wells")
    figure = new_figure(max(4, 1 + 0.22 * len(counts)), 3.4)
    axes = figure.subplots()
    for x, row in enumerate(counts.itertuples()):
        colour = cell_type_colour(row.cell_type)
        axes.bar(x, row.wells, color=colour if row.dataset == "train" else pale(colour))
    axes.set_xticks(range(len(counts)), counts["experiment"], rotation=90, fontsize=8)
    axes.set_xlim(-0.7, len(counts) - 0.3)
    axes.grid(False, axis="x")
    axes.set_title("Wells per experiment (pale: test)")
    return figure


@styled
def class_counts(wells: pd.DataFrame) -> Figure:
    """How many labelled wells each class has: treatments as a histogram, controls one by one.

    `wells`: sirna, well_type; wells without a label are left out.
    """
    subset = wells.dropna(subset="sirna")
    treated = subset["well_type"] == "treatment"
    figure = new_figure(12, 3.2)
    left, right = figure.subplots(1, 2, width_ratios=(1, 2))
    _treatment_counts(left, subset.loc[treated, "sirna"].value_counts())
    _control_counts(right, subset[~treated])
    return figure


def _treatment_counts(axes: Axes, per_class: pd.Series) -> None:
    sizes = per_class.value_counts().sort_index()
    bars = axes.bar(sizes.index, sizes, color=WELL_TYPES["treatment"])
    axes.bar_label(bars, fontsize=9)
    axes.set_xticks(sizes.index)
    axes.set(xlabel="wells of a class", ylabel="classes")
    axes.set_title(f"{len(per_class)} treatment siRNAs")


def _control_counts(axes: Axes, controls: pd.DataFrame) -> None:
    sizes = controls.groupby(["sirna", "well_type"]).size().reset_index(name="wells")
    colours = sizes["well_type"].map(WELL_TYPES)
    axes.bar(range(len(sizes)), sizes["wells"], color=colours)
    axes.set_xticks(range(len(sizes)), sizes["sirna"], rotation=90, fontsize=8)
    axes.set(ylabel="wells", title="Controls (black: untreated)")
    axes.set_xlim(-0.7, len(sizes) - 0.3)
