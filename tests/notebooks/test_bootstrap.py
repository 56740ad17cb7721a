"""The first cell of every notebook: where it finds the package, and what it says when there is none."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cellsignal.run.chain import notebooks

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = "somebody/cellsignal"
Bootstrap = Callable[..., Path]


@pytest.fixture
def bootstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bootstrap:
    """bootstrap(*marks, repository=..., ref="v0.1.0") runs the cell as if cellsignal was not installed; gives the folder it would import it from.

    /kaggle/input and /content are folders of tmp_path, `here` the current one.
    """
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*marks: str, repository: str = REPOSITORY, ref: str = "v0.1.0") -> Path:
        for name in marks:
            monkeypatch.setenv(name, "Batch")
        text = notebooks.source(notebooks.code_cells(ROOT / "kernels/1-eda/1-eda.ipynb")[1])
        search = text.partition("from cellsignal.run.record import session")[0].replace('find_spec("cellsignal")', "None")
        for place in ("/kaggle/input", "/content/cellsignal"):
            search = search.replace(f'"{place}"', f'"{tmp_path}{place}"')
        assert search.count(str(tmp_path)) == 2
        search = re.sub('REPOSITORY, REF = ".*?", ".*?"', f'REPOSITORY, REF = "{repository}", "{ref}"', search)
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
    with pytest.raises(ModuleNotFoundError, match="attached is nothing; on Kaggle attach the data set cellsignal-utils, on Colab set REPOSITORY to OWNER/NAME on GitHub$"):
        bootstrap("KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG")
    (tmp_path / "kaggle/input/datasets/alice/other").mkdir(parents=True)
    with pytest.raises(ModuleNotFoundError) as caught:
        bootstrap("KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG")
    assert "datasets/alice/other" in str(caught.value) and "\n" not in str(caught.value)


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
        assert bootstrap("COLAB_RELEASE_TAG", ref=ref) == clone / "utils_dataset"
        assert (clone / "later").exists() == later


def test_colab_says_in_one_line_what_failed(bootstrap: Bootstrap, github: Callable[..., str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModuleNotFoundError, match="^cannot install somebody/cellsignal at v9: .*find remote ref v9; check the connection") as caught:
        bootstrap("COLAB_RELEASE_TAG", ref="v9")
    assert "\n" not in str(caught.value) and caught.value.__context__ is None
    assert capfd.readouterr().err == ""


def test_colab_without_a_connection_says_so_in_one_line(
    bootstrap: Bootstrap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gitconfig").write_text('[url "https://nowhere.invalid/"]\n insteadOf = https://github.com/\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    with pytest.raises(ModuleNotFoundError) as caught:
        bootstrap("COLAB_RELEASE_TAG")
    said = str(caught.value)
    assert said.startswith("cannot install somebody/cellsignal at v0.1.0: ") and said.endswith("; check the connection and both names")
    assert "nowhere.invalid" in said and "\n" not in said and capfd.readouterr().err == ""


def test_colab_asks_git_for_nothing_until_a_repository_is_set(bootstrap: Bootstrap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *asked, **options: pytest.fail(f"{asked}"))
    with pytest.raises(ModuleNotFoundError, match="on Colab set REPOSITORY to OWNER/NAME on GitHub$"):
        bootstrap("COLAB_RELEASE_TAG", repository="")


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
    assert bootstrap("COLAB_RELEASE_TAG") == clone / "utils_dataset"
    assert [command[0] for command in commands] == ["git", "git", "git", sys.executable]
    assert commands[1][3:] == ["fetch", "-q", "--depth", "1", f"https://github.com/{REPOSITORY}", "v0.1.0"]
    assert commands[3][1:] == ["-m", "pip", "install", "-q", f"{clone}/utils_dataset[local]"]
