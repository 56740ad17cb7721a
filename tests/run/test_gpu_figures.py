"""The script of tests/slow that measures a GPU takes all its ways on a CPU too, so that a GPU's minutes are not spent on its mistakes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "slow/gpu_figures.py"


@pytest.mark.slow
@pytest.mark.ci
def test_the_script_for_a_gpu_runs_on_a_cpu() -> None:
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--seconds", "60"]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert [line for line in ended.stdout.splitlines() if line.startswith("## ")] == [
        "## Precision", "## Training and prediction", "## Every recipe rehearsed", "## Brodt's recipe at 128 px"]
    for row in ("| bf16 | ", "| train | ours: from the store | ", "| train, waiting | ", "| `tiny` | densenet-small | prediction | ", "| 1 | "):
        assert f"\n{row}" in ended.stdout, row
