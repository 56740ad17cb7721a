"""The provenance of a run: its parameters, this package and its commit, the libraries and the hardware."""

import hashlib
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import cellsignal
from cellsignal import files, machine
from cellsignal.run.environment import PACKAGE

LIBRARIES = (
    "accelerate", "albumentations", "albumentationsx", "ipykernel", "nbconvert", "numpy", "opencv-python-headless", "pandas", "papermill",
    "pyarrow", "pydantic", "safetensors", "scikit-learn", "scipy", "torch", "torchvision",
)  # fmt: skip
BUILD_FILE = "build.json"  # in the uploaded package: the commit it was built from
IMAGE_COMMIT = Path("/etc/git_commit")  # of Kaggle's image


def describe(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The content of recipe.json: parameters, versions, commit ("" where unknown) and hardware."""
    return {
        "parameters": dict(parameters),
        "cellsignal": cellsignal.__version__,
        "code": code_digest(),
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "image": _image_commit(),
        "hardware": machine.hardware(),
        "libraries": machine.versions(LIBRARIES),
    }


def code_digest(package: Path = PACKAGE) -> str:
    """SHA-256 over the names and contents of a package's Python files: the same here and in its uploaded copy."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py"), key=lambda path: path.relative_to(package).as_posix()):
        digest.update(f"{path.relative_to(package).as_posix()} {files.sha256(path)}\n".encode())
    return digest.hexdigest()


@cache
def commit() -> str:
    """The commit of an uploaded package, else of the checkout, with "-dirty" when files differ from it."""
    if (PACKAGE / BUILD_FILE).is_file():
        return str(files.read_json(PACKAGE / BUILD_FILE).get("commit", ""))
    command = ["git", "-C", str(PACKAGE), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return machine.command_output(command)


def _image_commit() -> str:
    try:
        return IMAGE_COMMIT.read_text(encoding="utf-8").strip()
    except OSError:
        return ""

