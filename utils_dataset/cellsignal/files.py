"""Files that are whole or absent: written beside their place, synced, then renamed into it."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import tempfile
import time
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from cellsignal.errors import FULL, InputError

_NO_SUCH_CALL = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF)  # how file systems say that they cannot sync or lock
TEMPORARY = ".partial-"  # and a process id: sweep() removes what a killed process left under such names
ODD = "is not as it was written"
AGAIN = "delete it and run the step that writes it again"
LONGEST = 64  # characters of a plain name: it stands in the names of files, whose 255 bytes hold more than it
_MARKS = frozenset("_.+ -")  # of a plain name, beside letters and digits


@cache
def is_plain(name: str) -> bool:
    """Whether a name can safely be that of a file: letters of any language, digits, `_.+-`, spaces inside; a letter or digit first."""
    letters = (letter.isalnum() or letter in _MARKS or unicodedata.category(letter).startswith("M") for letter in name)
    return 0 < len(name) <= LONGEST and name[0].isalnum() and name[-1] not in " .-" and all(letters)


def stays_inside(name: Any) -> bool:
    """Whether a relative path with slashes stays below the folder it starts in, as far as its letters tell."""
    if not isinstance(name, str) or {"", ".", ".."} & set(name.split("/")) or {"\\", "\0"} & set(name):
        return False
    try:
        os.fsencode(name)
    except UnicodeEncodeError:  # half a letter, which JSON can spell and no file system can
        return False
    return True


def inside(folder: Path, name: str, *, source: object = "") -> Path:
    """`folder / name` for a name that `source` chose; InputError when it, or a link on the way, leads out of the folder."""
    if not stays_inside(name):
        raise InputError(f"names a file {name!r}, which would lie outside {folder}", where=source, cure="take nothing from it that you do not trust")
    path = Path(folder, name)
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise InputError("is a link that leads out of its folder, or lies behind one", where=path, cure="put a folder in the place of the link")
    return path


def temporary_path(path: Path) -> Path:
    """A temporary name in the same folder; random, because processes of several containers have the same numbers."""
    return path.with_name(f"{TEMPORARY}{os.getpid()}-{os.urandom(4).hex()}-{path.name}")


def output_file(path: Path) -> Path:
    """Where an output that a user named is written: the file behind a link, else `path` itself.

    InputError for a folder, and for links that lead in a circle.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError("is a folder", where=path, cure="name a file in it")
    if is_stream(path):
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise InputError("is a link that leads back to itself", where=path, cure="remove the link, or choose another name")
    return target


def is_stream(path: Path) -> bool:
    """Whether a path is a device, a FIFO or a socket: bytes come and go there, and nothing is kept."""
    return path.exists() and not path.is_file() and not path.is_dir()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; on leaving without error it becomes `path`.

    A link is replaced, not followed: see `output_file`. To a device or a FIFO the content is written.
    """
    with replacing_all(path) as (temporary,):
        yield temporary


@contextmanager
def replacing_all(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Give a temporary path for each of `paths`; on leaving without error all of them come to their places, or none does.

    As `replacing` otherwise. An OSError names the file that was to be written.
    """
    with ExitStack() as stack:
        temporaries = tuple(stack.enter_context(_temporary(Path(path))) for path in paths)
        yield temporaries
        pairs = list(zip(map(Path, paths), temporaries))
        for path, temporary in pairs:
            with _naming(path, temporary):
                _sync(temporary)
        for path, temporary in pairs:
            if is_stream(path):
                with _naming(path, temporary), open(temporary, "rb") as source, open(path, "wb") as sink:
                    shutil.copyfileobj(source, sink)
        _move_all([pair for pair in pairs if not is_stream(pair[0])])


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A path to write to, which is removed again if it is still there; beside `path`, unless that is a stream."""
    if is_stream(path):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / path.name
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays, because writers (Matplotlib, Parquet) choose a format by it.
    temporary = temporary_path(path)
    try:
        with _naming(path, temporary):
            yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _move_all(pairs: list[tuple[Path, Path]]) -> None:
    """Rename temporary files to their places; when one of several cannot be, put back what was there before."""
    with ExitStack() as undo:
        for path, temporary in pairs:
            if len(pairs) > 1:
                undo.callback(_put_back, path, path.read_bytes() if path.is_file() else None)
            with _naming(path, temporary):
                os.replace(temporary, path)
                _sync(path.parent)
        undo.pop_all()


def _put_back(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    elif path.read_bytes() != content:
        write_bytes(path, content)


@contextmanager
def _naming(path: Path, temporary: Path) -> Iterator[None]:
    """Let an OSError that names the temporary file, or none because a write failed, name the file that it stands for."""
    try:
        yield
    except OSError as error:
        nameless = error.filename is None and error.errno in (*FULL, errno.EIO, errno.EPIPE)
        if nameless or str(error.filename) == str(temporary):
            error.filename, error.filename2 = str(path), None
        raise


def _sync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        if path.is_dir():  # that may be written to but not listed: its file has come to its place all the same
            return
        raise
    try:
        sync_descriptor(descriptor)
    finally:
        os.close(descriptor)


def sync_descriptor(descriptor: int) -> None:
    """Have the system write an open file or folder to the disk, where its file system can be asked to.

    Some (FUSE, SMB, FAT) know no such call, above all for folders; they write when they will.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SUCH_CALL:
            raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically as UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as indented JSON, NaN refused."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path, shape: Any = None, *, what: str = ODD, cure: str = AGAIN) -> Any:
    """Read a JSON file; InputError names it when it is missing, damaged, or not of a `shape` that `shaped` takes."""
    try:
        with os.fdopen(open_regular(path), encoding="utf-8") as stream:
            value = parse_json(stream.read())
    except FileNotFoundError:
        raise InputError("no such file", where=path, cure="run the step that writes it") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"not readable as JSON ({error})", where=path, cure=cure) from None
    return value if shape is None else shaped(value, shape, where=path, what=what, cure=cure)


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; ValueError for whatever is none, the bombs included that make the library raise other errors."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:
        raise ValueError("a number of too many digits" if "digits" in str(error) else str(error)) from None


def shaped(value: Any, shape: Any, *, where: object, what: str = ODD, cure: str = AGAIN) -> Any:
    """A value from outside, unchanged, if it is of a type (such as a TypedDict; further keys are let pass); InputError says `what` it is else."""
    from pydantic import ValidationError  # who reads no such file does not pay for it

    try:
        _checker(shape).validate_python(value, strict=True)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, fault["loc"])) or "the content"
        raise InputError(f"{what} ({place}: {fault['msg'][0].lower()}{fault['msg'][1:]})", where=where, cure=cure) from None
    return value


@cache
def _checker(shape: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(shape)


def open_regular(path: Path) -> int:
    """A descriptor to read a file by; InputError for a pipe, a device or a folder, which might never end or answer."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # else opening a pipe waits for somebody to write
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError("is no regular file", where=path, cure="put the file itself there")
    return descriptor


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def remove_temporary(folder: Path, rooms: Iterable[str]) -> list[Path]:
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
    """A descriptor of `path` that holds a flock of this kind until it is closed; InputError where there are no locks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, kind)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, OSError) and error.errno in (*_NO_SUCH_CALL, errno.ENOLCK):
            where = path if path.is_dir() else path.parent
            raise InputError(f"its file system has no locks (flock: {error.strerror})", where=where,
                             cure="choose a folder on another disk, such as a local one") from None
        raise
    return descriptor
