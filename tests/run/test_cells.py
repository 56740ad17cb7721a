"""The cells of a notebook whose time is spent, as papermill runs them: all end well, those that follow do nothing, the next run goes on."""

import re
from pathlib import Path
from threading import Event
from typing import Any

import nbformat
import pytest
from trainings import write_patches

from cellsignal.errors import StepFailed
from cellsignal.files import read_json, sha256
from cellsignal.run import environment
from cellsignal.run.chain import notebooks, script
from cellsignal.run.chain.notebook_server import NotebookServer
from cellsignal.run.record import step_receipts

STEP = "3-train-cell-type"
PARAMETERS = 'run = ""\ndata = ""\ncell_type = "U2OS"\nnetwork_name = "model"\nallowed = 99'
START = 'import cellsignal\nsession = cellsignal.start(globals(), "3-train-cell-type")'
TRAINING = [
    PARAMETERS, START + "\nallowed = int(allowed)  # epochs",
    """from pathlib import Path
import pandas as pd
from cellsignal.learn.batches.dataset import SiteImages
from cellsignal.learn.networks.classifier import Classifier
from cellsignal.learn.settings import AugmentationSettings, MachineSettings, NetworkSettings, TrainingSettings
from cellsignal.learn.training.fit import TrainingSites, fit
from cellsignal.learn.training.phase import Phase
sites = pd.read_csv(Path(data) / "sites.csv").astype({"sirna": "Int64"})
train = SiteImages(Path(data), sites, class_numbers=[0, 10, 20, 30], cache=True)
model, seen = Classifier(NetworkSettings(backbone="plain-cnn"), channels=6, classes=4, seed=3), []
def stop(history):
    seen.append(len(history))
    if len(history) == allowed:
        session.time_budget.stop("the clock")
len(sites)""",
    """training = TrainingSettings(epochs=3, batch_size=8, learning_rate=0.01)
phase = Phase(name="whole", training=training, augmentation=AugmentationSettings())
history = fit(model, TrainingSites(train), phase, weights=session.folder / "weights" / cell_type / "model.safetensors",
              machine=MachineSettings(device="cpu"), budget=session.time_budget, on_epoch=stop)
print("trained")
seen""",
    'print("after")\n(session.folder / "after").touch()\n"shown"',
    'session.finish()\nprint("finished")',
]  # fmt: skip
SHOWN = ["1 + 1", "1 + 1;", "x = 3", "(y := 4)", "y", "print('first')\n[1, 2]", "None", "import asyncio\nawait asyncio.sleep(0, 'waited')",
         "from __future__ import annotations\n'from the future'", "%%capture\n'kept'", "for i in range(2):\n    i", "def f():\n    return 6\nf()",
         "# nothing", "", "# a comment\n7  # and a value", "_", "'''a text of its own'''"]  # fmt: skip


def run(folder: Path, cells: list[str], **values: Any) -> list[dict[str, Any]]:
    """Execute cells, the first of which sets parameters, in the run folder `folder`; gives the executed ones."""
    written = [nbformat.v4.new_code_cell(text) for text in cells]
    written[0].metadata["tags"] = ["parameters"]
    path = folder.parent / f"{folder.name}.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=written, metadata={"kernelspec": notebooks.KERNEL}), path)
    target = folder.parent / f"{folder.name}-executed.ipynb"
    folder.mkdir(exist_ok=True)
    with NotebookServer(environment.kernel_environment(folder)) as server:
        notebooks.execute(path, target=target, parameters={"run": str(folder), **values}, server=server, stop=Event())
    return [cell for cell in notebooks.code_cells(target) if "injected-parameters" not in cell["metadata"].get("tags", [])]


def words(cell: dict[str, Any]) -> str:
    return "".join("".join(output.get("text", output.get("data", {}).get("text/plain", ""))) for output in cell["outputs"] if output.get("name") != "stderr")


@pytest.mark.slow
@pytest.mark.ci
def test_a_notebook_whose_time_ends_in_a_cell_ends_well_and_the_next_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    root, sites = write_patches(tmp_path / "plates")
    sites.to_csv(root / "sites.csv", index=False)
    whole = run(tmp_path / "whole", TRAINING, data=str(root))
    assert words(whole[2]) == "32" and words(whole[3]).endswith("trained\n[1, 2, 3]") and words(whole[4]) == "after\n'shown'"
    folder = tmp_path / "parts"
    first = run(folder, TRAINING, data=str(root), allowed=2)  # raises nothing: every cell is completed
    written = step_receipts.read(folder, "3-train-cell-type@U2OS")
    assert (written.complete, written.details["progress"]) == (False, "whole, epoch 2 of 3")
    line = "3-train-cell-type@U2OS: time budget spent: whole, epoch 2 of 3; another session goes on. Run folder: "
    assert words(first[2]) == "32" and words(first[3]).endswith(f"{line}{folder}\n") and "trained" not in words(first[3])
    assert [cell["outputs"] for cell in first[4:]] == [[], []] and not (folder / "after").exists()
    again = run(folder, TRAINING, data=str(root))
    assert words(again[3]).endswith("trained\n[3]") and step_receipts.read(folder, "3-train-cell-type@U2OS").complete
    name = "weights/U2OS/model.safetensors"
    assert sha256(folder / name) == sha256(tmp_path / "whole" / name)


@pytest.mark.parametrize("error", ["ValueError('no luck')", "1 / 0", "KeyError('time')"])
def test_another_error_fails_the_notebook_and_its_traceback_shows_the_line(tmp_path: Path, error: str) -> None:
    with pytest.raises(StepFailed) as failed:
        run(tmp_path / "run", [PARAMETERS, START, f"x = 1\nif x:\n    raise {error}  # here\nx", "print('after')"])
    kind = error.partition("(")[0].replace("1 / 0", "ZeroDivisionError")
    assert str(failed.value).startswith(f"{kind}: ")
    *_, broken, after = notebooks.code_cells(tmp_path / "run-executed.ipynb")
    [output] = broken["outputs"]
    traceback = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(output["traceback"]))
    assert f"----> 3     raise {error}  # here" in traceback and "cellsignal" not in traceback
    assert after["outputs"] == [] and not (tmp_path / "run/receipts").exists()


def test_cells_show_what_they_show_without_a_session(tmp_path: Path) -> None:
    watched, free = ([cell["outputs"] for cell in run(tmp_path / name, [PARAMETERS, start, *SHOWN])[2:]] for name, start in (("watched", START), ("free", "pass")))
    assert watched == free
    assert [bool(outputs) for outputs in watched[:5]] == [True, False, False, True, True], "of these some show something"


def test_a_set_up_that_runs_twice_is_watched_once_and_work_that_is_done_early_is_complete(tmp_path: Path) -> None:
    cells = [PARAMETERS, START, START, "len([each for each in get_ipython().ast_transformers if 'CellWatch' in str(each)])",
             "session.finish_early('scored HUVEC-01')\n5", "print('after')"]  # fmt: skip
    executed = run(tmp_path / "run", cells)
    assert words(executed[3]) == "1" and words(executed[4]).startswith("3-train-cell-type@U2OS: complete. ") and executed[5]["outputs"] == []
    written = step_receipts.read(tmp_path / "run", "3-train-cell-type@U2OS")
    assert (written.complete, written.details["progress"]) == (True, "scored HUVEC-01")


def test_a_script_ends_as_a_notebook_does_and_without_a_session_the_error_is_whose_it_is(tmp_path: Path) -> None:
    def notebook(*texts: str) -> Path:
        cells = [nbformat.v4.new_code_cell(text) for text in texts]
        cells[0].metadata["tags"] = ["parameters"]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "n.ipynb")
        return tmp_path / "n.ipynb"

    stop = "import cellsignal\nraise cellsignal.TimeSpent('whole, epoch 1 of 2')"
    variables = script.execute(notebook(PARAMETERS, START, stop, "after = 1"), {"run": str(tmp_path / "run")})
    assert variables["session"].spent == "whole, epoch 1 of 2" and "after" not in variables
    found = read_json(tmp_path / f"run/receipts/{STEP}@U2OS.json")
    assert (found["complete"], found["details"]["progress"]) == (False, "whole, epoch 1 of 2")
    with pytest.raises(RuntimeError, match="^whole, epoch 1 of 2$"):
        script.execute(notebook(PARAMETERS, stop, "after = 1"), {})
