"""Manifests: what each notebook of a run was given, made and took up, so that the next can trust it."""

import time
from collections.abc import Mapping
from glob import escape
from pathlib import Path
from typing import Any

from cellsignal import files, receipts, shapes
from cellsignal.errors import InputError
from cellsignal.run.record import provenance

Manifest = dict[str, Any]
FOLDER = "manifests"
RUN = "run.json"  # marks a run folder
SPECIFIC = ("cell_type", "network_name")  # parameters that say which of a run's networks a notebook is about
OUTPUTS = {  # patterns of what each notebook leaves; those of a training are its finished phases
    "0-chain": ("*", *(f"{room}/**/*" for room in ("done", "eda", "manifests", "notebooks", "scores", "weights"))),
    "1-eda": ("eda/**/*",),
    "2-pretrain-controls": ("weights/{cell_type}/pretrain.*",),
    "3-train-cell-type": ("weights/{cell_type}/{network_name}.*", "weights/{cell_type}/{network_name}-*"),
    "protein-atlas": ("weights/fold-*/model.*", "weights/thresholds.json", "submission.csv", "metrics.json", "scores/**/*", "eda/**/*"),
    "4-predict-assign": ("submission*.csv", "metrics.json", "answers.csv", "scores/**/*"),
    "compare": ("compare.*",),
    "benchmark": ("benchmark.json", "benchmark-*.png"),
}
# What a notebook writes when its work is whole: that of an earlier run must not outlive a session that ends before.
RESULTS = {
    "4-predict-assign": ("submission.csv", "submission.confidence.csv", "metrics.json", "answers.csv"),
    "protein-atlas": ("submission.csv", "metrics.json"),
}
PHASES = ("weights/{cell_type}/head.*", "weights/{cell_type}/final.*")  # of the network `model`, named without it


def step_name(step: str, values: Mapping[str, Any]) -> str:
    """The name of a step from its notebook's and its parameters: 3-train-cell-type@U2OS, and +plain for that network."""
    cell_type, network = values.get("cell_type", ""), values.get("network_name", "model")
    return step + (f"@{cell_type}" if cell_type else "") + (f"+{network}" if network != "model" else "")


def place(run: Path, step: str) -> Path:
    """Where the manifest of a step lies, by the step's full name."""
    return run / FOLDER / f"{step}.json"


def write(
    run: Path, step: str, values: Mapping[str, Any], *, complete: bool, progress: str, seconds: float, taken_up: Mapping[str, str]
) -> Manifest:
    """Write the manifest of a notebook that has ended; `values` are its parameters, `step` its notebook's name."""
    name = step_name(step, values)
    mine = _outputs(run, step, values)
    manifest = {
        "step": name,
        "complete": complete,
        **provenance.describe(values),
        "taken_up": {path: digest for path, digest in taken_up.items() if path not in mine and (run / path) != place(run, name)},
        "outputs": mine,
        "progress": progress,
        "seconds": round(seconds, 2),
        "written": round(time.time(), 2),
    }
    receipts.write(place(run, name), manifest)
    return manifest


def read(run: Path, step: str) -> Manifest | None:
    """The manifest of a step, by its full name; None when it is absent or damaged."""
    try:
        found = receipts.read(place(run, step), shapes.Manifest)
    except InputError:
        return None
    inside = all(map(files.stays_inside, (*found["outputs"], *found["taken_up"])))
    return found if inside and found["step"] == step else None


def read_all(run: Path) -> list[Manifest]:
    """Every manifest of a run folder, oldest first."""
    found = [read(run, path.stem) for path in sorted((run / FOLDER).glob("*.json"))]
    return sorted(filter(None, found), key=lambda manifest: manifest["written"])


def _outputs(run: Path, step: str, values: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 by relative name of the files that a notebook left."""
    network = values.get("network_name", "model")
    patterns = (*OUTPUTS[step], *(PHASES if step.startswith("3-") and network == "model" else ()))
    named = {"cell_type": escape(values.get("cell_type", "")), "network_name": escape(network)}
    found = {path for pattern in patterns for path in run.glob(pattern.format(**named)) if path.is_file()}
    names = sorted(path.relative_to(run).as_posix() for path in found - {place(run, step), run / RUN})
    return {name: files.sha256(run / name) for name in names if _is_output(name)}


def _is_output(name: str) -> bool:
    """Whether others shall take a file up: no checkpoint, which vouches for itself, and nothing in the making."""
    return ".checkpoint" not in name and not any(part.startswith(".") for part in name.split("/"))
