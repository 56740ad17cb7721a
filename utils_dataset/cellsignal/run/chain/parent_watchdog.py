"""Runs a command that ends when its parent ends: `python -m cellsignal.run.chain.parent_watchdog SECONDS COMMAND ...`.

The command works in a session of its own, so that Ctrl-C in a terminal does not reach it. When our standard input ends,
because the parent closed it or died, the command is terminated. After so many seconds it is killed, together with
every process that it started and left behind.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def watched_command(command: Sequence[str], *, grace: float) -> list[str]:
    """The command that runs another one until the pipe to it ends, and `grace` seconds longer at most.

    Start it in a session of its own: a signal to all processes of this session would kill it, and not the command that it runs.
    """
    return [sys.executable, "-P", "-m", "cellsignal.run.chain.parent_watchdog", str(grace), *command]


def watch(child: Any, *, pipe: int, grace: float) -> int:
    """Wait for a child with the methods of subprocess.Popen, which ends when `pipe` does; returns its exit code, and 128 + n when signal n ended it."""
    import psutil  # ipykernel installs it

    parent_ended = threading.Event()

    def end_with_parent() -> None:
        while os.read(pipe, 1024):
            pass
        parent_ended.set()
        with suppress(psutil.NoSuchProcess):
            # Listed before the child ends, because nobody can tell afterwards; a notebook's kernel has a session of its own.
            descendants = psutil.Process(child.pid).children(recursive=True)
            child.terminate()  # alone: it ends its own children, and reports why it ends
            with suppress(subprocess.TimeoutExpired):
                child.wait(timeout=grace)
            for process in (child, *descendants):
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    watcher = threading.Thread(target=end_with_parent, daemon=True)
    watcher.start()
    code = child.wait()
    if parent_ended.is_set():
        watcher.join()
    return code if code >= 0 else 128 - code


def ignore_signals() -> None:
    """Ignore the signals of a terminal: the parent ends us through the pipe; a signal would end us and leave the command running."""
    for number in SIGNALS:  # a handler and not SIG_IGN, which the command would inherit
        signal.signal(number, lambda number, frame: None)


if __name__ == "__main__":
    ignore_signals()
    command = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, start_new_session=True)
    sys.exit(watch(command, pipe=sys.stdin.fileno(), grace=float(sys.argv[1])))
