"""Atomic files: written under a temporary name in the same folder, synced, then renamed. Also JSON, hashes and locks."""

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
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from cellsignal.errors import FULL, InputError, check_can_write, system_error

_NO_SUCH_CALL = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF)  # how file systems say that they cannot sync or lock
TEMPORARY = ".partial-"  # followed by a process id; remove_temporary() deletes such files of killed processes
_SECONDS_FOR_A_READER = 10.0  # to open a FIFO that is written to
NOT_AS_WRITTEN = "is not as it was written"
RERUN_STEP = "delete it and run the step that writes it again"
FORMULA_PREFIXES = ("=", "+", "-", "@", "\t", "\r", "\n")  # of cells that a spreadsheet would calculate
MAX_NAME_LENGTH = 64  # characters of a plain name: it becomes part of file names
MAX_PART_BYTES, MAX_PATH_BYTES = 255, 1024  # that every file system takes, of a name and of a path
_NAME_MARKS = frozenset("_.+ -")  # allowed in a plain name besides letters and digits


@cache
def is_plain(name: str) -> bool:
    """Whether a name can safely be that of a file: letters of any language, digits, `_.+-`, spaces inside; a letter or digit first."""
    allowed = (letter.isalnum() or letter in _NAME_MARKS or unicodedata.category(letter).startswith("M") for letter in name)
    return 0 < len(name) <= MAX_NAME_LENGTH and name[0].isalnum() and name[-1] not in " .-" and all(allowed)


def stays_inside(name: Any) -> bool:
    """Whether a relative path with slashes can be that of a file below the folder it starts in; links are not resolved."""
    if not isinstance(name, str) or {"", ".", ".."} & set(name.split("/")) or {"\\", "\0"} & set(name):
        return False
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError:  # a lone surrogate: valid in JSON, invalid in a file name
        return False
    # Of a longer name even Path.is_file would raise an OSError.
    return len(encoded) <= MAX_PATH_BYTES and max(map(len, encoded.split(b"/"))) <= MAX_PART_BYTES


def inside(folder: Path, name: str, *, source: object = "") -> Path:
    """`folder / name` for a name from an untrusted `source`; InputError if it or a link on the way leaves the folder."""
    if not stays_inside(name):
        raise InputError(f"names a file {name!r}, which cannot lie in {folder}", where=source, cure="take nothing from it that you do not trust")
    path = Path(folder, name)
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise InputError("is a link that leads out of its folder, or lies behind one", where=path, cure="put a folder in the place of the link")
    return path


def temporary_path(path: Path) -> Path:
    """A temporary name in the same folder; random, because processes in several containers can have the same id.

    It ends as the name does, but is no longer than 255 bytes: the longest names that a folder takes can be written too.
    """
    return path.with_name(f"{TEMPORARY}{os.getpid()}-{os.urandom(4).hex()}-{path.name[-40:]}")


def output_file(path: Path, *, kind: str = "", is_of_kind: Callable[[Path], bool] | None = None) -> Path:
    """Where an output is written: the target of a link, else `path` itself; InputError for a folder, circular links, or a place where none can be written.

    An existing file is replaced only if it is empty or `is_of_kind`, so that no input is lost; `kind` says what that is.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError("is a folder", where=path, cure="name a file in it")
    if is_stream(path):
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise InputError("is a link that leads back to itself", where=path, cure="remove the link, or choose another name")
    if is_of_kind and target.is_file() and target.stat().st_size and not is_of_kind(target):
        raise InputError(f"is there, and is no {kind}", where=path, cure="remove it, or choose another name")
    check_can_write(target)
    return target


def is_json_with(path: Path, *names: str) -> bool:
    """Whether a file is a JSON object with these names."""
    try:
        content = read_json(path)
    except (OSError, InputError):
        return False
    return isinstance(content, dict) and set(names) <= set(content)


def is_stream(path: Path) -> bool:
    """Whether a path is a device, a FIFO or a socket."""
    return path.exists() and not path.is_file() and not path.is_dir()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, which is renamed to `path` unless the block raises.

    A link is replaced, not followed (see `output_file`). For a device or a FIFO the content is copied to it; InputError for a
    FIFO that nobody reads.
    """
    with atomic_paths(path) as (temporary,):
        yield temporary


@contextmanager
def atomic_paths(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Yield a temporary path for each of `paths`; unless the block raises all of them are renamed, or none is.

    Otherwise as `atomic_path`. An OSError names the final path.
    """
    with ExitStack() as stack:
        temporaries = tuple(stack.enter_context(_temporary(Path(path))) for path in paths)
        yield temporaries
        pairs = list(zip(map(Path, paths), temporaries))
        for path, temporary in pairs:
            with _name_target(path, temporary):
                _sync(temporary)
        for path, temporary in pairs:
            if is_stream(path):
                with _name_target(path, temporary), open(temporary, "rb") as source, open(path, "wb", opener=_open_stream) as target_stream:
                    shutil.copyfileobj(source, target_stream)
        _rename_all([pair for pair in pairs if not is_stream(pair[0])])


def _open_stream(path: Path, flags: int) -> int:
    """A descriptor for writing to a device or a FIFO; InputError if nobody reads a FIFO, for which opening it otherwise waits for ever."""
    deadline = time.monotonic() + _SECONDS_FOR_A_READER
    while True:
        try:
            descriptor = os.open(path, flags | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if time.monotonic() > deadline:
                raise InputError("nobody reads this FIFO", where=path, cure="start its reader first, or name a file") from None
            time.sleep(0.1)
            continue
        os.set_blocking(descriptor, True)
        return descriptor


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A path to write to, removed afterwards if it still exists; in the folder of `path` unless that is a stream."""
    if is_stream(path):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / path.name
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix is kept because writers (Matplotlib, Parquet) choose the format by it.
    temporary = temporary_path(path)
    try:
        with _name_target(path, temporary):
            yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _rename_all(pairs: list[tuple[Path, Path]]) -> None:
    """Rename temporary files to their final names; if one of several fails, restore the earlier files."""
    with ExitStack() as undo:
        for path, temporary in pairs:
            if len(pairs) > 1:
                undo.callback(_restore, path, path.read_bytes() if path.is_file() else None)
            with _name_target(path, temporary):
                os.replace(temporary, path)
                _sync(path.parent)
        undo.pop_all()


def _restore(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    elif path.read_bytes() != content:
        write_bytes(path, content)


@contextmanager
def _name_target(path: Path, temporary: Path) -> Iterator[None]:
    """Make an OSError name the final path where it names the temporary file, or none because a write failed."""
    try:
        yield
    except OSError as error:
        nameless = error.filename is None and error.errno in (*FULL, errno.EIO, errno.EPIPE, errno.EROFS)
        if nameless or str(error.filename) == str(temporary):
            error.filename = str(path)
            del error.filename2  # None would be part of the message
        raise


def _sync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        if path.is_dir():  # writable but not readable: the file has been renamed nevertheless
            return
        raise
    try:
        sync_descriptor(descriptor)
    finally:
        os.close(descriptor)


def sync_descriptor(descriptor: int) -> None:
    """fsync an open file or folder, where its file system supports that; some (FUSE, SMB, FAT) do not."""
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


def write_parquet(path: Path, table: Any) -> None:
    """Write a table of pandas atomically as Parquet, without its index."""
    with atomic_path(path) as temporary, os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o666), "wb") as stream:
        table.to_parquet(stream, index=False)  # given a name, Arrow takes only those in UTF-8


def read_json(path: Path, shape: Any = None, *, fault: str = NOT_AS_WRITTEN, cure: str = RERUN_STEP) -> Any:
    """Read a JSON file; InputError names it when it is missing, damaged, or not of a `shape` that `validated` takes."""
    try:
        with open_regular(path, "r", encoding="utf-8-sig") as stream:  # editors on Windows write a byte order mark
            value = parse_json(stream.read())
    except FileNotFoundError:
        raise InputError("no such file", where=path, cure="run the step that writes it") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"not readable as JSON ({error})", where=path, cure=cure) from None
    return value if shape is None else validated(value, shape, where=path, fault=fault, cure=cure)


def spreadsheet_text(table: Any) -> str:
    """A pandas table as CSV for people, with an apostrophe before each text that a spreadsheet would take for a formula (OWASP, CSV injection)."""
    texts = table.select_dtypes(exclude="number")
    return table.assign(**{name: texts[name].map(_escape_formula) for name in texts}).to_csv(index=False)


def _escape_formula(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA_PREFIXES) else cell


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; ValueError for any invalid text, also where the library raises RecursionError."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:
        raise ValueError("a number of too many digits" if "digits" in str(error) else str(error)) from None


def validated(value: Any, shape: Any, *, where: object, fault: str = NOT_AS_WRITTEN, cure: str = RERUN_STEP) -> Any:
    """Check a value against a type (such as a TypedDict; other keys are allowed) and return it; InputError says `fault`."""
    from pydantic import ValidationError  # imported here because it is slow

    try:
        _checker(shape).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        location = ".".join(map(str, first["loc"])) or "the content"
        raise InputError(f"{fault} ({location}: {first['msg'][0].lower()}{first['msg'][1:]})", where=where, cure=cure) from None
    return value


@cache
def _checker(shape: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(shape)


def open_regular(path: Path, mode: str = "rb", *, encoding: str | None = None) -> IO[Any]:
    """A regular file opened for reading; InputError for a pipe, a device or a folder."""
    return open(path, mode, encoding=encoding, opener=regular_descriptor)


def regular_descriptor(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor for reading a regular file; InputError for a pipe, a device or a folder."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)  # otherwise opening a FIFO waits for a writer
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


def remove_temporary(folder: Path, subfolders: Iterable[str]) -> list[Path]:
    """Delete the temporary files of killed processes in `folder` itself and anywhere below its `subfolders`."""
    candidates = [*folder.glob(f"{TEMPORARY}*"), *(path for room in subfolders for path in (folder / room).rglob(f"{TEMPORARY}*"))]
    orphans = [path for path in candidates if re.match(rf"{re.escape(TEMPORARY)}\d+-", path.name) and path.is_file()]
    for path in orphans:
        path.unlink(missing_ok=True)
    return orphans


@contextmanager
def locked(path: Path, *, timeout: float = 0.0, waiting_message: str = "", busy_message: str = "in use") -> Iterator[None]:
    """Hold an exclusive flock on `path`, a folder or a lock file; it is released even if the process is killed.

    Waits up to `timeout` seconds, printing `waiting_message` once, then raises InputError with `busy_message`.
    """
    deadline = time.monotonic() + timeout
    while True:
        with suppress(BlockingIOError):
            descriptor = open_lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        if time.monotonic() > deadline:
            where = path if path.is_dir() else path.parent
            raise InputError(busy_message, where=where, cure="wait for it to end, or choose another folder")
        if waiting_message:
            print(waiting_message, file=sys.stderr, flush=True)
            waiting_message = ""
        time.sleep(0.1)
    try:
        yield
    finally:
        os.close(descriptor)


def open_lock(path: Path, kind: int) -> int:
    """A descriptor of `path` that holds a flock of this kind until closed; InputError if the file system has no locks."""
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


# Room on a disk.

_RESERVE = 32 << 20  # bytes that stay free


def require_room(folder: Path, size: int, *, purpose: str, cure: str = "free some space, or choose another disk") -> None:
    """InputError if the disk of `folder` has fewer than `size` bytes free; the folder need not exist yet."""
    existing_folder = next(path for path in (Path(folder).absolute(), *Path(folder).absolute().parents) if path.exists())
    free = shutil.disk_usage(existing_folder).free
    if size + _RESERVE > free:
        raise InputError(f"{purpose} needs {gigabytes(size)}, {gigabytes(free)} are free", where=folder, cure=cure)


def gigabytes(size: int) -> str:
    """Bytes as "1.5 GB" or "300.0 MB"."""
    unit, name = (10**9, "GB") if size >= 10**8 else (10**6, "MB")
    return f"{size / unit:,.1f} {name}"


@contextmanager
def on_a_full_disk(folder: Path) -> Iterator[None]:
    """Turn a full disk into InputError; complete files are kept for the next call."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise system_error(error, folder=folder, cure="free some space, then give the same command again to continue") from None


# Folders as users leave them, without the files of operating systems; links are followed.

# In small letters, because Windows and macOS write them in either. macOS ends "Icon" with a carriage return, which SMB stores as U+F00D.
_SYSTEM = {
    "thumbs.db", "thumbs.db:encryptable", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin", "recycler", "system volume information",
    "__macosx", "icon\r", "icon\uf00d", "network trash folder", "temporary items", "lost+found", "@eadir", "@recycle", "#recycle", "#snapshot",
}  # fmt: skip
_ZONE_IDENTIFIER = (":Zone.Identifier", "\uf03aZone.Identifier")  # of a download by Windows; SMB stores the colon as U+F03A


def entries(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """Files and folders in a folder, without hidden and system ones (.DS_Store, AppleDouble's ._*, Thumbs.db, *:Zone.Identifier).

    An empty list for a folder that does not exist or cannot be read.
    """
    try:
        with os.scandir(folder) as listing:
            return [entry for entry in listing if not is_system(entry.name)]
    except OSError:
        return []


def folder_fingerprint(folder: Path) -> str:
    """SHA-256 of the names and sizes of a folder's PNG files and of the first one's content; "" without any.

    To read them all would take as long as an epoch. A replacement of exactly the same size goes unnoticed.
    """
    sizes = [(name, status.st_size) for name, status in png_files(folder)]
    return hashlib.sha256(json.dumps([sizes, sha256(folder / sizes[0][0])]).encode()).hexdigest() if sizes else ""


def png_files(folder: Path) -> list[tuple[str, os.stat_result]]:
    """Name and status of the PNG files in a folder, sorted by name; a link that leads nowhere or in a circle is none."""
    found = []
    for entry in entries(folder):
        with suppress(OSError):  # of a circle, or of a file that was just removed
            if entry.name.endswith(".png") and entry.is_file():
                found.append((entry.name, entry.stat()))
    return sorted(found)


def is_system(name: str) -> bool:
    """Whether a file or folder of this name is hidden or created by an operating system."""
    return name.startswith(".") or name.casefold() in _SYSTEM or name.endswith(_ZONE_IDENTIFIER)


def walk(folder: str, *, follow_links: Container[str]) -> Iterator[str]:
    """The path of every file below a folder, and of folders named *.png; links to folders only if in `follow_links`."""
    for entry in entries(folder):
        is_folder = entry.is_dir(follow_symlinks=False) or (entry.path in follow_links and os.path.isdir(entry.path))  # other links may lead anywhere, even back here
        if not is_folder or entry.name.endswith(".png"):
            yield entry.path
        if is_folder:
            yield from walk(entry.path, follow_links=follow_links)
