"""Two machines of a real Ray cluster, one of which dies while it works, make the files that one machine makes alone."""

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cellsignal import files

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
# Long enough to be killed in the middle; prototypes embed the training experiments too.
PARAMETERS = ["training.pretrain_epochs=8", "prediction.prototype_weight=0.3", "prediction.prototype_scale=8.0"]
PATTERNS = ("weights/**/*.safetensors", "scores/**/*.parquet", "submission*.csv", "metrics.json")


def command(out: Path, *more: str) -> list[str]:
    given = [part for parameter in PARAMETERS for part in ("-p", parameter)]
    return [sys.executable, "-m", "cellsignal.cli.main", "run", str(ROOT / "papermill_params/tiny.yaml"), "--out", str(out), *given, *more]


def made(folder: Path) -> dict[str, str]:
    """SHA-256 of what a run is for."""
    found = [path for each in PATTERNS for path in folder.glob(each)]
    return {path.relative_to(folder).as_posix(): files.sha256(path) for path in sorted(found)}


def until(there: Callable[[], Any], process: "subprocess.Popen[str]") -> None:
    """Wait until something is there, while a process works."""
    while not there():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one machine makes."""
    out = tmp_path_factory.mktemp("alone") / "run"
    subprocess.run(command(out), check=True, capture_output=True)
    return made(out)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Ray's sockets lie there, whose names have at most 107 letters: pytest's own folder is too long a name."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster whose head has one core; a second machine is added by the test."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 10**8}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()


@pytest.mark.parametrize("apart", [False, True], ids=["a shared folder", "a storage"])
def test_a_machine_dies(alone: dict[str, str], nodes: Any, tmp_path: Path, apart: bool) -> None:
    second = nodes.add_node(num_cpus=1, object_store_memory=10**8)
    out, storage = tmp_path / "out", f"file://{tmp_path}/store"
    more = ["--ray", nodes.address, *["--storage", storage] * apart]
    process = subprocess.Popen(command(out, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    both = "cellsignal-*/weights/*/pretrain.checkpoint.json" if apart else "out/weights/*/pretrain.checkpoint.json"
    until(lambda: len({path.parent.name for path in tmp_path.glob(both)}) == 2, process)  # each machine trains for one cell type
    nodes.remove_node(second, allow_graceful=False)
    assert not list((out / "receipts").glob("2-pretrain-controls@*.json"))
    said = process.communicate()[1]  # that a machine is gone Ray itself prints, in many words
    assert process.returncode == 0, said
    assert not [line for line in said.splitlines() if line.strip() and "%|" not in line]
    assert made(out) == alone
    again = subprocess.run(command(out, *more), check=True, capture_output=True, text=True)
    assert "started" not in again.stdout and made(out) == alone
    if apart:
        assert made(tmp_path / "store") == alone


def test_ctrl_c_leaves_nothing_that_works_and_the_same_call_goes_on(alone: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("ray")
    out = tmp_path / "out"
    process = subprocess.Popen(command(out, "--ray", "local"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: list(out.glob("weights/*/pretrain.checkpoint.json")), process)
    process.send_signal(signal.SIGINT)
    printed, said = process.communicate(timeout=60)
    assert process.returncode == 130 and said.splitlines()[-1] == "cellsignal: interrupted", said
    ended = subprocess.run(command(out, "--ray", "local"), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert made(out) == alone
