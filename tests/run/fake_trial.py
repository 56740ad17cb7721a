"""A trial without its learning: what `cellsignal run` leaves in a folder, in a moment, as good as its learning rate.

As a script it is that trial: `fake_trial.py PARAMS.yaml RUN`. With DRIVE first it is a sweep of such trials, in a process to kill.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from cellsignal import files
from cellsignal.receipts import Receipt

if TYPE_CHECKING:
    import pytest

EPOCHS = 6


def command(params: Path, run: Path) -> list[str]:
    """What takes the place of `cellsignal run`."""
    return [sys.executable, __file__, str(params), str(run)]


def bench(folder: Path, monkeypatch: "pytest.MonkeyPatch", *, kind: str = "") -> Callable[..., Path]:
    """What sweeps such trials in `folder` over a space, or a part of one called `kind`; `base.yaml` names plates that nobody reads."""
    from cellsignal.run.sweep import sweep, trials
    from cellsignal.show.results import sweeps
    from cellsignal.show.style import blank_figure

    monkeypatch.chdir(folder)
    monkeypatch.setattr(trials, "command", command)
    monkeypatch.setattr(sweep, "POLL_SECONDS", 0.02)
    for drawing in ("draw_variants", "draw_search"):  # tests/show looks at pictures
        monkeypatch.setattr(sweeps, drawing, lambda *tables, **options: blank_figure("toys"))
    (folder / "plates").mkdir()
    (folder / "base.yaml").write_text("data: plates\ntraining: {learning_rate: 0.1, epochs: 6}\nrun: elsewhere\n")

    def run(space: dict, **options: object) -> Path:
        (folder / "space.yaml").write_text(yaml.safe_dump({kind: space} if kind else space, sort_keys=False))
        return sweep.run_sweep(Path("base.yaml"), Path("space.yaml"), out="out", **options)

    return run


def accuracy(values: dict[str, Any]) -> float:
    """Best at a learning rate of 0.01; a seed shifts it a little."""
    return round(0.8 - 0.2 * abs(math.log10(values["training"]["learning_rate"]) + 2) + 0.01 * values["seed"], 6)


def trial(params: Path, run: Path) -> None:
    """Leave what a run leaves; a momentum of 0.13 fails, one of 0.17 meets a damaged image, weight decay is seconds an epoch (none in a hurry), dropout 0.5 dies."""
    values = yaml.safe_load(params.read_text())
    with open(run.parent / "begun.txt", "a") as begun:
        begun.write(f"{run.name}\n")
    if values["training"]["momentum"] == 0.13:
        sys.exit("cellsignal: error: the loss is nan; lower the learning rate")
    if values["training"]["momentum"] == 0.17:
        print("cellsignal: error: a.png: is cut short or damaged; copy the file again", file=sys.stderr)
        sys.exit(2)
    if values["network"]["dropout"] == 0.5:
        sys.exit(137)
    right = accuracy(values)
    files.write_json(run / "recipe.json", {"parameters": {"wells": {"cell_types": ["U2OS"]}}, "code": "0" * 64})
    rows: list[dict[str, Any]] = []
    for epoch in range(EPOCHS):
        time.sleep(0 if (run.parent / "hurry").exists() else values["training"]["weight_decay"])
        rows.append({"phase": "whole", "epoch": epoch + 1, "held_out_accuracy": right * (epoch + 1) / EPOCHS})
        Receipt(run / "weights/U2OS/model.checkpoint.json", details={"phase": "whole", "epoch": epoch + 1, "epochs": EPOCHS, "rows": rows}).write()
    Receipt(run / "weights/U2OS/model.json", details={"history": rows}).write()
    tensors = {"head.weight": ((2, 3), (0, 24)), "norm.running_mean": ((5,), (24, 44))}
    header = json.dumps({name: {"dtype": "F32", "shape": shape, "data_offsets": ends} for name, (shape, ends) in tensors.items()}).encode()
    for name in ("model", "model-2", "model-2-final", "plain"):
        files.write_bytes(run / f"weights/U2OS/{name}.safetensors", len(header).to_bytes(8, "little") + header + bytes(44))
    files.write_json(run / "seconds.json", {"plates": 100.0, "3-train-cell-type@U2OS": 2.5})
    rungs = [("running", "raw", 0.01), ("adapted", "raw", right), ("exact", "assigned", 0.02), ("groups+expected", "assigned", right + 0.1)]
    ladder = [{"rung": rung, "kind": kind, "split": split, "accuracy": value - (split == "test") * 0.01}
              for split in ("test", "held_out") for rung, kind, value in rungs]
    files.write_json(run / "metrics.json", {"ladder": ladder})


if __name__ == "__main__":
    if sys.argv[1] == "DRIVE":
        from cellsignal.run.sweep import sweep, trials  # what a trial need not wait for

        trials.command = command
        sweep.run_sweep(Path("base.yaml"), Path("space.yaml"), out=sys.argv[2], jobs=2)
    else:
        trial(Path(sys.argv[1]), Path(sys.argv[2]))
