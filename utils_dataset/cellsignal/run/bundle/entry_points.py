"""An unpacked archive: its SETTINGS.json, and the commands that prepare_data.py, train.py and predict.py run."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cellsignal import files
from cellsignal.errors import InputError
from cellsignal.run.environment import expand_path
from cellsignal.run.recipe import read_yaml

SETTINGS, PARAMS = "SETTINGS.json", "params.yaml"
PATHS = {  # the only paths of an archive, relative to SETTINGS.json
    "RAW_DATA_DIR": "data",
    "RUN_DIR": "run",
    "SUBMISSION_DIR": "submission",
}
PRETRAINED = "PRETRAINED_FILE"  # if the training started from a file of weights


def read_settings(root: Path) -> dict[str, Path]:
    """The absolute paths in SETTINGS.json. Raises InputError when it does not name them all, and as `environment.expand_path`."""
    path = root / SETTINGS
    content = files.read_json(path)
    if not isinstance(content, dict) or not all(isinstance(content.get(key), str) and content[key] for key in PATHS):
        raise InputError(f"does not name {', '.join(PATHS)}", where=path, cure="give each a folder, in quotes")
    return {key: (root / expand_path(str(content[key]))).resolve() for key in (*PATHS, PRETRAINED) if content.get(key)}


def arguments(root: Path, script: str, more: Sequence[str] = ()) -> list[str]:
    """The arguments with which a script of the archive calls `cellsignal`; `more`: those of the script itself, which come last."""
    paths = read_settings(root)
    if script == "prepare_data":
        values: dict[str, Any] = read_yaml(root / PARAMS)[0]
        data = str(paths["RAW_DATA_DIR"])
        if not values.get("preset"):
            return ["check", data, *more]
        return ["simulate", data, "--preset", values["preset"], "--seed", str(values.get("seed", 0)), *more]
    overrides = {"data": paths["RAW_DATA_DIR"], "network.pretrained": paths.get(PRETRAINED)}
    options = [option for key, path in overrides.items() if path for option in ("-p", f"{key}={json.dumps(str(path))}")]
    if given := next((option for option in more if option.partition("=")[0] == "--out"), ""):
        raise InputError("the run's folder is that of SETTINGS.json, from which the submission is copied", where=given, cure=f"change RUN_DIR in {root / SETTINGS}")
    start_from = {"train": "scratch", "predict": "weights"}[script]
    return ["run", str(root / PARAMS), *options, "--out", str(paths["RUN_DIR"]), "--from", start_from, *more]


def copy_submission(root: Path) -> Path:
    """Copy the submission of the run to the folder SUBMISSION_DIR; returns its path."""
    paths = read_settings(root)
    target = paths["SUBMISSION_DIR"] / "submission.csv"
    with files.atomic_path(target) as temporary:
        shutil.copyfile(paths["RUN_DIR"] / "submission.csv", temporary)
    return target
