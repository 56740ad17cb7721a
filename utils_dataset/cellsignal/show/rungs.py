"""The rungs of a run as one picture, whatever they are measured by."""

from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.figure import Figure

from cellsignal.show.atlas import label_ladder
from cellsignal.show.ladder import ladder
from cellsignal.show.style import blank

# By the metric that a metrics.json names, without one accuracy: under which key it has its rungs, and who draws them.
PICTURES: dict[str, tuple[str, Callable[[list[dict]], Figure]]] = {"accuracy": ("ladder", ladder), "macro_f1": ("rungs", label_ladder)}


def rungs_picture(metrics: Mapping[str, Any]) -> Figure:
    """A bar for each rung, from the content of a metrics.json; says so when there is none."""
    key, draw = PICTURES[metrics.get("metric", "accuracy")]
    return draw(metrics[key]) if metrics.get(key) else blank("No rung yet.")
