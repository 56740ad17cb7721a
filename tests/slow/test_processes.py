"""What a second process is worth to a training, and what the machine lets it be worth, on two cores with nothing else to do."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
import torch

from building import make_network, make_phase, train_phase
from cellsignal.data.microscope.simulate import simulate
from cellsignal.data.tables.wells import read_tables
from cellsignal.learn.batches.dataset import SiteImages

pytestmark = [pytest.mark.slow, pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")]


def rate(root: Path, folder: Path, processes: int = 1) -> float:
    """Sites a second in the second and the third epoch, by Brodt's virtual batches; one thread each."""
    torch.set_num_threads(1)
    sites = read_tables(root).sites
    sites = sites[(sites["dataset"] == "train") & (sites["well_type"] == "treatment")]
    data = SiteImages(root, sites, class_numbers=range(100), cache=True)
    model = make_network("densenet-small", channels=6, classes=100)
    phase = make_phase("whole", 3, 8, 1e-3, virtual_batch=32)
    history = train_phase(model, data, phase=phase, weights=folder / "model.safetensors", device="cpu", num_processes=processes)
    return len(sites) / median(row["seconds"] for row in history[1:])


def strangers(root: Path, folder: Path) -> float:
    """The same of two trainings that know nothing of each other, added: the most that two processes can reach."""
    both = [subprocess.Popen([sys.executable, __file__, root, folder / name], stdout=subprocess.PIPE, text=True) for name in "ab"]
    return sum(float(each.communicate(timeout=300)[0]) for each in both)


def test_two_processes_come_near_to_two_trainings_side_by_side(tmp_path: Path) -> None:
    simulate(tmp_path / "small", preset="small")
    ways: dict[str, Callable[[Path, Path], float]] = {
        "one process": rate, "two processes": lambda root, folder: rate(root, folder, num_processes=2), "two trainings": strangers,
    }  # fmt: skip
    rates, before = {way: [] for way in ways}, torch.get_num_threads()
    for turn in range(5):
        for way, train in ways.items():
            rates[way].append(train_phase(tmp_path / "small", tmp_path / f"{turn}-{way}"))
    torch.set_num_threads(before)
    found = {way: median(each) for way, each in rates.items()}
    print(*(f"{way}: {each:.0f} sites/s, {each / found['one process']:.2f} times" for way, each in found.items()), sep="\n")
    assert found["two processes"] > 0.7 * found["two trainings"]  # gradients are exchanged at every step, and each waits for the other
    assert found["two processes"] > 1.1 * found["one process"]  # where the machine's cores are not each other's


if __name__ == "__main__":
    print(rate(*map(Path, sys.argv[1:])))
