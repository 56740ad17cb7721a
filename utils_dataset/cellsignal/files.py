"""Files that are whole or absent: written beside their place, synced, then renamed into it."""

import fcntl
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cellsignal.errors import InputError

TEMPORARY = ".partial-"  # and a process id: sweep() removes what a killed process left under such names


def partial(path: Path) -> Path:
    """The name under which this process writes `path`, in the same folder."""
    return path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; on leaving without error it becomes `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays, because writers (Matplotlib, Parquet) choose a format by it.
    temporary = partial(path)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically as UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as indented JSON, NaN refused."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; InputError names it when it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("no such file", where=path, cure="run the step that writes it") from None
    except ValueError as error:
        cure = "delete it and run the step that writes it again"
        raise InputError(f"not readable as JSON ({error})", where=path, cure=cure) from None


def sha256(path: Path, *, chunk: int = 1 << 20) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(chunk), b""):
            digest.update(block)
    return digest.hexdigest()


def sweep(folder: Path, rooms: Iterable[str]) -> list[Path]:
    """Delete the temporary files that killed writers left in `folder` itself and anywhere in its `rooms`."""
    found = [*folder.glob(f"{TEMPORARY}*"), *(path for room in rooms for path in (folder / room).rglob(f"{TEMPORARY}*"))]
    orphans = [path for path in found if re.match(rf"{re.escape(TEMPORARY)}\d+-", path.name) and path.is_file()]
    for path in orphans:
        path.unlink(missing_ok=True)
    return orphans


@contextmanager
def locked(path: Path, *, patience: float = 0.0, waiting: str = "", refusal: str = "in use") -> Iterator[None]:
    """Hold `path`, a folder or a file made for it, as an exclusive flock, which ends with the process however that dies.

    Waits up to `patience` seconds, saying `waiting` once, then raises InputError.
    """
    deadline = time.monotonic() + patience
    while (descriptor := _try_lock(path)) is None:
        if time.monotonic() > deadline:
            where = path if path.is_dir() else path.parent
            raise InputError(refusal, where=where, cure="wait for it to end, or choose another folder")
        if waiting:
            print(waiting, file=sys.stderr, flush=True)
            waiting = ""
        time.sleep(0.1)
    try:
        yield
    finally:
        os.close(descriptor)


def _try_lock(path: Path) -> int | None:
    try:
        return open_lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None


def open_lock(path: Path, kind: int) -> int:
    """A descriptor of `path` that holds a flock of this kind until it is closed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, kind)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
