"""A run in many short sessions ends with the very weights and answers of one that was never stopped."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import session_machine
import pytest

from cellsignal import files
from cellsignal.kaggle import kernel_folders
from cellsignal.run import recipe
from cellsignal.run.record import step_receipts

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "papermill_params/tiny.yaml"
# Every phase and both networks of a cell type.
TRAINING = {"pretrain_epochs": 3, "head_epochs": 2, "epochs": 4, "final_epochs": 2, "virtual_batch": 32, "ablate_virtual_batch": True}

pytestmark = pytest.mark.slow


def run(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    flags = [word for each in (*(f"training.{name}={value}" for name, value in TRAINING.items()), *overrides) for word in ("-p", each)]
    command = [sys.executable, "-m", "cellsignal.cli.main", "run", str(TINY), "--out", str(folder), *flags]
    return subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)


def answers(folder: Path) -> dict[str, str]:
    """SHA-256 of the submission, its confidences and all weights."""
    found = [*folder.glob("submission*.csv"), *folder.glob("weights/*/*.safetensors")]
    return {path.relative_to(folder).as_posix(): files.sha256(path) for path in found}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    ended = run(folder)
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = answers(folder)
    assert len(found) == 2 + 2 * 6  # of each cell type: pretrain, head, model, plain-head, plain, final
    return found


def test_one_command_again_and_again(undisturbed: dict[str, str], tmp_path: Path) -> None:
    sessions, minutes = 0, 0.3
    while (ended := run(tmp_path / "run", f"machine.time_budget_minutes={minutes}")).returncode == 3:
        assert ended.stdout.splitlines()[-1].startswith("time budget spent ")
        sessions, minutes = sessions + 1, minutes * 1.15  # a busy machine must get through at last
        assert sessions < 30
    assert ended.returncode == 0, ended.stderr[-2000:]
    print(f"{sessions + 1} sessions")
    assert sessions >= 3 and answers(tmp_path / "run") == undisturbed


@pytest.mark.skipif(not session_machine.can_run(), reason="no namespaces for tests here")
@pytest.mark.parametrize("layout", ["new", "legacy"])
def test_one_kernel_that_mounts_its_earlier_version(undisturbed: dict[str, str], tmp_path: Path, layout: str) -> None:
    kaggle = session_machine.Machine(session_machine.bare_python(tmp_path / "bare"), tmp_path / "sessions", layout)
    package = shutil.copytree(ROOT / "utils_dataset", tmp_path / "package")  # with the notebooks, which are a link there
    inputs = {kaggle.mount("datasets", "alice/cellsignal-utils"): package}
    tiny, minutes, complete, sessions = recipe.load(TINY), 0.5, False, 0
    while not complete:
        values = {**tiny.model_dump(), "training": {**tiny.training.model_dump(), **TRAINING}, "machine": {"time_budget_minutes": minutes}, "run": "runs/tiny"}
        text = kernel_folders.notebook_text(ROOT / "kernels/0-chain/0-chain.ipynb", values)
        outcome = kaggle.run(text, inputs=inputs)
        assert outcome.status == "COMPLETE", outcome.log[-2000:]
        written = step_receipts.read(outcome.folder / "runs/tiny", "0-chain")
        complete, sessions, minutes = written.complete, sessions + 1, minutes * 1.4
        inputs[kaggle.mount("notebooks", "alice/cellsignal-tiny-0-chain")] = outcome.folder
        assert sessions < 20
    print(f"{sessions} sessions")
    assert sessions >= 3 and answers(outcome.folder / "runs/tiny") == undisturbed
