"""The README's main job over three seeds: every rung where it belongs, in time and memory."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from cellsignal.files import read_json

ROOT = Path(__file__).resolve().parents[2]
RUNGS = ["running", "batch", "adapted", "exact", "groups", "groups+exact"]


def run_demo(out: Path, *, seed: int) -> dict:
    """Run the demo; its test accuracies by rung, the floor, minutes and the peak memory of all processes."""
    peak, started = [0], time.monotonic()
    command = [sys.executable, "-m", "cellsignal.cli", "run", "papermill_params/demo.yaml", "-p", f"seed={seed}", "--out", out]
    chain = psutil.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    watcher = threading.Thread(target=watch, args=(chain, peak), daemon=True)
    watcher.start()
    assert chain.wait() == 0
    metrics = read_json(out / "metrics.json")
    ladder = {row["rung"]: row["accuracy"] for row in metrics["ladder"] if row["split"] == "test"}
    return ladder | {"floor": metrics["floor"]["accuracy"], "minutes": (time.monotonic() - started) / 60, "GB": peak[0] / 1e9}


def watch(chain: psutil.Process, peak: list[float]) -> None:
    """Keep the largest proportional set size of a process and its children, sampled twice a second."""
    while chain.is_running() and chain.status() != psutil.STATUS_ZOMBIE:
        total = 0
        for process in [chain, *chain.children(recursive=True)]:
            try:
                total += process.memory_full_info().pss
            except psutil.Error:
                continue
        peak[0] = max(peak[0], total)
        time.sleep(0.5)


@pytest.mark.slow
def test_the_ladder_of_the_demo_over_three_seeds(tmp_path: Path) -> None:
    runs = [run_demo(tmp_path / str(seed), seed=seed) for seed in range(3)]
    mean = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
    deviation = {key: float(np.std([run[key] for run in runs], ddof=1)) for key in runs[0]}
    for key in mean:
        print(f"{key:13} {mean[key]:.3f} ± {deviation[key]:.3f}   {[round(run[key], 3) for run in runs]}")
    assert mean["running"] <= 0.30 and mean["adapted"] >= 0.55 and mean["groups+exact"] >= 0.85
    assert all(mean[low] <= mean[high] for low, high in zip(RUNGS, RUNGS[1:]))
    assert mean["floor"] <= mean["adapted"] / 2
    assert all(run["minutes"] <= 10 and run["GB"] < 4 for run in runs)
