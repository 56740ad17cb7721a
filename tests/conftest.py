"""What every test may ask for: the real data beside the checkout, and plates made once."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

# One thread each: on a shared machine two threads that wait for each other are many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--libraries", metavar="PYTHON", help="try what was pushed with the libraries of this interpreter")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real competition data beside the checkout; the test is skipped without it."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared with real competition data")
    return folder


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """once(name, make) gives a folder that `make` filled, once for all workers of a session; nobody may write there."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, make: Callable[[Path], None]) -> Path:
        with FileLock(base / f"{name}.lock", timeout=900):
            if not (base / f"{name}.made").exists():
                make(base / name)
                (base / f"{name}.made").touch()
        return base / name

    return made


@pytest.fixture(scope="session")
def tiny_plates(once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """The simulated plates of preset tiny and seed 0."""
    from cellsignal.data.microscope.simulate import simulate

    return once("tiny-plates", lambda folder: simulate(folder, preset="tiny", seed=0))


@pytest.fixture(scope="session")
def tiny_run(once: Callable[[str, Callable[[Path], None]], Path]) -> tuple[Path, str]:
    """The run folder of a finished run of tiny.yaml, and what the command printed."""

    def run(folder: Path) -> None:
        command = [sys.executable, "-m", "cellsignal.cli.main", "run", str(ROOT / "papermill_params/tiny.yaml"), "--out", str(folder / "run")]
        ended = subprocess.run(command, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        (folder / "printed.txt").write_text(ended.stdout)

    folder = once("tiny-run", run)
    return folder / "run", (folder / "printed.txt").read_text()


@pytest.fixture(autouse=True)
def nothing_simulated_is_shown() -> Iterator[None]:
    """Figures say nothing of simulated data because an earlier test opened some."""
    from cellsignal.data import simulated

    with simulated.showing(False):
        yield


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Call the command with bad input: it must exit with 2 and one line on stderr, which is returned."""
    from cellsignal.cli.main import main

    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["cellsignal", *map(str, arguments)])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        with pytest.raises(SystemExit) as ended:
            main()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        assert ended.value.code == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("cellsignal: error: ") and ";" in line
        return line.removeprefix("cellsignal: error: ")

    return call


@pytest.fixture(autouse=True)
def no_backbone_of_a_test_stays() -> Iterator[None]:
    """Take back the network that `trainings.steady` adds to the backbones."""
    yield
    if module := sys.modules.get("cellsignal.learn.networks.backbones"):
        module.BACKBONES.pop("one-norm", None)
