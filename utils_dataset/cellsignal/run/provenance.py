"""What made a run: its parameters, this package, its commit and the libraries under it."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import cellsignal
from cellsignal import files
from cellsignal.run.paths import PACKAGE

LIBRARIES = (
    "accelerate", "albumentations", "ipykernel", "nbconvert", "numpy", "opencv-python-headless", "pandas", "papermill",
    "pyarrow", "pydantic", "safetensors", "scikit-learn", "scipy", "torch", "torchvision",
)  # fmt: skip
BUILD = "build.json"  # beside the package where it was uploaded: the commit it was built from
IMAGE = Path("/etc/git_commit")  # of Kaggle's image


def describe(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The content of recipe.json: parameters, version, commit ("" where unknown), library versions."""
    return {
        "parameters": dict(parameters),
        "cellsignal": cellsignal.__version__,
        "code": code_digest(),
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "image": _image(),
        "hardware": _hardware(),
        "libraries": {name: _version(name) for name in LIBRARIES},
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
    if (PACKAGE / BUILD).is_file():
        return str(files.read_json(PACKAGE / BUILD).get("commit", ""))
    command = ["git", "-C", str(PACKAGE), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return _said(command)


@cache
def _hardware() -> dict[str, Any]:
    """CPU, cores that this process may use, GB of memory, GPUs; asks no library, which would take a GPU into use."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = _said(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]).splitlines()
    return {"cpu": _cpu(), "cores": cores, "memory_gb": round(memory / 1e9), "gpus": gpus}


def _cpu() -> str:
    """The name of the CPU; "" where the system does not tell."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in told if line.startswith("model name")), platform.machine())


def _said(command: list[str]) -> str:
    """What a program prints; "" when it is not there or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _image() -> str:
    try:
        return IMAGE.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
