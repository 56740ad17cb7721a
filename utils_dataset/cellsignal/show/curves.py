"""Training curves, also updated live in a notebook while training runs."""

from itertools import pairwise
from time import monotonic

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cellsignal.learn.history import HELD_OUT_PREFIX, metric_name
from cellsignal.progress_bars import notebook_shell
from cellsignal.show.style import ASSIGNED, RAW, label_decades, new_figure, styled

NAMES = {"macro_f1": "macro F1"}
LOSS, TRAIN, HELD_OUT, RATE = "#444444", RAW, ASSIGNED, "#A6761D"


@styled
def curves(history: list[dict], *, title: str = "") -> Figure:
    """Loss, learning rate and metric over the epochs of all phases, laid one after the other.

    `history` rows: phase, epoch, loss, accuracy, held_out_accuracy (None where not measured) and,
    where known, learning_rate; sites of several labels have macro_f1 and held_out_macro_f1.
    """
    figure = new_figure(9, 3.4)
    figure.suptitle(title, x=0.01, ha="left")
    metric = metric_name(history[0]) if history else "accuracy"
    loss, accuracy = figure.subplots(1, 2)
    _line(loss, history, "loss", colour=LOSS, label="train")
    _line(accuracy, history, metric, colour=TRAIN, label="train")
    _line(accuracy, history, HELD_OUT_PREFIX + metric, colour=HELD_OUT, label="held out")
    accuracy.set_ylim(0, 1.02)
    for axes, name in ((loss, "loss"), (accuracy, NAMES.get(metric, metric))):
        axes.set_title(name, pad=6 + 10 * _phases(axes, history))
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    accuracy.legend(loc="best")
    loss.set_ylim(bottom=0)
    _rate(loss, history)
    return figure


def _line(axes: Axes, history: list[dict], key: str, *, colour: str, label: str) -> None:
    """A line per phase, as classes change between them; epochs without a value are left out."""
    axes.plot([], [], color=colour, label=label)
    marker = "o" if len(history) <= 60 else ""
    for first, last in _spans(history):
        points = [(x + 1, history[x][key]) for x in range(first, last) if history[x].get(key) is not None]
        axes.plot(*zip(*points) if points else ((), ()), color=colour, marker=marker, ms=3, lw=1.6)


def _spans(history: list[dict]) -> list[tuple[int, int]]:
    """First row of each phase and the one after its last; adjacent phases of one name are separated by their epochs."""
    starts = [x for x, row in enumerate(history) if x == 0 or _begins(row, history[x - 1])]
    return list(pairwise([*starts, len(history)]))


def _begins(row: dict, previous: dict) -> bool:
    return row.get("phase", "") != previous.get("phase", "") or row.get("epoch", 1) <= previous.get("epoch", 0)


def _phases(axes: Axes, history: list[dict]) -> int:
    """Dotted lines where a phase begins, its name above; returns how many rows of names that took."""
    spans = _spans(history)
    if len(spans) < 2:
        return 0
    row_ends: list[float] = []  # where each row of names has room again, in shares of the width
    for first, _ in spans:
        name, share = history[first].get("phase", ""), first / len(history)
        level = next((i for i, end in enumerate(row_ends) if share >= end), len(row_ends))
        row_ends[level:level + 1] = [share + 0.015 * (len(name) + 1)]
        axes.axvline(first + 0.5, color="#999999", lw=0.8, ls=":")
        position = dict(xytext=(1, 2 + 10 * level), textcoords="offset points", xycoords=("data", "axes fraction"))
        axes.annotate(name, (first + 0.5, 1), color="#777777", fontsize=8, **position)
    return len(row_ends)


def _rate(axes: Axes, history: list[dict]) -> None:
    """The learning rate as thin steps on a logarithmic axis of its own, so that its drops explain those of the loss."""
    rates = [row.get("learning_rate") or float("nan") for row in history]
    if all(rate != rate for rate in rates):
        return
    twin = axes.twinx()
    for first, last in _spans(history):
        twin.stairs(rates[first:last], [x + 0.5 for x in range(first, last + 1)], baseline=None, color=RATE, lw=0.9)
    twin.set_yscale("log")
    label_decades(twin.yaxis)
    twin.set_ylabel("learning rate", color=RATE, fontsize=9, rotation=270, va="bottom")  # reads as the left panel's
    twin.tick_params(which="both", colors=RATE, labelsize=8)
    twin.grid(False)


class LiveCurves:
    """Give it to training as the callable for each epoch: it redraws the curves in one place.

    Drawing takes time, so it draws at most every `pause` seconds, less often where a drawing takes more than a twentieth of a
    second, and once more when the cell ends. Outside a notebook it does nothing.
    """

    def __init__(self, *, title: str = "", pause: float = 3.0) -> None:
        self.title, self.pause = title, pause
        self._shell, self._handle = notebook_shell(), None
        self._history, self._pending, self._next_draw = [], False, float("-inf")

    def __call__(self, history: list[dict]) -> None:
        """Take the whole history so far, one row per epoch, and redraw when it is time."""
        self._history, self._pending = list(history), bool(history)
        if monotonic() >= self._next_draw:
            self._draw()

    def _draw(self) -> None:
        """Show what has not been shown yet."""
        if self._shell is None or not self._pending:
            return
        start = monotonic()
        figure = curves(self._history, title=self.title)
        if self._handle is None:
            self._show_first(figure)
        else:
            self._handle.update(figure)
        end = monotonic()
        self._pending, self._next_draw = False, end + self.pause * max(1, 20 * (end - start))

    def _show_first(self, figure: Figure) -> None:
        from IPython.display import display

        self._handle = display(figure, display_id=True)
        self._shell.events.register("post_run_cell", self._end)

    def _end(self, result: object) -> None:
        self._shell.events.unregister("post_run_cell", self._end)
        self._draw()
