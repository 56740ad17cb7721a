"""Reading table files safely (no FIFOs, limited sizes, gzip) and parsing their headers."""

import codecs
import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from cellsignal.errors import InputError
from cellsignal.files import is_stream
from cellsignal.tasks import Task

MAX_HEADER_BYTES = 1 << 20  # bytes of a header: that of scores, with 1,139 classes, has 6,000
_PACKED = {b"PK\x03\x04": "a zip archive, such as Excel's", b"\x1f\x8b": "packed with gzip", b"BZh": "packed with bzip2", b"\xfd7zXZ": "packed with xz"}
_BEGINNING_BYTES = 1 << 16  # that show whether a table is text
MAX_TABLE_BYTES = 256 << 20  # bytes of a table when unpacked: the public release's metadata.csv, the largest, has 13 million


class Header(NamedTuple):
    """The first line of a table."""

    names: list[str]
    separator: str  # "," in every table that is read


def refuse_stream(path: Path) -> None:
    """InputError for a device or a FIFO: reading it might never end."""
    if is_stream(Path(path)):
        raise InputError("is a device or a FIFO, no file", where=path, cure="save the table as a file first")


@contextmanager
def open_table(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a table, unpacked if its name ends with .gz.

    Raises InputError for a device or a FIFO, and for a damaged gzip file.
    """
    refuse_stream(path)
    try:
        with gzip.open(path) if Path(path).name.lower().endswith(".gz") else open(path, "rb") as stream:
            yield stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"no whole gzip file ({error})", where=path, cure="compress the table again") from None


class BoundedStream(io.RawIOBase):
    """A stream that calls `check_size`, which may raise, with the number of bytes read so far."""

    def __init__(self, stream: BinaryIO, check_size: Callable[[int], None]) -> None:
        self.stream, self.check_size, self.num_read = stream, check_size, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self.stream.readinto(buffer)
        self.num_read += count
        self.check_size(self.num_read)
        return count


def read_content(path: Path) -> bytes:
    """All bytes of a table; raises InputError for more than MAX_TABLE_BYTES, and what `open_table` raises."""
    with open_table(path) as stream:
        content = stream.read(MAX_TABLE_BYTES + 1)
    if len(content) > MAX_TABLE_BYTES:
        raise InputError(f"holds more than {MAX_TABLE_BYTES >> 20} MiB, as no table does", where=path, cure="look what it holds, and write it again")
    return content


def require_text(path: Path) -> None:
    """InputError for a table that is empty or, as its beginning shows, no text in UTF-8; raises OSError, and what `open_table` raises."""
    with open_table(path) as stream:
        beginning = stream.read(_BEGINNING_BYTES)
    if not beginning.strip():
        raise InputError("the file is empty", where=path, cure="copy the table again")
    try:
        codecs.getincrementaldecoder("utf-8")().decode(beginning)  # which may end within a letter
        is_text = b"\0" not in beginning
    except UnicodeDecodeError:
        is_text = False
    if not is_text:
        what, cure = not_text_fault(beginning)
        raise InputError(what, where=path, cure=cure)


def not_text_fault(content: bytes) -> tuple[str, str]:
    """What a table is whose content is no text in UTF-8, and the cure."""
    packed = next((name for mark, name in _PACKED.items() if content.startswith(mark)), "")
    what, cure = (f"is {packed}", "unpack it, or") if packed else ("is not UTF-8 text", "")
    return what, f"{cure} save the table as CSV in UTF-8".strip()


def header_of(content: bytes, *, exact: bool = False) -> Header:
    """The header of a table that begins with these bytes: names without quotes, byte order mark and, unless `exact`, spaces around them."""
    line = re.split(r"[\r\n]", content[:MAX_HEADER_BYTES].decode("utf-8-sig", errors="replace"), maxsplit=1)[0]
    try:
        names = next(csv.reader([line]), [])
        separator = next((mark for mark in ";\t|" if len(names) == 1 and mark in names[0]), ",")
        names = next(csv.reader([line], delimiter=separator, skipinitialspace=not exact), [])
        return Header(names if exact else [name.strip() for name in names], separator)
    except csv.Error:  # a cell too long for a name
        return Header([line], ",")


def read_header(path: Path, *, exact: bool = False) -> Header:
    """The header of a table, as `header_of` gives it; raises OSError, and what `open_table` raises."""
    with open_table(path) as stream:
        return header_of(stream.readline(MAX_HEADER_BYTES), exact=exact)


def has_columns(path: Path, *columns: str) -> bool:
    """Whether a file is a table with all these columns, whatever separates them; False where there is no such file."""
    try:
        return set(columns) <= set(read_header(path).names)
    except (OSError, InputError):
        return False


def is_table_of(path: Path, column: str, task: Task) -> bool:
    """Whether a file is a table with this column and, where the task is told by its `identifying_value`, a cell of that."""
    return has_columns(path, column) and (not task.identifying_value or _has_value(path, column, task.identifying_value))


def _has_value(path: Path, column: str, value: str) -> bool:
    try:
        rows = csv.reader(read_content(path).decode("utf-8-sig").splitlines(), skipinitialspace=True)
        number = [name.strip() for name in next(rows, [])].index(column)
        return any(row[number].strip() == value for row in rows if len(row) > number)
    except (OSError, InputError, UnicodeDecodeError, ValueError, csv.Error):
        return False
