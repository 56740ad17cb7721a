"""Colab: each notebook's badge opens that notebook, and a cell before the set-up installs what the badge shows."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from typer.testing import CliRunner

from cellsignal.cli.main import app
from cellsignal.errors import InputError
from cellsignal.kaggle import colab, kernel_folders
from cellsignal.kaggle.colab import origin, write_links
from cellsignal.run import environment

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("kernels/*/*.ipynb"))
SECRET = "ghp_0123456789abcdefghij"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what `colab init` writes, the folder where we stand."""
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "kernels", root / "kernels", symlinks=True)
    shutil.copy(ROOT / "README.md", root / "README.md")
    monkeypatch.setattr(environment, "repository", lambda: root)
    monkeypatch.chdir(root)
    return root


def source(root: Path, notebook: str) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads((root / notebook).read_text())["cells"]]


def git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True)


def test_the_tracked_files_have_badges_where_a_repository_is_set() -> None:
    """And README and notebooks agree on repository and ref, whoever has published them where."""
    [(repository, ref)] = {re.search('^REPOSITORY, REF = "(.*?)", "(.*?)"', text, re.MULTILINE).groups()
                           for name in NOTEBOOKS for text in source(ROOT, name) if "REPOSITORY, REF" in text} or {("", "")}  # fmt: skip
    readme = (ROOT / "README.md").read_text()
    if not repository:
        assert not [name for name in NOTEBOOKS if "Open in Colab" in (ROOT / name).read_text()] and "Open in Colab" not in readme
    for name in NOTEBOOKS if repository else ():
        button = colab.badge(repository, ref, name)
        assert source(ROOT, name)[0].splitlines()[2] == button
        assert f"]({name}) {button} |" in readme


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_badge_and_origin_of_a_notebook(checkout: Path, notebook: str) -> None:
    write_links(checkout, "somebody/her-fork", "v9.9.9")
    title, empty, button, *_ = source(checkout, notebook)[0].splitlines()
    assert title.startswith("# ") and empty == ""
    assert button.endswith(f"(https://colab.research.google.com/github/somebody/her-fork/blob/v9.9.9/{notebook})")
    [line] = [line for text in source(checkout, notebook)[1:] for line in text.splitlines() if line.startswith("REPOSITORY")]
    assert line.startswith('REPOSITORY, REF = "somebody/her-fork", "v9.9.9"')
    cells = json.loads((checkout / notebook).read_text())["cells"]
    [place] = [number for number, cell in enumerate(cells) if colab.is_cell(cell)]
    assert cells[place - 1]["cell_type"] == "markdown" and "cellsignal.start(" in "".join(cells[place + 1]["source"])
    nbformat.validate(nbformat.read(checkout / notebook, as_version=4))


def test_nothing_else_changes_and_the_way_back_is_exact(checkout: Path) -> None:
    before = {name: (checkout / name).read_text() for name in [*NOTEBOOKS, "README.md"]}
    write_links(checkout, "c/d", "v0.1.0")
    filled = {name: (checkout / name).read_text() for name in before}
    assert {path.relative_to(checkout).as_posix() for path in write_links(checkout, "a/b", "main")} == set(before)
    for name, text in filled.items():
        old, new = text.splitlines(), (checkout / name).read_text().splitlines()
        differ = [ours for ours, theirs in zip(old, new, strict=True) if ours != theirs]
        assert len(differ) == (len(NOTEBOOKS) if name == "README.md" else 2)
    write_links(checkout, "c/d", "v0.1.0")
    assert filled == {name: (checkout / name).read_text() for name in before}


def test_a_badge_is_taken_out_as_it_was_put_in(checkout: Path) -> None:
    before = {name: source(checkout, name)[0] for name in NOTEBOOKS}
    write_links(checkout, "a/b", "main")
    for name, text in before.items():
        assert "Open in Colab" in source(checkout, name)[0]
        assert colab.without_badge(source(checkout, name)[0]) == colab.without_badge(text)


def test_what_is_pushed_to_kaggle_knows_nothing_of_colab(checkout: Path) -> None:
    texts = {name: kernel_folders.notebook_text(checkout / name, {}) for name in NOTEBOOKS}
    write_links(checkout, "a/b", "main")
    assert texts == {name: kernel_folders.notebook_text(checkout / name, {}) for name in NOTEBOOKS}
    assert not [text for text in texts.values() if "REPOSITORY" in text or "Open in Colab" in text]


def test_badges_are_made_where_there_are_none(checkout: Path) -> None:
    write_links(checkout, "a/b", "main")
    whole = {name: (checkout / name).read_text() for name in [*NOTEBOOKS, "README.md"]}
    for name in whole:
        stripped = re.sub(r" \[!\[Open.*?\)\]\(.*?\)", "", whole[name])
        if name != "README.md":
            cells = json.loads(stripped)
            first = "".join(cells["cells"][0]["source"])
            cells["cells"][0]["source"] = re.sub(r"\[!\[Open.*?\)\]\(.*?\)\n\n", "", first)
            stripped = json.dumps(cells, indent=1, ensure_ascii=False) + "\n"
        assert "Open in Colab" not in stripped
        (checkout / name).write_text(stripped)
    write_links(checkout, "a/b", "main")
    for name in NOTEBOOKS:
        assert source(checkout, name)[0] == "".join(json.loads(whole[name])["cells"][0]["source"])
    assert (checkout / "README.md").read_text() == whole["README.md"]


def test_the_command_and_its_second_call(checkout: Path) -> None:
    first = CliRunner().invoke(app, ["colab", "init", "--repository", "somebody/cellsignal", "--ref", "v2"])
    assert (first.exit_code, first.stdout.count("\n")) == (0, 2)
    assert first.stdout.startswith(f"{len(NOTEBOOKS) + 1} files now lead to somebody/cellsignal at v2")
    assert "knows no tag, branch or commit v2 here" in first.stdout
    second = CliRunner().invoke(app, ["colab", "init", "--repository", "somebody/cellsignal", "--ref", "v2"])
    assert second.stdout.startswith("all files lead to somebody/cellsignal at v2 already\n")


def test_a_ref_that_is_there_needs_no_note(checkout: Path) -> None:
    git(checkout, "init", "-q")
    git(checkout, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "first")
    git(checkout, "tag", "v2")
    said = CliRunner().invoke(app, ["colab", "init", "--repository", "somebody/cellsignal", "--ref", "v2"]).stdout
    assert said == f"{len(NOTEBOOKS) + 1} files now lead to somebody/cellsignal at v2; commit and push them\n"


def test_a_commit_is_written_whole(checkout: Path) -> None:
    git(checkout, "init", "-q")
    git(checkout, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "first")
    commit = colab.commit_of(checkout, "HEAD")
    for ref in (commit[:8], commit[:8].upper(), commit):
        assert colab.init(repository="a/b", ref=ref)[1] == commit
    assert [text for text in source(checkout, NOTEBOOKS[0]) if f'REPOSITORY, REF = "a/b", "{commit}"' in text]


@pytest.mark.parametrize(
    "address",
    ["https://github.com/some-body/cell.signal", "https://github.com/some-body/cell.signal.git", "https://github.com/some-body/cell.signal/",
     "git@github.com:some-body/cell.signal.git", "ssh://git@github.com/some-body/cell.signal.git",
     f"https://{SECRET}@github.com/some-body/cell.signal.git", f"https://user:{SECRET}@github.com/some-body/cell.signal"],
)  # fmt: skip
def test_origin_tells_the_repository(checkout: Path, address: str) -> None:
    git(checkout, "init", "-q")
    git(checkout, "remote", "add", "origin", address)
    assert origin(checkout) == "some-body/cell.signal"
    said = CliRunner().invoke(app, ["colab", "init"])
    assert said.exit_code == 0 and "some-body/cell.signal at v" in said.stdout
    assert not [path for path in checkout.rglob("*") if path.is_file() and ".git" not in path.parts and SECRET in path.read_text(errors="ignore")]


@pytest.mark.parametrize("address", ["", f"https://{SECRET}@gitlab.example/a/b.git", "/somewhere/on/this/disk", "https://github.com.evil.example/a/b"])
def test_an_origin_elsewhere_is_refused_without_quoting_it(checkout: Path, refused: Callable[..., str], address: str) -> None:
    git(checkout, "init", "-q")
    if address:
        git(checkout, "remote", "add", "origin", address)
    before = (checkout / "README.md").read_text()
    message = refused("colab", "init")
    assert "--repository OWNER/NAME" in message and SECRET not in message and (not address or address not in message)
    assert (checkout / "README.md").read_text() == before


@pytest.mark.parametrize("repository", ["cellsignal", "a/b/c", "https://github.com/a/b", "-a/b", "a/b c", "a/..", "a/b.git", "ä/b", 'a/"b', "a/b\n"])
def test_names_that_cannot_be(checkout: Path, refused: Callable[..., str], repository: str) -> None:
    assert "write OWNER/NAME" in refused("colab", "init", "--repository", repository)


@pytest.mark.parametrize("ref", ["-b", "--upload-pack=touch", "a b", "a..b", "v1/", "a.lock", 'v"1', "$(id)", "v1;ls", "v1\n", "/v1"])
def test_refs_that_cannot_be(checkout: Path, refused: Callable[..., str], ref: str) -> None:
    assert "is no tag, branch or commit" in refused("colab", "init", "--repository", "a/b", f"--ref={ref}")


def test_a_notebook_that_lost_its_first_cell_stops_everything(checkout: Path) -> None:
    text = (checkout / NOTEBOOKS[-1]).read_text()
    (checkout / NOTEBOOKS[-1]).write_text(text.replace("cellsignal.start(", "cellsignal.begin("))
    before = {path: path.read_text() for path in checkout.rglob("*.ipynb")}
    with pytest.raises(InputError, match=r"0 cells call cellsignal.start\(\); git checkout .*/kernels/.*/.*\.ipynb$"):
        write_links(checkout, "a/b", "v2")
    assert before == {path: path.read_text() for path in before}


def test_no_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]) -> None:
    monkeypatch.setattr(environment, "repository", lambda: None)
    assert "no checkout of the bundle" in refused("colab", "init", "--repository", "a/b")


def test_a_notebook_that_another_editor_saved_gets_its_badge_too(checkout: Path) -> None:
    path = checkout / "kernels/1-eda/1-eda.ipynb"
    saved = json.loads(path.read_text()) | {"nbformat_minor": 0, "metadata": {"colab": {"provenance": []}}}
    for cell in saved["cells"]:
        cell["metadata"]["id"] = cell.pop("id")
    del saved["cells"][3]["metadata"]
    saved["cells"].insert(0, {"cell_type": "code", "metadata": {}, "source": "1 + 1", "outputs": [], "execution_count": None})
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(saved, indent=1).replace("\n", "\r\n").encode())
    write_links(checkout, "a/b", "main")
    written = json.loads(path.read_text(encoding="utf-8"))
    nbformat.validate(written)
    assert written["cells"][0]["source"] == "1 + 1" and "".join(written["cells"][1]["source"]).splitlines()[2] == colab.badge("a/b", "main", "kernels/1-eda/1-eda.ipynb")


@pytest.mark.parametrize("cells, fault", [([], "no cell has a title for the badge"), ([{"cell_type": "markdown", "source": "# x"}], "0 cells call cellsignal.start()")])
def test_a_notebook_without_title_or_set_up_is_refused_and_nothing_written(checkout: Path, cells: list[dict[str, str]], fault: str) -> None:
    (checkout / "kernels/profiles/profiles.ipynb").write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}))
    before = {name: (checkout / name).read_bytes() for name in [*NOTEBOOKS, "README.md"]}
    with pytest.raises(InputError) as caught:
        write_links(checkout, "a/b", "main")
    notebook = checkout / "kernels/profiles/profiles.ipynb"
    assert str(caught.value) == f"{notebook}: {fault}; git checkout {notebook}"
    assert before == {name: (checkout / name).read_bytes() for name in before}
