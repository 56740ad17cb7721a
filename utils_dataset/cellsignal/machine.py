"""What machine this is; asks no library, which would take a GPU into use."""

import os
import platform
import subprocess
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = (
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


def versions(names: Iterable[str] = LIBRARIES) -> dict[str, str]:
    """The installed version of each distribution, "" where there is none."""
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def machine(place: str = "local", *, threads: int = 0) -> dict[str, Any]:
    """What `benchmark.json` says of where it was made: place ("kaggle", "colab", "local"), hardware, system, Python, libraries.

    `threads`: how many a library may use for one operation, where somebody knows.
    """
    system = {"system": platform.platform(), "python": platform.python_version()}
    return {"place": place, **hardware(), **system, "threads": threads, "libraries": versions()}
