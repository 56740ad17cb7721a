"""Figures of a sweep: accuracy and cost of each variant, or of each trial of a search."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cellsignal.show.style import ASSIGNED, RAW, blank_figure, label_decades, new_figure, pale, short_name, styled

if TYPE_CHECKING:
    import pandas as pd

KINDS = {
    "raw": ("Raw: each well on its own", RAW),
    "assigned": ("Assigned: with the design of the plate", ASSIGNED),
    "half": ("Thresholds 0.5", RAW),
    "thresholds": ("Thresholds as the recipe chose them", ASSIGNED),
}
SPLITS = {"test": ("o", -0.12), "held_out": ("D", 0.16)}  # marker, and where in the row of a variant
PANELS_PER_ROW = 4  # panels of a search in a row


@styled
def draw_variants(trials: "pd.DataFrame", variants: "pd.DataFrame", *, metric: str = "accuracy") -> Figure:
    """A row a variant: its metric on the test and on what was held out, each kind in a panel of its own, and its seconds.

    `trials` and `variants` are the tables of `run.sweep.results`. A pale dot is a seed, a strong one the mean, a bar the
    standard deviation over the seeds; the dashed line goes through the first variant's mean on the test.
    """
    variants_table = variants.reset_index(drop=True)
    if not variants["seeds"].sum():
        return blank_figure("no trial has finished")
    figure = new_figure(13, 1.7 + 0.42 * max(3, len(variants_table)))
    kinds = [kind for kind in KINDS if f"test_{kind}" in trials]
    *grid, cost = figure.subplots(1, len(kinds) + 1, sharey=True, width_ratios=(*[5] * len(kinds), 2.4))
    for axes, kind in zip(grid, kinds, strict=True):
        title, colour = KINDS[kind]
        for split in SPLITS:
            _accuracies(axes, trials, variants_table, measure=f"{split}_{kind}", split=split, colour=colour)
        axes.set_title(title)
        axes.set_xlabel(metric)
    _costs(cost, variants_table)
    grid[0].set_yticks(range(len(variants_table)), variants_table["variant"].map(short_name))
    grid[0].set_ylim(len(variants_table) - 0.5, -0.5)
    _split_legend(figure)
    return figure


def _accuracies(axes: Axes, trials: "pd.DataFrame", variants_table: "pd.DataFrame", *, measure: str, split: str, colour: str) -> None:
    """The seeds, mean and spread of every variant by one measure."""
    marker, offset = SPLITS[split]
    size, face = (7, colour) if split == "test" else (5, "white")
    for y, row in variants_table.iterrows():
        values = trials.loc[trials["variant"] == row["variant"], measure].astype(float).dropna()
        if not row["seeds"] and split == "test":
            _no_trial_note(axes, y)
        if values.empty:
            continue
        axes.plot(values, np.full(len(values), y + offset), marker, color=pale(colour), ms=size - 2, zorder=2)
        spread = 0 if len(values) < 2 else values.std()
        axes.errorbar(values.mean(), y + offset, xerr=spread, fmt=marker, color=colour, mfc=face, ms=size, lw=1.5, zorder=3)
    first = variants_table[f"{measure}_mean"].iloc[0]
    if split == "test" and first == first:
        axes.axvline(first, color="#444444", lw=1, ls="--", zorder=1)


def _no_trial_note(axes: Axes, y: int) -> None:
    """A variant without a finished trial keeps its row."""
    place = {"xycoords": ("axes fraction", "data"), "va": "center", "ha": "right"}
    axes.annotate("no trial has finished", (0.98, y), color="#888888", fontsize=8, **place)


def _costs(axes: Axes, variants_table: "pd.DataFrame") -> None:
    axes.barh(range(len(variants_table)), variants_table["seconds"], height=0.5, color="#C9CED6")
    for y, row in variants_table[variants_table["seeds"] > 0].iterrows():
        axes.annotate(f"{row['weights'] / 1e6:.2f} M weights", (0, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set(title="Cost", xlabel="seconds")
    axes.grid(False, axis="y")


def _split_legend(figure: Figure) -> None:
    faces = {"test": "#444444", "held_out": "white"}
    markers = [Line2D([], [], marker=marker, ls="", color="#444444", mfc=faces[split]) for split, (marker, _) in SPLITS.items()]
    names = ["test: mean, standard deviation, seeds", "held out"]
    line = Line2D([], [], color="#444444", lw=1, ls="--")
    figure.legend([*markers, line], [*names, "the first variant, test"], loc="outside lower left", ncols=3)


@styled
def draw_search(trials: "pd.DataFrame", *, keys: Sequence[str], measure: str) -> Figure:
    """How a search went: its measure on what was held out trial by trial with the best so far, then against each parameter.

    `trials` is the table of `run.sweep.results`, `keys` its columns that were searched, `measure` one of KINDS.
    Pruned trials, which have no value, stand below.
    """
    column, colour = f"held_out_{measure}", KINDS[measure][1]
    variants_table = trials.assign(number=trials["variant"].str.rsplit("-", n=1).str[-1].astype(int)).sort_values("number")
    finished = variants_table[variants_table[column].notna()]
    if finished.empty:
        return blank_figure("no trial has finished")
    panels = 1 + len(keys)
    rows, columns = -(-panels // PANELS_PER_ROW), min(panels, PANELS_PER_ROW)
    figure = new_figure(3.5 * columns, 3 * rows + 0.4)
    first, *others = figure.subplots(rows, columns, sharey=True, squeeze=False).flat
    _trial_history(first, variants_table, finished, column=column, colour=colour)
    for axes, key in zip(others, keys):
        _against(axes, finished, key, column=column, colour=colour)
    for axes in others[len(keys):]:
        axes.set_visible(False)
    figure.suptitle(f"On what was held out. {KINDS[measure][0]}")
    figure.legend(*first.get_legend_handles_labels(), loc="outside lower left", ncols=3)
    return figure


def _trial_history(axes: Axes, variants_table: "pd.DataFrame", finished: "pd.DataFrame", *, column: str, colour: str) -> None:
    """Trial by trial."""
    means = finished.groupby("number")[column].mean()
    axes.plot(means.index, means, "o", color=pale(colour, share=0.6), ms=6, label="mean over seeds")
    axes.step(means.index, means.cummax(), where="post", color=colour, lw=1.5, label="best so far")
    pruned = variants_table.loc[variants_table["status"] == "pruned", "number"]
    floor = means.min() - 0.08 * max(np.ptp(means), 0.05)
    axes.plot(pruned, np.full(len(pruned), floor), "x", color="#888888", ms=6, label=f"pruned ({len(pruned)})")
    axes.set(xlabel="trial")
    axes.xaxis.get_major_locator().set_params(integer=True)


def _against(axes: Axes, finished: "pd.DataFrame", key: str, *, column: str, colour: str) -> None:
    """The measure against one parameter; rates that span more than a factor of 20 on a logarithmic axis."""
    values = finished[key]
    number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    axes.plot(values if number else values.map(str), finished[column], "o", color=pale(colour, share=0.6), ms=6)
    best = finished["number"] == finished[column].astype(float).groupby(finished["number"]).mean().idxmax()  # by the mean over seeds, as the sweep chooses
    axes.plot(values[best] if number else values[best].map(str), finished.loc[best, column], "o", color=colour, ms=8)
    if number and values.min() > 0 and values.max() > 20 * values.min():
        axes.set_xscale("log")
        label_decades(axes.xaxis)
    axes.margins(x=0.05 if number else 0.3)
    axes.set(xlabel=key)
