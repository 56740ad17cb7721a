"""Every figure and every page of simulated data says so in its title, and none of others does."""

import ast
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from markupsafe import Markup
from matplotlib.figure import Figure

from cellsignal.data import simulated
from cellsignal.files import write_json
from cellsignal.receipts import Receipt
from cellsignal.run.environment import PACKAGE
from cellsignal.show import benchmark, html, style
from cellsignal.show.results import ladder, sweeps
from cellsignal.show.eda import plots
from cellsignal.show.report import write_report

WELLS = pd.DataFrame({"experiment": "HUVEC-01", "plate": 1, "well": ["B02", "B03"], "well_type": ["treatment", "missing"]})
ROWS = [{"stage": "train", "kind": "ours", "name": "ours", "median": 2.0, "min": 1.0, "max": 3.0}]
TRIALS = pd.DataFrame([{"variant": "a-1", "seed": 0, "status": "done", "held_out_raw": 0.5, "rate": 0.1}])
FIGURES: dict[str, tuple[Callable[[], Figure], str]] = {  # one that has a title of its own, and others
    "a layout": (lambda: plots.plate_layout(WELLS, title="HUVEC-01"), "HUVEC-01"),
    "curves": (lambda: plots.curves([], title="U2OS: model"), "U2OS: model"),
    "a search": (lambda: sweeps.draw_search(TRIALS, keys=["rate"], measure="raw"), "On what was held out. Raw: each well on its own"),
    "a ladder": (lambda: ladder.ladder([{"rung": "adapted", "kind": "raw", "accuracy": 0.5, "split": "test"}]), ""),
    "a benchmark": (lambda: benchmark.draw_rates(ROWS), ""),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_of_simulated_data_says_so_in_its_title(name: str) -> None:
    draw, own = FIGURES[name]
    real = draw()
    with simulated.showing(True):
        drawn = draw()
    assert real.get_suptitle() == own
    assert drawn.get_suptitle() == (f"{own} (simulated data)" if own else "Simulated data")
    assert drawn.get_figheight() == pytest.approx(real.get_figheight() + style.TITLE_HEIGHT) and drawn.png() != real.png()


@pytest.mark.parametrize("title", ["Left: a well of one siRNA. Right: a training well of the siRNA that it was taken for", "W" * 64, "HUVEC-01, plate 1 " * 9])
@pytest.mark.parametrize("width", [2.5, 5, 8])
@pytest.mark.filterwarnings("error")
def test_a_title_fits_into_its_figure_with_its_label(title: str, width: float) -> None:
    with simulated.showing(True):
        figure = style.new_figure(width, 2)
        text = figure.suptitle(title, x=0.01, ha="left")
    figure.subplots()
    figure.draw_without_rendering()
    extent = text.get_window_extent()
    assert extent.x0 >= 0 and extent.x1 <= figure.bbox.x1 and extent.y1 <= figure.bbox.y1
    assert "".join(text.get_text().split()) == "".join(f"{title} (simulated data)".split())
    assert figure.get_axes()[0].get_window_extent().height > figure.dpi, "lines take nothing from the figure"


@pytest.mark.filterwarnings("error")
def test_a_name_in_a_script_that_the_font_lacks_is_drawn_without_a_warning() -> None:
    assert plots.curves([], title="細胞\t: model").png()


def test_figures_are_made_in_one_place() -> None:
    """Where the title is given: nobody else calls Matplotlib for one."""
    for path in (PACKAGE / "show").rglob("*.py"):
        calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
        assert not calls & {"Figure", "NotebookFigure", "plt.figure", "plt.subplots"} or path.name == "style.py", path


def test_a_message_in_place_of_a_figure_is_of_no_data() -> None:
    with simulated.showing(True):
        assert style.blank_figure("No rung yet.").get_suptitle() == ""


def test_a_page_of_simulated_data_has_a_title_and_a_banner() -> None:
    assert "imulated" not in html.page("cellsignal: demo", [Markup("<h1>x</h1>")])
    with simulated.showing(True):
        text = html.page("cellsignal: demo", [Markup("<h1>x</h1>")])
    assert "<title>cellsignal: demo (simulated data)</title>" in text
    assert re.search(r'<body>\n<div role="note"[^>]*><b>Simulated data\.</b> [^<]*</div>\n<h1>x</h1>', text)


CAVEATS = {True: "His figures and ours come from different data: compare the order of the gains, not their size.",
           False: "His figures are of the competition&#39;s test wells: where ours are of others, compare the order of the gains, not their size."}


@pytest.mark.parametrize("drawn", [True, False])
def test_the_report_goes_by_what_the_run_noted_of_its_data(tmp_path: Path, rungs: list[dict], drawn: bool) -> None:
    metrics = {"ladder": rungs, "brodt": {"exact": [0.76, 0.89]}, "simulated": drawn}
    write_json(tmp_path / "metrics.json", metrics)
    with simulated.showing(not drawn):  # whatever this process has opened
        text = write_report(tmp_path).read_text(encoding="utf-8")
        assert simulated.shown() is not drawn
    assert ("(simulated data)</title>" in text, 'role="note"' in text) == (drawn, drawn)
    assert (CAVEATS[drawn] in text, CAVEATS[not drawn] in text) == (True, False)


def test_the_report_of_a_run_that_noted_nothing_looks_at_its_data(tmp_path: Path) -> None:
    Receipt(tmp_path / "data/simulate.json", {"preset": "tiny", "seed": 0}).write()
    assert "(simulated data)</title>" in write_report(tmp_path).read_text(encoding="utf-8")


def test_a_damaged_receipt_is_one_too(tmp_path: Path) -> None:
    assert simulated.described(tmp_path) == str(tmp_path)
    (tmp_path / "simulate.json").write_text("{")
    assert simulated.described(tmp_path) == f"{tmp_path} (simulated data)"
    assert simulated.is_simulated(tmp_path) and simulated.identity(tmp_path) == {}
