"""Every figure in one place, for notebooks: `from cellsignal.show import plots`."""

from cellsignal.show.batches import batch_effect, channel_means, variance_shares
from cellsignal.show.composites import composite, show_composites, show_wells
from cellsignal.show.curves import LiveCurves, curves
from cellsignal.show.experiments import (
    class_counts,
    experiment_counts,
    group_rotation_map,
    plate_counts,
)
from cellsignal.show.ladder import experiment_dots, ladder
from cellsignal.show.plates import plate_heatmap, plate_layout
from cellsignal.show.statistics import channels_there, pixel_stats
from cellsignal.show.style import cell_type_colour, save

__all__ = [
    "LiveCurves",
    "batch_effect",
    "cell_type_colour",
    "channel_means",
    "channels_there",
    "class_counts",
    "composite",
    "curves",
    "experiment_counts",
    "experiment_dots",
    "group_rotation_map",
    "ladder",
    "pixel_stats",
    "plate_counts",
    "plate_heatmap",
    "plate_layout",
    "save",
    "show_composites",
    "show_wells",
    "variance_shares",
]
