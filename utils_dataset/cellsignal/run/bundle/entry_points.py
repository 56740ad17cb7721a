"""An unpacked archive: its SETTINGS.json, and what prepare_data.py, train.py and predict.py beside it do."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cellsignal import files
from cellsignal.errors import InputError
from cellsignal.run.environment import expanded
from cellsignal.run.recipe import read_yaml

SETTINGS, PARAMS = "SETTINGS.json", "params.yaml"
PLACES = {  # the only paths of an archive, relative to SETTINGS.json
    "RAW_DATA_DIR": "data",
    "RUN_DIR": "run",
    "SUBMISSION_DIR": "submission",
}
PRETRAINED = "PRETRAINED_FILE"  # there when the training began with a file of weights


def settings(root: Path) -> dict[str, Path]:
    """The absolute places that SETTINGS.json names. Raises InputError when it does not name them all, and as `paths.expanded`."""
    path = root / SETTINGS
    given = files.read_json(path)
    if not isinstance(given, dict) or not all(isinstance(given.get(key), str) and given[key] for key in PLACES):
        raise InputError(f"does not name {', '.join(PLACES)}", where=path, cure="give each a folder, in quotes")
    return {key: (root / expanded(str(given[key]))).resolve() for key in (*PLACES, PRETRAINED) if given.get(key)}


def arguments(root: Path, script: str, given: Sequence[str] = ()) -> list[str]:
    """What the command `cellsignal` is told by a script of the archive; `given`: its own arguments, which come last."""
    places = settings(root)
    if script == "prepare_data":
        return [*_prepare(root, places["RAW_DATA_DIR"]), *given]
    paths = {"data": places["RAW_DATA_DIR"], "network.pretrained": places.get(PRETRAINED)}
    told = [part for key, path in paths.items() if path for part in ("-p", f"{key}={json.dumps(str(path))}")]
    way = {"train": "scratch", "predict": "weights"}[script]
    return ["run", str(root / PARAMS), *told, "--out", str(places["RUN_DIR"]), "--from", way, *given]


def hand_out(root: Path) -> Path:
    """Copy the submission of the run to where SETTINGS.json wants it."""
    places = settings(root)
    target = places["SUBMISSION_DIR"] / "submission.csv"
    with files.atomic_path(target) as temporary:
        shutil.copyfile(places["RUN_DIR"] / "submission.csv", temporary)
    return target


def _prepare(root: Path, data: Path) -> list[str]:
    """Draw the plates of a simulated run; look every image of real ones through."""
    values: dict[str, Any] = read_yaml(root / PARAMS)[0]
    if not values.get("preset"):
        return ["check", str(data)]
    return ["simulate", str(data), "--preset", values["preset"], "--seed", str(values.get("seed", 0))]
