"""Folders that the client can push and upload."""

import json
from pathlib import Path

SLUG = "alice/cellsignal-tiny-1-eda"


def kernel(folder: Path, **changes: object) -> Path:
    """A folder that can be pushed."""
    folder.mkdir(parents=True, exist_ok=True)
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "source": ["x = 1\n", "x"], "outputs": [], "execution_count": None}
    kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = {"cells": [cell], "metadata": {"kernelspec": kernelspec}, "nbformat": 4, "nbformat_minor": 5}
    (folder / "step.ipynb").write_text(json.dumps(notebook))
    metadata = {
        "id": SLUG, "title": SLUG.split("/")[1], "code_file": "step.ipynb", "language": "python", "kernel_type": "notebook",
        "is_private": True, "enable_gpu": False, "enable_tpu": False, "enable_internet": False, "dataset_sources": [],
        "competition_sources": [], "kernel_sources": [], "model_sources": [], "keywords": [], "machine_shape": "",
        "docker_image_pinning_type": "original",
    }  # fmt: skip
    (folder / "kernel-metadata.json").write_text(json.dumps(metadata | changes))
    return folder


def dataset(folder: Path) -> Path:
    """A folder of a data set: one file, one folder."""
    (folder / "package/inner/__pycache__").mkdir(parents=True)
    (folder / "package/inner/one.py").write_text("one = 1\n")
    (folder / "package/inner/__pycache__/one.pyc").write_bytes(b"old")
    (folder / "README.md").write_text("read me\n")
    metadata = {"id": "alice/cellsignal-utils", "title": "CellSignal utils", "licenses": [{"name": "MIT"}]}
    (folder / "dataset-metadata.json").write_text(json.dumps(metadata))
    return folder
