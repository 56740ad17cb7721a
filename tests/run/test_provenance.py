"""What made a run: the same code has one digest wherever it lies, and an uploaded package knows its commit."""

import shutil
from pathlib import Path

import pytest

from cellsignal import files
from cellsignal.run import environment
from cellsignal import provenance


def test_a_copy_has_the_digest_of_the_package_and_other_code_another(tmp_path: Path) -> None:
    copy = tmp_path / "utils_dataset/cellsignal"
    shutil.copytree(environment.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    files.write_json(copy / provenance.BUILD_FILE, {"commit": "c" * 40})
    assert provenance.code_digest(copy) == provenance.code_digest()
    (copy / "run/chain/steps.py").rename(copy / "run/stages.py")
    renamed = provenance.code_digest(copy)
    with open(copy / "errors.py", "a", encoding="utf-8") as stream:
        stream.write("\n")
    assert len({provenance.code_digest(), renamed, provenance.code_digest(copy)}) == 3


def test_an_uploaded_package_tells_the_commit_it_was_built_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provenance.commit.cache_clear()
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path)
    files.write_json(tmp_path / provenance.BUILD_FILE, {"commit": "c" * 40, "code": "d"})
    assert provenance.commit() == "c" * 40
    provenance.commit.cache_clear()
    (tmp_path / provenance.BUILD_FILE).unlink()
    assert provenance.commit() == ""  # no checkout either
    provenance.commit.cache_clear()


def test_the_image_is_told_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "IMAGE_COMMIT", tmp_path / "git_commit")
    assert provenance.describe({})["image"] == ""
    (tmp_path / "git_commit").write_text("78aaa43\n")
    assert provenance.describe({"seed": 1}) | {"image": "78aaa43", "parameters": {"seed": 1}} == provenance.describe({"seed": 1})
