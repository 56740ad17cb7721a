"""The first cell of every notebook: where it finds the package, and what it says when there is none."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cellsignal.run import notebooks

ROOT = Path(__file__).resolve().parents[2]
Bootstrap = Callable[..., Path]


@pytest.fixture
def bootstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bootstrap:
    """bootstrap(*marks) runs the cell as if cellsignal was not installed; gives the folder it would import it from.

    /kaggle/input and /content are folders of tmp_path, `here` the current one.
    """
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*marks: str) -> Path:
        for name in marks:
            monkeypatch.setenv(name, "Batch")
        text = notebooks.source(notebooks.code_cells(ROOT / "kernels/1-eda/1-eda.ipynb")[1])
        search = text.partition("from cellsignal.run import session")[0].replace('find_spec("cellsignal")', "None")
        for place in ("/kaggle/input", "/content/cellsignal"):
            search = search.replace(f'"{place}"', f'"{tmp_path}{place}"')
        assert search.count(str(tmp_path)) == 2
        before = list(sys.path)
        exec(search, {})  # the cell is what is tested
        assert sys.path[1:] == before
        return Path(sys.path[0])

    return run


def package(folder: Path) -> Path:
    (folder / "cellsignal").mkdir(parents=True)
    (folder / "cellsignal/__init__.py").touch()
    return folder


@pytest.mark.parametrize(
    "mount",
    ["cellsignal-utils", "datasets/alice/cellsignal-utils", "datasets/Alice/Cellsignal-Utils", "my-upload/utils_dataset",
     "datasets/alice/my-upload/utils_dataset", "notebooks/alice/cellsignal-utils"],
)  # fmt: skip
def test_the_package_is_found_in_both_layouts(bootstrap: Bootstrap, tmp_path: Path, mount: str) -> None:
    (tmp_path / "kaggle/input/competitions/recursion/train").mkdir(parents=True)
    folder = package(tmp_path / "kaggle/input" / mount)
    assert bootstrap("COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE") == folder


def test_the_checkout_we_are_in_comes_first(bootstrap: Bootstrap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path / "kaggle/input/cellsignal-utils")
    folder = package(tmp_path / "here/utils_dataset")
    (tmp_path / "here/kernels/1-eda").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here/kernels/1-eda")
    assert bootstrap() == folder


def test_without_the_package_it_says_what_is_mounted_and_what_to_attach(bootstrap: Bootstrap, tmp_path: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match="attached is nothing; attach the data set cellsignal-utils"):
        bootstrap("KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG")
    (tmp_path / "kaggle/input/datasets/alice/other").mkdir(parents=True)
    with pytest.raises(ModuleNotFoundError) as caught:
        bootstrap("KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG")
    assert "datasets/alice/other" in str(caught.value) and "\n" not in str(caught.value)


def test_colab_clones_the_pinned_version_once_and_installs_it(
    bootstrap: Bootstrap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[Any]] = []

    def stand_in(command: list[Any], *, check: bool) -> None:
        commands.append(command)
        if command[0] == "git":
            package(Path(command[-1]) / "utils_dataset")

    monkeypatch.setattr(subprocess, "run", stand_in)
    clone = tmp_path / "content/cellsignal"
    assert bootstrap("COLAB_RELEASE_TAG") == clone / "utils_dataset"
    [git, pip] = commands
    assert git[:5] == ["git", "clone", "-q", "-b", "v0.1.0"] and git[5].startswith("https://github.com/")
    assert pip[1:] == ["-m", "pip", "install", "-q", f"{clone}/utils_dataset[local]"]
    bootstrap()
    assert [command[0] for command in commands] == ["git", sys.executable, sys.executable]
