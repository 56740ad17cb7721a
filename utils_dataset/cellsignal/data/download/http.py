"""Requests that are patient with servers: what may pass is tried again, what will not is one line."""

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

from tqdm.auto import tqdm

from cellsignal import files
from cellsignal.data.download.archives import on_a_full_disk, require_room
from cellsignal.errors import StepFailed
from cellsignal.progress_bars import progress_bar
from cellsignal.receipts import Receipt

if TYPE_CHECKING:
    from requests import Response, Session
    from tqdm import tqdm

PATIENCE = 5  # failures in a row, without a byte between them, before we give up
PAUSE = 1.0  # seconds before the second try; twice as long before each further one
SILENCE = 60.0  # seconds without a byte that count as a failure; no pause is longer either
_BUSY = (408, 429, 500, 502, 503, 504)
_Result = TypeVar("_Result")


class Interrupted(Exception):
    """A failure that may pass; and how many seconds to wait, where the server says so."""

    def __init__(self, what: str, wait: float | None = None) -> None:
        super().__init__(what)
        self.wait = wait


class Facts(NamedTuple):
    """What a response tells of the whole file."""

    size: int
    validator: str  # strong ETag, else Last-Modified: stays the same as long as the file does; "" where there is none
    hashes: Mapping[str, str]  # "md5", "crc32c": hexadecimal


def with_retries(url: str, attempt: Callable[[], _Result], *, reached: Callable[[], int]) -> _Result:
    """Repeat what may fail for a while; StepFailed after PATIENCE failures without progress in between."""
    failures, before = 0, reached()
    while True:
        try:
            return attempt()
        except Interrupted as error:
            now = reached()
            failures, before = (1 if now > before else failures + 1), now
            if failures > PATIENCE:
                raise StepFailed(f"{url}: {error}, {failures} times in a row, after {now:,} bytes; the same command goes on") from None
            wait = PAUSE * 2 ** (failures - 1) if error.wait is None else error.wait
            time.sleep(min(wait, SILENCE))


def new_session() -> "Session":
    """A session that keeps its connection."""
    from requests import Session

    return Session()


def get(session: "Session", url: str, headers: Mapping[str, str]) -> "Response":
    """A response of status 200, 206 or 416, its body unread."""
    # Anything but identity would be decoded on the way, and its length and sums be those of something else.
    headers = {"Accept-Encoding": "identity", **headers}
    response = session.get(url, headers=headers, stream=True, timeout=(20, SILENCE))
    status = response.status_code
    if status in _BUSY:
        response.close()
        raise Interrupted(f"HTTP {status}", wait=_retry_after(response))
    insecure = url.startswith("https:") and not response.url.startswith("https:")
    if status not in (200, 206, 416) or insecure or response.headers.get("Content-Encoding", "identity") != "identity":
        response.close()
        what = "leads to an address without encryption" if insecure else f"answers HTTP {status}"
        raise StepFailed(f"{url} {what}; look whether it is still published there")
    return response


def if_range(validator: str) -> dict[str, str]:
    """Ask for a part only of the file that we know."""
    return {"If-Range": validator} if validator else {}


def _retry_after(response: "Response") -> float | None:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else None


def read_facts(url: str, response: "Response") -> Facts:
    """Size, validator and sums of the whole file; StepFailed when the server tells no size."""
    headers = response.headers
    total = headers.get("Content-Range", "").rpartition("/")[2] or headers.get("Content-Length", "")
    if not total.isdecimal():
        raise StepFailed(f"{url}: the server tells no length; download it in another way")
    etag = headers.get("ETag", "")
    validator = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")
    return Facts(int(total), validator, _hashes(headers.get("x-goog-hash", "")))


def start(response: "Response") -> int:
    """The first byte of a part; -1 when the server does not tell."""
    found = re.fullmatch(r"bytes (\d+)-\d+/\d+", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else -1


def _hashes(header: str) -> dict[str, str]:
    """What `x-goog-hash: crc32c=AAAAAA==,md5=...` tells, as hexadecimal digits."""
    pairs = [part.strip().partition("=") for part in header.split(",") if part.strip()]
    try:
        return {name: base64.b64decode(value, validate=True).hex() for name, _, value in pairs}
    except ValueError:
        return {}  # no sum that we could compare


@contextmanager
def network(url: str) -> Iterator[None]:
    """Tell failures that may pass from those that will not, without quoting addresses that may hold a signature."""
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


# Files over HTTP: resumed where they broke off, checked against the sums that the server publishes.


BLOCK = 16 << 20  # bytes that one request for a part of a remote file asks for
_CHUNK = 1 << 16  # what a connection that breaks off can cost


def fetch(url: str, target: Path, *, md5: str = "") -> Path:
    """Download `url` to `target`, which is there afterwards only whole.

    A killed or broken download goes on at its last byte while the server has the same file. The MD5 or CRC-32C that the
    server publishes (x-goog-hash) is checked, else `md5`, hexadecimal. StepFailed when the server fails for good or a sum
    differs, InputError when the disk is too small.
    """
    part = target.with_name(f"{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = target.with_name(f".{target.name}.lock")
    with files.locked(lock, refusal=f"another process downloads {target.name}"), on_a_full_disk(target.parent):
        _check_sums(url, part, _download(url, part), md5=md5)
        os.replace(part, target)
        _forget(part)
        lock.unlink()
    return target


class RemoteFile(io.RawIOBase):
    """A file on a server, readable in parts: `size` bytes in all, `fetched` of them asked for so far.

    Raises StepFailed when the server gives no parts or the file changes meanwhile.
    """

    def __init__(self, url: str) -> None:
        self.url, self.place, self.fetched, self.facts = url, 0, 0, Facts(1, "", {})
        self.session = new_session()
        with_retries(url, lambda: self._part(1), reached=lambda: self.fetched)
        self.size = self.facts.size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.place = {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.size}[whence] + offset
        return self.place

    def tell(self) -> int:
        return self.place

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self.size - self.place, BLOCK))
        content = with_retries(self.url, lambda: self._part(wanted), reached=lambda: self.fetched) if wanted else b""
        buffer[: len(content)] = content
        self.place += len(content)
        self.fetched += len(content)
        return len(content)

    def close(self) -> None:
        self.session.close()
        super().close()

    def _part(self, length: int) -> bytes:
        """The next `length` bytes."""
        headers = {"Range": f"bytes={self.place}-{self.place + length - 1}", **if_range(self.facts.validator)}
        with network(self.url), get(self.session, self.url, headers) as response:
            if response.status_code != 206 or start(response) != self.place:
                what = "changed while it was read" if self.facts.validator else "cannot be had in parts"
                raise StepFailed(f"{self.url} {what}; the same command begins anew")
            facts = read_facts(self.url, response)
            content = b"".join(response.iter_content(_CHUNK))
        if len(content) != length:
            raise Interrupted(f"{len(content):,} bytes came instead of {length:,}")
        self.facts = facts if not self.facts.validator else self.facts
        return content


def _download(url: str, part: Path) -> Facts:
    """Fill `part` to the last byte."""
    with new_session() as session, progress_bar(desc=part.stem, unit="B", unit_scale=True, disable=None) as bar:
        return with_retries(url, lambda: _go_on(session, url, part, bar), reached=lambda: _size(part))


def _go_on(session: "Session", url: str, part: Path, bar: "tqdm") -> Facts:
    """Append what is missing, or begin again where what we have is no beginning of what the server has."""
    have, validator = _ours(url, part)
    headers = {"Range": f"bytes={have}-", **if_range(validator)} if have else {}
    with network(url), get(session, url, headers) as response:
        facts = read_facts(url, response)
        fits = have <= facts.size and validator == facts.validator
        if response.status_code == 416 and have == facts.size and validator:  # nothing is missing but the check
            return facts
        if response.status_code == 416 or (response.status_code == 206 and not (fits and start(response) == have)):
            _forget(part)
            raise Interrupted("the file changed", wait=0)
        have = have if response.status_code == 206 else 0
        require_room(part.parent, facts.size - have, purpose="the download")
        Receipt(_note(part), {"url": url, "validator": facts.validator}, complete=False).write()
        bar.total, bar.n = facts.size, have
        _append(response, part, facts, have=have, bar=bar)
    return facts


def _append(response: "Response", part: Path, facts: Facts, *, have: int, bar: "tqdm") -> None:
    with open(part, "r+b" if have else "wb") as sink:
        sink.seek(have)
        for block in response.iter_content(_CHUNK):
            if sink.tell() + len(block) > facts.size:  # a server that lies about its length shall not fill the disk
                raise Interrupted(f"more than the announced {facts.size:,} bytes came")
            sink.write(block)
            bar.update(len(block))
        sink.flush()
        files.sync_descriptor(sink.fileno())
        if sink.tell() != facts.size:
            raise Interrupted("the connection broke off")


def _note(part: Path) -> Path:
    """The receipt that tells of which file on the server `part` is the beginning."""
    return part.with_name(f"{part.name}.json")


def _ours(url: str, part: Path) -> tuple[int, str]:
    """How many bytes of the server's file we have, and the validator that it had; (0, "") when none can be used."""
    note = Receipt.find(_note(part))
    known = note is not None and note.identity.get("url") == url and isinstance(note.identity.get("validator"), str)
    return (_size(part), note.identity["validator"]) if known and note.identity["validator"] and _size(part) else (0, "")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _check_sums(url: str, part: Path, facts: Facts, *, md5: str) -> None:
    """Refuse a file whose sum is not the published one."""
    name, expected = "md5", facts.hashes.get("md5", "")
    if not expected and "crc32c" in facts.hashes and _crc32c() is not None:
        name, expected = "crc32c", facts.hashes["crc32c"]
    expected = expected or md5
    if not expected:
        return  # the archive's own CRC-32 of each member is all there is
    found = _digest(part, hashlib.md5(usedforsecurity=False) if name == "md5" else _crc32c().Checksum())
    if found != expected:
        _forget(part)
        raise StepFailed(f"{url}: the {name.upper()} is {found}, published is {expected}; the same command downloads it again")


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
