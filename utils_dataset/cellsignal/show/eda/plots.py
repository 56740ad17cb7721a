"""Every figure in one place, for notebooks: `from cellsignal.show.eda import plots`."""

from cellsignal.show.curves import LiveCurves, curves
from cellsignal.show.eda.batch_effect import batch_effect, channel_means, channels_there, load_pixel_stats, pixel_stats, variance_shares
from cellsignal.show.eda.composites import composite, show_composites, show_wells
from cellsignal.show.eda.plates import class_counts, experiment_counts, group_rotation_map, plate_counts, plate_heatmap, plate_layout
from cellsignal.show.results.ladder import experiment_dots, ladder
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
    "load_pixel_stats",
    "pixel_stats",
    "plate_counts",
    "plate_heatmap",
    "plate_layout",
    "save",
    "show_composites",
    "show_wells",
    "variance_shares",
]
