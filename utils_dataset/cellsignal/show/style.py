"""The style of all figures: fonts, a light grid, and fixed colours."""

import textwrap
import warnings
from collections.abc import Callable, Iterable
from functools import cached_property, wraps
from io import BytesIO
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axis import Axis
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter

from cellsignal.data.simulated import shown, titled
from cellsignal.files import atomic_path

# Okabe and Ito's palette, distinguishable for colour-blind readers (jfly.uni-koeln.de/color).
CELL_TYPES = {"HEPG2": "#E69F00", "HUVEC": "#0072B2", "RPE": "#009E73", "U2OS": "#CC79A7"}
OTHER_CELL_TYPES = ("#D55E00", "#56B4E9", "#8C6D31", "#7F3C8D")
WELL_TYPES = {
    "treatment": "#56B4E9",
    "positive_control": "#E69F00",
    "negative_control": "#222222",
    "missing": "#EDEDED",
}
GROUPS = ("#56B4E9", "#F0E442", "#009E73", "#D55E00")
TITLE_HEIGHT = 0.3  # inches
MAX_TICK_LABEL = 32  # characters
RAW, ASSIGNED = "#0072B2", "#D55E00"

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "figure.facecolor": "white",
    "figure.titlesize": 13,
    "savefig.dpi": 110,
    "image.interpolation": "nearest",
    "svg.hashsalt": "cellsignal",
    # Names of runs, variants and cell types are no formulas, whatever they hold. `label_decades` does without formulas, too.
    "text.parse_math": False,
    "text.usetex": False,
}


def styled(function: Callable[..., Figure]) -> Callable[..., Figure]:
    """Run `function` with the style of this file, whatever the caller has set."""

    @wraps(function)
    def inside(*values, **options):
        with matplotlib.rc_context(STYLE):
            return function(*values, **options)

    return inside


class NotebookFigure(Figure):
    """A figure without a window, displayed once as the value of a notebook cell."""

    def suptitle(self, t: str, **options) -> Text:
        """The title of the whole figure, with a label if the data are simulated; in several lines where it is wider than the figure."""
        text = super().suptitle(titled(t), **options)
        line_height = text.get_fontsize() / 60  # inches, with the space between lines
        for length in range(len(titled(t)) - 1, 9, -1):
            if text.get_window_extent().width < 0.97 * self.bbox.width:
                break
            lines = textwrap.wrap(titled(t), length)
            text.set_text("\n".join(lines))
        self.set_figheight(self.get_figheight() + line_height * text.get_text().count("\n"))
        return text

    # Ticks are created while drawing, so the style must be active then too.
    @styled
    def savefig(self, *values, **options) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in a script that the font lacks shows as boxes; red lines would not help
            super().savefig(*values, **options)

    def png(self) -> bytes:
        """The figure as the bytes of a PNG file, as first drawn: the same for the same data."""
        return self._png

    # Drawn once: a second drawing would shift the layout by a pixel, and costs as much again.
    @cached_property
    def _png(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()

    _repr_png_ = png


def label_decades(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers, because mathtext is switched off."""
    axis.set_major_formatter(LogFormatter())
    axis.set_minor_formatter(LogFormatter())


def new_figure(width: float, height: float) -> NotebookFigure:
    """An empty figure of `width` x `height` inches with constrained layout, and space for a title if the data are simulated."""
    figure = NotebookFigure(figsize=(width, height + TITLE_HEIGHT * shown()), layout="constrained")
    if shown():
        figure.suptitle("", x=0.01, ha="left")
    return figure


def blank_figure(message: str) -> NotebookFigure:
    """A figure with only a message."""
    figure = NotebookFigure(figsize=(8, 0.5), layout="constrained")
    figure.text(0.01, 0.5, message, va="center", color="#666666")
    return figure


def save(figure: NotebookFigure, path: Path) -> NotebookFigure:
    """Write `figure` to `path` as a PNG, atomically, and give it back for the notebook to show."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(figure.png())
    return figure


def rounded(table: pd.DataFrame, *, caption: str = "") -> "pd.io.formats.style.Styler":
    """A table of accuracies for a notebook: three decimals, nothing for missing values, and the same HTML each time."""
    return table.style.format("{:.3f}", na_rep="").set_uuid("accuracies").set_caption(caption)


def short_name(name: str) -> str:
    """A name of any length as it stands at an axis: of a long one the beginning and the end."""
    return name if len(name) <= MAX_TICK_LABEL else f"{name[: MAX_TICK_LABEL // 2]}…{name[1 - MAX_TICK_LABEL // 2:]}"


def cell_type_colour(cell_type: str) -> str:
    """The colour of a cell type, the same in every figure; unknown names have one too."""
    other = OTHER_CELL_TYPES[sum(cell_type.encode()) % len(OTHER_CELL_TYPES)]
    return CELL_TYPES.get(cell_type, other)


def pale(colour: str, *, share: float = 0.35) -> tuple[float, float, float]:
    """`colour` mixed with white: a tint that hides the grid behind it, unlike transparency."""
    return tuple(share * component + 1 - share for component in to_rgb(colour))


def colour_legend(figure: Figure, colours: dict[str, str], *, note: str = "", dot_sizes: Iterable[float] = ()) -> None:
    """A legend of coloured boxes below `figure`, or of dots of some sizes (points), under a line of text."""
    dots = [Line2D([], [], marker="o", ls="", color=colour, ms=size, mec="white", mew=0.6) for colour, size in zip(colours.values(), dot_sizes)]
    patches = dots or [Patch(facecolor=colour, edgecolor="#BBBBBB") for colour in colours.values()]
    legend = dict(loc="outside lower left", ncols=len(colours), fontsize=9)
    figure.legend(patches, colours, title=note, alignment="left", title_fontsize=9, **legend)
