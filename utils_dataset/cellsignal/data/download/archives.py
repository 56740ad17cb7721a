"""Unpacking an archive into a data set: into a working folder first, checked, then moved into place."""

import errno
import os
import re
import shutil
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from zlib import crc32

from cellsignal import files
from cellsignal.errors import InputError, StepFailed
from cellsignal.files import on_a_full_disk, require_room
from cellsignal.progress_bars import progress_bar

# The files of a data set. Other members are ignored, so that no hostile name, link or device can do harm: a name of these
# patterns stays in its folder, and is written as a plain file.
_IMAGE = re.compile(r"(?:train|test|images)/([A-Za-z0-9]{1,20}-\d{1,3})/Plate\d{1,2}/[A-P]\d\d_s\d_w\d\.png", re.ASCII)
_TABLE = re.compile(r"(?:train|test|train_controls|test_controls|sample_submission|metadata)\.csv")
_INNER = re.compile(r"(?:train|test)\.zip")  # the competition's older bundles hold a zip for each of the two
_LARGEST = {".png": 4 << 20, ".csv": 64 << 20, ".zip": 80 << 30}  # bytes of one member; RxRx1 has 0.3 MB, 10 MB and 40 GB
_RATIO = 200  # of compression; tables reach 10, and a zip bomb 1,000
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DOWNLOAD_AGAIN = "delete it and download it again from a source that you trust"
# What the standard library raises on damaged or hostile archives.
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError, OverflowError, IndexError)


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
    except (*_ZIP_ERRORS, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which is a list of members before the first byte
            raise
        safe = "".join(letter if letter.isprintable() else "?" for letter in str(error))
        raise InputError(f"is no whole zip archive ({safe[:80]})", where=where, cure=_DOWNLOAD_AGAIN) from None


def members(archive: zipfile.ZipFile, *, prefix: str, where: object) -> list[Member]:
    """The members that belong to a data set, in their order in the archive; InputError for sizes and compression methods that none has."""
    selected = []
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        name = f"{prefix}{info.filename}".removeprefix("rxrx1/")
        image = _IMAGE.fullmatch(name)
        if not (image or (not prefix and (_TABLE.fullmatch(name) or _INNER.fullmatch(name)))):
            continue
        path = PurePosixPath(name)
        if info.file_size > _LARGEST[path.suffix]:
            raise InputError(f"{name} would become {info.file_size:,} bytes, no more than {_LARGEST[path.suffix]:,} are usual", where=where, cure=_DOWNLOAD_AGAIN)
        if info.compress_type not in _METHODS:
            raise InputError(f"{name} is compressed by method {info.compress_type}, which no such data set uses", where=where, cure=_DOWNLOAD_AGAIN)
        selected.append(Member(info, path, image[1] if image else ""))
    if sum(member.info.file_size for member in selected) > _RATIO * archive.start_dir:  # a zip bomb, or overlapping members
        raise InputError(f"would become more than {_RATIO} times as large", where=where, cure=_DOWNLOAD_AGAIN)
    return selected


WORKING_FOLDER = ".unpacking"  # in the data set's folder: the same file system, so that moving costs nothing
_BLOCK = 4096  # bytes a file system spends at least on a file
_CHUNK = 1 << 20


def unpack(
    source: Path | BinaryIO,
    target: Path,
    *,
    where: object = "",
    experiments: Collection[str] | None = None,
    accept: Callable[[Path], None] = lambda folder: None,
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
            paths = _unpack_members(source, root, prefix="", where=where, experiments=experiments)
            accept(working_folder)
        _move(paths, working_folder, root)
        shutil.rmtree(working_folder, ignore_errors=True)
    return Counter(path.parts[1] for path in set(paths) if path.suffix == ".png")


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


def _unpack_members(source: Path | BinaryIO, root: Path, *, prefix: str, where: object, experiments: Collection[str] | None) -> list[PurePosixPath]:
    """Unpack the requested members into the working folder unless they exist; the paths of all of them below `root`."""
    with ExitStack() as stack:
        stream = stack.enter_context(_stream(source))
        with readable(where):
            archive = stack.enter_context(zipfile.ZipFile(stream))
        selected = members(archive, prefix=prefix, where=where)
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
        if member.is_archive:  # train.zip or test.zip, which lies in the working folder now
            inner = root / WORKING_FOLDER / member.path
            paths += _unpack_members(inner, root, prefix=f"{inner.stem}/", where=f"{where}: {member.path}", experiments=experiments)
            inner.unlink()
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
        require_room(root, size, purpose="unpacking", cure="free some space, then give the same command again to continue")
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
