"""Training curves, still and alive."""

import nbformat
import pytest
from nbclient import NotebookClient

from cellsignal.show.curves import HELD_OUT, LiveCurves, curves


@pytest.mark.parametrize("epochs", [0, 1, 5])
def test_curves_have_a_panel_for_loss_and_one_for_accuracy(history, epochs):
    figure = curves(history[:epochs], title="U2OS")
    assert figure.png().startswith(b"\x89PNG")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["loss", "accuracy"]


def test_phases_are_lines_of_their_own(history):
    loss = curves(history).axes[0]
    drawn = [line.get_xdata().tolist() for line in loss.lines if len(line.get_xdata()) and line.get_linestyle() == "-"]
    assert drawn == [[1, 2, 3], [4, 5]]


def story(*phases: tuple[str, int, float]) -> list[dict]:
    """Rows of phases (name, epochs, learning rate), whose rate falls to a tenth half way; the last was not scored."""
    return [
        {"phase": name, "epoch": n + 1, "loss": 1 / (n + 1), "accuracy": 0.5, "learning_rate": rate * (0.1 if 2 * n >= epochs else 1),
         "held_out_accuracy": 0.4 if (name, epochs, rate) != phases[-1] else None}
        for name, epochs, rate in phases for n in range(epochs)
    ]


BRODT = story(("pretrain", 100, 1e-3), ("head", 8, 1e-3), ("whole", 375, 1e-3), ("final", 30, 1e-5))


@pytest.mark.parametrize("rows", [BRODT, story(("pretrain", 12, 1e-3), ("head", 1, 1e-3), ("whole", 22, 1e-3), ("final", 2, 1e-5))])
def test_every_phase_is_named_and_no_name_covers_another(rows):
    figure = curves(rows)
    figure.png()
    for axes in figure.axes[:2]:
        assert [note.get_text() for note in axes.texts] == ["pretrain", "head", "whole", "final"]
        boxes = [artist.get_window_extent() for artist in (*axes.texts, axes._left_title)]
        assert not [1 for i, box in enumerate(boxes) for other in boxes[:i] if box.overlaps(other)]


def test_the_drops_of_the_learning_rate_are_drawn_on_a_logarithmic_axis():
    loss, _, rate = curves(BRODT).axes
    assert rate.get_yscale() == "log" and rate.get_ylabel() == "learning rate"
    steps = [patch.get_data() for patch in rate.patches]
    assert [(data.edges[0], data.edges[-1]) for data in steps] == [(0.5, 100.5), (100.5, 108.5), (108.5, 483.5), (483.5, 513.5)]
    assert steps[2].values[:188].tolist() == [1e-3] * 188 and steps[2].values[188:].tolist() == pytest.approx([1e-4] * 187)


def test_where_nothing_was_held_out_no_line_is_drawn():
    _, accuracy, _ = curves(BRODT).axes
    assert [len(line.get_xdata()) for line in accuracy.lines if line.get_color() == HELD_OUT] == [0, 100, 8, 375, 0]


def test_live_curves_are_silent_outside_a_notebook(history, capsys):
    LiveCurves()(history)
    assert capsys.readouterr().out == ""


def test_live_curves_redraw_in_place_and_end_with_the_last_epoch():
    code = (
        "from cellsignal.show.curves import LiveCurves\n"
        "live, rows = LiveCurves(title='U2OS', pause={pause}), []\n"
        "for n in range(5):\n"
        "    rows.append(dict(phase='train', epoch=n + 1, loss=1.0, accuracy=n / 5, held_out_accuracy=None))\n"
        "    live(rows)"
    )
    still = "from cellsignal.show.curves import curves\ncurves(rows, title='U2OS')"
    cells = [nbformat.v4.new_code_cell(text) for text in (code.format(pause=0), code.format(pause=9), still)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=120).execute()
    every, few, last = (cell["outputs"] for cell in notebook["cells"])
    assert len(every) == len(few) == 1
    shown = [output[0]["data"]["image/png"] for output in (every, few, last)]
    assert shown[0] == shown[1] == shown[2]
