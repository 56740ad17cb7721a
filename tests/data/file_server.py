"""A small file server with the habits of a large one, good and bad."""

import base64
import hashlib
import os
import re
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

CONTENT = os.urandom(5_000_000)  # of the file that the tests fetch


class Shelf:
    """Serves `files` by name on a port of its own; its attributes say what goes wrong."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.ranges = True  # whether parts can be had
        self.heeds_if_range = True
        self.etag: str | None = '"one"'
        self.hashes: dict[str, str] | None = None  # None: the true MD5
        self.cuts: list[int] = []  # bytes after which the next answers break off
        self.answers: list[tuple[int, dict[str, str]]] = []  # statuses and headers of the next answers
        self.headers: dict[str, str] = {}  # further headers of good answers
        self.length = True  # whether answers tell their length
        self.pace = 0.0  # seconds after each 100,000 bytes
        self.silence = 0.0  # seconds that a connection which breaks off first stays open
        self.asked: list[tuple[str, str, int]] = []  # name, Range and status of each request
        self.sent = 0  # bytes of bodies
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"shelf": self}))
        self._server.daemon_threads = True
        self._server.handle_error = lambda *arguments: None  # clients may hang up

    def __enter__(self) -> "Shelf":
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/{name}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    shelf: Shelf

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:  # noqa: N802
        shelf, name = self.shelf, self.path.removeprefix("/")
        if shelf.answers:
            status, headers = shelf.answers.pop(0)
            return self._answer(name, status, headers, b"trouble")
        if name not in shelf.files:
            return self._answer(name, 404, {}, b"not here")
        content, headers = shelf.files[name], {"Accept-Ranges": "bytes" if shelf.ranges else "none", **shelf.headers}
        if shelf.etag:
            headers["ETag"] = shelf.etag
        md5 = base64.b64encode(hashlib.md5(content).digest()).decode()
        headers["x-goog-hash"] = ",".join(f"{kind}={value}" for kind, value in (shelf.hashes or {"md5": md5}).items())
        return self._part(name, content, headers)

    def _part(self, name: str, content: bytes, headers: dict[str, str]) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        same = not self.shelf.heeds_if_range or self.headers.get("If-Range", self.shelf.etag) == self.shelf.etag
        if not (wanted and same and self.shelf.ranges):
            return self._answer(name, 200, headers, content)
        first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        if first >= len(content):
            return self._answer(name, 416, {**headers, "Content-Range": f"bytes */{len(content)}"}, b"")
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return self._answer(name, 206, headers, content[first : last + 1])

    def _answer(self, name: str, status: int, headers: dict[str, str], body: bytes) -> None:
        shelf = self.shelf
        shelf.asked.append((name, self.headers.get("Range", ""), status))
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if shelf.length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut = shelf.cuts.pop(0) if shelf.cuts and status in (200, 206) else None
        self.close_connection |= cut is not None or not shelf.length
        for start in range(0, len(body[:cut]), 100_000):
            self.wfile.write(body[:cut][start : start + 100_000])
            time.sleep(shelf.pace)
        shelf.sent += len(body[:cut])
        time.sleep(shelf.silence if cut is not None else 0)
