"""Figures of the ladder: accuracy of each rung, by cell type and by experiment, and without labels; reliability, prediction sets, and the surest wells."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import binomtest

from cellsignal.show.style import ASSIGNED, RAW, blank_figure, cell_type_colour, colour_legend, new_figure, pale, styled

KINDS = {
    "raw": ("Raw: each well on its own", RAW),
    "assigned": ("Assigned: with the design of the plate", ASSIGNED),
}
SET_SHADES = ("#56B4E9", "#0072B2", "#222222")  # of nominal coverages, from the lowest
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


@styled
def estimated_accuracy(rows: list[dict]) -> Figure:
    """Accuracy of the raw answers of the last rung by experiment, estimated without labels, and the true one where it is known.

    `rows`: rung, level (only "experiment" is drawn), name, estimated_accuracy and standard_error (None or NaN where not measurable),
    accuracy (None or NaN where not known). Bars are two standard errors to each side.
    """
    rows = [row for row in rows if row["level"] == "experiment" and row["rung"] == rows[-1]["rung"]]
    if not rows:
        return blank_figure("No accuracy is estimated: these plates have no groups.")
    figure = new_figure(6.5, 1.6 + 0.24 * max(4, len(rows)))
    axes = figure.subplots()
    for y, row in enumerate(rows):
        colour = cell_type_colour(row["name"].rsplit("-", 1)[0])
        if pd.isna(row["estimated_accuracy"]):
            axes.annotate("not measurable", (0.01, y), va="center", fontsize=9, color="#444444")
        else:
            axes.errorbar(row["estimated_accuracy"], y, xerr=2 * row["standard_error"], fmt="o", color=colour, ms=6, capsize=3)
        if not pd.isna(row["accuracy"]):
            axes.plot(row["accuracy"], y, "D", mfc="none", mec="#222222", ms=8)
    _accuracy_axis(axes)
    axes.set(xlim=(-0.02, 1.02), title=f"Raw: {rows[-1]['rung']}, estimated without labels")
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    marks = [Line2D([], [], marker="o", color="#666666"), Line2D([], [], marker="D", ls="", mfc="none", mec="#222222", ms=8)]
    figure.legend(marks, ["estimate ± 2 standard errors", "truth, where known"], loc="outside lower left", ncols=2)
    return figure


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


# Prediction sets, and wells that are kept because they are sure.


@styled
def set_sizes(rows: list[dict]) -> Figure:
    """Mean size of the prediction sets of each experiment, and how many hold the right siRNA, at each nominal coverage.

    `rows`: split ("test" or "held_out"), experiment ("all" is not drawn), coverage, mean_size, covered (None where no siRNA is known).
    The nominal coverages are vertical lines in the panel on the right, which is left out if nothing is known.
    """
    rows = [row for row in rows if row["experiment"] != "all"]
    if not rows:
        return blank_figure("No prediction sets.")
    names = sorted({(row["split"] != "test", row["experiment"]) for row in rows})
    shades = dict(zip(sorted({row["coverage"] for row in rows}), SET_SHADES, strict=False))
    known = [row for row in rows if row["covered"] is not None and row["covered"] == row["covered"]]
    figure = new_figure(6 * (1 + bool(known)), 1.6 + 0.24 * max(4, len(names)))
    grid = figure.subplots(1, 1 + bool(known), sharey=True, squeeze=False)[0]
    marks = dict(zip(shades, (4.5, 7.5, 10.5)))  # the higher the coverage, the larger, so that equal values show as rings
    for axes, key, some in zip(grid, ("mean_size", "covered"), (rows, known)):
        for row in sorted(some, key=lambda row: -row["coverage"]):
            place = names.index((row["split"] != "test", row["experiment"]))
            axes.plot(row[key], place, "o", color=shades[row["coverage"]], ms=marks[row["coverage"]], mec="white", mew=0.6)
    largest = max(row["mean_size"] for row in rows)
    ticks = [size for size in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if size <= 1.5 * largest or size < 5]
    grid[0].set(title="siRNAs in a set, mean", xscale="log", xlim=(0.9, max(2.2, 1.2 * largest)))
    grid[0].set_xticks(ticks, ticks)
    grid[0].xaxis.set_minor_formatter("")
    if known:
        for coverage, colour in shades.items():
            grid[1].axvline(coverage, color=colour, lw=1.2, ls="--", zorder=0)
        grid[1].set(title="Share of sets that hold the right siRNA", xlim=(min(0.5, *(row["covered"] for row in known)) - 0.02, 1.02))
    grid[0].set_yticks(range(len(names)), [name + " (held out)" * held_out for held_out, name in names])
    grid[0].set_ylim(len(names) - 0.4, -0.6)
    colour_legend(figure, {f"{coverage:.0%} nominal": colour for coverage, colour in shades.items()}, dot_sizes=marks.values())
    return figure


@styled
def rejection_curve(rows: list[dict]) -> Figure:
    """Accuracy of the wells that are kept against their share, the surest kept first, beside what their confidences state.

    `rows`: share, stated (mean confidence), accuracy (None where no siRNA is known).
    """
    if not rows:
        return blank_figure(NOTHING_KNOWN)
    figure = new_figure(6.5, 3.6)
    axes = figure.subplots()
    shares = [row["share"] for row in rows]
    known = [row for row in rows if row["accuracy"] is not None and row["accuracy"] == row["accuracy"]]
    axes.plot(shares, [row["stated"] for row in rows], color="#666666", lw=1.2, ls="--", label="as their confidences state")
    axes.plot([row["share"] for row in known], [row["accuracy"] for row in known], "o-", color=ASSIGNED, ms=4, label="in truth")
    lowest = min(*(row["stated"] for row in rows), *(row["accuracy"] for row in known), 0.9)
    axes.set(xlim=(0, 1.02), ylim=(max(0, lowest - 0.05), 1.02), xlabel="share of wells kept, the surest first", title="Right answers among the wells kept")
    axes.legend(loc="lower left")
    return figure
