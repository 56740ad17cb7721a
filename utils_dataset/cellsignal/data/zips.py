"""What may come out of a zip archive that a stranger made: every member judged before a byte is written."""

import io
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO

from cellsignal.errors import InputError, StepFailed
from cellsignal.files import stays_inside

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
