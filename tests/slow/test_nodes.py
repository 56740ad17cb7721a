"""Two machines, here two launchers on one, train together through `accelerate launch`, and learn what one process learns."""

import socket
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from building import history_of
from trainings import write_patches

from cellsignal.files import sha256

pytestmark = pytest.mark.slow

CELLS = ['run = ""\ndata = ""\ntraining = {"epochs": 2}\nenough = 0\nmachine = {}', """
from pathlib import Path
import pandas as pd
import torch
from cellsignal.learn.batches.dataset import SiteImages
from cellsignal.learn.networks.classifier import Classifier
from cellsignal.learn.settings import AugmentationSettings, NetworkSettings, TrainingSettings
from cellsignal.learn.training.phase import Phase
from cellsignal.learn.training.fit import TrainingSites, fit
import cellsignal
session = cellsignal.start(globals(), "3-train-cell-type")
folder, recipe, budget = session.folder, session.recipe, session.time_budget
sites = pd.read_csv(Path(data) / "sites.csv").astype({"sirna": "Int64"})
train, watch = (SiteImages(Path(data), part, class_numbers=[0, 10, 20, 30], cache=True) for _, part in sites.groupby("experiment"))
model = Classifier(NetworkSettings(backbone="plain-cnn"), channels=6, classes=4).double()  # deep networks and Adam magnify rounding without a bound
def stop(history):
    if len(history) == int(enough):
        raise cellsignal.TimeSpent("enough for now")
learning = TrainingSettings(epochs=recipe.training.epochs, batch_size=4, learning_rate=0.1, virtual_batch=8, optimizer="sgd")
phase = Phase(name="whole", training=learning, augmentation=AugmentationSettings())
fit(model, TrainingSites(train, watch), phase, weights=folder / "model.safetensors", machine=recipe.machine, budget=budget, on_epoch=stop)"""]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A notebook and its recipe."""
    folder = tmp_path_factory.mktemp("nodes")
    root, sites = write_patches(folder / "plates")
    sites.to_csv(root / "sites.csv", index=False)
    cells = [nbformat.v4.new_code_cell(text) for text in CELLS]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "train.ipynb")
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"data": str(root), "training": {"epochs": 4}, "machine": {"device": "cpu"}}))
    return folder / "train.ipynb", folder / "recipe.yaml"


def node(made: tuple[Path, Path], run: Path, *, rank: int, port: str, more: tuple[str, ...] = ()) -> subprocess.Popen:
    """One of two machines of two processes each, as the README starts them."""
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "2", "--machine_rank", str(rank), "--num_processes", "4",
                "--main_process_ip", "127.0.0.1", "--main_process_port", port, "-m", "cellsignal.run.chain.script"]
    command = [sys.executable, *launcher, *map(str, made), "-p", f"run={run}", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def together(made: tuple[Path, Path], runs: tuple[Path, Path], *more: str) -> list[tuple[int, str]]:
    """Exit status and words of both machines."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    nodes = [node(made, run, rank=rank, port=port, more=more) for rank, run in enumerate(runs)]
    try:
        return [(each.wait(600), each.stdout.read()) for each in nodes]
    finally:
        for each in nodes:
            each.kill()


def alone(made: tuple[Path, Path], run: Path, *more: str) -> int:
    return subprocess.run([sys.executable, "-m", "cellsignal.run.chain.script", *map(str, made), "-p", f"run={run}", *more], timeout=600).returncode


def test_two_machines_learn_what_one_process_learns_and_go_on_with_its_work(made: tuple[Path, Path], tmp_path: Path) -> None:
    assert alone(made, tmp_path / "one") == 0
    for name, first in (("two", ()), ("both", ("-p", "enough=2"))):
        run = tmp_path / name
        if first:  # one process begins, two machines go on
            assert alone(made, run, *first) == 3 and len(list(run.glob("*.checkpoint*.safetensors"))) == 1
        for status, words in together(made, (run, run)):
            assert status == 0, words
        assert not list(run.glob("*.checkpoint*")), "one wrote, and one tidied up"
        one, two = (history_of(place / "model.safetensors") for place in (tmp_path / "one", run))
        for key in ("loss", "accuracy", "held_out_accuracy"):
            assert [row[key] for row in one] == pytest.approx([row[key] for row in two], abs=1e-12)  # 8 steps, sums of 8 sites x 32 x 32 pixels


def test_machines_that_share_no_folder_are_told_so(made: tuple[Path, Path], tmp_path: Path) -> None:
    assert alone(made, tmp_path / "one", "-p", "enough=2") == 3
    before = {path.name: sha256(path) for path in (tmp_path / "one").glob("*.checkpoint*")}
    for status, words in together(made, (tmp_path / "one", tmp_path / "two")):
        assert status != 0 and "the training processes read different checkpoints; give all machines one run folder" in words
    assert {path.name: sha256(path) for path in (tmp_path / "one").glob("*.checkpoint*")} == before
