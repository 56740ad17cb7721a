"""Receipts of a run's steps: what each notebook was given, made and took up, so that the next can trust it."""

import time
from collections.abc import Mapping
from glob import escape
from pathlib import Path
from typing import Any

from typing_extensions import NotRequired, TypedDict  # pydantic needs this one before Python 3.12

from cellsignal import files, shapes
from cellsignal.receipts import Receipt
from cellsignal.run.record import provenance

FOLDER = "receipts"
RUN = "run.json"  # marks a run folder


class Details(TypedDict):
    """What the receipt of a notebook says besides."""

    parameters: shapes.Parameters
    code: str
    taken_up: dict[str, str]
    progress: str
    seconds: float
    written: float
    hardware: NotRequired[dict[str, Any]]


SPECIFIC = ("cell_type", "network_name")  # parameters that say which of a run's networks a notebook is about
OUTPUTS = {  # patterns of what each notebook leaves; those of a training are its finished phases
    "0-chain": ("*", *(f"{room}/**/*" for room in ("eda", "notebooks", "receipts", "scores", "weights"))),
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
    """Where the receipt of a step lies, by the step's full name."""
    return run / FOLDER / f"{step}.json"


def write(
    run: Path, step: str, values: Mapping[str, Any], *, complete: bool, progress: str, seconds: float, taken_up: Mapping[str, str]
) -> Receipt:
    """Write the receipt of a notebook that has ended; `values` are its parameters, `step` its notebook's name.

    Under the chain `steps.write_receipt` adds to its identity what only the chain knows.
    """
    name = step_name(step, values)
    mine = _outputs(run, step, values)
    details = {
        **provenance.describe(values),
        "taken_up": {path: digest for path, digest in taken_up.items() if path not in mine and (run / path) != place(run, name)},
        "progress": progress,
        "seconds": round(seconds, 2),
        "written": round(time.time(), 2),
    }
    return Receipt(place(run, name), {"step": name}, mine, complete, details).write()


def read(run: Path, step: str) -> Receipt | None:
    """The receipt of a notebook, by its step's full name; None when it is absent, damaged, or of no notebook."""
    found = Receipt.find(place(run, step), Details)
    if found is None or found.identity.get("step") != step:
        return None
    return found if all(map(files.stays_inside, (*found.outputs, *found.details["taken_up"]))) else None


def read_all(run: Path) -> list[Receipt]:
    """The receipts of a run folder's notebooks, oldest first."""
    found = [read(run, path.stem) for path in sorted((run / FOLDER).glob("*.json"))]
    return sorted(filter(None, found), key=lambda receipt: receipt.details["written"])


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
