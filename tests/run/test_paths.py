"""Places: where we are, who holds a run folder, and what a notebook's process is given."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cellsignal import files
from cellsignal.errors import InputError
from cellsignal.run import paths


@pytest.mark.parametrize(
    "variables, place",
    [([], "local"), (["COLAB_RELEASE_TAG"], "colab"), (["COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"], "kaggle")],
)
def test_kaggle_is_asked_before_colab(monkeypatch: pytest.MonkeyPatch, variables: list[str], place: str) -> None:
    for name in ("COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)
    for name in variables:
        monkeypatch.setenv(name, "Batch")
    assert paths.where() == place
    base = "/kaggle/working" if place == "kaggle" else Path.cwd()
    assert paths.default_run("runs/one") == Path(base) / "runs/one"
    assert paths.default_run("/absolute") == Path("/absolute")


def test_the_checkout_holds_the_kernels() -> None:
    assert (paths.kernels() / "0-chain/0-chain.ipynb").is_file()


def test_a_claim_ends_with_its_process_however_that_dies(tmp_path: Path) -> None:
    code = f"from cellsignal.run import paths; paths.claim({str(tmp_path)!r}); print('held', flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        with pytest.raises(InputError, match="in use"), files.locked(tmp_path / paths.KERNELS_LOCK):
            pass
    finally:
        process.kill()
        process.communicate()
    with files.locked(tmp_path / paths.KERNELS_LOCK):
        pass


def test_claims_are_shared_and_can_be_released(tmp_path: Path) -> None:
    folder = paths.claim(tmp_path / "run")
    assert folder == paths.claim(str(folder)) == tmp_path / "run"
    paths.release(folder)
    with files.locked(folder / paths.KERNELS_LOCK):
        pass


def test_notebooks_get_this_interpreter_and_package(tmp_path: Path) -> None:
    environment = paths.kernel_environment(tmp_path, threads=3)
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["PYTHONPATH"].split(":")[0] == str(paths.PACKAGE.parent)
    spec = Path(environment["JUPYTER_PATH"].split(":")[0]) / "kernels/python3/kernel.json"
    assert json.loads(spec.read_text())["argv"][0] == sys.executable
