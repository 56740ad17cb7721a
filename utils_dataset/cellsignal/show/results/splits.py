"""A benchmark's accuracy by split: a figure, what it says in words, and its part of the report."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cellsignal.data.tables.wells import SPLIT_NAMES
from cellsignal.show import html
from cellsignal.show.style import RAW, blank_figure, cell_type_colour, new_figure, pale, styled

HOW = (
    "As the benchmark measures: each site is answered alone, its class is one of all, controls included, and plates play no part in the answer. "
    "OOD: of experiments that the network has not seen; ID: other sites of the wells that it was trained on. The accuracy by well averages the "
    "log-probabilities of a well's sites in the split; it is none of the benchmark's measures."
)


@styled
def accuracy_by_split(rows: Sequence[dict[str, Any]]) -> Figure:
    """A bar for each split and kind of statistics, with a dot for each experiment in the colour of its cell type; `rows`: of `evaluate_splits`."""
    if not rows:
        return blank_figure("No split was measured.")
    figure = new_figure(9, 1.4 + 0.5 * len(rows))
    axes, heights = figure.subplots(), np.arange(len(rows))
    axes.barh(heights, [row["accuracy"] for row in rows], height=0.62, color=pale(RAW))
    for y, row in enumerate(rows):
        for experiment, value in sorted(row["by_experiment"].items()):
            axes.plot(value, y, "o", color=cell_type_colour(experiment.rpartition("-")[0]), ms=5, mec="white", mew=0.6)
        axes.text(1.14, y, f"{row['accuracy']:.3f}", va="center", ha="right", color=RAW)
    axes.set_yticks(heights, [f"{SPLIT_NAMES[row['split']]}, {row['rung']}" for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.15)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_xlabel("accuracy of sites")
    axes.grid(False, axis="y")
    names = sorted({name for row in rows for name in row["by_cell_type"]})
    dots = [Line2D([], [], marker="o", ls="", color=cell_type_colour(name)) for name in names]
    figure.legend(dots, names, loc="outside lower left", ncols=len(names), handletextpad=0.2)
    return figure


def split_findings(rows: Sequence[dict[str, Any]]) -> str:
    """Each split's accuracy under the recipe's statistics and under running ones, as a list in Markdown."""
    lines = []
    for split, name in SPLIT_NAMES.items():
        *others, last = [row for row in rows if row["split"] == split] or [None]
        if last:
            compared = "".join(f" ({row['accuracy']:.1%} with {row['rung']})" for row in others)
            answered = f"{last['accuracy']:.1%} of {last['sites']:,} sites with {last['rung']}{compared}"
            lines.append(f"- **{name}**: {answered}; worst cell type {last['worst_cell_type']:.1%}.")
    return "\n".join(lines) or "- No split was measured."


def split_parts(run: Path, metrics: dict, trouble: str) -> Iterator[str]:
    """The parts of the report that come before training, from the content of metrics.json."""
    rows = metrics.get("splits", [])
    last = {row["split"]: row for row in rows}
    boxes = [html.number(f"{row['accuracy']:.3f}", f"accuracy, {SPLIT_NAMES[split]}", kind="raw") for split, row in last.items()]
    yield html.head("cellsignal", f"Run {run.name}", boxes)
    if not rows:
        yield html.section("Accuracy by split", html.paragraph(trouble or "No split was measured.", quiet=True))
        return
    header = ["split", "statistics", "accuracy", "worst cell type", "sites", "accuracy by well", "wells"]
    cells = [[SPLIT_NAMES[row["split"]], *(row[name] for name in ("rung", "accuracy", "worst_cell_type", "sites", "well_accuracy", "wells"))] for row in rows]
    yield html.section("Accuracy by split", html.paragraph(HOW), html.image(accuracy_by_split(rows).png(), "accuracy of each split"), html.table(header, cells))
