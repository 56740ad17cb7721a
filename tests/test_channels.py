"""A task says how many channels there are, and everything takes it from there."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cellsignal.errors import InputError
from cellsignal.run import environment as paths
from cellsignal.tasks import RXRX1


def edited_package(folder: Path, channels: int) -> Path:
    """A copy of the package whose `tasks.py` has so many channels in RxRx1, as a user would write it."""
    shutil.copytree(paths.PACKAGE, folder / "cellsignal", ignore=shutil.ignore_patterns("__pycache__"))
    tasks = folder / "cellsignal/tasks.py"
    text, golgi, yellow = tasks.read_text(), '        "Golgi",\n', "        (255, 255, 0),\n"
    names, colours = ('        "membrane",\n', "        (255, 255, 255),\n") if channels == 7 else ("", "")
    for old, new in ((golgi, golgi * (channels > 5) + names), (yellow, yellow * (channels > 5) + colours), ("range(1, 7)", f"range(1, {channels + 1})")):
        assert text.count(old) == 1
        text = text.replace(old, new)
    tasks.write_text(text)
    return folder


@pytest.mark.parametrize("channels", [pytest.param(7, marks=(pytest.mark.slow, pytest.mark.ci)), pytest.param(5, marks=pytest.mark.slow)])
def test_other_numbers_of_channels_go_from_tables_to_a_submission(channels: int, tmp_path: Path) -> None:
    """Only the last channel shows the classes, so that whoever reads six of seven cannot name them."""
    environment = {**os.environ, "PYTHONPATH": f"{edited_package(tmp_path / 'package', channels)}{os.pathsep}{Path(__file__).parent}"}
    command = [sys.executable, str(Path(__file__).with_name("other_channels.py")), str(tmp_path / "plates"), str(tmp_path / "run")]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["problems"] == 0 and found["shape"] == found["packed"] == [channels, 32, 32]
    assert found["card"] == found["sample"] == channels and found["there"] == [channels]
    assert found["measured"] == list(range(1, channels + 1))
    assert found["right"] == found["wells"] == 8
    assert found["simulated"] == (f"preset tiny: the virtual microscope draws 6 channels, and the task rxrx1 has {channels}; leave `preset` "
                                  "empty and name a folder with images in `data`")
    assert not found["left"]


def test_a_channel_without_a_name_or_a_colour_is_refused() -> None:
    with pytest.raises(InputError) as error:
        replace(RXRX1, suffixes=(*RXRX1.suffixes, "_w7.png"))
    assert str(error.value) == ("task rxrx1: has 6 channels and 7 suffixes and 6 colours; give each channel a name, a suffix and a colour in tasks.py")
