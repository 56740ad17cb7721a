"""Every published solution from its file to a submission, on the smallest plates."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from cellsignal import files

ROOT = Path(__file__).resolve().parents[2]
SHORT = ("preset=tiny", "training.epochs=1", "prediction.num_batch_sizes=1", "machine.html_pages=false")
# What each needs to be short, the networks it leaves, and the rungs that only it has.
SOLUTIONS = {
    "brodt-small": (("training.pretrain_epochs=1", "training.head_epochs=1", "training.final_epochs=1"), ["final", "head", "model", "plain", "plain-head", "pretrain"], {"virtual batch", "mixup"}),
    "surin-small": ((), ["model"], set()),
    "moreau-small": (("training.head_epochs=1", "augmentation.progressive_sizes=[32]"), ["head", "model", "model-2", "model-2-head"], {"ensemble"}),
    "sypetkowski-small": (("training.pseudo_label_epochs=1",), ["model", "model-2"], {"views", "ensemble"}),
    "best-small": (("training.pseudo_label_epochs=1", "training.head_epochs=1", "training.final_epochs=1", "augmentation.mixup_alpha=0.4",
                    "training.loss=0.8 cross-entropy + 0.1 arcface", "network.cosine_head=auxiliary"),
                   ["final", "head", "model", "model-2", "model-2-final", "model-2-head"], {"views", "prototypes", "ensemble", "mixup"}),
}  # fmt: skip




# CI runs best-small: with a head, last epochs and ArcFace it takes every path but the pretraining, which tiny takes.
@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.ci] * (name == "best-small")) for name in SOLUTIONS])
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
    from cellsignal.settings import flatten

    free = {
        "preset", "run", "data", "seed", "machine.num_workers", "machine.parallel_notebooks", "network.backbone", "network.ensemble", "network.pretrained",
        "augmentation.progressive_sizes", "augmentation.mixup_alpha", "training.batch_size", "training.virtual_batch", "training.ablate_virtual_batch",
        "training.learning_rate", "training.final_learning_rate", "training.weight_decay", "training.schedule", "training.pseudo_label_increment",
        "training.ema_decay", "training.decay_epochs", "prediction.min_batch_size", "prediction.max_batch_size", "prediction.num_batch_sizes",
    }  # fmt: skip
    whole, small = (flatten(recipe.load(ROOT / f"papermill_params/{name}{end}.yaml").model_dump()) for end in ("", "-small"))
    changed = {key for key in whole if whole[key] != small[key] and key not in free and not key.endswith("epochs")}
    assert changed == set()
