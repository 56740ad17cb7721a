"""Files that many machines share: in a folder, or at any URL that fsspec supports. Every file is checked by its SHA-256."""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

from cellsignal import files, json_schemas
from cellsignal.errors import InputError, StepFailed
from cellsignal.receipts import Receipt
from cellsignal.run.environment import expand_path

STREAMS = 8  # parallel transfers: most files are small, and their latency takes longest
ATTEMPTS, ATTEMPT_SECONDS = 3, 0.5  # to fetch a file that may just be rewritten with the same content, and the time between them


class Storage:
    """A tree of files at `url`, by relative names with slashes; InputError for an invalid URL."""

    def __init__(self, url: str) -> None:
        import fsspec  # comes with PyTorch

        cure = "write for example file:///shared/run or s3://bucket/run"
        protocol, mark, path = url.rpartition("://")
        url = f"{protocol}{mark}{expand_path(path)}"
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
            _make_folder(self.root, url)

    def holds(self, folder: Path) -> bool:
        """Whether a folder of this machine lies in the storage, so that every machine sees it under the same path."""
        return self.local and folder.is_relative_to(self.root)

    def put(self, path: Path, name: str) -> None:
        """Store a file, completely or not at all."""
        if self.local:  # fsspec would overwrite the old file in place
            with files.atomic_path(self._path(name)) as temporary:
                shutil.copyfile(path, temporary)
        else:
            self.filesystem.put_file(str(path), self._url_path(name))

    def put_receipt(self, name: str, receipt: Receipt) -> None:
        """Store a receipt."""
        if self.local:
            replace(receipt, path=self._path(name)).write()
        else:
            self.filesystem.pipe_file(self._url_path(name), receipt.content)

    def read_receipt(self, name: str) -> Receipt | None:
        """A stored receipt; None when it is absent or damaged."""
        try:
            return Receipt.parse(self._path(name), self.filesystem.cat_file(self._url_path(name)))
        except (OSError, ValueError):
            return None

    def get(self, name: str, path: Path, *, digest: str = "") -> None:
        """Fetch a file, completely or not at all; StepFailed when it is absent, or has another SHA-256."""
        for attempt in range(ATTEMPTS):
            time.sleep(ATTEMPT_SECONDS * attempt)
            if self._fetch(name, path, digest=digest):
                return
        raise StepFailed(f"{self.url}/{name} is not the file that was stored")

    def put_all(self, folder: Path, names: Iterable[str], *, under: str = "") -> dict[str, str]:
        """Store files of a folder in parallel, below `under`; returns their SHA-256 by name."""
        names = sorted(names)
        run_parallel(lambda name: self.put(folder / name, under + name), names)
        return {name: files.sha256(folder / name) for name in names}

    def get_all(self, folder: Path, digests: Mapping[str, str], *, under: str = "") -> None:
        """Fetch files into a folder in parallel, except those that are there already. InputError for a name that leads out of the folder."""
        paths = {name: files.inside(folder, name, source=self.url) for name in digests}
        missing = [name for name, path in paths.items() if not (path.is_file() and files.sha256(path) == digests[name])]
        run_parallel(lambda name: self.get(under + name, paths[name], digest=digests[name]), missing)

    def names(self, folder: str) -> list[str]:
        """The names of the files below a folder, relative to the root."""
        self.filesystem.invalidate_cache()
        paths = self.filesystem.find(self._url_path(folder))
        return sorted(path[len(self.root) + 1 :] for path in paths if files.TEMPORARY not in path)

    def remove(self, names: Iterable[str]) -> None:
        """Remove existing files."""
        for name in names:
            self.filesystem.rm_file(self._url_path(name))

    def _url_path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _path(self, name: str) -> Path:
        return Path(self._url_path(name))

    def _fetch(self, name: str, path: Path, *, digest: str) -> bool:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = files.temporary_path(path)
        try:
            self.filesystem.get_file(self._url_path(name), str(temporary))
            is_valid = not digest or files.sha256(temporary) == digest
            if is_valid:
                os.replace(temporary, path)
            return is_valid
        except FileNotFoundError:
            raise StepFailed(f"{self.url}/{name} is not there") from None
        finally:
            temporary.unlink(missing_ok=True)


def run_parallel(work: Callable[[str], None], names: Iterable[str]) -> None:
    """Call `work` for each name, several at once; the first error ends it."""
    with ThreadPoolExecutor(STREAMS) as pool:
        for _ in pool.map(work, names):
            pass


def _make_folder(folder: str, url: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise InputError(f"no place to write ({error.strerror})", where=url, cure="name a folder that every machine can write to") from None


# The checkpoints of a training in the storage, so that another machine can go on where a lost one stopped.


UPLOAD_SECONDS = 60.0  # between two uploads: with a machine so much work is lost, and at most one epoch more


def upload_checkpoints(storage: Storage, folder: Path, names: Iterable[str]) -> None:
    """Store the checkpoints of these names, tensors first, unless the storage has them of the same or a later epoch."""
    for name in names:
        local, stored = _checked(Receipt.find(folder / name, json_schemas.CheckpointDetails)), _checked(storage.read_receipt(name))
        if not local or not _is_later(local, stored, replaces_other_training=True):
            continue
        tensors = _tensors_name(name, local)
        try:
            storage.put(folder / tensors, tensors)
        except FileNotFoundError:
            continue  # the training has just written the next one
        storage.put_receipt(name, local)
        _remove_tensors(storage, name, keep=tensors)


def download_checkpoints(storage: Storage, folder: Path, names: Iterable[str]) -> None:
    """Fetch the checkpoints of these names, unless the run folder has them of the same or a later epoch, or of another training."""
    for name in names:
        path = files.inside(folder, name, source=storage.url)
        local, stored = _checked(Receipt.find(path, json_schemas.CheckpointDetails)), _checked(storage.read_receipt(name))
        if not stored or (local and not _is_later(stored, local, replaces_other_training=False)):
            continue
        tensors = _tensors_name(name, stored)
        try:
            storage.get(tensors, files.inside(folder, tensors, source=storage.url), digest=next(iter(stored.outputs.values())))
        except StepFailed:
            continue  # damaged, or just replaced by the next one: the training starts with what there is
        replace(stored, path=path).write()


def delete_checkpoints(storage: Storage, names: Iterable[str]) -> None:
    """Remove the checkpoints of these names from the storage: their training is complete."""
    for name in names:
        storage.remove(stored for stored in storage.names(str(Path(name).parent)) if stored == name)
        _remove_tensors(storage, name, keep="")


@contextmanager
def uploading_checkpoints(storage: Storage, folder: Path, names: Iterable[str]) -> Iterator[None]:
    """Store the checkpoints of a run folder at intervals while a training works in it."""
    names, ended = list(names), Event()

    def upload_at_intervals() -> None:
        while not ended.wait(UPLOAD_SECONDS):
            upload_checkpoints(storage, folder, names)

    uploader = Thread(target=upload_at_intervals, daemon=True)
    uploader.start()
    try:
        yield
    finally:
        ended.set()
        uploader.join()


def _is_later(one: Receipt, other: Receipt | None, *, replaces_other_training: bool) -> bool:
    """Whether a checkpoint is of a later epoch than another, if any; of another training `replaces_other_training`."""
    if other is None or one.identity != other.identity:
        return other is None or replaces_other_training
    return one.details["epoch"] > other.details["epoch"]


def _tensors_name(name: str, receipt: Receipt) -> str:
    """The name of the file of a checkpoint's tensors."""
    return f"{Path(name).parent.as_posix()}/{next(iter(receipt.outputs))}"


def _remove_tensors(storage: Storage, name: str, *, keep: str) -> None:
    stem = name.removesuffix(".json")
    storage.remove(other for other in storage.names(str(Path(name).parent)) if other.startswith(f"{stem}-") and other != keep)


def _checked(receipt: Receipt | None) -> Receipt | None:
    """A receipt if it is a checkpoint's with tensors in the same folder, else None."""
    if receipt is None or len(receipt.outputs) != 1 or type(receipt.details.get("epoch")) is not int:
        return None
    [name] = receipt.outputs
    return receipt if files.stays_inside(name) and "/" not in name else None
