"""The archive of a run in an empty environment: three ways, one submission, and requirements that can be met."""

import hashlib
import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
Call = Callable[..., str]


RECIPES = {
    "tiny.yaml": [],
    "protein-atlas.yaml": ["-p", "preset=atlas-tiny", "-p", "wells.folds=2", "-p", "training.epochs=1"],
}
MADE = {"tiny.yaml": 4 + 12 + 1, "protein-atlas.yaml": 2 + 4 + 1}  # networks, tables of scores, the submission


@pytest.fixture(scope="module", params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> str:
    """The name of a recipe, one per task."""
    return request.param


@pytest.fixture(scope="module")
def archive(recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked archive of a run of that recipe; the run is gone."""
    place = tmp_path_factory.mktemp("archive")
    run, command = place / "run", [sys.executable, "-m", "cellsignal.cli.main"]
    params = str(ROOT / "papermill_params" / recipe)
    for told in (["run", params, *RECIPES[recipe], "--out", str(run)], ["bundle", str(run)]):
        ended = subprocess.run([*command, *told], capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
    run.rename(place / "gone")
    with zipfile.ZipFile(place / "run.zip") as source:
        source.extractall(place / "unpacked")
    return place / "unpacked"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has the libraries of this one, and not its packages in the making."""
    place = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    libraries = Path(sysconfig.get_path("purelib"))
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (place / "lib" / version / "site-packages/libraries.pth").write_text(str(libraries))
    (place / "share").symlink_to(Path(sys.prefix) / "share")  # Jupyter's templates
    return place / "bin/python"


@pytest.fixture
def call(archive: Path, python: Path) -> Call:
    """call(script, argument…) calls an entry point of the archive and gives what it printed."""

    def run(script: str, *arguments: str) -> str:
        command = [str(python), "-m", script, *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, cwd=archive, env=ENVIRONMENT)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    return run


def sums(archive: Path) -> dict[str, str]:
    """SHA-256 of the weights, the scores and the submission, by name."""
    names = [*archive.glob("run/weights/*/*.safetensors"), *archive.rglob("run/scores/**/*.parquet"), archive / "run/submission.csv"]
    return {path.relative_to(archive).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in names}


def test_three_ways_lead_to_the_same_submission(recipe: str, archive: Path, call: Call) -> None:
    subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=archive, check=True)
    first = sums(archive)
    assert len(first) == MADE[recipe]
    call("prepare_data")
    for path in [*archive.rglob("data/**/*.png")]:
        path.rename(path.with_suffix(".hidden"))
    assert "no image is opened" in call("predict", "--from", "scores")
    assert sums(archive) == first
    for path in [*archive.rglob("data/**/*.hidden")]:
        path.rename(path.with_suffix(".png"))
    assert "nothing is trained" in call("predict")
    assert sums(archive) == first
    assert "everything is made again" in call("train")
    assert sums(archive) == first
    assert (archive / "submission/submission.csv").read_bytes() == (archive / "run/submission.csv").read_bytes()


@pytest.mark.parametrize("recipe", ["protein-atlas.yaml"], indirect=True)
def test_the_requirements_fill_an_empty_environment(archive: Path, tmp_path: Path) -> None:
    """Gigabytes are downloaded where pip has not kept them."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "bare")], check=True)
    python = str(tmp_path / "bare/bin/python")
    for told in (["pip", "install", "-q", "-r", "requirements.txt"], ["predict", "--from", "scores"]):
        ended = subprocess.run([python, "-m", *told], capture_output=True, text=True, cwd=archive, env=ENVIRONMENT)
        assert ended.returncode == 0, ended.stderr
    assert (archive / "submission/submission.csv").read_bytes() == (archive / "run/submission.csv").read_bytes()
