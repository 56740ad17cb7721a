"""What the report says of sites with several labels: macro F1 by thresholds, and F1 by class."""

from collections.abc import Iterator
from html import escape
from pathlib import Path

from cellsignal.show import page
from cellsignal.show.atlas import class_scores, label_ladder
from cellsignal.show.ladder import of_split
from cellsignal.tasks import TASKS

SPLITS = {"test": "test sites", "held_out": "held-out sites"}


def label_parts(run: Path, metrics: dict, trouble: str) -> Iterator[str]:
    """The parts of the report that come before training, from the content of metrics.json."""
    rungs, chosen = metrics.get("rungs", []), metrics.get("thresholds", "")
    boxes = [
        page.number(f"{row['macro_f1']:.3f}", f"macro F1, {row['rung']}, {SPLITS[row['split']]}", kind="assigned")
        for row in rungs
        if row.get("method") == chosen
    ]
    yield f"<h1>cellsignal</h1>\n{page.paragraph('Run ' + run.name, quiet=True)}" + (page.numbers(boxes) if boxes else "")
    yield _macro_f1(rungs, trouble)
    if rungs and "counts" in metrics and metrics.get("task") in TASKS:
        yield _classes(metrics, rungs)


def _macro_f1(rungs: list[dict], trouble: str) -> str:
    if not rungs:
        return page.section("Macro F1", page.paragraph(trouble or "No answers are known.", quiet=True))
    words = (
        "Every class counts alike, so the rare ones decide. The floors look at no picture. A threshold a class is fitted on "
        "held-out folds, or set so that each class is answered as often as it is in training; held-out sites are "
        "judged by thresholds that have not seen them."
    )
    parts = [page.paragraph(words), page.image(label_ladder(rungs).png(), "macro F1 of floors and thresholds")]
    for split in dict.fromkeys(row["split"] for row in rungs):
        cells = [[row["rung"], float(row["macro_f1"])] for row in of_split(rungs, split)]
        parts.append(f"<h3>{escape(SPLITS[split].capitalize())}</h3>\n{page.table(['answers', 'macro F1'], cells)}")
    return page.section("Macro F1", *parts)


def _classes(metrics: dict, rungs: list[dict]) -> str:
    """F1 of each class, the rarest at the bottom."""
    figure = class_scores(rungs, metrics["counts"], TASKS[metrics["task"]])
    words = page.paragraph("Each class with the number of its training sites, and its F1 under each kind of thresholds.")
    return page.section("By class", words, page.image(figure.png(), "F1 of each class"))
