"""HTTP downloads: retried on temporary failures, resumable, checked against published checksums."""

import base64
import hashlib
import importlib
import io
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from cellsignal import files
from cellsignal.errors import StepFailed
from cellsignal.files import on_a_full_disk, require_room
from cellsignal.progress_bars import progress_bar
from cellsignal.receipts import Receipt

if TYPE_CHECKING:
    from requests import Response, Session
    from tqdm import tqdm

MAX_FAILURES = 5  # failures in a row, without a byte between them, before we give up
FIRST_PAUSE = 1.0  # seconds before the second try; twice as long before each further one
READ_TIMEOUT = 60.0  # seconds without a byte that count as a failure; no pause is longer either
_TEMPORARY_STATUSES = (408, 429, 500, 502, 503, 504)
_Result = TypeVar("_Result")


class Interrupted(Exception):
    """A temporary failure; `wait` holds the seconds of a Retry-After header."""

    def __init__(self, what: str, wait: float | None = None) -> None:
        super().__init__(what)
        self.wait = wait


class FileInfo(NamedTuple):
    """Size, validator and hashes of the whole file, from the headers of a response."""

    size: int
    validator: str  # strong ETag, else Last-Modified: changes with the file; "" if there is neither
    hashes: Mapping[str, str]  # "md5", "crc32c": hexadecimal


def with_retries(url: str, attempt: Callable[[], _Result], *, bytes_so_far: Callable[[], int]) -> _Result:
    """Repeat `attempt` while it raises Interrupted; StepFailed after MAX_FAILURES failures without progress."""
    failures, previous = 0, bytes_so_far()
    while True:
        try:
            return attempt()
        except Interrupted as error:
            current = bytes_so_far()
            failures, previous = (1 if current > previous else failures + 1), current
            if failures > MAX_FAILURES:
                raise StepFailed(f"{url}: {error}, {failures} times in a row, after {current:,} bytes; give the same command again to continue") from None
            wait = FIRST_PAUSE * 2 ** (failures - 1) if error.wait is None else error.wait
            time.sleep(min(wait, READ_TIMEOUT))


def new_session() -> "Session":
    """A session that keeps its connection."""
    from requests import Session

    return Session()


def get(session: "Session", url: str, headers: Mapping[str, str]) -> "Response":
    """A response of status 200, 206 or 416, its body unread."""
    # Any other encoding would be decoded on the way, and length and checksums would not match.
    headers = {"Accept-Encoding": "identity", **headers}
    response = session.get(url, headers=headers, stream=True, timeout=(20, READ_TIMEOUT))
    status = response.status_code
    if status in _TEMPORARY_STATUSES:
        response.close()
        raise Interrupted(f"HTTP {status}", wait=_retry_after(response))
    insecure = url.startswith("https:") and not response.url.startswith("https:")
    if status not in (200, 206, 416) or insecure or response.headers.get("Content-Encoding", "identity") != "identity":
        response.close()
        what = "leads to an address without encryption" if insecure else f"answers HTTP {status}"
        raise StepFailed(f"{url} {what}; look whether it is still published there")
    return response


def if_range(validator: str) -> dict[str, str]:
    """A header that asks for a part only if the file is unchanged."""
    return {"If-Range": validator} if validator else {}


def _retry_after(response: "Response") -> float | None:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else None


def read_file_info(url: str, response: "Response") -> FileInfo:
    """Size, validator and hashes of the whole file; StepFailed if the server sends no size."""
    headers = response.headers
    total = headers.get("Content-Range", "").rpartition("/")[2] or headers.get("Content-Length", "")
    if not total.isdecimal():
        raise StepFailed(f"{url}: the server tells no length; download it in another way")
    etag = headers.get("ETag", "")
    validator = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")
    return FileInfo(int(total), validator, _hashes(headers.get("x-goog-hash", "")))


def start(response: "Response") -> int:
    """The first byte of a part; -1 if the server does not send it."""
    match = re.fullmatch(r"bytes (\d+)-\d+/\d+", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else -1


def _hashes(header: str) -> dict[str, str]:
    """The hashes of `x-goog-hash: crc32c=AAAAAA==,md5=...` as hexadecimal digits."""
    pairs = [part.strip().partition("=") for part in header.split(",") if part.strip()]
    try:
        return {name: base64.b64decode(value, validate=True).hex() for name, _, value in pairs}
    except ValueError:
        return {}  # no sum that we could compare


@contextmanager
def network(url: str) -> Iterator[None]:
    """Turn temporary failures into Interrupted and others into StepFailed, without quoting signed URLs."""
    from requests import exceptions

    try:
        yield
    except exceptions.SSLError:
        raise StepFailed(f"{url}: the server's certificate is not trusted; look at the clock and the proxy") from None
    except exceptions.Timeout:
        raise Interrupted("the server was silent") from None
    except exceptions.ChunkedEncodingError:
        raise Interrupted("the connection broke off") from None
    except exceptions.ConnectionError:
        raise Interrupted("no connection, or it fell silent") from None
    except exceptions.RequestException as error:
        raise StepFailed(f"{url} cannot be asked for ({type(error).__name__}); look at the address") from None


# Downloading a file: resumed after an interruption, checked against the server's hashes.


BLOCK = 16 << 20  # bytes of one range request
_CHUNK = 1 << 16  # bytes that can be lost when a connection breaks


def fetch(url: str, target: Path, *, md5: str = "") -> Path:
    """Download `url` to `target` atomically.

    An interrupted download resumes at its last byte if the file on the server is unchanged. The MD5 or CRC-32C of the
    server (x-goog-hash) is checked, else `md5`, hexadecimal. StepFailed if the server fails permanently or a checksum
    differs, InputError if the disk is too small.
    """
    part = target.with_name(f"{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = target.with_name(f".{target.name}.lock")
    with files.locked(lock, busy_message=f"another process downloads {target.name}"), on_a_full_disk(target.parent):
        _check_sums(url, part, _download(url, part), md5=md5)
        os.replace(part, target)
        _remove_partial(part)
        lock.unlink()
    return target


class RemoteFile(io.RawIOBase):
    """A seekable file on a server: `size` bytes in all, `fetched` of them read so far.

    Raises StepFailed if the server does not support range requests or the file changes meanwhile.
    """

    def __init__(self, url: str) -> None:
        self.url, self.position, self.fetched, self.info = url, 0, 0, FileInfo(1, "", {})
        self.session = new_session()
        with_retries(url, lambda: self._part(1), bytes_so_far=lambda: self.fetched)
        self.size = self.info.size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence] + offset
        return self.position

    def tell(self) -> int:
        return self.position

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self.size - self.position, BLOCK))
        content = with_retries(self.url, lambda: self._part(length), bytes_so_far=lambda: self.fetched) if length else b""
        buffer[: len(content)] = content
        self.position += len(content)
        self.fetched += len(content)
        return len(content)

    def close(self) -> None:
        self.session.close()
        super().close()

    def _part(self, length: int) -> bytes:
        """The next `length` bytes."""
        headers = {"Range": f"bytes={self.position}-{self.position + length - 1}", **if_range(self.info.validator)}
        with network(self.url), get(self.session, self.url, headers) as response:
            is_part, validator = response.status_code == 206 and start(response) == self.position, self.info.validator
            if not is_part and not validator:
                raise StepFailed(f"{self.url} cannot be downloaded in parts (no range requests); look at the proxy, or download the whole file")
            info = read_file_info(self.url, response)
            if not is_part or validator not in ("", info.validator):  # some servers ignore If-Range
                raise StepFailed(f"{self.url} changed while it was read; the same command begins anew")
            content = b"".join(response.iter_content(_CHUNK))
        if len(content) != length:
            raise Interrupted(f"{len(content):,} bytes came instead of {length:,}")
        self.info = info if not self.info.validator else self.info
        return content


def _download(url: str, part: Path) -> FileInfo:
    """Fill `part` to the last byte."""
    with new_session() as session, progress_bar(desc=part.stem, unit="B", unit_scale=True, disable=None) as bar:
        return with_retries(url, lambda: _resume(session, url, part, bar), bytes_so_far=lambda: _size(part))


def _resume(session: "Session", url: str, part: Path, bar: "tqdm") -> FileInfo:
    """Append the missing bytes, or start again if the file on the server has changed."""
    local_size, validator = _resume_point(url, part)
    headers = {"Range": f"bytes={local_size}-", **if_range(validator)} if local_size else {}
    with network(url), get(session, url, headers) as response:
        info = read_file_info(url, response)
        same_file = local_size <= info.size and validator == info.validator
        if response.status_code == 416 and local_size == info.size and validator:  # nothing is missing but the check
            return info
        if response.status_code == 416 or (response.status_code == 206 and not (same_file and start(response) == local_size)):
            _remove_partial(part)
            raise Interrupted("the file changed", wait=0)
        local_size = local_size if response.status_code == 206 else 0
        require_room(part.parent, info.size - local_size, purpose="the download")
        Receipt(_resume_file(part), {"url": url, "validator": info.validator}, complete=False).write()
        bar.total, bar.n = info.size, local_size
        _append(response, part, info, local_size=local_size, bar=bar)
    return info


def _append(response: "Response", part: Path, info: FileInfo, *, local_size: int, bar: "tqdm") -> None:
    with open(part, "r+b" if local_size else "wb") as sink:
        sink.seek(local_size)
        for block in response.iter_content(_CHUNK):
            if sink.tell() + len(block) > info.size:  # a wrong Content-Length must not fill the disk
                raise Interrupted(f"more than the announced {info.size:,} bytes came")
            sink.write(block)
            bar.update(len(block))
        sink.flush()
        files.sync_descriptor(sink.fileno())
        if sink.tell() != info.size:
            raise Interrupted("the connection broke off")


def _resume_file(part: Path) -> Path:
    """The receipt with URL and validator of a partial download."""
    return part.with_name(f"{part.name}.json")


def _resume_point(url: str, part: Path) -> tuple[int, str]:
    """Bytes of a partial download and its validator; (0, "") if it cannot be resumed."""
    saved = Receipt.find(_resume_file(part))
    known = saved is not None and saved.identity.get("url") == url and isinstance(saved.identity.get("validator"), str)
    return (_size(part), saved.identity["validator"]) if known and saved.identity["validator"] and _size(part) else (0, "")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _remove_partial(part: Path) -> None:
    part.unlink(missing_ok=True)
    _resume_file(part).unlink(missing_ok=True)


def _check_sums(url: str, part: Path, info: FileInfo, *, md5: str) -> None:
    """Refuse a file whose checksum is not the published one."""
    name, expected = "md5", info.hashes.get("md5", "")
    if not expected and "crc32c" in info.hashes and _crc32c() is not None:
        name, expected = "crc32c", info.hashes["crc32c"]
    expected = expected or md5
    if not expected:
        return  # only the CRC-32 of each member in the archive remains to be checked
    actual = _digest(part, hashlib.md5(usedforsecurity=False) if name == "md5" else _crc32c().Checksum())
    if actual != expected:
        _remove_partial(part)
        raise StepFailed(f"{url}: the {name.upper()} is {actual}, published is {expected}; the same command downloads it again")


def _crc32c() -> Any:
    """The module google_crc32c; nothing where it is not installed."""
    try:
        return importlib.import_module("google_crc32c")
    except ImportError:
        return None


def _digest(path: Path, digest: Any) -> str:
    with open(path, "rb") as stream, progress_bar(total=_size(path), desc="check sums", unit="B", unit_scale=True, disable=None) as bar:
        while block := stream.read(1 << 20):
            digest.update(block)
            bar.update(len(block))
    return digest.digest().hex()
