"""Figures and report sections of multi-label sites: class frequencies, co-occurrence, thresholds and F1."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from cellsignal.data.tables.labelled_sites import Labels, multi_hot
from cellsignal.show import html
from cellsignal.show.results.ladder import rungs_of_split
from cellsignal.show.style import ASSIGNED, RAW, blank_figure, label_decades, new_figure, styled
from cellsignal.tasks import TASKS, Task

BASELINE = "#8A8A8A"
METHODS = {"half": BASELINE, "fitted": ASSIGNED, "shares": RAW}


def _names(task: Task) -> list[str]:
    return [f"{name} ({number})" for number, name in enumerate(task.class_names or range(task.classes))]


@styled
def class_frequencies(labels: Sequence[Labels], task: Task) -> Figure:
    """Sites of each class on a logarithmic axis, the most frequent on top."""
    counts = multi_hot(list(labels), task.classes).sum(axis=0, dtype=np.int64)
    order = counts.argsort(kind="stable")
    figure = new_figure(8, 1 + 0.21 * task.classes)
    axes = figure.subplots()
    axes.barh(range(task.classes), counts[order], color=RAW, height=0.7)
    for y, count in enumerate(counts[order]):
        axes.annotate(f"{count:,}", (max(count, 1), y), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(task.classes), np.array(_names(task))[order], fontsize=8)
    axes.set(xscale="log", xlabel="sites", xlim=(0.8, 2 * max(counts.max(), 1)))
    label_decades(axes.xaxis)
    axes.set_title(f"{len(labels):,} sites, {counts.sum() / max(len(labels), 1):.2f} labels each on average")
    axes.grid(axis="y", visible=False)
    return figure


@styled
def label_cooccurrence(labels: Sequence[Labels], task: Task) -> Figure:
    """Of the sites with the label of a row, the share that has the label of a column too."""
    table = multi_hot(list(labels), task.classes).astype(np.int64)
    pair_counts = table.T @ table
    shares = pair_counts / np.maximum(np.diag(pair_counts), 1)[:, None]
    np.fill_diagonal(shares, np.nan)
    figure = new_figure(9, 6.6)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="viridis", vmin=0, vmax=max(float(np.nanmax(shares)), 0.01))
    axes.set_yticks(range(task.classes), _names(task), fontsize=7)
    axes.set_xticks(range(task.classes), range(task.classes), fontsize=7)
    axes.set(xlabel="has this label too", ylabel="of the sites with this label")
    axes.grid(False)
    figure.colorbar(image, shrink=0.7, label="share of the sites")
    return figure


@styled
def label_ladder(rungs: list[dict]) -> Figure:
    """Macro F1 of the baselines and of every kind of thresholds, a bar each; the test sites' where they are known."""
    rows = rungs_of_split(rungs)
    if not rows:
        return blank_figure("No macro F1 yet.")
    figure = new_figure(8, 1 + 0.42 * len(rows))
    axes = figure.subplots()
    y_positions = range(len(rows) - 1, -1, -1)
    axes.barh(y_positions, [row["macro_f1"] for row in rows], height=0.62, color=[METHODS.get(row.get("method", ""), "#CFCFCF") for row in rows])
    for y, row in zip(y_positions, rows):
        axes.annotate(f"{row['macro_f1']:.3f}", (row["macro_f1"], y), xytext=(4, 0), textcoords="offset points", va="center")
    axes.set_yticks(y_positions, [row["rung"] for row in rows])
    axes.set(xlim=(0, max(0.1, 1.15 * max(row["macro_f1"] for row in rows))), xlabel="macro F1")
    axes.set_title({"test": "Test sites", "held_out": "Held-out sites"}[rows[0]["split"]])
    axes.grid(axis="y", visible=False)
    return figure


@styled
def class_scores(rungs: list[dict], counts: Sequence[int], task: Task) -> Figure:
    """F1 of each class under each kind of thresholds, from the most frequent class in training to the rarest."""
    rows = [row for row in rungs_of_split(rungs) if "by_class" in row]
    if not rows:
        return blank_figure("No F1 of classes yet.")
    order = np.argsort(counts, kind="stable")
    figure = new_figure(8, 1.2 + 0.21 * task.classes)
    axes = figure.subplots()
    for row in rows:
        axes.plot(np.array(row["by_class"])[order], range(task.classes), "o", ms=5, color=METHODS[row["method"]], label=row["rung"], alpha=0.85)
    names = [f"{name}: {counts[y]:,}" for y, name in enumerate(task.class_names or range(task.classes))]
    axes.set_yticks(range(task.classes), np.array(names)[order], fontsize=8)
    axes.set(xlim=(-0.02, 1.02), xlabel="F1", ylim=(-0.7, task.classes - 0.3))
    figure.legend(loc="outside lower left", ncols=3, fontsize=8)
    return figure


def examples(labels: Sequence[Labels], task: Task, *, count: int = 8) -> list[int]:
    """Rows of sites that show so many different classes, the most frequent first, each with as few other labels as there are."""
    table = multi_hot(list(labels), task.classes)
    frequent = np.argsort(-table.sum(axis=0, dtype=np.int64), kind="stable")[:count]
    rows_by_label = [np.flatnonzero(table[:, label]) for label in frequent]
    return [int(rows[table[rows].sum(axis=1).argmin()]) for rows in rows_by_label if len(rows)]


# The report of multi-label sites: macro F1 by thresholds, and F1 by class.


SPLITS = {"test": "test sites", "held_out": "held-out sites"}


def label_parts(run: Path, metrics: dict, trouble: str) -> Iterator[str]:
    """The parts of the report that come before training, from the content of metrics.json."""
    rungs, chosen = metrics.get("rungs", []), metrics.get("thresholds", "")
    boxes = [
        html.number(f"{row['macro_f1']:.3f}", f"macro F1, {row['rung']}, {SPLITS[row['split']]}", kind="assigned")
        for row in rungs
        if row.get("method") == chosen
    ]
    yield html.head("cellsignal", f"Run {run.name}", boxes)
    yield _macro_f1(rungs, trouble)
    if rungs and "counts" in metrics and metrics.get("task") in TASKS:
        yield _classes(metrics, rungs)


def _macro_f1(rungs: list[dict], trouble: str) -> str:
    if not rungs:
        return html.section("Macro F1", html.paragraph(trouble or "No answers are known.", quiet=True))
    words = (
        "Every class counts alike, so the rare ones decide. The baselines use no image. A threshold a class is fitted on "
        "held-out folds, or set so that each class is answered as often as it is in training; held-out sites are "
        "judged by thresholds that have not seen them."
    )
    parts = [html.paragraph(words), html.image(label_ladder(rungs).png(), "macro F1 of baselines and thresholds")]
    for split in dict.fromkeys(row["split"] for row in rungs):
        cells = [[row["rung"], float(row["macro_f1"])] for row in rungs_of_split(rungs, split)]
        parts.append(html.subsection(SPLITS[split].capitalize(), html.table(["answers", "macro F1"], cells)))
    return html.section("Macro F1", *parts)


def _classes(metrics: dict, rungs: list[dict]) -> str:
    """F1 of each class, the rarest at the bottom."""
    figure = class_scores(rungs, metrics["counts"], TASKS[metrics["task"]])
    words = html.paragraph("Each class with the number of its training sites, and its F1 under each kind of thresholds.")
    return html.section("By class", words, html.image(figure.png(), "F1 of each class"))
