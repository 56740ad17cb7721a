"""A run without pages costs its training alone, and one that wants them later does no step again."""

from pathlib import Path

import pytest

from building import recipe_of
from cellsignal.run.chain import chain


@pytest.mark.slow
@pytest.mark.ci
def test_pages_are_left_out_and_written_later(tmp_path: Path, kernels: Path, plates: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {"data": str(plates), "run": str(tmp_path / "run"), "pretrain_epochs": 0}
    folder = chain.run_chain(recipe_of({**values, "html_pages": False}), kernels=kernels)
    assert {path.name for path in (folder / "notebooks").iterdir()} == {"3-train-cell-type@U2OS.ipynb", "4-predict-assign.ipynb"}
    assert (folder / "seconds.json").is_file() and not (folder / "report.html").exists()
    capsys.readouterr()
    chain.run_chain(recipe_of(values), kernels=kernels)
    said = capsys.readouterr().out
    assert "3-train-cell-type@U2OS kept" in said and "4-predict-assign kept" in said and "1-eda done" in said
    assert len(list((folder / "notebooks").glob("*.html"))) == 3 and (folder / "report.html").is_file()
    chain.run_chain(recipe_of(values), kernels=kernels)
    assert "done in" not in capsys.readouterr().out  # the pages are part of what is whole
    chain.run_chain(recipe_of({**values, "html_pages": False}), kernels=kernels)
    assert "done in" not in capsys.readouterr().out and not (folder / "report.html").exists()
