"""Files: whole or absent, wherever a name leads and whatever the file system cannot do."""

import os
import errno
import fcntl
import resource
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cellsignal import files
from cellsignal.errors import InputError, system_error
from cellsignal.run.record import step_receipts


def failing(code: int, *, only: Callable[..., bool] = lambda *arguments: True) -> Callable[..., None]:
    """What stands in for a call of the system that a file system does not know."""

    def call(*arguments: object) -> None:
        if only(*arguments):
            raise OSError(code, os.strerror(code))

    return call


def test_sweep_takes_our_own_orphans_in_our_own_rooms(tmp_path: Path) -> None:
    ours = [".partial-7-report.html", "weights/U2OS/.partial-12-model.json"]
    others = [".partial-notes.txt", "weights/.partial-draft", "thesis/.partial-7-chapter.tex", "weights/model.json"]
    for name in ours + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("half")
    assert sorted(files.remove_temporary(tmp_path, ("weights", "scores"))) == sorted(tmp_path / name for name in ours)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(tmp_path / name for name in others)


@pytest.mark.parametrize("name", ["HUVEC", "HUVEC-01", "CD4+", "iPS cells_2.1", "Zähne", "cafe\u0301", "न्यूरॉन", "x" * 64, "0"])
def test_names_of_laboratories_are_plain(name: str) -> None:
    assert files.is_plain(name)


@pytest.mark.parametrize("name", ["", ".", "..", ".bashrc", "a/b", "a\\b", "a\0", "a\n", " a", "a ", "a.", "a-", "-a", "_a", "=1+1", "a$b", "a*", "x" * 65])
def test_names_that_are_paths_or_patterns_are_not_plain(name: str) -> None:
    assert not files.is_plain(name)


OUTSIDE = ["../x", "a/../../x", "/etc/passwd", "", ".", "a/", "a//b", "./a", "a\\..\\x", "a\0b", "\ud800", "x" * 256, "é" * 128, "a/" * 512 + "b", 5, None, ["a"]]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leads_out_is_refused(tmp_path: Path, name: Any) -> None:
    with pytest.raises(InputError) as refused:
        files.inside(tmp_path, name, source="s3://bucket")
    words = f"s3://bucket: names a file {' '.join(repr(name).split())}, which cannot lie in {tmp_path}; take nothing from it that you do not trust"
    assert str(refused.value) == words


def test_a_link_may_lie_on_the_way_if_it_stays_inside(tmp_path: Path) -> None:
    (tmp_path / "run/there").mkdir(parents=True)
    (tmp_path / "run/link").symlink_to("there")
    (tmp_path / "run/out").symlink_to(tmp_path)
    (tmp_path / "alias").symlink_to("run")
    assert files.inside(tmp_path / "run", "link/new.txt") == tmp_path / "run/link/new.txt"
    assert files.inside(tmp_path / "alias", "there/new.txt") == tmp_path / "alias/there/new.txt"
    assert files.inside(tmp_path / "run", "x" * 255) == tmp_path / "run" / ("x" * 255)
    for name in ("out", "out/new.txt"):
        with pytest.raises(InputError, match=f"^{tmp_path}/run/{name}: is a link that leads out of its folder, or lies behind one; put a folder"):
            files.inside(tmp_path / "run", name)


def test_processes_of_the_same_number_write_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in containers, where everybody is process 1."""
    monkeypatch.setattr("os.getpid", lambda: 1)
    with files.atomic_path(tmp_path / "a.txt") as first, files.atomic_path(tmp_path / "a.txt") as second:
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a.txt").read_text() == "first"
    assert files.remove_temporary(tmp_path, ()) == [] and files.temporary_path(tmp_path / "a.txt").name.startswith(".partial-1-")
    files.temporary_path(tmp_path / "a.txt").write_text("half")
    assert len(files.remove_temporary(tmp_path, ())) == 1


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
    assert str(refused.value) == f"{tmp_path}/a.json: not readable as JSON ({why}); {files.RERUN_STEP}"


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.json"
    {"pipe": lambda: os.mkfifo(path), "device": lambda: path.symlink_to("/dev/zero"), "folder": path.mkdir}[kind]()
    with pytest.raises(InputError, match=f"^{path}: is no regular file; put the file itself there$"):
        files.read_json(path)


@pytest.mark.parametrize(("change", "fault"), [
    ({"attached_files": ["a"]}, "attached_files: input should be a valid dictionary"),
    ({"attached_files": {"a": 1}}, "attached_files.a: input should be a valid string"),
    ({"seconds": "9"}, "seconds: input should be a valid number"),
    ({"seconds": True}, "seconds: input should be a valid number"),
    ({"seconds": 10**400}, "seconds: input should be a valid number"),
    ({"parameters": None}, "parameters: input should be a valid dictionary"),
])  # fmt: skip
def test_the_key_that_is_of_another_shape_is_named(tmp_path: Path, change: dict[str, Any], fault: str) -> None:
    details = {"parameters": {}, "code": "", "attached_files": {}, "progress": "", "seconds": 1, "written": 1.0, "of a later version": 3}
    files.write_json(tmp_path / "a.json", details)
    assert files.read_json(tmp_path / "a.json", step_receipts.NotebookDetails) == details
    files.write_json(tmp_path / "a.json", {**details, **change})
    with pytest.raises(InputError) as refused:
        files.read_json(tmp_path / "a.json", step_receipts.NotebookDetails)
    assert str(refused.value) == f"{tmp_path}/a.json: is not as it was written ({fault}); {files.RERUN_STEP}"


# Where an output goes


def test_an_output_goes_where_links_lead(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/old.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("middle.csv")
    (tmp_path / "middle.csv").symlink_to("disk/old.csv")
    (tmp_path / "new.csv").symlink_to("disk/not yet.csv")
    for name in ("link.csv", "new.csv"):
        files.write_text(files.output_file(tmp_path / name), "new")
    assert (tmp_path / "disk/old.csv").read_text() == (tmp_path / "disk/not yet.csv").read_text() == "new"
    assert all((tmp_path / name).is_symlink() for name in ("link.csv", "middle.csv", "new.csv"))
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["not yet.csv", "old.csv"]


def test_folders_and_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "folder").symlink_to(".")
    with pytest.raises(InputError, match="a: is a link that leads back to itself; remove the link, or choose another name"):
        files.output_file(tmp_path / "a")
    with pytest.raises(InputError, match="folder: is a folder; name a file in it"):
        files.output_file(tmp_path / "folder")


def test_a_place_where_nothing_can_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: is a file, and no folder; name another folder for the output"):
        files.output_file(tmp_path / "file/new/a.csv")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write everywhere
    with pytest.raises(InputError, match=f"{tmp_path}: there is no right to write here; name another folder"):
        files.output_file(tmp_path / "new/deep/a.csv")


def test_a_run_replaces_its_own_links(tmp_path: Path) -> None:
    """Weights that a user linked from elsewhere are not what a new training writes over."""
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "model").symlink_to("theirs")
    files.write_text(tmp_path / "model", "ours")
    assert (tmp_path / "theirs").read_text() == "theirs" and not (tmp_path / "model").is_symlink()


def test_devices_and_fifos_are_written_to(tmp_path: Path) -> None:
    fifo, came = tmp_path / "fifo", []
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: came.append(fifo.read_text()))
    reader.start()
    files.write_text(files.output_file(fifo), "content")
    reader.join()
    null = os.stat("/dev/null")
    files.write_text(files.output_file(Path("/dev/null")), "content")
    assert came == ["content"] and fifo.is_fifo() and os.stat("/dev/null").st_ino == null.st_ino
    assert [path.name for path in tmp_path.iterdir()] == ["fifo"]


def test_a_fifo_that_nobody_reads_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_SECONDS_FOR_A_READER", 0.0)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InputError, match=f"{tmp_path}/fifo: nobody reads this FIFO; start its reader first, or name a file"):
        files.write_text(tmp_path / "fifo", "content")
    with pytest.raises(InputError, match="nobody reads this FIFO"), files.atomic_paths(tmp_path / "a", tmp_path / "fifo") as temporaries:
        for temporary in temporaries:
            temporary.write_text("content")
    assert [path.name for path in tmp_path.iterdir()] == ["fifo"]


@pytest.mark.parametrize("name", ["x" * 251 + ".csv", "ü" * 125 + ".csv", "\N{DNA DOUBLE HELIX}" * 62 + ".csv"])
def test_the_longest_name_that_a_folder_takes_is_written(tmp_path: Path, name: str) -> None:
    files.write_text(files.output_file(tmp_path / name), "content")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "content")]


def test_an_output_replaces_only_what_is_of_its_kind(tmp_path: Path) -> None:
    out, as_json = tmp_path / "out", {"kind": "benchmark", "is_of_kind": lambda path: files.is_json_with(path, "rows", "text")}
    for content in ("", '{"rows": [], "text": [], "more": 0}'):
        out.write_text(content)
        assert files.output_file(out, **as_json) == out
    for content in ("preset: tiny", '{"rows": []}', "[1]"):
        out.write_text(content)
        with pytest.raises(InputError, match="out: is there, and is no benchmark; remove it, or choose another name"):
            files.output_file(out, **as_json)


# Folders as systems leave them


@pytest.mark.parametrize("name", [
    "Icon\r", "Icon\uf00d", "thumbs.db", "Thumbs.db:encryptable", "ehthumbs_vista.db", "Desktop.ini", "DESKTOP.INI", "RECYCLER", "#recycle", "#snapshot",
    "@eaDir", "@Recycle", "Network Trash Folder", "B02_s1_w1.png\uf03aZone.Identifier", ".nfs000000012", ".Spotlight-V100", ".ipynb_checkpoints",
])  # fmt: skip
def test_what_systems_leave_is_theirs(name: str) -> None:
    assert files.is_system(name)


@pytest.mark.parametrize("name", ["README", "B02_s1_w1.png.crdownload", "B02_s1_w1.png~", "Icon", "recycle", "B02_s1_w1 (1).png", "desktop.ini.csv"])
def test_what_people_leave_is_not(name: str) -> None:
    assert not files.is_system(name)


# All or none


@pytest.mark.parametrize("before", [None, "old"])
@pytest.mark.parametrize("fault", ["second name", "second folder", "device", "body"])
def test_of_several_files_all_come_to_their_places_or_none(tmp_path: Path, before: str | None, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "submission.csv", tmp_path / "there/confidence.csv"
    if before:
        files.write_text(first, before)
        files.write_text(second, before)
    rename, sync = os.replace, files._sync
    if fault == "second name":
        monkeypatch.setattr(os, "replace", lambda old, new: failing(errno.EROFS)() if new == second else rename(old, new))
    if fault == "second folder":
        monkeypatch.setattr(files, "_sync", lambda path: failing(errno.EIO)() if path == second.parent else sync(path))
    names = (first, Path("/dev/full") if fault == "device" else second)
    with pytest.raises((OSError, ZeroDivisionError)), files.atomic_paths(*names) as temporaries:
        for temporary in temporaries:
            temporary.write_text("new")
        1 / (fault != "body")
    monkeypatch.undo()
    there = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert there == (["submission.csv", "there/confidence.csv"] if before else [])
    assert not before or (first.read_text(), second.read_text()) == (before, before)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF])
@pytest.mark.parametrize("which", ["folders", "everything"])
def test_a_file_system_without_fsync_is_written_to_all_the_same(tmp_path: Path, code: int, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    only = (lambda descriptor: os.path.isdir(f"/proc/self/fd/{descriptor}")) if which == "folders" else (lambda descriptor: True)
    monkeypatch.setattr(os, "fsync", failing(code, only=only))
    with files.atomic_paths(tmp_path / "a", tmp_path / "b") as temporaries:
        for temporary in temporaries:
            temporary.write_text(temporary.name[-1])
    assert [(path.name, path.read_text()) for path in sorted(tmp_path.iterdir())] == [("a", "a"), ("b", "b")]


def test_a_disk_that_fails_is_no_file_system_without_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(OSError) as failed:
        files.write_text(tmp_path / "a", "content")
    assert str(system_error(failed.value)) == f"{tmp_path}/a: Input/output error; look at the disk or the network behind it"
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_listed_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def guarded(path: Path, *arguments: int) -> int:
        if path == tmp_path:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments)

    monkeypatch.setattr(os, "open", guarded)
    files.write_text(tmp_path / "a", "content")
    assert (tmp_path / "a").read_text() == "content"


# Locks


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EINVAL, errno.ENOTSUP, errno.EBADF])
@pytest.mark.parametrize("name", ["", ".lock"])
def test_a_file_system_without_locks_is_one_line(tmp_path: Path, code: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(code))
    expected = f"{tmp_path}: its file system has no locks (flock: {os.strerror(code)}); choose a folder on another disk, such as a local one"
    for take in (lambda path: files.locked(path).__enter__(), lambda path: files.open_lock(path, fcntl.LOCK_SH)):
        with pytest.raises(InputError) as refused:
            take(tmp_path / name)
        assert str(refused.value) == expected


def test_who_else_holds_a_lock_is_not_taken_for_a_file_system_without(tmp_path: Path) -> None:
    with files.locked(tmp_path / ".lock"), pytest.raises(InputError, match=f"{tmp_path}: in use; wait for it to end"):
        files.locked(tmp_path / ".lock").__enter__()


# What the system says


def test_who_wrote_too_much_is_named_and_not_the_temporary_file(tmp_path: Path) -> None:
    for code in (errno.ENOSPC, errno.EROFS):  # as writing and syncing raise them
        with pytest.raises(OSError) as failed, files.atomic_path(tmp_path / "out.csv"):
            raise OSError(code, os.strerror(code))
        assert failed.value.filename == str(tmp_path / "out.csv")
        assert str(failed.value) == f"[Errno {code}] {os.strerror(code)}: '{tmp_path}/out.csv'"  # and no "-> None"
    for fail in (lambda temporary: temporary.open(), lambda temporary: temporary.rename(tmp_path / "no/folder")):
        with pytest.raises(OSError) as failed, files.atomic_path(tmp_path / "out.csv") as temporary:
            fail(temporary)
        assert failed.value.filename == str(tmp_path / "out.csv")
    with pytest.raises(OSError) as failed, files.atomic_path(tmp_path / "out.csv"):
        (tmp_path / "other").read_text()
    assert failed.value.filename == str(tmp_path / "other")


class Room:
    """File systems with so many bytes and so many more files free, by the folder that they are mounted on."""

    def __init__(self, **free: int) -> None:
        self.free = {name.replace("_", "/"): (room, 10) for name, room in free.items()}

    def __call__(self, path: Path) -> os.statvfs_result:
        mount = max((name for name in self.free if str(path).startswith(name)), key=len)
        room, more = self.free[mount]
        return os.statvfs_result((1, 1, 0, 0, room, 1000, more, more, 0, 255))


def test_the_disk_that_is_full_is_the_one_of_the_file_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", Room(_=71_000_000_000, _dev_shm=0))
    named = OSError(errno.ENOSPC, "No space left on device", "/dev/shm/block")
    assert str(system_error(named, folder=tmp_path)) == "/dev/shm/block: the disk is full (0.0 MB are free); free some space there"
    nameless = OSError(errno.ENOSPC, "No space left on device")  # so it is for the locks of processes, which lie in shared memory
    assert str(system_error(nameless, folder=tmp_path)) == "/dev/shm: the disk is full (0.0 MB are free); free some space there"
    monkeypatch.setattr(os, "statvfs", Room(_=0, _dev_shm=1000))
    assert str(system_error(nameless, folder=tmp_path, cure="go on")) == f"{tmp_path}: the disk is full (0.0 MB are free); go on"


def test_a_disk_may_be_full_of_files_or_of_a_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room(_=10**9)
    room.free["/"] = (10**9, 0)
    monkeypatch.setattr(os, "statvfs", room)
    words = {errno.ENOSPC: "the disk holds as many files as it can (1,000)", errno.EDQUOT: "your quota on this disk is used up",
             errno.EFBIG: "the file is too large for this disk, or for the limit ulimit -f"}  # fmt: skip
    for code, what in words.items():
        assert str(system_error(OSError(code, os.strerror(code), "/runs/a"))) == f"/runs/a: {what}; free some space there"


@pytest.mark.parametrize(
    "code, expected",
    [
        (errno.EROFS, "/runs/a: Read-only file system; choose a folder on a disk that can be written to"),
        (errno.EACCES, "/runs/a: Permission denied; change its rights, or choose another path"),
        (errno.ENAMETOOLONG, "/runs/a: File name too long; choose a shorter name"),
        (errno.ENOENT, "/runs/a: No such file or directory; mend the path, or make what is missing first"),
        (errno.ENOTDIR, "/runs/a: Not a directory; choose another path"),
    ],
)
def test_every_error_of_the_system_names_its_path_and_a_cure(code: int, expected: str) -> None:
    assert str(system_error(OSError(code, os.strerror(code), "/runs/a"))) == expected
    assert str(system_error(OSError(code, os.strerror(code), "/temporary", None, "/runs/a"))) == expected


def test_too_many_open_files_are_said_with_the_limit() -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    expected = f"cellsignal simulate: too many open files (a process may have {most:,}); raise the limit, such as with ulimit -n 4096"
    assert str(system_error(error, doing="cellsignal simulate")) == expected


def test_a_spreadsheet_calculates_no_text_and_negative_numbers_stay_numbers() -> None:
    table = pd.DataFrame({"x": [-1.5, None], "y": [-2, 3], "error": ["-p seed=-1: no", None], "z": [["-a"], "+b"]})
    assert files.spreadsheet_text(table) == "x,y,error,z\n-1.5,-2,'-p seed=-1: no,['-a']\n,3,,'+b\n"


CHANGES = {
    "longer": lambda folder: (folder / "b.png").write_bytes(b"longer"), "shorter": lambda folder: (folder / "c.png").write_bytes(b""),
    "new": lambda folder: (folder / "d.png").write_bytes(b"c"), "gone": lambda folder: (folder / "c.png").unlink(),
    "renamed": lambda folder: (folder / "c.png").rename(folder / "d.png"), "the first, of the same size": lambda folder: (folder / "a.png").write_bytes(b"x"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_fingerprint_of_a_folder_changes_with_its_images(tmp_path: Path, change: str) -> None:
    folders = tmp_path / "here", tmp_path / "there"
    for folder in folders:
        folder.mkdir()
        for name in "abc":
            (folder / f"{name}.png").write_text(name)
    (folders[1] / "._a.png").write_text("of macOS")
    (folders[1] / "notes.txt").write_text("by hand")
    before = files.folder_fingerprint(folders[0])
    assert before == files.folder_fingerprint(folders[1]) != ""
    CHANGES[change](folders[1])
    assert files.folder_fingerprint(folders[1]) not in ("", before)


def test_a_folder_without_images_has_no_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "gone.png").symlink_to("nowhere")
    (tmp_path / "circle.png").symlink_to("circle.png")
    (tmp_path / "folder.png").mkdir()
    assert files.folder_fingerprint(tmp_path) == files.folder_fingerprint(tmp_path / "missing") == ""
