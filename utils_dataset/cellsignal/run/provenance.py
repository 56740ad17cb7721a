"""What made a run: its parameters, this package, its commit and the libraries under it."""

import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import cellsignal
from cellsignal.run.paths import PACKAGE

LIBRARIES = (
    "albumentations", "ipykernel", "nbconvert", "numpy", "opencv-python-headless", "pandas", "papermill",
    "pyarrow", "pydantic", "safetensors", "scikit-learn", "scipy", "torch", "torchvision",
)  # fmt: skip


def describe(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The content of recipe.json: parameters, version, commit ("" outside a checkout), library versions."""
    return {
        "parameters": dict(parameters),
        "cellsignal": cellsignal.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: _version(name) for name in LIBRARIES},
    }


def _commit() -> str:
    """The checkout's commit, with "-dirty" when files differ from it."""
    command = ["git", "-C", str(PACKAGE), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
