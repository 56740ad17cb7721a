"""The benchmark's notebook, run as a user runs it, with settings that measure next to nothing."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from cellsignal.bench.compare import read_benchmark
from cellsignal.files import read_json

ROOT = Path(__file__).resolve().parents[2]
TINY = """measurement: {sites: 4, image_size: 32, rounds: 1, seconds: 0.0}
network: {backbone: densenet-small}
training: {batch_size: 2}
machine: {num_workers: 1, device: cpu}
"""


@pytest.mark.slow
@pytest.mark.ci
def test_the_notebook_measures_draws_and_cleans_up(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "papermill", ROOT / "kernels/benchmark/benchmark.ipynb", tmp_path / "out.ipynb", "-k", "python3", "-p", "run", tmp_path / "run", "-y", TINY]
    ended = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    outputs = [output for cell in nbformat.read(tmp_path / "out.ipynb", 4).cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 8
    found = read_benchmark(tmp_path / "run/benchmark.json")
    assert found["method"]["sites"] == 4 and found["method"]["device"] == "cpu" and found["cost"]["recipe"] == "brodt"
    assert not (tmp_path / "run/data/benchmark").exists()
    outputs = read_json(tmp_path / "run/receipts/benchmark.json")["outputs"]
    assert set(outputs) == {"benchmark.json", "benchmark-timeline.png", "benchmark-rates.png", "benchmark-cost.png"}
