"""Training curves, still and alive."""

import nbformat
import pytest
from nbclient import NotebookClient

from cellsignal.show.curves import LiveCurves, curves


@pytest.mark.parametrize("epochs", [0, 1, 5])
def test_curves_have_a_panel_for_loss_and_one_for_accuracy(history, epochs):
    figure = curves(history[:epochs], title="U2OS")
    assert figure.png().startswith(b"\x89PNG")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["loss", "accuracy"]


def test_phases_are_lines_of_their_own(history):
    loss = curves(history).axes[0]
    drawn = [line.get_xdata().tolist() for line in loss.lines if len(line.get_xdata()) and line.get_linestyle() == "-"]
    assert drawn == [[1, 2, 3], [4, 5]]


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
