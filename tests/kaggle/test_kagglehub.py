"""The real kagglehub, unmodified, brings the competition as Colab gets it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import bundles
import pytest
from fake_kaggle import COMPETITION, FakeKaggle

from cellsignal import files
from cellsignal.run.environment import PACKAGE

ROOT = Path(__file__).resolve().parents[2]
FETCH = """
from cellsignal import errors
from cellsignal.data.download import rxrx1 as download
download.KAGGLEHUB_BYTES[{competition!r}] = {size}
try:
    print(download.from_kagglehub({competition!r}))
except (errors.InputError, errors.StepFailed) as error:
    print(f"{{type(error).__name__}}: {{error}}")
"""


@pytest.fixture(scope="session")
def hub(clients: dict[str, Path]) -> list[Path]:
    """Folders for PYTHONPATH: kagglehub, and the client's packages that it needs."""
    folder = ROOT / "build/clients/kagglehub"
    with files.locked(ROOT / "build/clients.lock", timeout=600):
        if not (folder / "kagglehub").is_dir():
            command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--target", str(folder)]
            done = subprocess.run([*command, "kagglehub>=1.0,<2"], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"pip cannot install kagglehub: {done.stderr.strip().splitlines()[-1]}")
    return [folder, clients["2.2.5"]]


@pytest.fixture
def kaggle(tmp_path: Path) -> Iterator[FakeKaggle]:
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / f"{COMPETITION}.zip").write_bytes(bundles.bundle())
    with FakeKaggle(tmp_path / "kaggle") as server:
        server.competitions[COMPETITION] = tmp_path / "held"
        yield server


def fetched(kaggle: FakeKaggle, home: Path, hub: list[Path], *, anonymous: bool = False, size: int = 1 << 20, **login: object) -> str:
    """What a process says that fetches the competition; its last line."""
    environment = kaggle.environment(home, **login)
    secrets = [name for name in environment if anonymous and ("KEY" in name or "USERNAME" in name)]
    environment = {name: value for name, value in environment.items() if name not in secrets}
    environment["PYTHONPATH"] = ":".join(map(str, [*hub, PACKAGE.parent]))
    code = FETCH.format(competition=COMPETITION, size=size)
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()[-1]


@pytest.mark.parametrize("token", [False, True])
def test_the_competition_comes_with_a_token(kaggle: FakeKaggle, tmp_path: Path, hub: list[Path], token: bool) -> None:
    folder = Path(fetched(kaggle, tmp_path / "home", hub, token=token))
    assert (folder / "train.csv").read_bytes() == bundles.tables()["train.csv"]
    assert len(list(folder.rglob("*.png"))) == bundles.IMAGES * len(bundles.EXPERIMENTS)
    sent = len(kaggle.requests)
    no_room = 10**17  # what is in the cache needs none
    assert Path(fetched(kaggle, tmp_path / "home", hub, token=token, size=no_room)) == folder
    assert len([request for request in kaggle.requests[sent:] if request.call == "GET"]) <= 1


def test_refusals_are_one_line_that_says_what_to_do(kaggle: FakeKaggle, tmp_path: Path, hub: list[Path]) -> None:
    cure = "store a token as the secret KAGGLE_API_TOKEN, accept the competition's rules on its page"
    assert cure in fetched(kaggle, tmp_path / "nobody", hub, anonymous=True)
    key = "feedfacefeedfacefeedfacefeedface"
    said = fetched(kaggle, tmp_path / "wrong", hub, key=key)
    assert cure in said and key not in said
    kaggle.competitions[COMPETITION] = None
    assert cure in fetched(kaggle, tmp_path / "rules", hub)


def test_failures_of_kaggle_and_of_the_disk(kaggle: FakeKaggle, tmp_path: Path, hub: list[Path]) -> None:
    kaggle.answer("DownloadDataFiles", 500, "down", times=9)
    assert fetched(kaggle, tmp_path / "home", hub).startswith(f"StepFailed: kagglehub could not fetch {COMPETITION} (KaggleApiHTTPError)")
    said = fetched(kaggle, tmp_path / "home", hub, size=10**17)
    assert said.startswith("InputError") and "cellsignal download rxrx1 --cell-type U2OS" in said
