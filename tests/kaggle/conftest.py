"""Both Kaggle clients that pip can give, and the way from them to the small Kaggle of fake_kaggle.py."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import sessions
import forked_client
from fake_kaggle import FakeKaggle

from cellsignal import files
from cellsignal.kaggle import account
from cellsignal.kaggle import client as ours
from cellsignal.run import environment as paths

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ("2.2.4", "2.2.5")
_command = ours.command


@pytest.fixture(scope="session")
def clients() -> dict[str, Path]:
    """A folder of packages for PYTHONPATH by version of the client; unpacked once below build/."""
    return {version: _unpacked(version) for version in VERSIONS}


def _unpacked(version: str) -> Path:
    folder = ROOT / "build/clients" / version
    with files.locked(ROOT / "build/clients.lock", timeout=600):
        if not list(folder.glob(f"kaggle-{version}.dist-info")):
            _install(version, folder)
    return folder


def _install(version: str, folder: Path) -> None:
    """2.2.4 with all that it needs; a registry can lack what 2.2.5 asks for, so it takes 2.2.4's."""
    partial = folder.with_name(f".partial-{version}")
    shutil.rmtree(partial, ignore_errors=True)
    if version == VERSIONS[0]:
        packages = [f"kaggle=={version}", "six"]
    else:
        shutil.copytree(_unpacked_before(folder), partial)
        for old in [*partial.glob("kaggle-*.dist-info"), *partial.glob("kagglesdk*"), partial / "kaggle"]:
            shutil.rmtree(old)
        packages = ["--no-deps", f"kaggle=={version}", "kagglesdk>=0.1.38,<0.2"]
    command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--target", str(partial), *packages]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        shutil.rmtree(partial, ignore_errors=True)
        pytest.skip(f"pip cannot install kaggle {version}: {done.stderr.strip().splitlines()[-1]}")
    partial.rename(folder)


def _unpacked_before(folder: Path) -> Path:
    before = folder.with_name(VERSIONS[0])
    if not before.is_dir():
        _install(VERSIONS[0], before)
    return before


@pytest.fixture(params=[pytest.param(VERSIONS[0], marks=[pytest.mark.slow, pytest.mark.ci]), *VERSIONS[1:]])
def client(request: pytest.FixtureRequest, clients: dict[str, Path]) -> Path:
    """Each client in turn."""
    return clients[request.param]


@pytest.fixture(scope="session")
def warmed() -> Iterator[Callable[[Path], list[str]]]:
    """warmed(client) gives a command that is this client, unmodified, without the second that its start takes."""
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:  # a socket's path has to be short
        places: dict[Path, Path] = {}

        def command(client: Path) -> list[str]:
            if client not in places:
                place = Path(folder) / str(len(places))
                process = stack.enter_context(forked_client.start(client, place))
                stack.callback(process.stdin.close)
                places[client] = place
            return forked_client.command(places[client])

        yield command


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, warmed: Callable[[Path], list[str]]) -> Callable[..., dict[str, str]]:
    """Send this process's Kaggle client to a server: no token, proxy or client of the machine is in its way.

    Gives the same environment for processes of their own. `cold`: each call starts the client as a person does.
    """

    def connected(server: FakeKaggle, client: Path, *, cold: bool = False, **login: object) -> dict[str, str]:
        monkeypatch.setattr(ours, "command", _command if cold else lambda: warmed(client))
        for name in list(os.environ):
            if name.upper().startswith("KAGGLE_") or name.upper().endswith("_PROXY"):
                monkeypatch.delenv(name)
        environment = {**server.environment(tmp_path / "home", **login), "PYTHONPATH": str(client), "OMP_NUM_THREADS": "1"}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.syspath_prepend(client)
        return environment

    return connected


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout as one clones it, with Git and placeholders; we stand in it."""
    folder = tmp_path / "clone"
    left_out = shutil.ignore_patterns("__pycache__", "*.egg-info", ".partial*")
    for name in ("kernels", "utils_dataset"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=left_out)
    shutil.copy(ROOT / "kernel-metadata.json", folder)
    for path in account.tracked_metadata(folder):  # who tries this may have written a name into the original
        described = json.loads(account.with_name(path.read_text(), ours.PLACEHOLDER))
        if "code_file" in described:
            described["code_file"] = f"{ours.FIRST_RUN} ({described['code_file']})"
        else:
            described["resources"] = [{"path": ours.FIRST_RUN}]
        path.write_text(json.dumps(described, indent=2) + "\n")
    for name, value in {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    for part in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{part}_NAME", "somebody")
        monkeypatch.setenv(f"GIT_{part}_EMAIL", "somebody@example.org")
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(paths, "repository", lambda: folder)  # and never the one that these tests lie in
    return folder


@pytest.fixture
def server(tmp_path: Path, clients: dict[str, Path], connect: Callable[..., dict[str, str]]) -> Iterator[FakeKaggle]:
    """A Kaggle whose sessions end well, and the newest client."""
    with FakeKaggle(tmp_path / "kaggle") as server:
        server.runner = lambda pushed: sessions.work(pushed, server)
        connect(server, clients["2.2.5"])
        yield server
