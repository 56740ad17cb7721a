"""What is pushed runs as it is: by papermill, in Kaggle's file tree, without this package and without network."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import session_machine
import pytest
from fake_kaggle import COMPETITION, FakeKaggle

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "papermill_params/tiny.yaml"
QUICK = ["--poll", "0.2"]
KEY = "canary-key-0f1e2d3c4b5a6978"

pytestmark = pytest.mark.skipif(not session_machine.can_run(), reason="no namespaces for tests here")


@pytest.fixture(scope="session")
def python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter with the libraries to try: these, or those of --libraries."""
    libraries = Path(request.config.getoption("--libraries") or sys.executable)
    return session_machine.bare_python(tmp_path_factory.mktemp("bare"), of=libraries)


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(part) for part in arguments], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done


@pytest.fixture(scope="session")
def local(request: pytest.FixtureRequest) -> Path:
    """The run folder of the same recipe, made with the same libraries."""
    if request.config.getoption("--libraries"):
        return request.getfixturevalue("run_here")()
    return request.getfixturevalue("tiny_run")[0]


@pytest.fixture(scope="session")
def run_here(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """run_here(*options) runs the tiny recipe on this machine, with the same libraries, and gives its run folder."""

    def ran(*options: str) -> Path:
        folder = tmp_path_factory.mktemp("local") / "tiny"
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "utils_dataset"), "OMP_NUM_THREADS": "1"}
        run(python, "-m", "cellsignal.cli.main", "run", TINY, *options, "--out", folder, env=environment, cwd=folder.parent)
        return folder

    return ran


def test_the_interpreter_does_not_have_the_package(python: Path) -> None:
    program = "import importlib.util, torch; print(importlib.util.find_spec('cellsignal'))"
    assert run(python, "-c", program, cwd="/", env={}).stdout.strip() == "None"


@dataclass
class Account:
    """A small Kaggle, the environment in which the client comes to it, and what the command said."""

    kaggle: FakeKaggle
    environment: dict[str, str]
    folder: Path
    said: str = ""

    def cellsignal(self, *arguments: object) -> None:
        done = run(sys.executable, "-m", "cellsignal.cli.main", *arguments, env=self.environment, cwd=self.folder)
        self.said += done.stdout + done.stderr


@pytest.fixture(scope="session")
def open_account(python: Path, clients: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Account]:
    """open_account(layout) gives an account whose kernels run on a machine with inputs laid out in this way."""

    def opened(layout: str) -> Account:
        folder = tmp_path_factory.mktemp("account")
        kaggle = FakeKaggle(folder / "kaggle", runner=session_machine.Machine(python, folder / "sessions", layout), key=KEY)
        package = os.pathsep.join(map(str, (clients[max(clients)], ROOT / "utils_dataset")))
        own = {"PYTHONPATH": package, "OMP_NUM_THREADS": "1", **session_machine.CANARIES}
        return Account(kaggle, {**own, **kaggle.environment(folder / "home")}, folder)

    return opened


@pytest.fixture(scope="session")
def drawn(open_account: Callable[..., Account]) -> Iterator[Account]:
    """Every kernel of the tiny recipe, pushed and run, each with the outputs of those before; then fetched."""
    there = open_account("new")
    with there.kaggle:
        there.cellsignal("kaggle", "push", TINY, *QUICK)
        there.cellsignal("kaggle", "pull", TINY)
        yield there


ATTACHED = ["-p", "preset=", "-p", "wells.cell_types=[HUVEC, RPE]"]  # plates that are the competition's data and not drawn


@pytest.fixture(scope="session")
def open_competition(open_account: Callable[..., Account], local: Path) -> Callable[[], Account]:
    """open_competition() gives an account with older mounts, whose competition is the tiny plates."""

    def opened() -> Account:
        there = open_account("legacy")
        data = shutil.copytree(local / "data", there.folder / "data", ignore=shutil.ignore_patterns("solution.csv", ".*"))
        there.kaggle.competitions[COMPETITION] = data
        return there

    return opened


@pytest.fixture(scope="session")
def whole(open_competition: Callable[[], Account]) -> Iterator[Account]:
    """The whole chain as one kernel, on the competition's plates."""
    there = open_competition()
    with there.kaggle:
        there.cellsignal("kaggle", "push", TINY, "--only", "0-chain", *ATTACHED, *QUICK)
        yield there


@pytest.mark.slow
def test_kernels_that_draw_their_plates_end_with_the_submission_of_the_local_run(drawn: Account, local: Path) -> None:
    fetched = drawn.folder / "runs/tiny"
    assert (fetched / "submission.csv").read_bytes() == (local / "submission.csv").read_bytes()
    assert ladder(fetched) == ladder(local)
    assert (fetched / "report.html").is_file()
    sessions = [session for versions in drawn.kaggle.kernels.values() for session in versions]
    assert not [session.slug for session in sessions if (session.outcome.folder / "runs/tiny/data").exists()]  # drawn plates are no output


@pytest.mark.slow  # CI runs it with the oldest libraries
def test_the_whole_chain_as_one_kernel_finds_the_competition_and_does_so_too(whole: Account, local: Path) -> None:
    [[session]] = whole.kaggle.kernels.values()
    left = session.outcome.folder / "runs/tiny"
    assert (left / "submission.csv").read_bytes() == (local / "submission.csv").read_bytes()
    assert (left / "report.html").is_file()


@pytest.mark.slow
def test_a_kernel_a_step_finds_the_competition_and_does_so_too(open_competition: Callable[[], Account], local: Path) -> None:
    there = open_competition()
    with there.kaggle:
        there.cellsignal("kaggle", "push", TINY, *ATTACHED, *QUICK)
        there.cellsignal("kaggle", "pull", TINY)
    assert (there.folder / "runs/tiny/submission.csv").read_bytes() == (local / "submission.csv").read_bytes()


@pytest.mark.slow
def test_a_rehearsal_there_prints_what_it_measured(open_account: Callable[..., Account], tiny_plates: Path) -> None:
    there = open_account("legacy")
    there.kaggle.competitions[COMPETITION] = tiny_plates
    with there.kaggle:
        there.cellsignal("kaggle", "push", TINY, "--rehearse", *ATTACHED, "-p", "network.backbone=plain-cnn", *QUICK)
        [[session]] = there.kaggle.kernels.values()
    assert "images of /kaggle/input/recursion-cellular-image-classification" in there.said
    assert re.search(r"^plain-cnn +whole +32 +16 +no ", there.said, re.M) and "forecast for this machine" in there.said
    assert {path.name for path in (session.outcome.folder / "runs/tiny").iterdir()} >= {"rehearsal.json", "receipts"}


@pytest.mark.slow
def test_sessions_cut_short_by_their_budget_end_with_the_same_submission(
    open_account: Callable[..., Account], run_here: Callable[..., Path]
) -> None:
    there = open_account("new")
    longer = ["-p", "training.epochs=80", "-p", "training.pretrain_epochs=60"]
    reference = run_here(*longer)
    with there.kaggle:
        there.cellsignal("kaggle", "push", TINY, *longer, "-p", "machine.time_budget_minutes=1", "--until-done", *QUICK)
        there.cellsignal("kaggle", "pull", TINY)
        assert max(map(len, there.kaggle.kernels.values())) > 1  # at least one needed a second session
    assert (there.folder / "runs/tiny/submission.csv").read_bytes() == (reference / "submission.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("account", ["whole", "drawn"])
def test_no_secret_is_anywhere(account: str, request: pytest.FixtureRequest) -> None:
    there = request.getfixturevalue(account)
    secrets = [value.encode() for value in (KEY, *session_machine.CANARIES.values())]
    assert all(KEY in base64.b64decode(auth).decode() for auth in logins(there.kaggle))  # it was there to be leaked
    texts = {str(path): path.read_bytes() for path in sorted(there.folder.rglob("*")) if path.is_file()}
    texts |= {"what the command said": there.said.encode()}
    texts |= {f"call {i}": json.dumps(asked.body).encode() for i, asked in enumerate(there.kaggle.requests)}
    assert [name for name, text in texts.items() if any(secret in text for secret in secrets)] == []


def logins(kaggle: FakeKaggle) -> set[str]:
    found = {request.headers.get("Authorization", "") for request in kaggle.requests if request.call == "SaveKernel"}
    return {header.removeprefix("Basic ") for header in found}


def ladder(folder: Path) -> list[dict]:
    return json.loads((folder / "metrics.json").read_text())["ladder"]
