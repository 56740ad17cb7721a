"""Files: what a killed writer left is removed, and nothing else."""

import os
from pathlib import Path
from typing import Any

import pytest

from cellsignal import files, shapes
from cellsignal.errors import InputError


def test_sweep_takes_our_own_orphans_in_our_own_rooms(tmp_path: Path) -> None:
    ours = [".partial-7-report.html", "weights/U2OS/.partial-12-model.json"]
    others = [".partial-notes.txt", "weights/.partial-draft", "thesis/.partial-7-chapter.tex", "weights/model.json"]
    for name in ours + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("half")
    assert sorted(files.sweep(tmp_path, ("weights", "scores"))) == sorted(tmp_path / name for name in ours)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(tmp_path / name for name in others)


@pytest.mark.parametrize("name", ["HUVEC", "HUVEC-01", "CD4+", "iPS cells_2.1", "Zähne", "cafe\u0301", "न्यूरॉन", "x" * 64, "0"])
def test_names_of_laboratories_are_plain(name: str) -> None:
    assert files.is_plain(name)


@pytest.mark.parametrize("name", ["", ".", "..", ".bashrc", "a/b", "a\\b", "a\0", "a\n", " a", "a ", "a.", "a-", "-a", "_a", "=1+1", "a$b", "a*", "x" * 65])
def test_names_that_are_paths_or_patterns_are_not_plain(name: str) -> None:
    assert not files.is_plain(name)


OUTSIDE = ["../x", "a/../../x", "/etc/passwd", "", ".", "a/", "a//b", "./a", "a\\..\\x", "a\0b", "\ud800", 5, None, ["a"]]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leads_out_is_refused(tmp_path: Path, name: Any) -> None:
    with pytest.raises(InputError) as refused:
        files.inside(tmp_path, name, source="s3://bucket")
    words = f"s3://bucket: names a file {' '.join(repr(name).split())}, which would lie outside {tmp_path}; take nothing from it that you do not trust"
    assert str(refused.value) == words


def test_a_link_may_lie_on_the_way_if_it_stays_inside(tmp_path: Path) -> None:
    (tmp_path / "run/there").mkdir(parents=True)
    (tmp_path / "run/link").symlink_to("there")
    (tmp_path / "run/out").symlink_to(tmp_path)
    (tmp_path / "alias").symlink_to("run")
    assert files.inside(tmp_path / "run", "link/new.txt") == tmp_path / "run/link/new.txt"
    assert files.inside(tmp_path / "alias", "there/new.txt") == tmp_path / "alias/there/new.txt"
    for name in ("out", "out/new.txt"):
        with pytest.raises(InputError, match=f"^{tmp_path}/run/{name}: is a link that leads out of its folder, or lies behind one; put a folder"):
            files.inside(tmp_path / "run", name)


def test_processes_of_the_same_number_write_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in containers, where everybody is process 1."""
    monkeypatch.setattr("os.getpid", lambda: 1)
    with files.replacing(tmp_path / "a.txt") as first, files.replacing(tmp_path / "a.txt") as second:
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a.txt").read_text() == "first"
    assert files.sweep(tmp_path, ()) == [] and files.partial(tmp_path / "a.txt").name.startswith(".partial-1-")
    files.partial(tmp_path / "a.txt").write_text("half")
    assert len(files.sweep(tmp_path, ())) == 1


@pytest.mark.parametrize(("text", "why"), [
    ("[" * 5000 + "]" * 5000, "nested too deeply"),
    ('{"a":' * 5000 + "1" + "}" * 5000, "nested too deeply"),
    ("9" * 6000, "a number of too many digits"),
    ("[1", "Expecting ',' delimiter: line 1 column 3 (char 2)"),
])  # fmt: skip
def test_json_that_cannot_be_read_says_why_in_one_line(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError) as refused:
        files.read_json(tmp_path / "a.json")
    assert str(refused.value) == f"{tmp_path}/a.json: not readable as JSON ({why}); {files.AGAIN}"


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.json"
    {"pipe": lambda: os.mkfifo(path), "device": lambda: path.symlink_to("/dev/zero"), "folder": path.mkdir}[kind]()
    with pytest.raises(InputError, match=f"^{path}: is no regular file; put the file itself there$"):
        files.read_json(path)


@pytest.mark.parametrize(("change", "fault"), [
    ({"outputs": ["a"]}, "outputs: input should be a valid dictionary"),
    ({"outputs": {"a": 1}}, "outputs.a: input should be a valid string"),
    ({"seconds": "9"}, "seconds: input should be a valid number"),
    ({"seconds": True}, "seconds: input should be a valid number"),
    ({"seconds": 10**400}, "seconds: input should be a valid number"),
    ({"identity": None}, "identity: input should be a valid dictionary"),
])  # fmt: skip
def test_the_key_that_is_of_another_shape_is_named(tmp_path: Path, change: dict[str, Any], fault: str) -> None:
    marker = {"identity": {}, "outputs": {}, "pages": {}, "seconds": 1, "of a later version": 3}
    files.write_json(tmp_path / "a.json", marker)
    assert files.read_json(tmp_path / "a.json", shapes.Marker) == marker
    files.write_json(tmp_path / "a.json", {**marker, **change})
    with pytest.raises(InputError) as refused:
        files.read_json(tmp_path / "a.json", shapes.Marker)
    assert str(refused.value) == f"{tmp_path}/a.json: is not as it was written ({fault}); {files.AGAIN}"
