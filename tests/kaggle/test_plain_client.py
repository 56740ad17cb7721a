"""The unmodified client in a clone: it stops at the placeholder, and after `init` everything works with it alone."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_kaggle import FakeKaggle

from cellsignal.kaggle.client import FIRST_RUN

ROOT = Path(__file__).resolve().parents[2]
STEPS = ("1-eda", "2-pretrain-controls", "3-train-cell-type", "4-predict-assign")
Connect = Callable[..., dict[str, str]]


def kaggle(*arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "kaggle", *arguments], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    "command",
    [
        ("datasets", "create", "-p", "utils_dataset", "-r", "zip"),
        ("datasets", "version", "-p", "utils_dataset", "-r", "zip", "-m", "x"),
        ("kernels", "push"),
        ("kernels", "push", "-p", "kernels/3-train-cell-type"),
    ],
    ids=" ".join,
)
def test_the_client_stops_at_the_placeholder_before_anything_is_sent(
    checkout: Path, client: Path, connect: Connect, tmp_path: Path, command: tuple[str, ...]
) -> None:
    with FakeKaggle(tmp_path / "kaggle") as server:
        done = kaggle(*command, environment=connect(server, client))
    assert done.returncode == 1 and FIRST_RUN in done.stderr
    assert server.requests == []


def test_after_init_the_plain_client_does_it_all(checkout: Path, client: Path, connect: Connect, tmp_path: Path) -> None:
    with FakeKaggle(tmp_path / "kaggle") as server:
        environment = connect(server, client)
        ours = {**environment, "PYTHONPATH": f"{client}:{ROOT / 'utils_dataset'}"}
        done = subprocess.run([sys.executable, "-m", "cellsignal.cli.main", "kaggle", "init"], env=ours, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout.startswith(f"alice is written into {len(list(ROOT.glob('kernels/*/'))) + 2} metadata files"), done.stderr
        assert server.requests == []
        done = kaggle("datasets", "create", "-p", "utils_dataset", "-r", "zip", environment=environment)
        assert "Your private Dataset is being created" in done.stdout and "Skipping" not in done.stdout
        for folder in (".", *(f"kernels/{step}" for step in STEPS)):
            done = kaggle("kernels", "push", "-p", folder, environment=environment)
            assert "Kernel version 1 successfully pushed" in done.stdout and "not valid" not in done.stdout, done.stdout + done.stderr
            assert "does not resolve" not in done.stdout
    assert set(server.kernels) == {"alice/cellsignal", *(f"alice/cellsignal-{step}" for step in STEPS)}
    [uploaded] = server.datasets["alice/cellsignal-utils"].versions
    for name in ("cellsignal/__init__.py", *(f"kernels/{step}/{step}.ipynb" for step in STEPS)):
        assert (uploaded / name).is_file(), name
    chain = server.kernels["alice/cellsignal"][0]
    assert chain.gpu and chain.mounts["datasets"] == {"alice/cellsignal-utils": uploaded}
    assert set(server.kernels["alice/cellsignal-4-predict-assign"][0].mounts["notebooks"]) == {"alice/cellsignal-3-train-cell-type"}
