"""Downloads: whole or absent, resumed, checked; every failure one line."""

import hashlib
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from file_server import CONTENT, Shelf

from cellsignal.data.download import http
from cellsignal.data.download.http import fetch
from cellsignal.errors import InputError, StepFailed
from cellsignal.receipts import Receipt

STEP = 1 << 16  # bytes that a cut connection may cost


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def failing(shelf: Shelf, target: Path, kind: type[Exception] = StepFailed) -> str:
    """The one line of a download that fails."""
    with pytest.raises(kind) as error:
        fetch(shelf.url("plates.zip"), target)
    assert "\n" not in str(error.value) and not target.exists()
    return str(error.value)


def test_a_download_is_whole_and_leaves_nothing_else(shelf: Shelf, tmp_path: Path) -> None:
    fetch(shelf.url("plates.zip"), tmp_path / "deep/plates.zip")
    assert (tmp_path / "deep/plates.zip").read_bytes() == CONTENT
    assert names(tmp_path / "deep") == {"plates.zip"}
    assert shelf.asked == [("plates.zip", "", 200)]


def test_cut_connections_go_on_at_the_last_byte(shelf: Shelf, tmp_path: Path) -> None:
    shelf.cuts = [1_500_000] * 3
    fetch(shelf.url("plates.zip"), tmp_path / "plates.zip")
    assert (tmp_path / "plates.zip").read_bytes() == CONTENT
    assert [status for _, _, status in shelf.asked] == [200, 206, 206, 206]
    assert shelf.sent <= len(CONTENT) + 3 * STEP


def test_a_server_without_parts_begins_again(shelf: Shelf, tmp_path: Path) -> None:
    shelf.ranges, shelf.cuts = False, [1_500_000]
    fetch(shelf.url("plates.zip"), tmp_path / "plates.zip")
    assert (tmp_path / "plates.zip").read_bytes() == CONTENT
    assert [status for _, _, status in shelf.asked] == [200, 200]


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_strong_mark_nothing_is_glued_together(shelf: Shelf, tmp_path: Path, etag: str | None) -> None:
    shelf.etag, shelf.cuts = etag, [1_500_000]
    fetch(shelf.url("plates.zip"), tmp_path / "plates.zip")
    assert (tmp_path / "plates.zip").read_bytes() == CONTENT
    assert [asked for _, asked, _ in shelf.asked] == ["", ""]


def test_a_file_that_changed_meanwhile_is_begun_again(shelf: Shelf, tmp_path: Path) -> None:
    shelf.cuts = [1_500_000] + [0] * 6
    assert "give the same command again to continue" in failing(shelf, tmp_path / "plates.zip")
    shelf.files["plates.zip"], shelf.etag, shelf.cuts = CONTENT[::-1], '"two"', []
    fetch(shelf.url("plates.zip"), tmp_path / "plates.zip")
    assert (tmp_path / "plates.zip").read_bytes() == CONTENT[::-1]


def test_a_second_call_goes_on(shelf: Shelf, tmp_path: Path) -> None:
    shelf.cuts = [40 * STEP + 5] + [0] * 5
    assert f"after {40 * STEP:,} bytes; give the same command again to continue" in failing(shelf, tmp_path / "plates.zip")
    shelf.asked.clear()
    fetch(shelf.url("plates.zip"), tmp_path / "plates.zip")
    assert (tmp_path / "plates.zip").read_bytes() == CONTENT
    assert shelf.asked == [("plates.zip", f"bytes={40 * STEP}-", 206)]


def test_killed_between_the_last_byte_and_the_check(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "plates.zip.part").write_bytes(CONTENT)
    Receipt(tmp_path / "plates.zip.part.json", {"url": shelf.url("plates.zip"), "validator": '"one"'}, complete=False).write()
    fetch(shelf.url("plates.zip"), tmp_path / "plates.zip")
    assert [status for _, _, status in shelf.asked] == [416]
    assert names(tmp_path) == {"plates.zip"}


@pytest.mark.parametrize("left", [CONTENT + b"more", CONTENT[:-1] + b"?"], ids=["too long", "another byte"])
def test_a_beginning_that_is_none_costs_a_second_download(shelf: Shelf, tmp_path: Path, left: bytes) -> None:
    (tmp_path / "plates.zip.part").write_bytes(left)
    Receipt(tmp_path / "plates.zip.part.json", {"url": shelf.url("plates.zip"), "validator": '"one"'}, complete=False).write()
    if len(left) == len(CONTENT):
        assert "the MD5 is" in failing(shelf, tmp_path / "plates.zip")
    fetch(shelf.url("plates.zip"), tmp_path / "plates.zip")
    assert (tmp_path / "plates.zip").read_bytes() == CONTENT


@pytest.mark.parametrize("note", ["{", "[]", '{"url": "http://elsewhere/"}', '{"url": 1, "validator": 2}'])
def test_a_note_that_tells_nothing_is_no_beginning(shelf: Shelf, tmp_path: Path, note: str) -> None:
    (tmp_path / "plates.zip.part").write_bytes(b"garbage")
    (tmp_path / "plates.zip.part.json").write_text(note)
    fetch(shelf.url("plates.zip"), tmp_path / "plates.zip")
    assert (tmp_path / "plates.zip").read_bytes() == CONTENT


@pytest.mark.parametrize("status", [401, 403, 404, 410, 451])
def test_a_refusal_is_not_asked_again(shelf: Shelf, tmp_path: Path, status: int) -> None:
    shelf.answers = [(status, {})]
    assert f"answers HTTP {status}; look whether" in failing(shelf, tmp_path / "plates.zip")
    assert len(shelf.asked) == 1


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(shelf: Shelf, tmp_path: Path, status: int) -> None:
    shelf.answers = [(status, {"Retry-After": "0"}), (status, {})]
    fetch(shelf.url("plates.zip"), tmp_path / "plates.zip")
    assert [status for _, _, status in shelf.asked] == [status, status, 200]
    shelf.answers = [(status, {})] * 99
    assert f"HTTP {status}, 6 times in a row" in failing(shelf, tmp_path / "again.zip")


def test_pauses_are_those_that_the_server_asks_for_or_grow(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(http, "FIRST_PAUSE", 1.0)
    monkeypatch.setattr(http, "time", SimpleNamespace(sleep=pauses.append))
    shelf.answers = [(429, {"Retry-After": "7"}), (429, {"Retry-After": "9999"}), (503, {}), (503, {})]
    fetch(shelf.url("plates.zip"), tmp_path / "plates.zip")
    assert pauses == [7, http.READ_TIMEOUT, 4, 8]


def test_progress_renews_patience(shelf: Shelf, tmp_path: Path) -> None:
    shelf.cuts = [STEP + 5] * 20
    fetch(shelf.url("plates.zip"), tmp_path / "plates.zip")
    assert len(shelf.asked) == 21


@pytest.mark.parametrize("hashes", [{"md5": "AAAAAAAAAAAAAAAAAAAAAA=="}, {"crc32c": "AAAAAA==", "md5": "AAAAAAAAAAAAAAAAAAAAAA=="}])
def test_a_wrong_sum_is_refused_and_forgotten(shelf: Shelf, tmp_path: Path, hashes: dict[str, str]) -> None:
    shelf.hashes = hashes
    assert "published is 00000000000000000000000000000000; the same command" in failing(shelf, tmp_path / "plates.zip")
    assert not [name for name in names(tmp_path) if "part" in name]


def test_sums_of_ours_are_checked_where_the_server_tells_none(shelf: Shelf, tmp_path: Path) -> None:
    shelf.hashes = {"crc32c": "not base64!"}
    with pytest.raises(StepFailed, match="the MD5 is"):
        fetch(shelf.url("plates.zip"), tmp_path / "plates.zip", md5="0" * 32)
    fetch(shelf.url("plates.zip"), tmp_path / "plates.zip", md5=hashlib.md5(CONTENT).hexdigest())


def test_crc32c_where_its_library_is_there(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Checksum:
        """CRC-32C's interface; its sum is the number of bytes."""

        def __init__(self) -> None:
            self.size = 0

        def update(self, block: bytes) -> None:
            self.size += len(block)

        def digest(self) -> bytes:
            return self.size.to_bytes(4, "big")

    monkeypatch.setitem(sys.modules, "google_crc32c", type(sys)("google_crc32c"))
    sys.modules["google_crc32c"].Checksum = Checksum
    shelf.hashes = {"crc32c": "AExLQA=="}  # 5,000,000
    fetch(shelf.url("plates.zip"), tmp_path / "plates.zip")
    shelf.hashes = {"crc32c": "AAAAAQ=="}
    assert "the CRC32C is 004c4b40, published is 00000001" in failing(shelf, tmp_path / "again.zip")


def test_a_body_that_would_be_decoded_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    shelf.headers = {"Content-Encoding": "gzip"}
    assert "answers HTTP 200" in failing(shelf, tmp_path / "plates.zip")


def test_a_server_that_tells_no_length(shelf: Shelf, tmp_path: Path) -> None:
    shelf.length = False
    assert "tells no length" in failing(shelf, tmp_path / "plates.zip")


def test_a_server_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "FIRST_PAUSE", 0.0)
    with Shelf({}) as gone:
        pass
    assert "no connection" in failing(gone, tmp_path / "plates.zip")


def test_a_server_that_falls_silent(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "READ_TIMEOUT", 0.2)
    shelf.cuts, shelf.silence = [100_000] * 6 + [0] * 6, 1.0
    assert "silent" in failing(shelf, tmp_path / "plates.zip")


@pytest.mark.parametrize("url", ["plates.zip", "ftp://127.0.0.1/plates.zip", "http://"])
def test_an_address_that_is_none(tmp_path: Path, url: str) -> None:
    with pytest.raises(StepFailed, match="look at the address"):
        fetch(url, tmp_path / "plates.zip")


def test_a_way_out_of_encryption_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    class Answer:
        status_code, url, headers = 200, shelf.url("plates.zip"), {}

        def close(self) -> None:
            pass

    class Session:
        def get(self, *arguments: object, **options: object) -> Answer:
            return Answer()

    with pytest.raises(StepFailed, match="without encryption"):
        http.get(Session(), "https://example.org/plates.zip", {})


def test_a_full_disk_is_said_before_the_first_byte(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cellsignal.data.download import archives

    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 33 << 20})())
    assert "the download needs 5.0 MB, 34.6 MB are free" in failing(shelf, tmp_path / "plates.zip", InputError)
    assert not (tmp_path / "plates.zip.part").exists()


SMALL_DISK = """
mount -t tmpfs -o size=1m none {folder} && exec {python} - <<'END'
from pathlib import Path
from cellsignal.data.download import http as fetch
from cellsignal.errors import InputError
from cellsignal.receipts import Receipt
fetch.require_room = lambda *arguments, **options: None  # as if somebody else filled the disk meanwhile
try:
    fetch.fetch({url!r}, Path({folder!r}) / "plates.zip")
except InputError as error:
    print(error)
    print((Path({folder!r}) / "plates.zip.part").stat().st_size)
END
"""


def test_a_disk_that_fills_up_is_one_line_and_keeps_what_came(shelf: Shelf, tmp_path: Path) -> None:
    script = SMALL_DISK.format(folder=str(tmp_path), python=sys.executable, url=shelf.url("plates.zip"))
    ended = subprocess.run(["unshare", "--mount", "--map-root-user", "sh", "-c", script], capture_output=True, text=True)
    if "unshare" in ended.stderr or "mount" in ended.stderr:
        pytest.skip("no right to mount a small disk")
    message, size = ended.stdout.splitlines()
    assert "the disk is full" in message and "then give the same command again to continue" in message
    assert 800_000 < int(size) <= 1 << 20


KILLED = "import sys; from pathlib import Path; from cellsignal.data.download.http import fetch; fetch(sys.argv[1], Path(sys.argv[2]))"


def test_killed_and_called_again(shelf: Shelf, tmp_path: Path) -> None:
    shelf.pace = 0.02
    process = subprocess.Popen([sys.executable, "-c", KILLED, shelf.url("plates.zip"), tmp_path / "plates.zip"])
    part = tmp_path / "plates.zip.part"
    while process.poll() is None and not (part.exists() and part.stat().st_size > STEP):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (tmp_path / "plates.zip").exists()
    shelf.pace = 0.0
    fetch(shelf.url("plates.zip"), tmp_path / "plates.zip")
    assert (tmp_path / "plates.zip").read_bytes() == CONTENT
    assert shelf.asked[1][2] == 206
