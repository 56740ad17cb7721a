"""A progress bar is one line, in an executed notebook and in its page too."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from cellsignal.progress_bars import progress_bar
from cellsignal.run import environment
from cellsignal.run.chain import notebooks

CELL = """
from time import sleep
from cellsignal.progress_bars import progress_bar

for step in progress_bar(range(30), desc="outer", mininterval=0):
    sleep(0.01)
with progress_bar(total=2, desc="first", mininterval=0) as first, progress_bar(total=2, desc="second", mininterval=0) as second:
    for bar in (first, second, first, second):
        bar.update()
list(progress_bar(range(3), desc="none", disable=True))
print("done")
"""


@pytest.fixture
def executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A notebook with bars, executed as the chain does it, and its page beside it."""
    for name, value in environment.kernel_environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    NotebookClient(notebook, kernel_name="python3", timeout=60).execute()
    nbformat.write(notebook, tmp_path / "bars.ipynb")
    notebooks.write_page(tmp_path / "bars.ipynb")
    return tmp_path / "bars.ipynb"


def test_a_bar_in_a_notebook_is_one_output_in_one_line(executed: Path) -> None:
    outputs = nbformat.read(executed, as_version=4).cells[0].outputs
    streams = [output for output in outputs if output.output_type == "stream"]
    assert [(output.name, output.text) for output in streams] == [("stdout", "done\n")]
    shown = [output.data["text/plain"] for output in outputs if output.output_type == "display_data"]
    assert [re.match(r"(\w+): 100%\|██████████\| (\d+/\d+)", text).groups() for text in shown] == [
        ("outer", "30/30"), ("first", "2/2"), ("second", "2/2")]  # fmt: skip
    assert not [text for text in shown if "\n" in text or "\r" in text]
    page = executed.with_suffix(".html").read_text()
    assert page.count("30/30") == 1 and "29/30" not in page and "jp-RenderedText" in page and "application/vnd.jupyter.stderr" not in page.partition("<body")[2]


def test_a_bar_outside_a_notebook_is_redrawn_in_its_line_of_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    list(progress_bar(range(3), desc="plates", mininterval=0))
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "plates: 100%" in said.err.split("\r")[-1]
