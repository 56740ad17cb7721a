"""Thirty trainings, interrupted several times each in three ways, end with the very weights of the undisturbed one."""

import multiprocessing
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trainings

from cellsignal.files import sha256

pytestmark = pytest.mark.slow

EACH = 10
INTERRUPTIONS = 3
# Every session is forked from this process, which has loaded the libraries and trained nothing.
FORK = multiprocessing.get_context("fork")
NAMES = [f"{name}.safetensors" for name in trainings.PHASES]


def session(plates: dict[str, str], folder: Path, *, after: float | None = None, **ends: object) -> bool:
    """Train in a process of its own, killed `after` so many seconds; tells whether it came to its own end."""
    process = FORK.Process(target=trainings.session, kwargs={**plates, "folder": str(folder), **ends})
    process.start()
    process.join(after)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == 0


def whole(folder: Path) -> bool:
    return all((folder / name).with_suffix(".json").is_file() for name in NAMES)


@pytest.fixture(scope="module")
def plates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("plates")
    root, sites = trainings.write_patches(folder)
    sites.to_csv(folder / "sites.csv", index=False)
    return {"root": str(root), "sites": str(folder / "sites.csv")}


@pytest.fixture(scope="module")
def undisturbed(plates: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], float]:
    """SHA-256 of each phase's weights, and the seconds that the training took."""
    folder = tmp_path_factory.mktemp("undisturbed")
    began = time.monotonic()
    assert session(plates, folder) and whole(folder)
    return [sha256(folder / name) for name in NAMES], time.monotonic() - began


def check(folder: Path, undisturbed: tuple[list[str], float], interruptions: int) -> bool:
    """The weights are the same, and nothing else is left; tells whether there were interruptions enough to prove something."""
    assert [sha256(folder / name) for name in NAMES] == undisturbed[0]
    left = {path.name for path in folder.iterdir() if ".partial-" not in path.name}  # which the next chain sweeps away
    assert left == {name.replace("safetensors", suffix) for name in NAMES for suffix in ("safetensors", "json")}
    return interruptions >= 2


@pytest.mark.parametrize("number", range(EACH))
def test_killed_at_any_moment(plates: dict[str, str], undisturbed: tuple, tmp_path: Path, number: int) -> None:
    moments = random.Random(number)
    def kills(folder: Path, seconds: float) -> int:
        killed = sum(not session(plates, folder, after=moments.uniform(0, seconds)) for _ in range(INTERRUPTIONS))
        assert session(plates, folder)
        return killed
    assert any(check(folder, undisturbed, kills(folder, seconds)) for folder, seconds in shorter(tmp_path, 0.4 * undisturbed[1]))


def shorter(folder: Path, seconds: float) -> Iterator[tuple[Path, float]]:
    """Folders, and times for them: the machine may have become faster since the undisturbed training."""
    return ((folder / f"half-{halving}", seconds / 2**halving) for halving in range(5))


@pytest.mark.parametrize("number", range(EACH))
def test_out_of_time(plates: dict[str, str], undisturbed: tuple, tmp_path: Path, number: int) -> None:
    """Each session has a folder of its own, and finds what the one before left, as on Kaggle."""
    lengths = random.Random(100 + number)
    def sessions(folder: Path, seconds: float) -> list[Path]:
        made = [folder / "0"]
        assert session(plates, made[0], seconds=lengths.uniform(0.3, 1) * seconds)
        while not whole(made[-1]):
            before, here = made[-1], folder / str(len(made))
            for name in NAMES:  # what is whole is taken up first
                trainings.take_up(before / name, here)
            time_left = lengths.uniform(0.3, 1) * seconds if len(made) < 20 else None
            assert session(plates, here, seconds=time_left, elsewhere=str(before))
            made.append(here)
        return made
    tries = (sessions(folder, seconds) for folder, seconds in shorter(tmp_path, 0.35 * undisturbed[1]))
    assert any(check(made[-1], undisturbed, len(made) - 1) for made in tries)


@pytest.mark.parametrize("number", range(EACH))
def test_killed_while_a_checkpoint_is_written(plates: dict[str, str], undisturbed: tuple, tmp_path: Path, number: int) -> None:
    moments, killed = random.Random(200 + number), 0
    for _ in range(INTERRUPTIONS):
        death = moments.choice(["half", "before", "after"]), moments.randint(1, 4)
        killed += not session(plates, tmp_path, death=death)
    assert session(plates, tmp_path)
    assert check(tmp_path, undisturbed, killed)
