"""Every figure in one place, for notebooks: `from cellsignal.show import plots`."""

from cellsignal.show.curves import LiveCurves, curves
from cellsignal.show.ladder import confusion, experiment_dots, group_confidence, ladder
from cellsignal.show.style import cell_type_colour, save

__all__ = [
    "LiveCurves",
    "cell_type_colour",
    "confusion",
    "curves",
    "experiment_dots",
    "group_confidence",
    "ladder",
    "save",
]
