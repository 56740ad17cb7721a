"""A notebook runs as a plain script, alone or in the processes of a launcher, and learns the same."""

import socket
import subprocess
import sys
from pathlib import Path
from threading import Event

import nbformat
import numpy as np
import pytest
import torch
import yaml
from building import history_of
from trainings import write_patches

from cellsignal import code_identity
from cellsignal.errors import InputError
from cellsignal.files import read_json, sha256
from cellsignal.run import environment as paths
from cellsignal.run.chain import notebooks, script
from cellsignal.run.chain.notebook_server import NotebookServer

CELLS = ['run = ""\ndata = ""\nseed = 3\ncell_type = "U2OS"\ntraining = {"epochs": 2}\nmachine = {}', """
import os
from pathlib import Path
import pandas as pd
from cellsignal.learn.batches.dataset import SiteImages
from cellsignal.learn.networks.classifier import Classifier
from cellsignal.learn.settings import AugmentationSettings, NetworkSettings, TrainingSettings
from cellsignal.learn.training.phase import Phase
from cellsignal.learn.training.fit import TrainingSites, fit
import cellsignal
session = cellsignal.start(globals(), "3-train-cell-type")
folder, recipe = session.folder, session.recipe""", """
sites = pd.read_csv(Path(data) / "sites.csv").astype({"sirna": "Int64"})
train, watch = (SiteImages(Path(data), part, class_numbers=[0, 10, 20, 30], cache=True) for _, part in sites.groupby("experiment"))
learning = TrainingSettings(epochs=recipe.training.epochs, batch_size=4, learning_rate=0.1, virtual_batch=8, optimizer="sgd")
phase = Phase(name="whole", training=learning, augmentation=AugmentationSettings(), seed=seed)
model = Classifier(NetworkSettings(backbone="plain-cnn"), channels=6, classes=4, seed=seed)
history = fit(model, TrainingSites(train, watch), phase, weights=folder / f"{cell_type}.safetensors", machine=recipe.machine, budget=session.time_budget)
(folder / f"{os.getpid()}.process").touch()
print(f"{len(history)} epochs, seed {seed}")"""]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A notebook and its recipe."""
    folder = tmp_path_factory.mktemp("script")
    root, sites = write_patches(folder / "plates")
    sites.to_csv(root / "sites.csv", index=False)
    cells = [nbformat.v4.new_code_cell(text) for text in CELLS]
    cells[0].metadata["tags"] = ["parameters"]
    kernelspec = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernelspec}), folder / "train.ipynb")
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"data": str(root), "training": {"epochs": 3, "head_epochs": 1}, "machine": {"device": "cpu"}}))
    return folder / "train.ipynb", folder / "recipe.yaml"


def call(made: tuple[Path, Path], run: Path, *more: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    arguments = ["-m", "cellsignal.run.chain.script", *map(str, made), "-p", f"run={run}", *more]
    return subprocess.run([sys.executable, *launcher, *arguments], capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.ci
def test_alone_and_under_a_launcher_it_learns_the_same(made: tuple[Path, Path], tmp_path: Path) -> None:
    ended = {"one": call(made, tmp_path / "one", "-p", "cell_type=RPE")}
    with socket.socket() as free:  # only now: a port that is found long before it is used may be taken by then
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", port)
    ended["two"] = call(made, tmp_path / "two", "-p", "cell_type=RPE", launcher=launcher)
    for name, processes in (("one", 1), ("two", 2)):
        assert ended[name].returncode == 0, ended[name].stderr
        assert ended[name].stdout.count("3 epochs, seed 0") == 1, "one speaks for all"
        assert len(list((tmp_path / name).glob("*.process"))) == processes
    one, two = (history_of(tmp_path / name / "RPE.safetensors") for name in ("one", "two"))
    # Sums of at most 8 sites x 32 x 32 pixels in each of 6 steps; rounding errors of both signs add up as the root of their count.
    rounding = float(np.finfo(np.float32).eps) * (6 * 8 * 32 * 32) ** 0.5
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in two], abs=rounding)


@pytest.mark.slow
@pytest.mark.ci
def test_a_script_and_a_kernel_are_the_same_code_and_learn_the_same_bits(made: tuple[Path, Path], tmp_path: Path) -> None:
    assert call(made, tmp_path / "script", "-p", "cell_type=RPE").returncode == 0
    (tmp_path / "kernel").mkdir()
    values = {**script.notebook_parameters(*made, ["cell_type=RPE"]), "run": str(tmp_path / "kernel")}
    environment = {**paths.kernel_environment(tmp_path / "kernel"), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with NotebookServer(environment) as server:
        notebooks.execute(made[0], target=tmp_path / "out.ipynb", parameters=values, server=server, stop=Event())
    one, two = (tmp_path / name / "RPE.safetensors" for name in ("script", "kernel"))
    facts = [read_json(path.with_suffix(".json"))["identity"] for path in (one, two)]
    assert facts[0] == facts[1] and facts[0]["code"]["notebook"] == code_identity.cells_digest(CELLS[2:]), "what finds the package is no part of it"
    assert sha256(one) == sha256(two)


def test_parameters_are_the_recipe_and_what_the_notebook_alone_knows(made: tuple[Path, Path]) -> None:
    values = script.notebook_parameters(*made, ["cell_type=HUVEC-x=1", "seed=7", "training.pretrain_epochs=4"])
    assert (values["cell_type"], values["seed"], values["training"]["epochs"]) == ("HUVEC-x=1", 7, 3)
    assert not {"preset", "network", "wells"} & set(values), "the notebook does not know them"
    assert script.notebook_parameters(*made, ["cell_type=7"])["cell_type"] == 7, "YAML like all others, and the set-up refuses it"
    with pytest.raises(InputError, match="unknown key 'cel_type'"):
        script.notebook_parameters(*made, ["cel_type=HUVEC"])
    with pytest.raises(InputError, match="not key=value"):
        script.notebook_parameters(*made, ["cell_type"])


def test_faults_are_one_line_and_a_spent_budget_is_an_exit_of_its_own(
    made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    wrong = call(made, tmp_path / "run", "-p", "training.epochs=many")
    assert wrong.returncode == 2 and len(wrong.stderr.splitlines()) == 1 and "epochs is 'many'" in wrong.stderr
    with pytest.raises(InputError, match="no.ipynb: no such file"):
        script.main(tmp_path / "no.ipynb", made[1])
    given = [f"run={tmp_path / 'run'}", "machine.time_budget_minutes=0.0001"]
    with pytest.raises(SystemExit) as ended:
        script.main(*made, given)
    assert ended.value.code == 3
    assert capsys.readouterr().err.splitlines()[-1] == "time budget spent: whole, epoch 0 of 3; give the same command again to continue"
    script.main(*made, given[:1])
    assert len(history_of(tmp_path / "run/U2OS.safetensors")) == 3


@pytest.mark.parametrize("path", sorted(paths.kernels_folder().glob("[1-4]-*/*.ipynb")), ids=lambda path: path.stem)
def test_every_notebook_is_plain_python(path: Path) -> None:
    for number, cell in enumerate(notebooks.code_cells(path), 1):
        compile(notebooks.source(cell), f"{path.name}, code cell {number}", "exec")


def test_variables_of_one_cell_reach_the_next(tmp_path: Path) -> None:
    cells = [nbformat.v4.new_code_cell(text) for text in ("a = 1", "def f():\n    return a + b", "b = 2\nc = f()")]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "n.ipynb")
    assert script.execute(tmp_path / "n.ipynb", {"a": 10})["c"] == 12
    assert read_json(tmp_path / "n.ipynb")["cells"][0]["outputs"] == [], "the notebook itself stays as it is"


def test_a_cell_for_ipython_alone_is_refused_in_one_line(tmp_path: Path) -> None:
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in ("seed = 1", "%time seed + 1")]), tmp_path / "a.ipynb")
    with pytest.raises(InputError, match="a.ipynb: code cell 2 is not plain Python .*; leave out what only IPython knows, such as %time, or run it in Jupyter$"):
        script.execute(tmp_path / "a.ipynb", {})
