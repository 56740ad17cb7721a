"""Every published solution from its file to a submission, on the smallest plates."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from cellsignal import files

ROOT = Path(__file__).resolve().parents[2]
SHORT = ("preset=tiny", "epochs=1", "passes=1", "pages=false")
# What each needs to be short, the networks it leaves, and the rungs that only it has.
SOLUTIONS = {
    "brodt-small": (("pretrain_epochs=1", "head_epochs=1", "final_epochs=1"), ["final", "head", "model", "plain", "plain-head", "pretrain"], {"virtual batch", "mixup"}),
    "surin-small": ((), ["model"], set()),
    "moreau-small": (("head_epochs=1", "sizes=[32]"), ["head", "model", "model-2", "model-2-head"], {"ensemble"}),
    "sypetkowski-small": (("pseudo_epochs=1",), ["model", "model-2"], {"views", "ensemble"}),
    "best-small": (("pseudo_epochs=1",), ["model", "model-2"], {"views", "prototypes", "ensemble"}),
}  # fmt: skip


EVERY_DAY = ("brodt-small", "best-small")  # between them they take every path of training and prediction


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in EVERY_DAY else pytest.mark.slow) for name in SOLUTIONS])
def test_a_solution_runs_from_its_file(name: str, tmp_path: Path) -> None:
    own, networks, rungs = SOLUTIONS[name]
    command = [sys.executable, "-m", "cellsignal.cli.main", "run", str(ROOT / f"papermill_params/{name}.yaml"), "--out", str(tmp_path / "run")]
    changes = [part for change in (*SHORT, *own) for part in ("-p", change)]
    ended = subprocess.run([*command, *changes], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    found = {path.stem for path in (tmp_path / "run/weights").glob("*/*.safetensors")}
    assert sorted(found) == networks
    ladder = files.read_json(tmp_path / "run/metrics.json")["ladder"]
    assert rungs <= {row["rung"] for row in ladder} and all(0 <= row["accuracy"] <= 1 for row in ladder)
    submission = pd.read_csv(tmp_path / "run/submission.csv")
    assert list(submission["id_code"]) == list(pd.read_csv(tmp_path / "run/data/sample_submission.csv")["id_code"])
    assert submission["sirna"].between(0, 1107).all()


@pytest.mark.parametrize("name", ["brodt", "surin", "moreau", "sypetkowski", "best"])
def test_the_small_file_of_a_solution_keeps_what_makes_it(name: str) -> None:
    """What a small file may change is size and time: networks, plates, epochs, rates and batches."""
    from cellsignal.run import recipe

    free = {
        "preset", "run", "data", "seed", "workers", "parallel", "backbone", "ensemble", "pretrained", "sizes", "batch_size", "virtual_batch", "compare_batches",
        "learning_rate", "final_learning_rate", "weight_decay", "schedule", "smallest_batch", "largest_batch", "passes", "pseudo_step", "ema", "decay_epochs", "mixup",
    }  # fmt: skip
    whole, small = (recipe.load(ROOT / f"papermill_params/{name}{end}.yaml").model_dump() for end in ("", "-small"))
    changed = {key for key in whole if whole[key] != small[key] and key not in free and not key.endswith("epochs")}
    assert changed == set()
