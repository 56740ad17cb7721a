"""Killed at any moment, the chain goes on to the very same submission, and nothing half-written is left."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import nbformat
import pandas as pd
import pytest
from safetensors import safe_open

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
KILLS = 20


def command(out: Path) -> list[str]:
    recipe = ROOT / "papermill_params/tiny.yaml"
    return [sys.executable, "-m", "cellsignal.cli.main", "run", str(recipe), "--out", str(out)]


def finish(out: Path) -> float:
    """Run to the end; seconds."""
    began = time.monotonic()
    ended = subprocess.run(command(out), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return time.monotonic() - began


def read(path: Path) -> None:
    """Read a file of a known kind to its end, or raise."""
    match path.suffix:
        case ".json":
            json.loads(path.read_text())
        case ".ipynb":
            nbformat.validate(nbformat.read(path, as_version=4))
        case ".csv":
            assert len(pd.read_csv(path))
        case ".parquet":
            assert len(pd.read_parquet(path))
        case ".png":
            assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED) is not None
        case ".safetensors":
            with safe_open(path, "numpy") as tensors:
                assert [tensors.get_tensor(name) for name in tensors.keys()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, float]:
    """The submission of a run that nobody killed, and the seconds it took."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    seconds = finish(out)
    return (out / "submission.csv").read_bytes(), seconds


@pytest.mark.parametrize("kill", range(KILLS))
def test_kill(tmp_path: Path, undisturbed: tuple[bytes, float], kill: int) -> None:
    submission, seconds = undisturbed
    moment = seconds * (kill + random.Random(kill).random()) / KILLS
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(out), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(moment)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finish(out)
    assert (out / "submission.csv").read_bytes() == submission
    everything = [path for path in out.rglob("*") if path.is_file()]
    for path in everything:
        read(path)
    assert not [path for path in everything if ".partial-" in path.name or ".simulation" in path.parts]
    assert json.loads((out / "receipts/report.json").read_text())["outputs"]
