"""The set-up of every notebook: where it finds the package, and what it says when there is none; and the cell for Colab before it."""

import importlib
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from cellsignal.kaggle import colab
from cellsignal.run import environment
from cellsignal.run.chain import notebooks

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = "somebody/cellsignal"
Bootstrap = Callable[..., Path]


@pytest.fixture
def bootstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bootstrap:
    """bootstrap(*marks, repository="", ref="v0.1.0") runs the cells as if cellsignal was not installed; gives the folder it would import it from.

    The first cell is there when there is a repository. /kaggle/input and /content are folders of tmp_path, `here` the current one.
    """
    installed = [*map(Path, sys.path), environment.PACKAGE.parent]
    monkeypatch.setattr(sys, "path", [str(place) for place in installed if place.is_absolute() and not (place / "cellsignal").is_dir()])
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if "editable" not in str(finder)])
    for name in ("COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in sys.modules if name.split(".")[0] == "cellsignal"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*marks: str, repository: str = "", ref: str = "v0.1.0") -> Path:
        for name in marks:
            monkeypatch.setenv(name, "Batch")
        [setup] = [text for cell in notebooks.code_cells(ROOT / "kernels/1-eda/1-eda.ipynb") if "cellsignal.start(" in (text := notebooks.source(cell))]
        before = list(sys.path)
        for text in [*[colab.source(repository, ref)] * bool(repository), setup.partition("import cellsignal\n")[0]]:
            for place in ("/kaggle/input", "/content/cellsignal"):
                text = text.replace(f'"{place}', f'"{tmp_path}{place}')
            exec(text, {})  # the cells are what is tested
        importlib.invalidate_caches()
        assert sys.path[: len(before)] == before, "what is installed comes first"
        return Path(find_spec("cellsignal").origin).parent.parent

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


def test_without_the_package_it_says_where_it_looked_and_what_to_attach(bootstrap: Bootstrap, tmp_path: Path) -> None:
    (tmp_path / "kaggle/input/datasets/alice/other").mkdir(parents=True)
    (tmp_path / "here/cellsignal").mkdir()  # a folder of this name is no package
    with pytest.raises(AssertionError, match=f"^no cellsignal in {tmp_path / 'here'}, .*on Kaggle attach the data set cellsignal-utils") as caught:
        bootstrap("KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG")
    assert "input/datasets/alice/other" in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_installed_comes_before_what_is_attached(bootstrap: Bootstrap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path / "kaggle/input/cellsignal-utils")
    monkeypatch.setattr(sys, "path", [str(package(tmp_path / "site")), *sys.path])  # `syspath_prepend` would keep what the fixture took out
    assert bootstrap() == tmp_path / "site"


@pytest.fixture
def github(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """github(*arguments) asks Git about a repository that stands in for the one on GitHub; pip is left out."""
    home = tmp_path / "github"
    package(home / "utils_dataset")
    settings = tmp_path / "gitconfig"
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    settings.write_text(f'[url "file://{home}"]\n insteadOf = https://github.com/{REPOSITORY}\n'
                        "[user]\n name = a\n email = a@b\n")
    real = subprocess.run

    def without_pip(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return real(["true"] if "pip" in command else command, **options)

    def git(*arguments: str) -> str:
        return real(["git", "-C", str(home), *arguments], capture_output=True, text=True, check=True).stdout.strip()

    monkeypatch.setattr(subprocess, "run", without_pip)
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-qm", "first"], ["tag", "v0.1.0"]):
        git(*command)
    (home / "later").touch()
    for command in (["add", "-A"], ["commit", "-qm", "second"]):
        git(*command)
    return git


@pytest.mark.parametrize("kind, later", [("v0.1.0", False), ("main", True), ("commit", False)])
def test_colab_fetches_a_tag_a_branch_or_a_commit(
    bootstrap: Bootstrap, tmp_path: Path, github: Callable[..., str], kind: str, later: bool
) -> None:
    ref = github("rev-parse", "v0.1.0") if kind == "commit" else kind
    clone = tmp_path / "content/cellsignal"
    for _ in range(2):  # and once more, after an installation that failed
        assert bootstrap("COLAB_RELEASE_TAG", repository=REPOSITORY, ref=ref) == clone / "utils_dataset"
        assert (clone / "later").exists() == later


def test_colab_says_in_one_line_what_failed(bootstrap: Bootstrap, github: Callable[..., str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModuleNotFoundError, match="^cannot install somebody/cellsignal at v9: .*find remote ref v9; check the connection") as caught:
        bootstrap("COLAB_RELEASE_TAG", repository=REPOSITORY, ref="v9")
    assert "\n" not in str(caught.value) and caught.value.__context__ is None
    assert capfd.readouterr().err == ""


def test_colab_without_a_connection_says_so_in_one_line(
    bootstrap: Bootstrap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gitconfig").write_text('[url "https://nowhere.invalid/"]\n insteadOf = https://github.com/\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    with pytest.raises(ModuleNotFoundError) as caught:
        bootstrap("COLAB_RELEASE_TAG", repository=REPOSITORY)
    said = str(caught.value)
    assert said.startswith("cannot install somebody/cellsignal at v0.1.0: ") and said.endswith("; check the connection and both names")
    assert "nowhere.invalid" in said and "\n" not in said and capfd.readouterr().err == ""


@pytest.mark.parametrize("marks", [(), ("COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE")])
def test_elsewhere_the_cell_for_colab_does_nothing(bootstrap: Bootstrap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, marks: tuple[str, ...]) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *asked, **options: pytest.fail(f"{asked}"))
    folder = package(tmp_path / "kaggle/input/cellsignal-utils")
    assert bootstrap(*marks, repository=REPOSITORY) == folder


def test_colab_fetches_nothing_where_the_package_is_installed(bootstrap: Bootstrap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the notebooks that a chain starts there."""
    monkeypatch.setattr(subprocess, "run", lambda *asked, **options: pytest.fail(f"{asked}"))
    monkeypatch.setattr(sys, "path", [str(package(tmp_path / "site")), *sys.path])  # `syspath_prepend` would keep what the fixture took out
    assert bootstrap("COLAB_RELEASE_TAG", repository=REPOSITORY) == tmp_path / "site"


def test_colab_installs_what_it_fetched_and_asks_nobody_for_a_password(
    bootstrap: Bootstrap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def stand_in(command: list[str], *, env: dict[str, str], **options: bool) -> subprocess.CompletedProcess[str]:
        assert env["GIT_TERMINAL_PROMPT"] == "0"
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", stand_in)
    clone = tmp_path / "content/cellsignal"
    package(clone / "utils_dataset")
    assert bootstrap("COLAB_RELEASE_TAG", repository=REPOSITORY) == clone / "utils_dataset"
    assert [command[0] for command in commands] == ["git", "git", "git", sys.executable]
    assert commands[1][3:] == ["fetch", "-q", "--depth", "1", f"https://github.com/{REPOSITORY}", "v0.1.0"]
    assert commands[3][1:] == ["-m", "pip", "install", "-q", f"{clone}/utils_dataset[local]"]
