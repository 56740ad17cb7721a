"""A sweep of real runs, killed on its way, comes to the same table as one that was left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from cellsignal import files

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = {"base": {}, "sgd": {"training.optimizer": "sgd"}, "broken": {"training.learning_rate": 1.0e30}}


def command(folder: Path, space: dict, *options: str) -> list[str]:
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(space, sort_keys=False))
    short = ["-p", "wells.cell_types=[RPE]", "-p", "training.pretrain_epochs=0"]
    return [sys.executable, "-m", "cellsignal.cli.main", "sweep", str(ROOT / "papermill_params/tiny.yaml"), str(path), *short, *options]


def table(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "results.csv").drop(columns=["seconds"])


def test_a_killed_sweep_comes_to_the_same_table(tmp_path: Path) -> None:
    call = [*command(tmp_path, {"variants": VARIANTS}, "--seeds", "0,1"), "--out"]
    ended = subprocess.run([*call, str(tmp_path / "left alone")], capture_output=True, text=True)
    assert ended.returncode == 1 and "2 of 6 trials failed, such as broken, seed 0: phase whole: the loss is" in ended.stderr
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT):
        process = subprocess.Popen([*call, str(tmp_path / "killed")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(45)
        os.killpg(process.pid, number)  # as a terminal or a machine that goes down does
        process.wait(timeout=60)
    assert subprocess.run([*call, str(tmp_path / "killed")], capture_output=True).returncode == 1
    pd.testing.assert_frame_equal(table(tmp_path / "killed"), table(tmp_path / "left alone"))
    for trial in ("base-seed0", "sgd-seed1"):
        whole = [files.sha256(tmp_path / out / "trials" / trial / "weights/RPE/model.safetensors") for out in ("killed", "left alone")]
        assert whole[0] == whole[1]


def test_a_search_of_real_runs_prunes_and_writes_the_best(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    space = {"search": {"training.learning_rate": {"low": 1.0e-5, "high": 1.0e-1, "log": True}}}
    call = command(tmp_path, space, "--trials", "8", "-p", "training.epochs=8", "-p", "training.schedule=cosine", "--out", str(tmp_path / "out"))
    ended = subprocess.run(call, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    found = table(tmp_path / "out")
    assert set(found["status"]) <= {"done", "pruned"} and len(found) == 8
    best = found.loc[found["held_out_raw"].idxmax()]
    assert best["held_out_raw"] >= found["held_out_raw"].median()
    assert (tmp_path / "out/best.yaml").read_text().count("learning_rate") >= 2
