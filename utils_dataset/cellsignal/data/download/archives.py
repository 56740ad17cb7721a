"""Unpacking an archive into a data set: into a working folder first, checked, then moved into place."""

import io
import os
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from zlib import crc32

from cellsignal import files
from cellsignal.errors import FULL, InputError, StepFailed, system_error
from cellsignal.files import stays_inside
from cellsignal.progress_bars import progress_bar

# Validating an untrusted zip archive: every member is checked before a byte is written.


# The files of a data set; other members of an archive are ignored.
_IMAGE = re.compile(r"(?:train|test|images)/([A-Za-z0-9]{1,20}-\d{1,3})/Plate\d{1,2}/[A-P]\d\d_s\d_w\d\.png")
_TABLE = re.compile(r"(?:train|test|train_controls|test_controls|sample_submission|metadata)\.csv")
_INNER = re.compile(r"(?:train|test)\.zip")  # the competition's older bundles hold a zip for each of the two
_ASCII = re.compile(r"[ -~]{1,250}")
_FORBIDDEN_CHARACTERS = frozenset('\\:*?"<>|')  # separators, drives and wildcards of other systems
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DOWNLOAD_AGAIN = "delete it and download it again from a source that you trust"
# What the standard library raises on damaged or hostile archives.
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError, OverflowError, IndexError)


@dataclass(frozen=True)
class Limits:
    """Size limits of an archive; the defaults are a few times RxRx1: 753,063 files, images below 0.3 MB."""

    members: int = 1_000_000
    directory: int = 128 << 20  # bytes of the central directory: reading it takes ten times that in memory
    image: int = 4 << 20  # bytes of one image
    table: int = 64 << 20  # bytes of one table; the largest is 10 MB
    inner: int = 80 << 30  # bytes of a nested archive
    ratio: int = 200  # of compression; tables reach 10, and a zip bomb 1,000


@dataclass(frozen=True)
class Member:
    """One file of an archive that a data set can be read from."""

    info: zipfile.ZipInfo
    path: PurePosixPath  # below the folder of the data set
    experiment: str  # "" for tables and archives

    @property
    def is_archive(self) -> bool:
        """Whether it holds the images of one of the competition's two data sets."""
        return self.path.suffix == ".zip"


@contextmanager
def readable(where: object) -> Iterator[None]:
    """Turn the standard library's errors about damaged archives into InputError."""
    try:
        yield
    except (InputError, StepFailed):
        raise
    except _ZIP_ERRORS as error:
        raise InputError(f"is no whole zip archive ({shown(str(error))})", where=where, cure=_DOWNLOAD_AGAIN) from None


def shown(text: str) -> str:
    """Untrusted text on one short line, without control characters."""
    safe = "".join(letter if letter.isprintable() else "?" for letter in text)
    return safe if len(safe) <= 80 else f"{safe[:77]}..."


class _BoundedReader(io.RawIOBase):
    """A stream that returns at most `limit` bytes at once, because zipfile reads the whole central directory at once."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self.stream, self.limit = stream, limit

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()

    def read(self, size: int = -1) -> bytes:
        content = self.stream.read(min(size, self.limit + 1) if size >= 0 else self.limit + 1)
        if len(content) > self.limit:
            raise zipfile.BadZipFile(f"its list of members is longer than {self.limit:,} bytes")
        return content


def open_zip(stream: BinaryIO, *, where: object, limits: Limits) -> zipfile.ZipFile:
    """Open an archive whose list of members is no larger than the limits; InputError when it is not whole."""
    with readable(where):
        return zipfile.ZipFile(_BoundedReader(stream, limits.directory))


def members(archive: zipfile.ZipFile, *, prefix: str, where: object, limits: Limits) -> list[Member]:
    """The members that belong to a data set, in their order in the archive.

    All members are checked: InputError for names that leave the folder, links, devices, encryption, sizes beyond the
    limits, overlapping members and duplicate names.
    """
    if len(archive.infolist()) > limits.members:
        _refuse(where, f"lists {len(archive.infolist()):,} members, more than a data set has")
    for info in archive.infolist():
        _check_member(info, where=where)
    infos = sorted((info for info in archive.infolist() if not info.is_dir()), key=lambda info: info.header_offset)
    _check_overlaps(infos, end=archive.start_dir, where=where)
    selected = [member for info in infos if (member := _as_member(info, prefix=prefix)) is not None]
    _check_sizes(selected, where=where, limits=limits)
    _check_duplicates(selected, where=where)
    return selected


def _as_member(info: zipfile.ZipInfo, *, prefix: str) -> Member | None:
    """A member with its path in the data set; None if it does not belong to one."""
    name = f"{prefix}{info.filename}".removeprefix("rxrx1/")
    image = _IMAGE.fullmatch(name)
    if image or (not prefix and (_TABLE.fullmatch(name) or _INNER.fullmatch(name))):
        return Member(info, PurePosixPath(name), image[1] if image else "")
    return None


def _refuse(where: object, what: str) -> None:
    raise InputError(what, where=where, cure=_DOWNLOAD_AGAIN)


def _check_member(info: zipfile.ZipInfo, *, where: object) -> None:
    """Refuse a member that is not a regular file or a folder below this one."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    name = shown(info.orig_filename)
    # The library cuts names at a zero byte and converts separators of other systems: check the original name.
    inside = stays_inside(info.orig_filename.removesuffix("/"))  # which ends the name of a folder
    if not inside or not _ASCII.fullmatch(info.orig_filename) or _FORBIDDEN_CHARACTERS & set(info.orig_filename):
        _refuse(where, f"member {name!r} would not stay in its folder or has a strange name")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or (kind == stat.S_IFDIR) > info.is_dir():
        _refuse(where, f"member {name!r} is a link, a device or the like")
    if info.flag_bits & 0x2061:  # encrypted, a patch, strongly encrypted, with a masked header
        _refuse(where, f"member {name!r} is encrypted")
    if info.compress_type not in _METHODS:
        _refuse(where, f"member {name!r} is compressed by method {info.compress_type}, which no such data set uses")


def _check_overlaps(infos: list[zipfile.ZipInfo], *, end: int, where: object) -> None:
    """Refuse overlapping members, which zip bombs use."""
    next_starts = [*(info.header_offset for info in infos), end]
    for info, next_start in zip(infos, next_starts[1:]):
        # 30 bytes stand before the name in front of the data.
        if info.header_offset < 0 or info.header_offset + 30 + len(info.orig_filename) + info.compress_size > next_start:
            _refuse(where, f"member {shown(info.orig_filename)!r} shares its bytes with another or lies outside the archive")


def _check_sizes(selected: Iterable[Member], *, where: object, limits: Limits) -> None:
    for member in selected:
        limit = limits.image if member.experiment else limits.inner if member.is_archive else limits.table
        size, compressed = member.info.file_size, member.info.compress_size
        if size > limit:
            _refuse(where, f"member {shown(str(member.path))!r} would become {size:,} bytes, no more than {limit:,} are usual")
        if size > limits.ratio * (compressed + 64):
            _refuse(where, f"member {shown(str(member.path))!r} would become {size / max(compressed, 1):,.0f} times as large")


def _check_duplicates(selected: Iterable[Member], *, where: object) -> None:
    seen: set[str] = set()
    for member in selected:
        name = str(member.path).casefold()  # some file systems know no case
        if name in seen:
            _refuse(where, f"member {shown(str(member.path))!r} is there twice")
        seen.add(name)


WORKING_FOLDER = ".unpacking"  # in the data set's folder: the same file system, so that moving costs nothing
_BLOCK = 4096  # bytes a file system spends at least on a file
_RESERVE = 32 << 20  # bytes that stay free
_CHUNK = 1 << 20


def unpack(
    source: Path | BinaryIO,
    target: Path,
    *,
    where: object = "",
    experiments: Collection[str] | None = None,
    accept: Callable[[Path], None] = lambda folder: None,
    limits: Limits = Limits(),
) -> Counter[str]:
    """Unpack the tables and images of a zip archive into the folder `target`; the number of images by experiment.

    `experiments` None means all of them. A killed call resumes: existing files with the archive's size and CRC-32 are
    kept. Nothing is moved into place before `accept` was called with the folder of new files. InputError if the archive
    is damaged or hostile (nothing is left then), or the disk is too small.
    """
    where = where or source
    root = Path(os.path.realpath(target))
    root.mkdir(parents=True, exist_ok=True)
    working_folder = root / WORKING_FOLDER
    with files.locked(root, busy_message="another process unpacks into this folder"), on_a_full_disk(root):
        _refuse_links(working_folder, below=root)
        with _removing_partial(working_folder):
            paths = _unpack_members(source, root, prefix="", where=where, experiments=experiments, limits=limits)
            accept(working_folder)
        _move(paths, working_folder, root)
        shutil.rmtree(working_folder, ignore_errors=True)
    return Counter(path.parts[1] for path in paths if path.suffix == ".png")


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
        raise system_error(error, folder=folder, cure="free some space; the same command then goes on") from None


@contextmanager
def _removing_partial(working_folder: Path) -> Iterator[None]:
    """Remove the output of an invalid archive, but keep it after a full disk or a signal."""
    try:
        yield
    except _DiskTooSmall as error:
        raise InputError(str(error)) from None
    except InputError:
        shutil.rmtree(working_folder, ignore_errors=True)
        raise


class _DiskTooSmall(Exception):
    """The archive is valid, but the disk is too small."""


def _unpack_members(
    source: Path | BinaryIO, root: Path, *, prefix: str, where: object, experiments: Collection[str] | None, limits: Limits
) -> list[PurePosixPath]:
    """Unpack the requested members into the working folder unless they exist; the paths of all of them below `root`."""
    with _stream(source) as stream, open_zip(stream, where=where, limits=limits) as archive:
        selected = members(archive, prefix=prefix, where=where, limits=limits)
        requested = [member for member in selected if not member.experiment or experiments is None or member.experiment in experiments]
        if not requested:
            what = "holds neither tables nor images of a data set" if not selected else "holds no image of these experiments"
            raise InputError(what, where=where, cure="name the archive of the competition or of the public release")
        missing = [member for member in requested if not any(_is_complete(folder / member.path, member) for folder in (root, root / WORKING_FOLDER))]
        _check_room(root, missing)
        with progress_bar(total=sum(member.info.file_size for member in missing), desc="unpack", unit="B", unit_scale=True, disable=None) as bar:
            for member in missing:
                with readable(f"{where}: {member.path}"):
                    bar.update(_write(archive, member, root / WORKING_FOLDER))
    paths = [member.path for member in requested if not member.is_archive]
    for member in requested:
        if member.is_archive:
            paths += _unpack_inner(member, root, where=where, experiments=experiments, limits=limits)
    return paths


def _unpack_inner(
    member: Member, root: Path, *, where: object, experiments: Collection[str] | None, limits: Limits
) -> list[PurePosixPath]:
    """Unpack train.zip or test.zip from the working folder, and remove it."""
    path = root / WORKING_FOLDER / member.path
    inside = f"{where}: {member.path}"
    paths = _unpack_members(path, root, prefix=f"{path.stem}/", where=inside, experiments=experiments, limits=limits)
    path.unlink()
    return paths


@contextmanager
def _stream(source: Path | BinaryIO) -> Iterator[BinaryIO]:
    """An archive as a stream, from a path or an open stream."""
    if not isinstance(source, Path):
        yield source
        return
    try:
        stream = open(source, "rb")
    except (FileNotFoundError, IsADirectoryError):
        raise InputError("no such archive", where=source, cure="download it first") from None
    with stream:
        yield stream


def _check_room(root: Path, missing: Iterable[Member]) -> None:
    size = sum(-(-member.info.file_size // _BLOCK) * _BLOCK for member in missing)
    try:
        require_room(root, size, purpose="unpacking", cure="free some space; the same command then goes on")
    except InputError as error:
        raise _DiskTooSmall(str(error)) from None


def _is_complete(path: Path, member: Member) -> bool:
    """Whether a file has the size and the CRC-32 of its member."""
    try:
        if path.is_symlink() or path.stat().st_size != member.info.file_size:
            return False
    except OSError:
        return False
    checksum = 0
    with open(path, "rb") as stream:
        while block := stream.read(_CHUNK):
            checksum = crc32(block, checksum)
    return checksum == member.info.CRC


def _write(archive: zipfile.ZipFile, member: Member, working_folder: Path) -> int:
    """Unpack one member atomically; its size in bytes.

    There is no fsync, which would take hours for 753,060 images: after a power failure the CRC-32 detects damaged files.
    """
    path = working_folder / member.path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = files.temporary_path(path)
    partial.unlink(missing_ok=True)
    try:
        with archive.open(member.info) as source, open(partial, "xb") as sink:
            shutil.copyfileobj(source, sink, _CHUNK)  # the library gives no more than `file_size` and checks the CRC-32
            if sink.tell() != member.info.file_size:
                raise zipfile.BadZipFile(f"{sink.tell():,} bytes came out of it, not {member.info.file_size:,}")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return member.info.file_size


def _move(paths: Iterable[PurePosixPath], working_folder: Path, root: Path) -> None:
    """Move new files into place, the tables last: they make a folder a data set."""
    folders: set[PurePosixPath] = set()
    for path in sorted(paths, key=lambda path: (len(path.parts) == 1, path)):
        if not (working_folder / path).exists():
            continue  # it was there already
        if path.parent not in folders:
            _refuse_links(root / path.parent, below=root)
            (root / path.parent).mkdir(parents=True, exist_ok=True)
            folders.add(path.parent)
        os.replace(working_folder / path, root / path)


def _refuse_links(folder: Path, *, below: Path) -> None:
    """Refuse a folder that is a link or lies behind one, so that all files stay below the data set's folder."""
    if os.path.realpath(folder) != str(folder) or not folder.is_relative_to(below):
        raise InputError("is a link, or lies behind one", where=folder, cure=f"remove the link, or choose another folder than {below}")
