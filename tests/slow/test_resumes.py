"""Thirty trainings, interrupted several times each in three ways, end with the very weights of the undisturbed one."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trainings

from cellsignal.files import sha256

pytestmark = pytest.mark.slow

EACH = 10
INTERRUPTIONS = 3
NAMES = [f"{name}.safetensors" for name in trainings.PHASES]


class Session:
    """A training in a process of its own, which has loaded its libraries and begins."""

    def __init__(self, plates: dict[str, str], folder: Path, **ends: object) -> None:
        told = json.dumps({**plates, "folder": str(folder), **ends})
        program = [sys.executable, str(Path(trainings.__file__)), told]
        self.process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"

    def end(self, *, after: float | None = None) -> str:
        """Kill it after so many seconds, or wait for its own end; gives its last words, none when it was killed."""
        try:
            words, errors = self.process.communicate(timeout=after)
        except subprocess.TimeoutExpired:
            self.process.kill()
            words, errors = self.process.communicate()
        assert self.process.returncode in (0, -9), errors
        return words.strip() if self.process.returncode == 0 else ""


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
    session, began = Session(plates, folder), time.monotonic()
    assert session.end() == "whole"
    return [sha256(folder / name) for name in NAMES], time.monotonic() - began


def check(folder: Path, undisturbed: tuple[list[str], float], interruptions: int) -> None:
    assert interruptions >= 2
    assert [sha256(folder / name) for name in NAMES] == undisturbed[0]
    left = {path.name for path in folder.iterdir() if ".partial-" not in path.name}  # which the next chain sweeps away
    assert left == {name.replace("safetensors", suffix) for name in NAMES for suffix in ("safetensors", "json")}


@pytest.mark.parametrize("number", range(EACH))
def test_killed_at_any_moment(plates: dict[str, str], undisturbed: tuple, tmp_path: Path, number: int) -> None:
    moments, killed = random.Random(number), 0
    for _ in range(INTERRUPTIONS):
        killed += Session(plates, tmp_path).end(after=moments.uniform(0, 0.4 * undisturbed[1])) == ""
    assert Session(plates, tmp_path).end() == "whole"
    check(tmp_path, undisturbed, killed)


@pytest.mark.parametrize("number", range(EACH))
def test_out_of_time(plates: dict[str, str], undisturbed: tuple, tmp_path: Path, number: int) -> None:
    """Each session has a folder of its own, and finds what the one before left, as on Kaggle."""
    lengths, words, sessions = random.Random(100 + number), "", []
    while words != "whole":
        here = tmp_path / str(len(sessions))
        carry = {"elsewhere": str(sessions[-1])} if sessions else {}
        for name in NAMES if sessions else ():  # what is whole is taken up before
            trainings.take_up(sessions[-1] / name, here)
        seconds = lengths.uniform(0.15, 0.4) * undisturbed[1] if len(sessions) < 20 else None
        words = Session(plates, here, seconds=seconds, **carry).end()
        sessions.append(here)
    check(sessions[-1], undisturbed, len(sessions) - 1)


@pytest.mark.parametrize("number", range(EACH))
def test_killed_while_a_checkpoint_is_written(plates: dict[str, str], undisturbed: tuple, tmp_path: Path, number: int) -> None:
    moments, killed = random.Random(200 + number), 0
    for _ in range(INTERRUPTIONS):
        death = moments.choice(["half", "before", "after"]), moments.randint(1, 4)
        killed += Session(plates, tmp_path, death=death).end() == ""
    assert Session(plates, tmp_path).end() == "whole"
    check(tmp_path, undisturbed, killed)
