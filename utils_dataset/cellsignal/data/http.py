"""Requests that are patient with servers: what may pass is tried again, what will not is one line."""

import base64
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from cellsignal.errors import StepFailed

if TYPE_CHECKING:  # a fifth of a second, and only who downloads pays
    from requests import Response, Session

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


def patiently(url: str, attempt: Callable[[], _Result], *, reached: Callable[[], int]) -> _Result:
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
