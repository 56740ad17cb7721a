"""The receipts of a run's notebooks: parameters, outputs, reused files and time of each, so that the next step can rely on them."""

import time
from collections.abc import Mapping
from glob import escape
from pathlib import Path
from typing import Any

from typing_extensions import NotRequired, TypedDict  # pydantic needs this one before Python 3.12

from cellsignal import code_identity, files, json_schemas, provenance
from cellsignal.receipts import Receipt
from cellsignal.run.mounts import RUN_FILE

RECEIPTS_FOLDER = "receipts"
NETWORK_PARAMETERS = ("cell_type", "network_name")  # they say which of a run's networks a notebook is about
OUTPUT_PATTERNS = {  # what each notebook leaves; of a training, its finished phases
    "0-chain": ("*", *(f"{folder}/**/*" for folder in ("eda", "notebooks", "receipts", "scores", "weights"))),
    "1-eda": ("eda/**/*",),
    "pack": ("packed.json",),  # and not the store, which would be copied into every later kernel
    "2-pretrain-controls": ("weights/{cell_type}/pretrain.*",),
    "3-train-cell-type": ("weights/{cell_type}/{network_name}.*", "weights/{cell_type}/{network_name}-*"),
    "protein-atlas": ("weights/fold-*/model.*", "weights/thresholds.json", "submission.csv", "metrics.json", "scores/**/*", "eda/**/*"),
    "4-predict-assign": ("submission*.csv", "submission.sets.parquet", "metrics.json", "answers.csv", "embeddings.parquet*", "scores/**/*"),
    "rxrx1-wilds": ("weights/rxrx1-wilds/model.*", "submission.csv", "predictions/*", "metrics.json", "scores/**/*", "eda/**/*"),
    "compare": ("compare.*",),
    "profiles": ("profiles.parquet", "perturbations.csv", "neighbours.csv", "profile.json", "receipt.json"),
    "benchmark": ("benchmark.json", "benchmark-*.png"),
    "rehearse": ("rehearsal.json",),
}
# Written when the work is complete; a session that ends earlier removes those of an earlier run.
RESULT_FILES = {
    "4-predict-assign": ("submission.csv", "submission.confidence.csv", "submission.sets.parquet", "metrics.json", "answers.csv", "embeddings.parquet", "embeddings.parquet.json"),
    "protein-atlas": ("submission.csv", "metrics.json"),
    "rxrx1-wilds": ("submission.csv", "metrics.json"),
}
MODEL_PHASES = ("weights/{cell_type}/head.*", "weights/{cell_type}/final.*")  # of the network `model`, whose name is left out


class NotebookDetails(TypedDict):
    """The details of a notebook's receipt."""

    parameters: json_schemas.Parameters
    code: str
    attached_files: dict[str, str]
    progress: str
    seconds: float
    user_modules: NotRequired[dict[str, str]]
    written: float
    hardware: NotRequired[dict[str, Any]]


def step_name(notebook: str, parameters: Mapping[str, Any]) -> str:
    """The name of a step: its notebook's, then @cell type, then +network unless that is `model`, such as 3-train-cell-type@U2OS+plain."""
    cell_type, network = parameters.get("cell_type", ""), parameters.get("network_name", "model")
    return notebook + (f"@{cell_type}" if cell_type else "") + (f"+{network}" if network != "model" else "")


def receipt_path(run: Path, step: str) -> Path:
    """The path of the receipt of a step, given the step's full name."""
    return run / RECEIPTS_FOLDER / f"{step}.json"


def write(
    run: Path, notebook: str, parameters: Mapping[str, Any], *, complete: bool, progress: str, seconds: float, attached_files: Mapping[str, str]
) -> Receipt:
    """Write the receipt of a notebook that has ended; in a chain `steps.write_receipt` then replaces its identity by the step's."""
    step = step_name(notebook, parameters)
    path, outputs = receipt_path(run, step), _output_digests(run, notebook, parameters)
    details = {
        **provenance.describe(parameters),
        "attached_files": {name: digest for name, digest in attached_files.items() if name not in outputs and run / name != path},
        "progress": progress,
        **_user_modules(),
        "seconds": round(seconds, 2),
        "written": round(time.time(), 2),
    }
    return Receipt(path, {"step": step}, outputs, complete, details).write()


def read(run: Path, step: str) -> Receipt | None:
    """The receipt of a notebook, given the step's full name; None when it is absent, damaged, or not a notebook's."""
    receipt = Receipt.find(receipt_path(run, step), NotebookDetails)
    if receipt is None or receipt.identity.get("step") != step:
        return None
    return receipt if all(map(files.stays_inside, (*receipt.outputs, *receipt.details["attached_files"]))) else None


def read_all(run: Path) -> list[Receipt]:
    """The receipts of a run folder's notebooks, oldest first."""
    receipts = [read(run, path.stem) for path in sorted((run / RECEIPTS_FOLDER).glob("*.json"))]
    return sorted(filter(None, receipts), key=lambda receipt: receipt.details["written"])


def _user_modules() -> dict[str, dict[str, str]]:
    """The digests, by file, of the user's own modules that the notebook of this process imports, for `steps.current_receipt`."""
    modules = {str(path): digest for path, digest in code_identity.notebook.user_modules().items()}
    return {"user_modules": modules} if modules else {}


def _output_digests(run: Path, notebook: str, parameters: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 by relative name of the files that a notebook left: no checkpoints, which have receipts of their own, and no temporary files."""
    network = parameters.get("network_name", "model")
    patterns = (*OUTPUT_PATTERNS[notebook], *(MODEL_PHASES if notebook.startswith("3-") and network == "model" else ()))
    values = {"cell_type": escape(parameters.get("cell_type", "")), "network_name": escape(network)}
    paths = {path for pattern in patterns for path in run.glob(pattern.format(**values)) if path.is_file()}
    paths -= {receipt_path(run, step_name(notebook, parameters)), run / RUN_FILE}
    names = sorted(path.relative_to(run).as_posix() for path in paths)
    return {name: files.sha256(run / name) for name in names if ".checkpoint" not in name and not any(part.startswith(".") for part in name.split("/"))}
