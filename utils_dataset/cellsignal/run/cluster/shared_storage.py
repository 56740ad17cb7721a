"""Files that many machines share: a folder, or whatever place fsspec knows by its URL. Nothing counts but what a SHA-256 vouches for."""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

from cellsignal import files, shapes
from cellsignal.errors import InputError, StepFailed
from cellsignal.receipts import Receipt

STREAMS = 8  # files on their way at once: most are small, and what takes long is the answer
TRIES, PAUSE = 3, 0.5  # to fetch a file that somebody writes again just now, with the same content, and seconds between them


class Storage:
    """A tree of files at `url`, by relative names with slashes; InputError for a URL that leads nowhere."""

    def __init__(self, url: str) -> None:
        import fsspec  # comes with PyTorch

        cure = "write for example file:///shared/run or s3://bucket/run"
        try:
            self.filesystem, root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise InputError(str(error), where=url, cure="install what it names, on every machine") from None
        except ValueError as error:
            raise InputError(f"no storage ({error})", where=url, cure=cure) from None
        protocols = self.filesystem.protocol
        self.url, self.root = url, root.rstrip("/")
        self.local = "file" in ((protocols,) if isinstance(protocols, str) else protocols)
        if self.local:
            _make(self.root, url)

    def holds(self, folder: Path) -> bool:
        """Whether a folder of this machine lies in it, so that every machine sees it by its path."""
        return self.local and folder.is_relative_to(self.root)

    def put(self, path: Path, name: str) -> None:
        """Store a file, whole or not at all."""
        if self.local:  # fsspec would write over the old one
            with files.atomic_path(self._path(name)) as temporary:
                shutil.copyfile(path, temporary)
        else:
            self.filesystem.put_file(str(path), self._place(name))

    def put_receipt(self, name: str, receipt: Receipt) -> None:
        """Store a receipt."""
        if self.local:
            replace(receipt, path=self._path(name)).write()
        else:
            self.filesystem.pipe_file(self._place(name), receipt.content)

    def read_receipt(self, name: str) -> Receipt | None:
        """A stored receipt; None when it is not there or not whole."""
        try:
            return Receipt.parse(self._path(name), self.filesystem.cat_file(self._place(name)))
        except (OSError, ValueError):
            return None

    def get(self, name: str, path: Path, *, digest: str = "") -> None:
        """Fetch a file, whole or not at all; StepFailed when it is not there, or not the one with this SHA-256."""
        for again in range(TRIES):
            time.sleep(PAUSE * again)
            if self._fetched(name, path, digest=digest):
                return
        raise StepFailed(f"{self.url}/{name} is not the file that was stored")

    def put_all(self, folder: Path, names: Iterable[str], *, under: str = "") -> dict[str, str]:
        """Store files of a folder, side by side, below `under`; gives their SHA-256 by name."""
        found = sorted(names)
        run_parallel(lambda name: self.put(folder / name, under + name), found)
        return {name: files.sha256(folder / name) for name in found}

    def get_all(self, folder: Path, digests: Mapping[str, str], *, under: str = "") -> None:
        """Fetch files into a folder, side by side; those that are there already stay. InputError for a name that leads out of it."""
        places = {name: files.inside(folder, name, source=self.url) for name in digests}
        wanted = [name for name, path in places.items() if not (path.is_file() and files.sha256(path) == digests[name])]
        run_parallel(lambda name: self.get(under + name, places[name], digest=digests[name]), wanted)

    def names(self, folder: str) -> list[str]:
        """The files below a folder, by their names in the whole tree."""
        self.filesystem.invalidate_cache()
        found = self.filesystem.find(self._place(folder))
        return sorted(path[len(self.root) + 1 :] for path in found if files.TEMPORARY not in path)

    def remove(self, names: Iterable[str]) -> None:
        """Remove files that are there."""
        for name in names:
            self.filesystem.rm_file(self._place(name))

    def _place(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _path(self, name: str) -> Path:
        return Path(self._place(name))

    def _fetched(self, name: str, path: Path, *, digest: str) -> bool:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = files.temporary_path(path)
        try:
            self.filesystem.get_file(self._place(name), str(temporary))
            whole = not digest or files.sha256(temporary) == digest
            if whole:
                os.replace(temporary, path)
            return whole
        except FileNotFoundError:
            raise StepFailed(f"{self.url}/{name} is not there") from None
        finally:
            temporary.unlink(missing_ok=True)


def run_parallel(work: Callable[[str], None], names: Iterable[str]) -> None:
    """Do some work for each name, on several streams; the first error ends it."""
    with ThreadPoolExecutor(STREAMS) as pool:
        for _ in pool.map(work, names):
            pass


def _make(folder: str, url: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise InputError(f"no place to write ({error.strerror})", where=url, cure="name a folder that every machine can write to") from None


# The checkpoints of a training in the storage, so that another machine goes on where a lost one was.


MIRROR_PAUSE = 60.0  # seconds between two looks: so much work is lost with a machine, and an epoch


def upload(storage: Storage, folder: Path, names: Iterable[str]) -> None:
    """Store the checkpoints called so in a run folder, unless the storage's came as far: their tensors first."""
    for name in names:
        ours, theirs = _checked(Receipt.find(folder / name, shapes.Checkpoint)), _checked(storage.read_receipt(name))
        if not ours or not _further(ours, theirs, same=False):
            continue
        tensors = _tensors(name, ours)
        try:
            storage.put(folder / tensors, tensors)
        except FileNotFoundError:
            continue  # the training has just written the next one
        storage.put_receipt(name, ours)
        _sweep(storage, name, keep=tensors)


def download(storage: Storage, folder: Path, names: Iterable[str]) -> None:
    """Fetch the checkpoints called so into a run folder, unless its own came as far or are another training's."""
    for name in names:
        place = files.inside(folder, name, source=storage.url)
        ours, theirs = _checked(Receipt.find(place, shapes.Checkpoint)), _checked(storage.read_receipt(name))
        if not theirs or (ours and not _further(theirs, ours, same=True)):
            continue
        tensors = _tensors(name, theirs)
        try:
            storage.get(tensors, files.inside(folder, tensors, source=storage.url), digest=next(iter(theirs.outputs.values())))
        except StepFailed:
            continue  # damaged, or the next one has come: whoever trains begins with what there is
        replace(theirs, path=place).write()


def delete(storage: Storage, names: Iterable[str]) -> None:
    """Remove the checkpoints called so from the storage: their training is over."""
    for name in names:
        storage.remove(each for each in storage.names(str(Path(name).parent)) if each == name)
        _sweep(storage, name, keep="")


@contextmanager
def uploaded_checkpoint(storage: Storage, folder: Path, names: Iterable[str]) -> Iterator[None]:
    """Store what checkpoints there are every now and then, while a training works in a run folder."""
    names, over = list(names), Event()

    def watch() -> None:
        while not over.wait(MIRROR_PAUSE):
            upload(storage, folder, names)

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _further(one: Receipt, other: Receipt | None, *, same: bool) -> bool:
    """Whether a checkpoint came further than another; of two trainings' neither did, or if not `same` the first."""
    if other is None or one.identity != other.identity:
        return other is None or not same
    return one.details["epoch"] > other.details["epoch"]


def _tensors(name: str, receipt: Receipt) -> str:
    """The name of a checkpoint's tensors."""
    return f"{Path(name).parent.as_posix()}/{next(iter(receipt.outputs))}"


def _sweep(storage: Storage, name: str, *, keep: str) -> None:
    stem = name.removesuffix(".json")
    storage.remove(each for each in storage.names(str(Path(name).parent)) if each.startswith(f"{stem}-") and each != keep)


def _checked(receipt: Receipt | None) -> Receipt | None:
    """The receipt of a checkpoint, if it is one, and its tensors lie beside it."""
    if receipt is None or len(receipt.outputs) != 1 or type(receipt.details.get("epoch")) is not int:
        return None
    [name] = receipt.outputs
    return receipt if files.stays_inside(name) and "/" not in name else None
