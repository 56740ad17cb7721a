"""The Protein Atlas' notebook: in sessions that are too short, and made again from its weights and from its scores."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from building import in_groups
from cellsignal.data.tables.labelled_sites import read_site_tables
from cellsignal.data.microscope.simulate import simulate
from cellsignal.decide.commands import check_file, score_files
from cellsignal.files import read_json, sha256
from cellsignal.run import environment
from cellsignal.run.chain import script
from cellsignal.run.record import step_receipts
from cellsignal.show.eda import plots
from cellsignal.show.report import write_report
from cellsignal.tasks import PROTEIN_ATLAS

NOTEBOOK = environment.kernels_folder() / "protein-atlas/protein-atlas.ipynb"
VALUES = {"run": "runs/atlas", "preset": "", "folds": 2, "epochs": 1, "batch_size": 40, "learning_rate": 1e-3, "schedule": "cosine", "loss": "bce"}
Session = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("atlas") / "data"
    simulate(root, preset="atlas-tiny", parallel_map=map)
    return root


@pytest.fixture
def session(atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """Run the notebook as a script in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda: None)
    return lambda **values: script.execute(NOTEBOOK, in_groups({**VALUES, "data": str(atlas), **values}))


@pytest.mark.slow
@pytest.mark.ci
def test_sessions_that_are_too_short_end_with_the_same_submission(
    session: Session, atlas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs/atlas"
    spent = session(time_budget_minutes=1e-9)  # over before it begins
    assert spent["session"].spent == "whole, epoch 0 of 1" and not (run / "submission.csv").exists() and not step_receipts.read(run, "protein-atlas").complete
    session()
    assert step_receipts.read(run, "protein-atlas").complete
    tables = read_site_tables(atlas, PROTEIN_ATLAS)
    assert check_file(run / "submission.csv", sample=atlas / "sample_submission.csv") == PROTEIN_ATLAS
    metrics = read_json(run / "metrics.json")
    assert metrics["simulated"] is True
    chosen = next(row for row in metrics["rungs"] if row.get("method") == "fitted" and row["split"] == "test")
    assert score_files(run / "submission.csv", atlas / "solution.csv")["macro_f1"] == pytest.approx(chosen["macro_f1"])
    networks = {path.parent.name: sha256(path) for path in run.glob("weights/*/model.safetensors")}
    thresholds = read_json(run / "weights/thresholds.json")
    assert set(networks) == {"fold-0", "fold-1"} and thresholds["weights"] == networks
    assert thresholds["sites"] == 120 and len(thresholds["values"]) == 28
    assert len(tables.sample) == 48 and "2 sites show the image of another one" in capsys.readouterr().out
    text = write_report(run).read_text()
    assert f"{chosen['macro_f1']:.3f}" in text and "By class" in text and text.count('src="data:image/png') >= 6

    first = {path: path.read_bytes() for path in (run / "submission.csv", run / "weights/thresholds.json")}
    for path in first:
        path.unlink()
    for path in run.glob("weights/fold-*/*"):
        path.rename(path.with_suffix(path.suffix + ".away"))  # scores alone are enough
    monkeypatch.setattr(plots, "save", lambda figure, path: None)  # seen once
    session(start_from="scores", data=str(_without_pictures(atlas, tmp_path)))
    assert (run / "submission.csv").read_bytes() == first[run / "submission.csv"]
    for path in run.glob("weights/fold-*/*.away"):
        path.rename(path.with_suffix(""))
    for path in run.glob("scores/*"):
        path.unlink()
    session(start_from="weights", epochs=7)  # nothing is trained
    assert {path: path.read_bytes() for path in first} == first


def _without_pictures(atlas: Path, folder: Path) -> Path:
    """The tables of a data set alone."""
    tables = folder / "tables"
    tables.mkdir()
    for path in atlas.glob("*.csv"):
        (tables / path.name).write_bytes(path.read_bytes())
    return tables
