"""A kernel that was pushed to go on looks for its earlier self before anything else."""

from pathlib import Path

import pytest

from cellsignal import files
from cellsignal.errors import InputError
from cellsignal.kaggle import kernel_folders
from cellsignal.run import environment, mounts
from cellsignal.run.record import step_receipts

STEP = "2-pretrain-controls@RPE"


@pytest.fixture
def attached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a mounted kernel's outputs, with a run of another step."""
    monkeypatch.setattr(environment, "KAGGLE", tmp_path)
    run = tmp_path / "input/notebooks/alice/cellsignal-tiny-2-pretrain-controls-rpe/runs/tiny"
    files.write_json(run / mounts.RUN_FILE, {"run": "runs/tiny"})
    step_receipts.write(run, "2-pretrain-controls", {"cell_type": "HUVEC"}, complete=True, progress="", seconds=1.0, attached_files={})
    return run


def test_what_is_mounted_is_gone_on_with(attached: Path) -> None:
    step_receipts.write(attached, "2-pretrain-controls", {"cell_type": "RPE"}, complete=False, progress="", seconds=1.0, attached_files={})
    exec(kernel_folders.expect_cell(STEP), {})


def test_without_it_nothing_begins(attached: Path) -> None:
    with pytest.raises(InputError, match=f"^{STEP}: {kernel_folders.NOT_MOUNTED}; attached are notebooks/alice/cellsignal-tiny-2-pretrain-controls-rpe$"):
        exec(kernel_folders.expect_cell(STEP), {})
