"""The README's two ladders over three seeds: every rung where it belongs, in time and memory."""

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
RUNGS = ["running (raw)", "batch (raw)", "adapted (raw)", "exact (assigned)", "groups (assigned)", "groups+exact (assigned)"]


def run(recipe: str, out: Path, *, seed: int, changes: tuple[str, ...] = ()) -> dict:
    """Run a recipe with `changes`; its test accuracies by rung and kind, the linear baseline, minutes and the peak memory of all processes."""
    peak, started = [0], time.monotonic()
    command = [sys.executable, "-m", "cellsignal.cli.main", "run", f"papermill_params/{recipe}.yaml", "-p", f"seed={seed}", "--out", out]
    command += [part for change in changes for part in ("-p", change)]
    chain = psutil.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    watcher = threading.Thread(target=watch, args=(chain, peak), daemon=True)
    watcher.start()
    assert chain.wait() == 0
    metrics = read_json(out / "metrics.json")
    ladder = {f"{row['rung']} ({row['kind']})": row["accuracy"] for row in metrics["ladder"] if row["split"] == "test"}
    return ladder | {"linear baseline": metrics["linear_baseline"]["accuracy"], "ECE": metrics["calibration_error"],
                     "minutes": (time.monotonic() - started) / 60, "GB": peak[0] / 1e9}


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


def over_seeds(recipe: str, folder: Path, *changes: str) -> tuple[dict, list[dict]]:
    """The mean of each figure over three runs, printed with its standard deviation, and the runs."""
    runs = [run(recipe, folder / str(seed), seed=seed, changes=changes) for seed in range(3)]
    mean = {key: float(np.mean([one[key] for one in runs])) for key in runs[0]}
    for key in mean:
        deviation = float(np.std([one[key] for one in runs], ddof=1))
        print(f"{key:26} {mean[key]:.3f} ± {deviation:.3f}   {[round(one[key], 3) for one in runs]}")
    return mean, runs


@pytest.mark.slow
def test_the_ladder_of_the_demo_over_three_seeds(tmp_path: Path) -> None:
    mean, runs = over_seeds("demo", tmp_path)
    assert mean["running (raw)"] <= 0.30 and mean["adapted (raw)"] >= 0.55 and mean["groups+exact (assigned)"] >= 0.85
    assert all(mean[low] <= mean[high] for low, high in zip(RUNGS, RUNGS[1:]))
    assert mean["linear baseline"] <= mean["adapted (raw)"] / 2
    assert all(one["minutes"] <= 10 and one["GB"] < 4 for one in runs)


@pytest.mark.slow
def test_the_ladder_of_brodts_tricks_over_three_seeds(tmp_path: Path) -> None:
    mean, _ = over_seeds("brodt-small", tmp_path)
    assert mean["running (raw)"] < mean["batch (raw)"] - 0.2
    assert mean["adapted (raw)"] >= mean["batch (raw)"] - 0.005
    assert mean["virtual batch (raw)"] < mean["exact (assigned)"] < mean["groups+exact (assigned)"]
    assert mean["linear baseline"] <= mean["adapted (raw)"] / 2


@pytest.mark.slow
def test_the_ladder_of_the_hard_screen_over_three_seeds(tmp_path: Path) -> None:
    """Running statistics and a linear model fail there, the design of the plates helps, and `best` has room left."""
    mean, _ = over_seeds("brodt-hard", tmp_path / "brodt")
    assert mean["running (raw)"] < mean["batch (raw)"] / 2
    assert mean["exact (assigned)"] < mean["groups+exact (assigned)"] - 0.05
    assert mean["linear baseline"] <= mean["adapted (raw)"] / 2
    best, _ = over_seeds("best-small", tmp_path / "best", "preset=hard")
    assert best["running (raw)"] < best["adapted (raw)"] - 0.1
    assert mean["groups+expected (assigned)"] < best["groups+expected (assigned)"] < 0.95
    assert best["exact (assigned)"] < best["groups+exact (assigned)"] - 0.05
