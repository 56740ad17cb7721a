"""Training curves, and the same curves redrawn in place while training runs."""

from time import monotonic

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cellsignal.show.style import ASSIGNED, RAW, picture, styled

LOSS, TRAIN, HELD_OUT = "#444444", RAW, ASSIGNED


@styled
def curves(history: list[dict], *, title: str = "") -> Figure:
    """Loss and accuracy over the epochs of all phases, laid one after the other.

    `history` rows: phase, epoch, loss, accuracy, held_out_accuracy (None where not measured).
    """
    figure = picture(9, 3.2)
    figure.suptitle(title, x=0.01, ha="left")
    loss, accuracy = figure.subplots(1, 2)
    _line(loss, history, "loss", colour=LOSS, label="train")
    _line(accuracy, history, "accuracy", colour=TRAIN, label="train")
    _line(accuracy, history, "held_out_accuracy", colour=HELD_OUT, label="held out")
    accuracy.set_ylim(0, 1.02)
    for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
        axes.set_title(name)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
        _phases(axes, history)
    accuracy.legend(loc="best")
    loss.set_ylim(bottom=0)
    return figure


def _line(axes: Axes, history: list[dict], key: str, *, colour: str, label: str) -> None:
    """A line per phase, as classes change between them; epochs without a value are left out."""
    axes.plot([], [], color=colour, label=label)
    marker = "o" if len(history) <= 60 else ""
    for phase in dict.fromkeys(row.get("phase", "") for row in history):
        rows = [(x, row) for x, row in enumerate(history, 1) if row.get("phase", "") == phase]
        points = [(x, row[key]) for x, row in rows if row.get(key) is not None]
        axes.plot(*zip(*points) if points else ((), ()), color=colour, marker=marker, ms=3, lw=1.6)


def _phases(axes: Axes, history: list[dict]) -> None:
    """Dotted lines where one phase ends and the next begins, each phase named at its foot."""
    names = [row.get("phase", "") for row in history]
    starts = [x for x in range(len(names)) if x == 0 or names[x] != names[x - 1]]
    for x in starts if len(starts) > 1 else []:
        axes.axvline(x + 0.5, color="#999999", lw=0.8, ls=":")
        place = dict(xytext=(3, 4), textcoords="offset points", xycoords=("data", "axes fraction"))
        axes.annotate(names[x], (x + 0.5, 0), color="#777777", fontsize=8, **place)


class LiveCurves:
    """Give it to training as the callable for each epoch: it redraws the curves in one place.

    Drawing takes time, so it draws at most every `pause` seconds, and once more when the cell ends.
    Outside a notebook it does nothing.
    """

    def __init__(self, *, title: str = "", pause: float = 3.0) -> None:
        self.title, self.pause = title, pause
        self._shell, self._handle = _notebook_shell(), None
        self._history, self._pending, self._drawn = [], False, float("-inf")

    def __call__(self, history: list[dict]) -> None:
        """Take the whole history so far, one row per epoch, and redraw when it is time."""
        self._history, self._pending = list(history), bool(history)
        if monotonic() - self._drawn >= self.pause:
            self._draw()

    def _draw(self) -> None:
        """Show what has not been shown yet."""
        if self._shell is None or not self._pending:
            return
        figure = curves(self._history, title=self.title)
        if self._handle is None:
            self._show_first(figure)
        else:
            self._handle.update(figure)
        self._pending, self._drawn = False, monotonic()

    def _show_first(self, figure: Figure) -> None:
        from IPython.display import display

        self._handle = display(figure, display_id=True)
        self._shell.events.register("post_run_cell", self._end)

    def _end(self, result: object) -> None:
        self._shell.events.unregister("post_run_cell", self._end)
        self._draw()


def _notebook_shell():
    """The IPython shell of a notebook, or None; a terminal would only print the figure's name."""
    try:
        from IPython import get_ipython
    except ImportError:
        return None
    shell = get_ipython()
    return shell if hasattr(shell, "kernel") else None
