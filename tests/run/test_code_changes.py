"""The training kernel after its code changed, in the same run folder: comments keep the weights, everything else trains them again."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cellsignal.code_identity import PACKAGE
from cellsignal.files import sha256
from cellsignal.run import environment

RECIPE = Path(__file__).resolve().parents[2] / "papermill_params/tiny.yaml"
AGAIN = "model.safetensors: trained by other code ({}), so it is trained again"


@pytest.mark.slow
@pytest.mark.ci
def test_other_code_trains_again_and_another_comment_does_not(tmp_path: Path) -> None:
    package = shutil.copytree(PACKAGE, tmp_path / "package/cellsignal", ignore=shutil.ignore_patterns("__pycache__"))
    notebook = shutil.copy(environment.kernels_folder() / "3-train-cell-type/3-train-cell-type.ipynb", tmp_path)
    losses, weights = package / "learn/training/losses.py", tmp_path / "run/weights/RPE/model.safetensors"
    overrides = [f"run={tmp_path / 'run'}", "cell_type=RPE", "training.pretrain_epochs=0", "training.epochs=1", "network.backbone=plain-cnn", "machine.num_processes=1", "machine.device=cpu"]
    command = [sys.executable, "-m", "cellsignal.run.chain.script", notebook, RECIPE, *(word for each in overrides for word in ("-p", each))]

    def run(file: Path | None = None, old: str = "", new: str = "") -> tuple[str, str]:
        """SHA-256 of the weights, and what was said of other code, after a change in a file."""
        if file is not None:
            assert file.read_text().count(old) == 1
            file.write_text(file.read_text().replace(old, new))
        ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(package.parent)}, capture_output=True, text=True, cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
        said = [line for line in ended.stdout.splitlines() if "other code" in line]
        assert len(said) <= 1
        return sha256(weights), said[0].partition(" (`cellsignal")[0] if said else ""

    first, said = run()
    losses.write_text(losses.read_text().replace("# Brodt trains with BCE", "# He trains with BCE"))
    assert said == "" and run(Path(notebook), "recipe = session.recipe", "recipe = session.recipe  # as it was checked") == (first, "")
    second, said = run(losses, '"bce": functional.binary_cross_entropy_with_logits', '"bce": lambda logits, targets: 3 * focal(logits, targets)')
    assert second != first and said == AGAIN.format("given, learn")
    third, said = run(Path(notebook), "train, held_out = work.data_sets(learnt)", "train, held_out = work.data_sets(learnt); train.augment = None")
    assert third not in (first, second) and said == AGAIN.format("given, notebook")
    shown = package / "run/kernels/training.py"
    shown.write_text(shown.read_text().replace('"""Where the weights of a phase lie', '"""Where weights of a phase lie'))
    assert run() == (third, ""), "a docstring of what the cells call"
    assert run(shown, '[f"body from', '[f"its body from') == (third, AGAIN.format("notebook")), "what the cells call is code of theirs"
