"""What made a result: the machine, the libraries, this package and its commit. Asks no library, which would take a GPU into use."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import cellsignal
from cellsignal import files
from cellsignal.code_identity import CODE_FILES, PACKAGE

BENCHMARK_LIBRARIES = (
    "torch", "torchvision", "timm", "albumentations", "albumentationsx", "opencv-python-headless", "scikit-image", "blosc2", "numpy", "pandas",
)  # fmt: skip


@cache
def hardware() -> dict[str, Any]:
    """CPU, cores that this process may use, GB of memory, GPUs."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = command_output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]).splitlines()
    return {"cpu": _cpu(), "cores": cores(), "memory_gb": round(memory / 1e9), "gpus": gpus}


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu() -> str:
    """The name of the CPU; "" where the system does not tell."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in told if line.startswith("model name")), platform.machine())


def command_output(command: list[str]) -> str:
    """What a program prints; "" when it is not there or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def versions(names: Iterable[str] = BENCHMARK_LIBRARIES) -> dict[str, str]:
    """The installed version of each distribution, "" where there is none."""
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def describe_machine(platform_name: str = "local", *, threads: int = 0) -> dict[str, Any]:
    """What `benchmark.json` says of where it was made: platform ("kaggle", "colab", "local"), hardware, system, Python, libraries.

    `threads`: how many a library may use for one operation, where somebody knows.
    """
    system = {"system": platform.platform(), "python": platform.python_version()}
    return {"platform": platform_name, **hardware(), **system, "threads": threads, "libraries": versions()}


# The provenance of a run: its parameters, this package and its commit, the libraries and the hardware.

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
        "hardware": hardware(),
        "libraries": versions(LIBRARIES),
    }


def code_digest(package: Path = PACKAGE) -> str:
    """SHA-256 over the names and contents of a package's code: the same here and in its uploaded copy."""
    digest = hashlib.sha256()
    for path in sorted((path for pattern in CODE_FILES for path in package.rglob(pattern)), key=lambda path: path.relative_to(package).as_posix()):
        digest.update(f"{path.relative_to(package).as_posix()} {files.sha256(path)}\n".encode())
    return digest.hexdigest()


@cache
def commit() -> str:
    """The commit of an uploaded package, else of the checkout, with "-dirty" when files differ from it."""
    if (PACKAGE / BUILD_FILE).is_file():
        return str(files.read_json(PACKAGE / BUILD_FILE).get("commit", ""))
    command = ["git", "-C", str(PACKAGE), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return command_output(command)


def _image_commit() -> str:
    try:
        return IMAGE_COMMIT.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
