"""The client's verbs against the small Kaggle, with both real clients."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from server import FakeKaggle

from cellsignal.publish import client as kaggle


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeKaggle]:
    with FakeKaggle(tmp_path / "kaggle") as server:
        yield server


def kernel(folder: Path, slug: str = "cellsignal-tiny-1-eda", **changes: object) -> Path:
    """A folder that can be pushed."""
    folder.mkdir(parents=True)
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "source": ["x = 1\n", "x"], "outputs": [], "execution_count": None}
    kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = {"cells": [cell], "metadata": {"kernelspec": kernelspec}, "nbformat": 4, "nbformat_minor": 5}
    (folder / "step.ipynb").write_text(json.dumps(notebook))
    metadata = {
        "id": f"alice/{slug}", "title": slug, "code_file": "step.ipynb", "language": "python", "kernel_type": "notebook",
        "is_private": True, "enable_gpu": False, "enable_tpu": False, "enable_internet": False, "dataset_sources": [],
        "competition_sources": [], "kernel_sources": [], "model_sources": [], "keywords": [], "machine_shape": "",
        "docker_image_pinning_type": "original",
    }  # fmt: skip
    (folder / "kernel-metadata.json").write_text(json.dumps(metadata | changes))
    return folder


def test_push_and_status(server: FakeKaggle, client: Path, connect: Callable[..., dict[str, str]], tmp_path: Path) -> None:
    connect(server, client)
    folder = kernel(tmp_path / "one")
    assert kaggle.push(folder) == 1
    assert kaggle.push(folder, seconds=600) == 2
    assert kaggle.kernel_status("alice/cellsignal-tiny-1-eda") == "COMPLETE"
    first, second = server.sent("SaveKernel")
    assert json.loads(first["text"])["cells"][0]["source"] == "x = 1\nx"
    assert second["sessionTimeoutSeconds"] == 600
