"""Figures of a benchmark: rates of all candidates, the parts of a training step, the cost of a recipe."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from cellsignal.show.style import blank_figure, colour_legend, new_figure, pale, save, styled

KINDS = {"ours": "#D55E00", "peer": "#0072B2", "floor": "#8A8F98"}
KIND_NAMES = {"ours": "this package", "peer": "as others do it", "floor": "the machine at its best"}
TITLES = {
    "read": "Read a site, one core", "augment": "Augment, make floats", "data path": "The data path, two cores", "train": "Train",
    "predict": "Predict, one pass", "experiment": "Predict an experiment, from the disk",
}  # fmt: skip
PARTS = {
    "read": "#56B4E9", "decode": "#0072B2", "move": "#8A8F98", "augment": "#F0E442", "forward": "#E69F00", "backward": "#D55E00",
    "step": "#7F3C8D",
}  # fmt: skip
HOUR_MARKS = {1: "o", 10: "s", 100: "D"}
LIMITS = {"read": "#56B4E9", "decode": "#0072B2", "compute": "#D55E00"}
QUOTA = 30  # hours of GPU a week on Kaggle
Rows = Sequence[Mapping[str, Any]]


@styled
def draw_rates(rows: Rows) -> Figure:
    """A panel per stage, a bar per candidate, sites per second on a logarithmic axis; a line from the slowest to the fastest round.

    `rows`: those of benchmark.json. Stages without a panel, such as the limits of the machine, are left out.
    """
    stages = [stage for stage in TITLES if any(row["stage"] == stage for row in rows)]
    if not stages:
        return blank_figure("nothing was measured")
    heights = [sum(row["stage"] == stage for row in rows) + 0.9 for stage in stages]
    figure = new_figure(11, 0.42 * sum(heights) + 0.8)
    panels = figure.subplots(len(stages), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, stage in zip(panels, stages, strict=True):
        _rates(axes, sorted((row for row in rows if row["stage"] == stage), key=lambda row: -row["median"]))
        axes.set_title(TITLES[stage])
    panels[-1].set_xlabel("sites a second")
    note = "Medians of rounds; lines from the slowest to the fastest round"
    colour_legend(figure, {KIND_NAMES[kind]: colour for kind, colour in KINDS.items()}, note=note)
    return figure


def _rates(axes: Axes, rows: Rows) -> None:
    """Bars of one stage, the fastest above."""
    medians = np.array([row["median"] for row in rows])
    axes.barh(range(len(rows)), medians, color=[KINDS[row["kind"]] for row in rows], height=0.62)
    for y, row in enumerate(rows):
        axes.plot([row["min"], row["max"]], [y, y], color="#222222", lw=1.2)
        label = f"  {_number(row['median'])}"
        axes.annotate(label, (max(row["median"], row["max"]), y), va="center", fontsize=9)
    _plain(axes)
    axes.set_xlim(medians.min() / 3, max(row["max"] for row in rows) * 4)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(False, axis="y")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


@styled
def draw_timeline(rows: Rows) -> Figure:
    """The parts of a training step of each implementation: milliseconds per site and shares.

    `rows`: the `timeline` of benchmark.json: lane, part, ms, share.
    """
    if not rows:
        return blank_figure("no time line was measured")
    labels = list(dict.fromkeys(row["lane"] for row in rows))
    figure = new_figure(11, 1.5 + 0.95 * len(labels))
    axes = figure.subplots()
    longest = max(sum(row["ms"] for row in rows if row["lane"] == label) for label in labels)
    for y, label in enumerate(labels):
        _lane(axes, [row for row in rows if row["lane"] == label], y, longest=longest)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.45, -0.55)
    axes.set_xlim(0, longest * 1.14)
    axes.set(title="A training step, every part waited for", xlabel="milliseconds a site")
    axes.grid(False, axis="y")
    colour_legend(figure, PARTS)
    return figure


def _lane(axes: Axes, rows: Rows, y: int, *, longest: float) -> None:
    """The parts one after the other; shares stand in those that are wide enough, and the others' below."""
    start, small_parts = 0.0, []
    for row in rows:
        axes.barh(y, row["ms"], left=start, color=PARTS[row["part"]], height=0.5, edgecolor="white", lw=0.6)
        if row["ms"] > 0.05 * longest:
            axes.text(start + row["ms"] / 2, y, f"{row['share']:.0%}", ha="center", va="center", fontsize=9, color="#111111")
        elif row["ms"]:
            small_parts.append(f"{row['part']} {row['share']:.1%}")
        start += row["ms"]
    axes.text(start + 0.01 * longest, y, f"{start:,.3g} ms", va="center", fontsize=10)
    axes.text(0, y + 0.28, "   ".join(small_parts), va="top", fontsize=8, color="#555555")


@styled
def draw_cost(rows: Rows, *, recipe: str = "") -> Figure:
    """Hours of a recipe on every machine and from every source, for 1, 10 and 100 times the plates; colours name the bottleneck.

    `rows`: those of `cost` in benchmark.json. Kaggle's hours of GPU a week are drawn as a line.
    """
    if not rows:
        return blank_figure("no cost was worked out")
    labels = list(dict.fromkeys((row["host"], row["source"]) for row in rows))
    figure = new_figure(11, 1.6 + 0.42 * len(labels))
    axes = figure.subplots()
    for y, label in enumerate(labels):
        lane_rows = [row for row in rows if (row["host"], row["source"]) == label]
        axes.plot([row["hours"] for row in lane_rows], [y] * len(lane_rows), color=pale(LIMITS[lane_rows[0]["bottleneck"]]), lw=3, zorder=1)
        for row in lane_rows:
            axes.plot(row["hours"], y, HOUR_MARKS.get(row["scale"], "o"), color=LIMITS[row["bottleneck"]], ms=7)
            axes.annotate(_hours(row["hours"]), (row["hours"], y), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8)
    axes.axvline(QUOTA, color="#444444", lw=1, ls="--")
    axes.annotate(f" {QUOTA} h: a week's quota on Kaggle", (QUOTA, -0.75), fontsize=8, color="#444444", va="center")
    _plain(axes)
    axes.set_yticks(range(len(labels)), [f"{host}, {source}" for host, source in labels])
    axes.set_ylim(len(labels) - 0.4, -1.1)
    axes.set(title=f"Hours of {recipe or 'a recipe'} on 1 (circle), 10 (square) and 100 (diamond) times RxRx1", xlabel="hours")
    axes.grid(False, axis="y")
    colour_legend(figure, {f"limited by {part}": colour for part, colour in LIMITS.items()})
    return figure


def result_figures(result: Mapping[str, Any], folder: Path) -> tuple[Figure, Figure, Figure]:
    """Time line, rates and cost from the content of benchmark.json, also written to `folder` as benchmark-*.png."""
    cost = draw_cost(result["cost"]["rows"], recipe=result["cost"]["recipe"])
    figures = {"timeline": draw_timeline(result["timeline"]), "rates": draw_rates(result["rows"]), "cost": cost}
    return tuple(save(figure, folder / f"benchmark-{name}.png") for name, figure in figures.items())


def _hours(hours: float) -> str:
    if hours < 1:
        return f"{60 * hours:.0f} min"
    return f"{hours:,.3g} h" if hours < 1000 else f"{hours:,.0f} h" if hours < 10_000 else f"{hours / 8766:,.3g} years"


def _plain(axes: Axes) -> None:
    """Numbers at the decades of a logarithmic axis, in plain digits."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
