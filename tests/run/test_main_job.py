"""The main job on the smallest plates: one command, then the same from the chain's notebook."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import yaml

from cellsignal import files
from cellsignal.run import environment as paths
from cellsignal.run.bundle import bundle
from cellsignal.run.chain import notebooks
from cellsignal.run.record import step_receipts

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "papermill_params/tiny.yaml"


@pytest.fixture(scope="module")
def whole(tiny_run: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A copy of a finished run of tiny.yaml, and what the command printed."""
    finished, printed = tiny_run
    run = tmp_path_factory.mktemp("whole") / "run"
    shutil.copytree(finished, run)
    return run, printed.replace(str(finished), str(run))


def test_the_submission_answers_every_test_well_once(whole: tuple[Path, str]) -> None:
    run, _ = whole
    submission = pd.read_csv(run / "submission.csv")
    sample = pd.read_csv(run / "data/sample_submission.csv")
    assert list(submission.columns) == ["id_code", "sirna"]
    assert list(submission["id_code"]) == list(sample["id_code"])
    assert submission["sirna"].between(0, 1107).all()


def test_the_command_ends_with_the_ladder_and_what_it_wrote(whole: tuple[Path, str]) -> None:
    run, printed = whole
    rungs = [row["rung"] for row in files.read_json(run / "metrics.json")["ladder"]]
    assert rungs[:3] == ["running", "batch", "adapted"]
    for part in (*rungs, str(run / "submission.csv"), str(run / "report.html"), "time"):
        assert part in printed


def test_every_notebook_and_its_page_are_there(whole: tuple[Path, str]) -> None:
    run, _ = whole
    steps = {path.stem for path in (run / "receipts").iterdir()} - {"plates", "report", "record"}
    assert len(steps) == 6
    for step in steps:
        assert (run / f"notebooks/{step}.html").stat().st_size > 10_000
        assert step in (run / "report.html").read_text()


@pytest.mark.slow
def test_its_archive_predicts_the_same_from_the_same_weights(whole: tuple[Path, str], tmp_path: Path) -> None:
    run, _ = whole
    with zipfile.ZipFile(bundle.bundle(run, tmp_path / "run.zip")) as source:
        source.extractall(tmp_path)
    made = [path.relative_to(run) for path in (run / "submission.csv", *run.rglob("scores/**/*.parquet"))]
    assert len(made) == 13
    places = {"RAW_DATA_DIR": str(run / "data"), "RUN_DIR": "run", "SUBMISSION_DIR": "submission"}
    files.write_json(tmp_path / "SETTINGS.json", places)
    (tmp_path / "run/submission.csv").unlink()
    ended = subprocess.run([sys.executable, "-m", "predict"], capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "--from weights: predicted and decided again" in ended.stdout and "3-train-cell-type" not in ended.stdout
    assert [path for path in made if (tmp_path / "run" / path).read_bytes() != (run / path).read_bytes()] == []
    assert (tmp_path / "submission/submission.csv").read_bytes() == (run / "submission.csv").read_bytes()


def test_the_chain_notebook_keeps_what_is_whole(whole: tuple[Path, str], tmp_path: Path) -> None:
    run, _ = whole
    environment = paths.kernel_environment(tmp_path)
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "-k", "python3"]
    command += [str(ROOT / "kernels/0-chain/0-chain.ipynb"), str(tmp_path / "out.ipynb"), "-f", str(TINY)]
    ended = subprocess.run([*command, "-p", "run", str(run)], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    printed = str([cell["outputs"] for cell in notebooks.code_cells(tmp_path / "out.ipynb")])
    assert "4-predict-assign kept" in printed and "started" not in printed
    assert "\\x1b" not in printed  # no frames of a live display, of which a night would leave half a gigabyte


@pytest.mark.slow
@pytest.mark.ci
def test_the_chain_notebook_ends_well_when_its_time_is_spent(whole: tuple[Path, str], tmp_path: Path) -> None:
    run, _ = whole
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "-k", "python3"]
    command += [str(ROOT / "kernels/0-chain/0-chain.ipynb"), str(tmp_path / "out.ipynb"), "-f", str(TINY)]
    changed = ["-p", "run", str(run), "-y", yaml.safe_dump({"training": {**yaml.safe_load(TINY.read_text())["training"], "epochs": 3}, "machine": {"time_budget_minutes": 0.0001}})]
    ended = subprocess.run([*command, *changed], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    written = step_receipts.read(run, "0-chain")
    assert not written.complete and written.details["progress"].startswith("time budget spent before 3-train-cell-type@")
    assert written.details["parameters"]["training"]["epochs"] == 3 and "weights/HUVEC/pretrain.safetensors" in written.outputs
