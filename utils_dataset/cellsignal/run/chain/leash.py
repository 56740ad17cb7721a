"""A command that lives no longer than whoever started it: `python -m cellsignal.run.chain.leash SECONDS COMMAND ...`.

It works in a session of its own, so that Ctrl-C in a terminal does not reach it. When our standard input ends, because
our starter closed it or died in whatever way, the command is asked to end. After so many seconds it is killed, and so is
whatever it started and left.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress


def command(command: Sequence[str], *, grace: float) -> list[str]:
    """The command that runs another until the pipe to it ends, and `grace` seconds longer at most.

    Start it in a session of its own: whoever kills all processes of ours would kill it too, and not what it runs.
    """
    return [sys.executable, "-P", "-m", "cellsignal.run.chain.leash", str(grace), *command]


def main(grace: float, command: Sequence[str]) -> int:
    """Run `command` until it ends or our standard input does; gives its exit code, 128 and more for a signal's."""
    import psutil  # which ipykernel brings

    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    ending = threading.Event()

    def end() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        ending.set()
        with suppress(psutil.NoSuchProcess):
            # Asked now, because nobody can tell afterwards; a notebook's kernel has a session of its own.
            started = psutil.Process(child.pid).children(recursive=True)
            child.terminate()  # alone: it takes its own children with it, and says why it ends
            with suppress(subprocess.TimeoutExpired):
                child.wait(timeout=grace)
            for process in (child, *started):
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    ender = threading.Thread(target=end, daemon=True)
    ender.start()
    code = child.wait()
    if ending.is_set():
        ender.join()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    # Our starter speaks through the pipe; a signal would cut the leash instead. A handler and not SIG_IGN, which the
    # command would inherit.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: None)
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
