"""The checkpoints of a training in the storage, so that another machine goes on where a lost one was."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

from cellsignal import files, receipts, shapes
from cellsignal.errors import InputError, StepFailed
from cellsignal.run.storage import Storage

PAUSE = 60.0  # seconds between two looks: so much work is lost with a machine, and an epoch


def keep(storage: Storage, folder: Path, names: Iterable[str]) -> None:
    """Store the checkpoints called so in a run folder, unless the storage's came as far: their tensors first."""
    for name in names:
        ours, theirs = _read(folder / name), _checked(storage.read_json(name))
        if not ours or not _further(ours, theirs, same=False):
            continue
        try:
            storage.put(folder / _beside(name, ours), _beside(name, ours))
        except FileNotFoundError:
            continue  # the training has just written the next one
        storage.put_json(name, ours)
        _sweep(storage, name, keep=_beside(name, ours))


def bring(storage: Storage, folder: Path, names: Iterable[str]) -> None:
    """Fetch the checkpoints called so into a run folder, unless its own came as far or are another training's."""
    for name in names:
        place = files.inside(folder, name, source=storage.url)
        ours, theirs = _read(place), _checked(storage.read_json(name))
        if not theirs or (ours and not _further(theirs, ours, same=True)):
            continue
        tensors = _beside(name, theirs)
        try:
            storage.get(tensors, files.inside(folder, tensors, source=storage.url), digest=theirs["sha256"])
        except StepFailed:
            continue  # damaged, or the next one has come: whoever trains begins with what there is
        receipts.write(place, theirs)


def forget(storage: Storage, names: Iterable[str]) -> None:
    """Remove the checkpoints called so from the storage: their training is over."""
    for name in names:
        storage.remove(each for each in storage.names(str(Path(name).parent)) if each == name)
        _sweep(storage, name, keep="")


@contextmanager
def kept(storage: Storage, folder: Path, names: Iterable[str]) -> Iterator[None]:
    """Store what checkpoints there are every now and then, while a training works in a run folder."""
    names, over = list(names), Event()

    def watch() -> None:
        while not over.wait(PAUSE):
            keep(storage, folder, names)

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _further(one: dict[str, Any], other: dict[str, Any], *, same: bool) -> bool:
    """Whether a checkpoint came further than another; of two trainings' neither did, or if not `same` the first."""
    if not other or one.get("fingerprint") != other.get("fingerprint"):
        return not other or not same
    return one.get("epoch", -1) > other.get("epoch", -1)


def _beside(name: str, facts: dict[str, Any]) -> str:
    """The name of a checkpoint's tensors."""
    return f"{Path(name).parent.as_posix()}/{facts['tensors']}"


def _sweep(storage: Storage, name: str, *, keep: str) -> None:
    stem = name.removesuffix(".json")
    storage.remove(each for each in storage.names(str(Path(name).parent)) if each.startswith(f"{stem}-") and each != keep)


def _read(path: Path) -> dict[str, Any]:
    """What a checkpoint says; nothing when it is absent or damaged."""
    try:
        return _checked(receipts.read(path))
    except (OSError, InputError):
        return {}


def _checked(facts: Any) -> dict[str, Any]:
    """What a checkpoint says, if it is one, and its tensors lie beside it."""
    try:
        files.shaped(facts, shapes.Checkpoint, where="checkpoint")
    except InputError:
        return {}
    return facts if files.stays_inside(facts["tensors"]) and "/" not in facts["tensors"] else {}
