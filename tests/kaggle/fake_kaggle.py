"""A small Kaggle on 127.0.0.1, to which the real client talks unmodified: an HTTP proxy that is the API as well.

The client's only switch for another server is http://localhost on port 80; through `http_proxy` its calls come to any
port. What it was seen to send and to need is in fake_account.py; uploads and downloads go to this server by its own address.
"""

import base64
import json
import os
import secrets
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from fake_account import COMPETITION, Body, Holdings, Outcome, Pushed, Refusal

__all__ = ["COMPETITION", "TOKEN", "FakeKaggle", "Outcome", "Pushed", "Refusal", "Request"]
TOKEN = "KGAT_0123456789abcdef0123456789abcdef"


@dataclass(frozen=True)
class Request:
    """One call that reached the server."""

    call: str  # "SaveKernel", or "PUT" and "GET" of files
    path: str
    body: Body
    headers: dict[str, str]


class FakeKaggle(Holdings):
    """A Kaggle for one user that lives as long as the `with` block.

    `runner(pushed)` works through a pushed kernel in a thread of its own; without one each is COMPLETE at once and
    leaves nothing. `answer` makes the next calls of a name fail; `upload_breaks` cuts that many uploads in the middle.
    """

    def __init__(
        self, folder: Path, runner: Callable[[Pushed], Outcome] | None = None, *, user: str = "alice", key: str = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
    ) -> None:
        super().__init__(folder, user=user, runner=runner)
        self.key = key
        self.requests: list[Request] = []
        self.faults: list[Exception] = []
        self.upload_breaks = 0
        self.zipped: set[str] = set()  # competition files that Kaggle keeps zipped
        self._answers: dict[str, list[Refusal]] = defaultdict(list)
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"kaggle": self}))
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        self.address = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "FakeKaggle":
        Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.shutdown()
        self._http.server_close()
        if self.faults and error is None:
            raise self.faults[0]

    def environment(self, home: Path, *, token: bool = False, key: str = "") -> dict[str, str]:
        """All that the client needs to come here, and nothing of this process but its path. `key` replaces the right one."""
        (home / "tmp").mkdir(parents=True, exist_ok=True)
        login = {"KAGGLE_API_TOKEN": key or TOKEN} if token else {"KAGGLE_USERNAME": self.user, "KAGGLE_KEY": key or self.key}
        return {
            "PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home / "tmp"), "KAGGLE_CONFIG_DIR": str(home),
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST", "http_proxy": self.address, "no_proxy": "127.0.0.1", **login,
        }  # fmt: skip

    def answer(self, call: str, code: int, message: str = "", *, times: int = 1, retry_after: float | None = None) -> None:
        """Refuse the next `times` calls of this name."""
        headers = {} if retry_after is None else {"Retry-After": f"{retry_after:g}"}
        self._answers[call] += [Refusal(code, message, headers)] * times

    def sent(self, call: str) -> list[Body]:
        """The bodies of all calls of this name."""
        return [request.body for request in self.requests if request.call == call]

    def wait(self, seconds: float = 60) -> None:
        """Until every session has ended."""
        deadline = time.monotonic() + seconds
        for thread in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    # What a handler asks for

    def call(self, name: str, body: Body, authorization: str) -> Body | str:
        """The answer to an API call: JSON, or the address to go on to."""
        if name == "IntrospectToken":
            return {"active": body.get("token") == TOKEN, "username": self.user if body.get("token") == TOKEN else ""}
        basic = base64.b64encode(f"{self.user}:{self.key}".encode()).decode()
        if authorization not in (f"Basic {basic}", f"Bearer {TOKEN}"):
            raise Refusal(401, "Unauthorized")
        self.refuse(name)
        return self._calls()[name](body)

    def refuse(self, name: str) -> None:
        """Raise the next refusal that was asked for."""
        if self._answers[name]:
            raise self._answers[name].pop(0)

    def _calls(self) -> dict[str, Callable[[Body], Body | str]]:
        return {
            "SaveKernel": self.save_kernel,
            "GetKernelSessionStatus": self._session_status,
            "ListKernelSessionOutput": self._output,
            "GetKernel": self._kernel,
            "GetAcceleratorQuotaStatistics": lambda body: self.quota(),
            "GetDatasetStatus": self.dataset_status,
            "GetDataset": self.dataset,
            "CreateDataset": self.create_dataset,
            "CreateDatasetVersion": self.create_version,
            "StartBlobUpload": lambda body: self._upload(body["name"]),
            "StartSubmissionUpload": lambda body: self._upload(body["fileName"]),
            "CreateSubmission": self.submit,
            "GetSubmissionLimits": lambda body: {"numToday": len(self.submissions), "numAllowedNow": 5 - len(self.submissions)},
            "DownloadDataFiles": lambda body: self._data(body["competitionName"], f"{body['competitionName']}.zip"),
            "DownloadDataFile": lambda body: self._data(body["competitionName"], body["fileName"]),
        }

    def _session_status(self, body: Body) -> Body:
        session = self.session(body)
        return {"status": session.status, **({"failureMessage": session.outcome.failure} if session.outcome.failure else {})}

    def _output(self, body: Body) -> Body:
        """One page of a session's files; while a version runs, those of the one before."""
        session = self.session(body, finished=True)
        root = session.outcome.folder
        files = sorted(path for path in root.rglob("*") if path.is_file()) if root else []
        first, size = int(body.get("pageToken") or 0), body.get("pageSize") or 20
        page = [{"fileName": path.relative_to(root).as_posix(), "url": self._link(path)} for path in files[first : first + size]]
        more = {"nextPageToken": str(first + size)} if first + size < len(files) else {}
        return {"files": page, "log": session.outcome.log, **more}

    def _kernel(self, body: Body) -> Body:
        session = self.session(body)
        described = {"id": 1, "ref": session.slug, "title": session.body["newTitle"], "language": "python", "kernelType": "notebook"}
        return {"metadata": described, "blob": {"slug": session.slug, "source": session.body["text"], "kernelType": "notebook"}}

    def _upload(self, name: str) -> Body:
        token = secrets.token_hex(8)
        path = self.folder / "blobs" / token
        path.parent.mkdir(parents=True, exist_ok=True)
        self.blobs[token] = (name, path)
        return {"token": token, "createUrl": f"{self.address}/upload/{token}?X-Goog-Signature={secrets.token_hex(32)}"}

    def _data(self, competition: str, file: str) -> str:
        held = self.competitions.get(competition)
        if held is None:
            raise Refusal(403, "You must accept this competition's rules before you'll be able to download files.")
        if file in self.zipped:
            file += ".zip"
        if not (held / file).is_file():
            raise Refusal(404, "Not found")
        return self._link(held / file)

    def _link(self, path: Path) -> str:
        return f"{self.address}/files{quote(str(path))}"


class _Handler(BaseHTTPRequestHandler):
    kaggle: FakeKaggle
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        path = urlsplit(self.path).path  # as a proxy we are given whole addresses
        name = path.rsplit("/", 1)[-1]
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        self.kaggle.requests.append(Request(name, path, body, dict(self.headers)))
        try:
            with self.kaggle.lock:
                said = self.kaggle.call(name, body, self.headers.get("Authorization", ""))
        except Refusal as refusal:
            self._refuse(refusal)
            return
        except Exception as error:  # a fault of this server, which no client's patience shall hide
            self.kaggle.faults.append(error)
            self._refuse(Refusal(500, "Internal Server Error"))
            return
        if isinstance(said, str):
            self._send(302, b"", {"Location": said})
        else:
            self._json(200, said)

    def do_PUT(self) -> None:
        token = urlsplit(self.path).path.rsplit("/", 1)[-1]
        length = int(self.headers.get("Content-Length") or 0)
        self.kaggle.requests.append(Request("PUT", self.path, {"length": length}, dict(self.headers)))
        if self.kaggle.upload_breaks:
            self.kaggle.upload_breaks -= 1
            self.rfile.read(length // 2)
            self.close_connection = True
            return
        content = self.rfile.read(length)
        try:
            self.kaggle.refuse("PUT")
        except Refusal as refusal:
            self._send(refusal.code, refusal.message.encode(), refusal.headers)
            return
        self.kaggle.blobs[token][1].write_bytes(content)
        self._send(201, b"")

    def do_GET(self) -> None:
        path = Path(unquote(urlsplit(self.path).path).removeprefix("/files"))
        self.kaggle.requests.append(Request("GET", str(path), {}, dict(self.headers)))
        try:
            self.kaggle.refuse("GET")
        except Refusal as refusal:
            self._send(refusal.code, refusal.message.encode(), refusal.headers)
            return
        self._send(200, path.read_bytes(), {"Content-Type": "application/octet-stream"})

    def _refuse(self, refusal: Refusal) -> None:
        """As the API says no; without a message, as something before it does."""
        if refusal.message:
            self._json(refusal.code, {"code": refusal.code, "message": refusal.message}, refusal.headers)
        else:
            self._send(refusal.code, b"<html></html>", {"Content-Type": "text/html", **refusal.headers})

    def _json(self, code: int, value: Any, headers: dict[str, str] | None = None) -> None:
        self._send(code, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, code: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: the tests look at `requests`."""
