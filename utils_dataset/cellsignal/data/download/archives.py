"""From an archive to a data set: unpacked beside its place, checked, then moved into it."""

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

# What may come out of a zip archive that a stranger made: every member judged before a byte is written.


# Everything a data set is read from; whatever else an archive holds stays in it.
_IMAGE = re.compile(r"(?:train|test|images)/([A-Za-z0-9]{1,20}-\d{1,3})/Plate\d{1,2}/[A-P]\d\d_s\d_w\d\.png")
_TABLE = re.compile(r"(?:train|test|train_controls|test_controls|sample_submission|metadata)\.csv")
_INNER = re.compile(r"(?:train|test)\.zip")  # the competition's older bundles hold a zip for each of the two
_ASCII = re.compile(r"[ -~]{1,250}")
_FOREIGN = frozenset('\\:*?"<>|')  # separators, drives and wildcards of other systems
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_AGAIN = "delete it and download it again from a source that you trust"
# What the standard library raises on archives that lie.
_DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError, OverflowError, IndexError)


@dataclass(frozen=True)
class Limits:
    """How large an archive may become; the defaults are a few times RxRx1: 753,063 files, images below 0.3 MB."""

    members: int = 1_000_000
    directory: int = 128 << 20  # bytes of the list of members: what reading it costs in memory is ten times that
    image: int = 4 << 20  # bytes of one image
    table: int = 64 << 20  # bytes of one table; the largest is 10 MB
    inner: int = 80 << 30  # bytes of an archive inside
    ratio: int = 200  # bytes that come out of one; tables reach 10, and a bomb 1,000


@dataclass(frozen=True)
class Member:
    """One file of an archive that a data set can be read from."""

    info: zipfile.ZipInfo
    path: PurePosixPath  # below the folder of the data set
    experiment: str  # "" for what is no image

    @property
    def is_archive(self) -> bool:
        """Whether it holds the images of one of the competition's two data sets."""
        return self.path.suffix == ".zip"


@contextmanager
def readable(where: object) -> Iterator[None]:
    """Turn what a lying archive makes the standard library raise into one line."""
    try:
        yield
    except (InputError, StepFailed):
        raise
    except _DAMAGED as error:
        raise InputError(f"is no whole zip archive ({shown(str(error))})", where=where, cure=_AGAIN) from None


def shown(text: str) -> str:
    """Text of a stranger's on one short line, without control characters."""
    safe = "".join(letter if letter.isprintable() else "?" for letter in text)
    return safe if len(safe) <= 80 else f"{safe[:77]}..."


class _Frugal(io.RawIOBase):
    """A stream that gives no more than `most` bytes at once: the list of members is read in one go, however long it is."""

    def __init__(self, stream: BinaryIO, most: int) -> None:
        self.stream, self.most = stream, most

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()

    def read(self, size: int = -1) -> bytes:
        content = self.stream.read(min(size, self.most + 1) if size >= 0 else self.most + 1)
        if len(content) > self.most:
            raise zipfile.BadZipFile(f"its list of members is longer than {self.most:,} bytes")
        return content


def open_zip(stream: BinaryIO, *, where: object, limits: Limits) -> zipfile.ZipFile:
    """Open an archive whose list of members is no larger than the limits; InputError when it is not whole."""
    with readable(where):
        return zipfile.ZipFile(_Frugal(stream, limits.directory))


def members(archive: zipfile.ZipFile, *, prefix: str, where: object, limits: Limits) -> list[Member]:
    """The members that a data set is read from, in the order they lie in the archive.

    Every member is judged, the unwanted too: InputError on names that leave the folder, on links, devices, encryption, sizes
    beyond the limits, members that share bytes or a place.
    """
    if len(archive.infolist()) > limits.members:
        _refuse(where, f"lists {len(archive.infolist()):,} members, more than a data set has")
    for info in archive.infolist():
        _judge(info, where=where)
    infos = sorted((info for info in archive.infolist() if not info.is_dir()), key=lambda info: info.header_offset)
    _apart(infos, end=archive.start_dir, where=where)
    found = [member for info in infos if (member := _place(info, prefix=prefix)) is not None]
    _bounded(found, where=where, limits=limits)
    _distinct(found, where=where)
    return found


def _place(info: zipfile.ZipInfo, *, prefix: str) -> Member | None:
    """Where a member belongs in the data set's folder; nothing when it belongs nowhere."""
    name = f"{prefix}{info.filename}".removeprefix("rxrx1/")
    image = _IMAGE.fullmatch(name)
    if image or (not prefix and (_TABLE.fullmatch(name) or _INNER.fullmatch(name))):
        return Member(info, PurePosixPath(name), image[1] if image else "")
    return None


def _refuse(where: object, what: str) -> None:
    raise InputError(what, where=where, cure=_AGAIN)


def _judge(info: zipfile.ZipInfo, *, where: object) -> None:
    """Refuse a member that is not plainly a file or a folder below this one."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    name = shown(info.orig_filename)
    # The library cuts names at a zero byte and turns the separators of other systems: judge what was written.
    inside = stays_inside(info.orig_filename.removesuffix("/"))  # which ends the name of a folder
    if not inside or not _ASCII.fullmatch(info.orig_filename) or _FOREIGN & set(info.orig_filename):
        _refuse(where, f"member {name!r} would not stay in its folder or has a strange name")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or (kind == stat.S_IFDIR) > info.is_dir():
        _refuse(where, f"member {name!r} is a link, a device or the like")
    if info.flag_bits & 0x2061:  # encrypted, a patch, strongly encrypted, with a masked header
        _refuse(where, f"member {name!r} is encrypted")
    if info.compress_type not in _METHODS:
        _refuse(where, f"member {name!r} is compressed by method {info.compress_type}, which no such data set uses")


def _apart(infos: list[zipfile.ZipInfo], *, end: int, where: object) -> None:
    """Refuse members that share bytes: the cheapest way to make gigabytes out of nothing."""
    starts = [*(info.header_offset for info in infos), end]
    for info, start in zip(infos, starts[1:]):
        # 30 bytes stand before the name in front of the data.
        if info.header_offset < 0 or info.header_offset + 30 + len(info.orig_filename) + info.compress_size > start:
            _refuse(where, f"member {shown(info.orig_filename)!r} shares its bytes with another or lies outside the archive")


def _bounded(found: Iterable[Member], *, where: object, limits: Limits) -> None:
    for member in found:
        most = limits.image if member.experiment else limits.inner if member.is_archive else limits.table
        size, packed = member.info.file_size, member.info.compress_size
        if size > most:
            _refuse(where, f"member {shown(str(member.path))!r} would become {size:,} bytes, no more than {most:,} are usual")
        if size > limits.ratio * (packed + 64):
            _refuse(where, f"member {shown(str(member.path))!r} would become {size / max(packed, 1):,.0f} times as large")


def _distinct(found: Iterable[Member], *, where: object) -> None:
    seen: set[str] = set()
    for member in found:
        place = str(member.path).casefold()  # some file systems know no case
        if place in seen:
            _refuse(where, f"member {shown(str(member.path))!r} is there twice")
        seen.add(place)


WORKSHOP = ".unpacking"  # in the data set's folder: the same file system, so that moving costs nothing
_BLOCK = 4096  # bytes a file system spends at least on a file
_RESERVE = 32 << 20  # bytes that shall stay free
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

    `experiments` None means all of them. A killed call goes on where it stopped: what is there already and has the
    archive's size and CRC-32 is kept. Nothing comes to its place before `accept` has seen the folder of all that is new.
    InputError when the archive is damaged or hostile, which then leaves nothing, or when the disk is too small.
    """
    where = where or source
    root = Path(os.path.realpath(target))
    root.mkdir(parents=True, exist_ok=True)
    workshop = root / WORKSHOP
    with files.locked(root, refusal="another process unpacks into this folder"), on_a_full_disk(root):
        _straight(workshop, below=root)
        with _removing_partial(workshop):
            placed = _fill(source, root, prefix="", where=where, experiments=experiments, limits=limits)
            accept(workshop)
        _move(placed, workshop, root)
        shutil.rmtree(workshop, ignore_errors=True)
    return Counter(path.parts[1] for path in placed if path.suffix == ".png")


def require_room(folder: Path, size: int, *, purpose: str, cure: str = "free some space, or choose another disk") -> None:
    """InputError when the disk of `folder` has fewer than `size` bytes free; the folder need not be there yet."""
    place = next(path for path in (Path(folder).absolute(), *Path(folder).absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if size + _RESERVE > free:
        raise InputError(f"{purpose} needs {gigabytes(size)}, {gigabytes(free)} are free", where=folder, cure=cure)


def gigabytes(size: int) -> str:
    """Bytes as people say them."""
    unit, name = (10**9, "GB") if size >= 10**8 else (10**6, "MB")
    return f"{size / unit:,.1f} {name}"


@contextmanager
def on_a_full_disk(folder: Path) -> Iterator[None]:
    """Say in one line which disk was full; what is whole stays for the next call."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise system_error(error, folder=folder, cure="free some space; the same command then goes on") from None


@contextmanager
def _removing_partial(workshop: Path) -> Iterator[None]:
    """Remove what came out of an archive that turned out to be bad, but not what a full disk or a signal cut short."""
    try:
        yield
    except _NoRoom as error:
        raise InputError(str(error)) from None
    except InputError:
        shutil.rmtree(workshop, ignore_errors=True)
        raise


class _NoRoom(Exception):
    """The archive is well, and the disk too small for it."""


def _fill(
    source: Path | BinaryIO, root: Path, *, prefix: str, where: object, experiments: Collection[str] | None, limits: Limits
) -> list[PurePosixPath]:
    """Bring all that is wanted into the workshop, unless it is in its place already; the paths of both below `root`."""
    with _stream(source) as stream, open_zip(stream, where=where, limits=limits) as archive:
        found = members(archive, prefix=prefix, where=where, limits=limits)
        wanted = [member for member in found if not member.experiment or experiments is None or member.experiment in experiments]
        if not wanted:
            what = "holds neither tables nor images of a data set" if not found else "holds no image of these experiments"
            raise InputError(what, where=where, cure="name the archive of the competition or of the public release")
        missing = [member for member in wanted if not any(_whole(folder / member.path, member) for folder in (root, root / WORKSHOP))]
        _check_room(root, missing)
        with progress_bar(total=sum(member.info.file_size for member in missing), desc="unpack", unit="B", unit_scale=True, disable=None) as bar:
            for member in missing:
                with readable(f"{where}: {member.path}"):
                    bar.update(_write(archive, member, root / WORKSHOP))
    placed = [member.path for member in wanted if not member.is_archive]
    for member in wanted:
        if member.is_archive:
            placed += _inner(member, root, where=where, experiments=experiments, limits=limits)
    return placed


def _inner(
    member: Member, root: Path, *, where: object, experiments: Collection[str] | None, limits: Limits
) -> list[PurePosixPath]:
    """Unpack train.zip or test.zip, which lies in the workshop, and remove it."""
    path = root / WORKSHOP / member.path
    inside = f"{where}: {member.path}"
    placed = _fill(path, root, prefix=f"{path.stem}/", where=inside, experiments=experiments, limits=limits)
    path.unlink()
    return placed


@contextmanager
def _stream(source: Path | BinaryIO) -> Iterator[BinaryIO]:
    """An archive's bytes, whether it lies on the disk or elsewhere."""
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
        raise _NoRoom(str(error)) from None


def _whole(path: Path, member: Member) -> bool:
    """Whether a file has the size and the CRC-32 that the archive tells."""
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


def _write(archive: zipfile.ZipFile, member: Member, workshop: Path) -> int:
    """Unpack one member, whole or not at all; its bytes.

    There is no fsync, which would take hours for 753,060 images: after a power failure the CRC-32 finds what was lost.
    """
    path = workshop / member.path
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


def _move(placed: Iterable[PurePosixPath], workshop: Path, root: Path) -> None:
    """Bring what is new into its place, the tables last: they make a folder a data set."""
    folders: set[PurePosixPath] = set()
    for path in sorted(placed, key=lambda path: (len(path.parts) == 1, path)):
        if not (workshop / path).exists():
            continue  # it was there already
        if path.parent not in folders:
            _straight(root / path.parent, below=root)
            (root / path.parent).mkdir(parents=True, exist_ok=True)
            folders.add(path.parent)
        os.replace(workshop / path, root / path)


def _straight(folder: Path, *, below: Path) -> None:
    """Refuse a folder that a link leads elsewhere: what is unpacked stays below the data set's folder."""
    if os.path.realpath(folder) != str(folder) or not folder.is_relative_to(below):
        raise InputError("is a link, or lies behind one", where=folder, cure=f"remove the link, or choose another folder than {below}")
