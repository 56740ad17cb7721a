"""What a process of a training leaves alone."""

import gc
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from cellsignal.learn.training.distributed import launch


class Made:
    """Ends only by the garbage collector, and writes down in which process that was."""

    def __init__(self, log: Path) -> None:
        self.me, self.log = self, log

    def __del__(self) -> None:
        if self.log.parent.is_dir():  # one that is collected after the test finds it removed
            with open(self.log, "a") as lines:
                lines.write(f"{os.getpid()}\n")


def test_no_process_ends_what_came_with_the_fork(tmp_path: Path) -> None:
    """The store of an earlier launch has a thread, which a fork has not and would wait for without end."""
    kept = [Made(tmp_path / "log")]

    def work(process_group: Any, send_message: Any) -> None:
        kept.clear()
        gc.collect()

    gc.disable()
    try:
        Made(tmp_path / "log")
        launch(work, device="cpu", processes=2, on_message=print)
    finally:
        gc.enable()
    assert (tmp_path / "log").read_text().split() == [str(os.getpid())]


def test_the_launcher_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    launch(lambda process_group, send_message: None, device="cpu", processes=2, on_message=print)
    assert list(tmp_path.iterdir()) == [] and tempfile.gettempdir() == str(tmp_path)
