"""A run whose process dies alone: nothing works on unseen, and the same command continues it."""

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from building import recipe_of
from cellsignal.run.chain import chain, parent_watchdog

LATEST = 120.0  # seconds, which only a failure takes
# Trains without end; what it starts writes where it works, as a training in several processes does.
TRAINING = """import os, subprocess, sys, time
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
files.write_text(folder / "pids.txt", f"{os.getpid()} {os.getppid()} {helper.pid}")
while True:
    time.sleep(0.01)"""


def waited(met: Callable[[], bool]) -> bool:
    """Whether something comes true in time."""
    deadline = time.monotonic() + LATEST
    while not met() and time.monotonic() < deadline:
        time.sleep(0.05)
    return met()


def start(run: Path, plates: Path, kernels: Path) -> subprocess.Popen[bytes]:
    """A chain in a process of its own, as `cellsignal run` is."""
    code = f"""import sys
from pathlib import Path
from cellsignal.cli import main as cli
from cellsignal.run.chain import chain, parent_watchdog; from cellsignal.run import recipe
checked = recipe.check({{"data": {str(plates)!r}, "machine": {{"html_pages": False}}}})
cli.app = lambda **options: chain.run_chain(checked, run={str(run)!r}, kernels=Path({str(kernels)!r})) and 0
cli.main()"""
    # As from a terminal: tests that run under nohup would hand on that SIGHUP is ignored.
    heeding = functools.partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=heeding)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_notebooks_end_with_the_run_that_started_them(
    tmp_path: Path, plates: Path, kernels: Path, write_toy: Callable[..., Path], number: signal.Signals
) -> None:
    run, told = tmp_path / "run", tmp_path / "run/pids.txt"
    write_toy(kernels, "2-pretrain-controls", body=TRAINING)
    process = start(run, plates, kernels)
    try:
        assert waited(told.is_file)
        left = [psutil.Process(int(pid)) for pid in told.read_text().split()]
        assert [each.is_running() for each in left] == [True] * 3
        process.send_signal(number)
        process.wait(timeout=LATEST)
        assert waited(lambda: not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in left))
    finally:
        process.kill()  # of a test that failed
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 128 + number)
    if number == signal.SIGKILL:
        write_toy(kernels, "2-pretrain-controls")
        chain.run_chain(recipe_of({"data": str(plates), "html_pages": False}), run=run, kernels=kernels)
        assert (run / "submission.csv").is_file()


def test_what_does_not_want_to_end_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    stubborn = f"""import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], start_new_session=True)
open({str(tmp_path / "pids")!r}, "w").write(f"{{os.getpid()}} {{child.pid}} ")
time.sleep(3600)"""
    process = subprocess.Popen(parent_watchdog.watched_command([sys.executable, "-c", stubborn], grace=0.2), stdin=subprocess.PIPE, start_new_session=True)
    assert waited(lambda: (tmp_path / "pids").is_file() and (tmp_path / "pids").read_text().endswith(" "))
    left = [psutil.Process(int(pid)) for pid in (tmp_path / "pids").read_text().split()]
    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C ends nothing: our starter decides
    process.stdin.close()
    assert process.wait(timeout=LATEST) == 128 + signal.SIGKILL
    assert waited(lambda: not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in left))
