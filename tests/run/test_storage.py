"""What machines share: files that are whole or not there, and checkpoints that go on elsewhere."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cellsignal import files
from cellsignal.errors import InputError, StepFailed
from cellsignal.receipts import Receipt
from cellsignal.run.cluster import shared_storage
from cellsignal.run.cluster.shared_storage import Storage

NAME = "weights/U2OS/model.checkpoint.json"


@pytest.fixture(params=["file", "memory"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """A folder, and a storage that is none."""
    return Storage(f"file://{tmp_path}/store" if request.param == "file" else f"memory://{tmp_path.name}/store")


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """write(run, epoch, of=...) writes the checkpoint of a training into a run folder."""

    def checkpoint(run: str, epoch: int, *, of: str = "mine") -> Path:
        tensors = tmp_path / run / f"weights/U2OS/model.checkpoint-{epoch}.safetensors"
        files.write_text(tensors, f"{of} {epoch}")
        Receipt(tmp_path / run / NAME, {"of": of}, {tensors.name: files.sha256(tensors)}, complete=False, details={"epoch": epoch}).write()
        return tmp_path / run

    return checkpoint


def held(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_files_go_to_and_fro(shared: Storage, tmp_path: Path) -> None:
    for name in ("a.txt", "deep/b.txt"):
        files.write_text(tmp_path / "here" / name, name)
    digests = shared.put_all(tmp_path / "here", ["a.txt", "deep/b.txt"], under="run/")
    assert shared.names("run") == ["run/a.txt", "run/deep/b.txt"] and shared.names("nothing") == []
    shared.get_all(tmp_path / "there", digests, under="run/")
    assert held(tmp_path / "there") == held(tmp_path / "here")
    shared.put_receipt("receipts/a.json", written := Receipt(tmp_path, outputs=digests))
    assert shared.read_receipt("receipts/a.json") == written and shared.read_receipt("receipts/b.json") is None
    shared.remove(["run/a.txt"])
    shared.get_all(tmp_path / "there", digests, under="run/")  # what is there is not fetched
    with pytest.raises(StepFailed, match="run/a.txt is not there$"):
        shared.get("run/a.txt", tmp_path / "new.txt")
    assert not shared.holds(tmp_path / "here")


@pytest.mark.parametrize("protocol", ["", "file://"])
def test_a_storage_may_lie_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert Storage(f"{protocol}~/store").root == f"{tmp_path}/home/store"
    with pytest.raises(InputError, match=r"^\$HOME/store: \$HOME is a variable, which only a shell replaces"):
        Storage(f"{protocol}$HOME/store")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_what_was_not_stored_so_is_never_taken(shared: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_storage, "ATTEMPT_SECONDS", 0)
    files.write_text(tmp_path / "here/a.txt", "whole")
    shared.put_all(tmp_path / "here", ["a.txt"])
    with pytest.raises(StepFailed, match="a.txt is not the file that was stored"):
        shared.get_all(tmp_path / "there", {"a.txt": "0" * 64})
    assert held(tmp_path / "there") == {}


@pytest.mark.parametrize(("url", "what"), [("nowhere://x", "no storage"), ("s3://bucket/run", "s3fs")])
def test_urls_that_lead_nowhere_are_refused(url: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(InputError, match=f"^{url}: .*{what}.*; "):
        Storage(url)


def test_a_checkpoint_goes_on_elsewhere(shared: Storage, write: Callable[..., Path], tmp_path: Path) -> None:
    first, other = write("first", 3), tmp_path / "other"
    shared_storage.upload_checkpoints(shared, first, [NAME])
    shared_storage.download_checkpoints(shared, other, [NAME, "weights/U2OS/head.checkpoint.json"])
    assert held(other) == held(first)
    shared_storage.upload_checkpoints(shared, write("other", 5), [NAME])
    shared_storage.download_checkpoints(shared, first, [NAME])
    assert Receipt.read(first / NAME).details["epoch"] == 5
    assert [name for name in shared.names("weights")] == ["weights/U2OS/model.checkpoint-5.safetensors", NAME]
    shared_storage.delete_checkpoints(shared, [NAME])
    assert shared.names("weights") == []


@pytest.mark.parametrize("theirs", [{"epoch": 2}, {"epoch": 9, "of": "another's"}])
def test_who_came_as_far_keeps_what_it_has(shared: Storage, write: Callable[..., Path], theirs: dict[str, Any]) -> None:
    shared_storage.upload_checkpoints(shared, write("theirs", **theirs), [NAME])
    before = held(mine := write("mine", 3))
    shared_storage.download_checkpoints(shared, mine, [NAME])
    assert held(mine) == before
    shared_storage.upload_checkpoints(shared, mine, [NAME])  # who trains now has the storage
    assert shared.read_receipt(NAME).details["epoch"] == 3


def test_damaged_checkpoints_are_left_alone(shared: Storage, write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_storage, "ATTEMPT_SECONDS", 0)
    shared_storage.upload_checkpoints(shared, write("first", 3), [NAME])
    shared.put_receipt("weights/U2OS/model.checkpoint-3.safetensors", Receipt(tmp_path))
    shared_storage.download_checkpoints(shared, tmp_path / "other", [NAME])
    assert not (tmp_path / "other" / NAME).exists()
    (tmp_path / "first/weights/U2OS/model.checkpoint-3.safetensors").unlink()
    shared.remove(shared.names("weights"))
    shared_storage.upload_checkpoints(shared, tmp_path / "first", [NAME])
    assert shared.names("weights") == []


def test_checkpoints_are_stored_while_a_training_works(
    shared: Storage, write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_storage, "UPLOAD_SECONDS", 0.01)
    with shared_storage.uploading_checkpoints(shared, tmp_path / "first", [NAME]):
        write("first", 3)
        for _ in range(500):
            if shared.read_receipt(NAME):
                break
            shared_storage.Event().wait(0.01)
    assert shared.read_receipt(NAME).details["epoch"] == 3


@pytest.mark.parametrize("name", ["../../../.bashrc", "/etc/cron.d/x", "weights/../../x"])
def test_what_a_storage_names_stays_in_the_folder(shared: Storage, tmp_path: Path, name: str) -> None:
    files.write_text(tmp_path / "x", "evil")
    shared.put(tmp_path / "x", "x")
    with pytest.raises(InputError, match=f"^{shared.url}: names a file '{name}', which cannot lie in {tmp_path}/there; take nothing"):
        shared.get_all(tmp_path / "there", {name: files.sha256(tmp_path / "x")})
    assert not (tmp_path / "there").exists()


def test_nothing_is_fetched_through_a_link(shared: Storage, tmp_path: Path) -> None:
    files.write_text(tmp_path / "here/weights/x", "evil")
    digests = shared.put_all(tmp_path / "here", ["weights/x"])
    (tmp_path / "there").mkdir()
    (tmp_path / "there/weights").symlink_to(tmp_path)
    with pytest.raises(InputError, match="there/weights/x: is a link that leads out of its folder, or lies behind one; put a folder"):
        shared.get_all(tmp_path / "there", digests)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("change", [{"outputs": {"../../../x": "0"}}, {"outputs": {"..": "0"}}, {"outputs": {"x": 5}}, {"outputs": ["x"]}, {"outputs": {}}, {"details": {"epoch": "9"}},
                                    {"details": {"epoch": True}}])
def test_a_stored_checkpoint_of_another_shape_is_left_alone(shared: Storage, write: Callable[..., Path], tmp_path: Path, change: dict[str, Any]) -> None:
    first = write("first", 3)
    shared_storage.upload_checkpoints(shared, first, [NAME])
    shared.put_receipt(NAME, replace(shared.read_receipt(NAME), **change))
    shared_storage.download_checkpoints(shared, tmp_path / "other", [NAME])
    assert not (tmp_path / "other").exists()
    shared_storage.upload_checkpoints(shared, first, [NAME])  # which is none, and gives way
    assert shared.read_receipt(NAME).details["epoch"] == 3


def test_a_checkpoint_that_is_named_outside_is_refused(shared: Storage, write: Callable[..., Path], tmp_path: Path) -> None:
    shared_storage.upload_checkpoints(shared, write("first", 3), [NAME])
    with pytest.raises(InputError, match=f"^{shared.url}: names a file 'weights/../../x.checkpoint.json', which cannot lie in"):
        shared_storage.download_checkpoints(shared, tmp_path / "other", ["weights/../../x.checkpoint.json"])
