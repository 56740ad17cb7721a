"""The client's words in one line: what they stand for, and that no secret is among them."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellsignal.errors import InputError
from cellsignal.kaggle import client, errors
from cellsignal.kaggle.errors import MAX_MESSAGE_LENGTH, redact, reason, refusal

HEX = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"


@pytest.mark.parametrize(
    "text",
    [
        f"key {HEX} is wrong",
        f"KAGGLE_KEY={HEX}",
        f'{{"username": "alice", "key": "{HEX}"}}',
        "KAGGLE_API_TOKEN=canary-value",
        "api_key: canary-value",
        "password='canary-value'",
        "Authorization: Basic Y2FuYXJ5LXZhbHVl",
        "Authorization: Bearer canary-value-of-a-token",
        f"token KGAT_{HEX} has expired",
        "https://alice:canary-value@proxy.example.org:3128/ refused",
        "PUT https://storage.example.org/upload?X-Goog-Signature=canary-value&x=1 failed",
        "eyJhbGciOiJub25lIn0.eyJjYW5hcnkiOjF9.canary-value",
        "kgl_Zy8-canaryVALUE-9f31_AbCdEfGhIjKlMnOp",
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str) -> None:
    for secret in (HEX, "canary", "Y2FuYXJ5", "eyJ", "AbCdEf"):
        assert secret not in redact(text)


@given(st.text("0123456789abcdef", min_size=32, max_size=64).filter(lambda text: re.search("[a-f]", text) and re.search("[0-9]", text)), st.text())
def test_no_key_stands_in_a_quote(key: str, around: str) -> None:
    assert key not in redact(f"{around} {key} {around}", longest=10**6)


@given(st.text())
def test_a_quote_is_one_short_line(text: str) -> None:
    line = redact(text)
    assert len(line) <= MAX_MESSAGE_LENGTH and len(line.splitlines()) <= 1


@pytest.mark.parametrize(
    "text",
    [
        "alice/cellsignal-brodt-128-3-train-cell-type-u2os-plain is not there",
        "Maximum batch GPU session count of 2 reached.",
        "https://www.kaggle.com/competitions/recursion-cellular-image-classification/rules",
        "Source file not found: ./first run: cellsignal kaggle init --user YOUR_NAME (1-eda.ipynb)",
        "the token is wrong",
        "[Errno 2] No such file or directory: 'kernels/3-train-cell-type/kernel-metadata.json'",
        "2026-11-21T16:33:31 weights/HUVEC/pretrain.safetensors",
    ],
)
def test_what_helps_is_kept(text: str) -> None:
    assert redact(text) == text


def test_the_reason_is_neither_progress_nor_advice() -> None:
    assert reason("Starting upload for file a.zip\n", "\r  0%|      | 0.00/4.0 [00:00]\r16.0B [00:00, 1.48kB/s]\n409 Conflict\n\nhint") == "409 Conflict"
    traceback = "Traceback (most recent call last):\n  File 'x', line 1, in y\nrequests.exceptions.HTTPError: 401 Client Error"
    assert reason("", traceback) == "requests.exceptions.HTTPError: 401 Client Error"
    assert reason("Kernel push error: Notebook not found\n", "Request failed: x. Will retry in 0.5 seconds") == "Kernel push error: Notebook not found"
    assert reason("", "") == "it said nothing"


def test_a_slugs_digits_are_no_status() -> None:
    assert type(refusal("", "strange", doing="push of alice/plates-404", about="alice/plates-404")) is errors.Refused
    assert type(refusal("", "alice/plates-404: strange", doing="push", about="alice/plates-404")) is errors.Refused
    assert type(refusal("", "404 Client Error", doing="push")) is errors.Missing


@pytest.mark.parametrize("size", [401, 403, 404, 429, 500])
def test_no_size_and_no_name_of_a_file_that_came_is_a_status(size: int) -> None:
    out = f"Output file downloaded to runs/best-{size}/receipts/1-eda.json\n"
    bar = f"\r  0%|          | 0.00/{size} [00:00<?, ?B/s]\r100%|##########| {size}/{size} [00:00<00:00, 1.1MB/s]\n"
    assert type(refusal(out, f"{bar}ValueError: strange", doing="output of a/b")) is errors.Refused


def test_the_weeks_hours() -> None:
    error = refusal("Kernel push error: Maximum weekly GPU quota of 30.00 hours reached.", "", doing="push of a/b")
    assert type(error) is errors.QuotaSpent and "kaggle quota" in str(error)


def test_a_client_that_lacks_a_module() -> None:
    error = refusal("", "Traceback (most recent call last):\nModuleNotFoundError: No module named 'six'", doing="login")
    assert isinstance(error, InputError) and str(error) == "the Kaggle client lacks the module six; pip install six"


def test_without_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="the Kaggle client is not installed; pip install"):
        client.username()


def test_with_a_client_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "find_spec", lambda name: object())
    monkeypatch.setattr(metadata, "version", lambda name: "1.7.4.5")
    with pytest.raises(InputError, match="the Kaggle client is version 1.7.4.5; pip install"):
        client.username()


def test_a_client_that_is_only_on_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "kaggle"
    script.write_text("#!/bin/sh\necho \"$@\" > \"$(dirname \"$0\")/said\"\necho '- username: alice'\n")
    script.chmod(0o755)
    monkeypatch.setattr(client, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert client.username() == "alice"
    assert (tmp_path / "said").read_text() == "--no-warn config view\n"


def test_a_folder_named_kaggle_is_not_the_client(clients: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "kaggle").mkdir()
    (tmp_path / "kaggle/__main__.py").write_text("print('- username: mallory')")
    monkeypatch.syspath_prepend(clients["2.2.4"])
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(clients["2.2.4"]), "HOME": str(tmp_path)}
    done = subprocess.run([*client.command(), "--version"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.args[0] == sys.executable and "Kaggle CLI 2.2.4" in done.stdout


def test_a_folder_named_kaggle_is_not_a_client_of_this_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    (tmp_path / "kaggle").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="the Kaggle client is not installed; pip install"):
        client.command()


def test_progress_is_shown_to_a_terminal_only(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    script = tmp_path / "kaggle"
    script.write_text("#!/bin/sh\necho ' 50%|####' >&2\necho Successfully submitted\n")
    script.chmod(0o755)
    monkeypatch.setattr(client, "command", lambda: [str(script)])
    client.submit("c", script, "m")
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(client.sys.stderr, "isatty", lambda: True, raising=False)
    client.submit("c", script, "m")
    assert capfd.readouterr().err == " 50%|####\n"
