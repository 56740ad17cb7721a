"""Figures of the ladder: accuracy of each rung, by cell type and by experiment; reliability."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import binomtest

from cellsignal.show.style import ASSIGNED, RAW, blank_figure, cell_type_colour, new_figure, pale, styled

KINDS = {
    "raw": ("Raw: each well on its own", RAW),
    "assigned": ("Assigned: with the design of the plate", ASSIGNED),
}
NOTHING_KNOWN = "No answer can be checked: no siRNA of a test or held-out well is known."


def rungs_of_split(ladder: list[dict], split: str = "") -> list[dict]:
    """The rungs of one split; without a name, those of the test wells where they were scored."""
    names = [row.get("split", "") for row in ladder]
    chosen = split or ("test" if "test" in names else next(iter(names), ""))
    return [row for row in ladder if row.get("split", "") == chosen]


def last_rungs(ladder: list[dict], split: str = "") -> list[dict]:
    """The last raw rung of one split, and the last assigned one."""
    rows = rungs_of_split(ladder, split)
    return [row for kind in KINDS for row in [row for row in rows if row["kind"] == kind][-1:]]


@styled
def ladder(ladder: list[dict], *, linear_baseline: float | None = None, split: str = "") -> Figure:
    """One bar a rung with a dot per cell type; raw and assigned accuracies in a panel of their own.

    `ladder` rows: rung, kind ("raw" or "assigned"), accuracy, by_cell_type, split.
    `linear_baseline`: raw accuracy of a linear model on channel means.
    """
    rows = rungs_of_split(ladder, split)
    if not rows:
        return blank_figure(NOTHING_KNOWN)
    panels = _by_kind(rows)
    tallest = max(map(len, panels.values()), default=1)
    figure = new_figure(6 * len(panels), 1.5 + 0.5 * tallest)
    for axes, (kind, subset) in zip(np.ravel(figure.subplots(1, len(panels))), panels.items()):
        _rungs(axes, subset, kind=kind, slots=tallest)
        if kind == "raw" and linear_baseline is not None:
            _linear_baseline(axes, linear_baseline)
    _cell_type_legend(figure, rows)
    return figure


def _by_kind(rows: list[dict]) -> dict[str, list[dict]]:
    """Rungs apart by kind, since raw and assigned accuracies must never share an axis."""
    panels = {kind: [row for row in rows if row["kind"] == kind] for kind in KINDS}
    return {kind: rungs for kind, rungs in panels.items() if rungs}


def _rungs(axes: Axes, rows: list[dict], *, kind: str, slots: int) -> None:
    title, colour = KINDS[kind]
    heights = np.arange(len(rows))
    accuracies = [row["accuracy"] for row in rows]
    axes.barh(heights, accuracies, height=0.62, color=pale(colour))
    for y, row in enumerate(rows):
        for cell_type, value in sorted(row.get("by_cell_type", {}).items()):
            axes.plot(value, y, "o", color=cell_type_colour(cell_type), ms=6, mec="white", mew=0.8)
        axes.text(1.14, y, f"{row['accuracy']:.3f}", va="center", ha="right", color=colour)
    axes.set_yticks(heights, [row["rung"] for row in rows])
    axes.set_ylim(slots - 0.2, -0.6)
    axes.set_title(title)
    _accuracy_axis(axes)


def _accuracy_axis(axes: Axes) -> None:
    """An accuracy axis from nothing to everything, with room for a number at its right end."""
    axes.set_xlim(0, 1.15)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _linear_baseline(axes: Axes, accuracy: float) -> None:
    axes.axvline(accuracy, color="#444444", lw=1.2, ls="--")
    place = dict(xytext=(4, 5), textcoords="offset points", xycoords=("data", "axes fraction"))
    axes.annotate(f"linear baseline {accuracy:.3f}", (accuracy, 0), color="#444444", fontsize=9, **place)


def _cell_type_legend(figure: Figure, rows: list[dict]) -> None:
    names = sorted({name for row in rows for name in row.get("by_cell_type", {})})
    dots = [Line2D([], [], marker="o", ls="", color=cell_type_colour(name)) for name in names]
    if names:
        figure.legend(dots, names, loc="outside lower left", ncols=len(names), handletextpad=0.2)


@styled
def experiment_dots(rows: list[dict]) -> Figure:
    """Accuracy of each experiment under the given rungs; raw and assigned in a panel of their own.

    `rows` are rungs of one split; within a panel the last one is drawn strongest.
    """
    experiments = sorted({name for row in rows for name in row.get("by_experiment", {})})
    if not rows:
        return blank_figure(NOTHING_KNOWN)
    panels = _by_kind(rows)
    figure = new_figure(6 * len(panels), 1.4 + 0.24 * max(4, len(experiments)))
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (kind, subset) in zip(grid, panels.items()):
        for number, row in enumerate(subset, 1):
            _experiment_series(axes, row, experiments, strength=number / len(subset))
        _accuracy_axis(axes)
        axes.grid(True, axis="y")
        axes.set_xlim(-0.02, 1.02)
        axes.set_title(f"{kind.capitalize()}: " + ", ".join(row["rung"] for row in subset))
    grid[0].set_yticks(range(len(experiments)), experiments)
    grid[0].set_ylim(len(experiments) - 0.4, -0.6)
    return figure


def _experiment_series(axes: Axes, row: dict, experiments: list[str], *, strength: float) -> None:
    values = row.get("by_experiment", {})
    for y, name in enumerate(experiments):
        colour = pale(cell_type_colour(name.rsplit("-", 1)[0]), share=0.1 + 0.9 * strength)
        if name in values:
            axes.plot(values[name], y, "o", color=colour, ms=7)


# Calibration of probabilities.


@styled
def reliability(confidence: pd.Series, right: pd.Series, *, bins: int = 10) -> Figure:
    """Share of right answers against their stated probability, and how often each was stated.

    `confidence`: probability by id_code; `right`: bool by id_code. A point on the diagonal is
    calibrated, one below it overconfident. Bars are 95 % binomial intervals (Wilson's).
    """
    if confidence.empty:
        return blank_figure(NOTHING_KNOWN)
    figure = new_figure(9, 3.4)
    curve, counts = figure.subplots(1, 2)
    values, correct = confidence.to_numpy(float), right.reindex(confidence.index).to_numpy(bool)
    bin_index = np.clip((values * bins).astype(int), 0, bins - 1)
    for index in np.unique(bin_index):
        in_bin = bin_index == index
        share = binomtest(int(correct[in_bin].sum()), int(in_bin.sum()))
        mean, interval = values[in_bin].mean(), share.proportion_ci(method="wilson")
        curve.plot([mean, mean], interval, color=pale(ASSIGNED), lw=4, solid_capstyle="butt")
        curve.plot(mean, share.statistic, "o", color=ASSIGNED, ms=6)
    curve.plot([0, 1], [0, 1], color="#999999", lw=1, ls="--", zorder=0)
    curve.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="stated probability", title="Share of right answers")
    counts.hist(values, bins=np.linspace(0, 1, bins + 1), color=pale(ASSIGNED))
    counts.set(xlim=(0, 1.02), xlabel="stated probability", title="Wells")
    return figure
