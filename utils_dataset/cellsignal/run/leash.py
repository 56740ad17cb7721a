"""A command that lives no longer than whoever started it: `python -m cellsignal.run.leash COMMAND ...`.

It works in a session of its own, so that Ctrl-C in a terminal does not reach it. When our standard input ends, because
our starter closed it or died in whatever way, the command is asked to end, and a while later made to.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

GRACE = 20.0  # seconds: a chain gives its notebooks ten


def main(command: Sequence[str]) -> int:
    """Run `command` until it ends or our standard input does; gives its exit code, 128 and more for a signal's."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=_watch, args=(child,), daemon=True).start()
    code = child.wait()
    return code if code >= 0 else 128 - code


def _watch(child: "subprocess.Popen[bytes]") -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    child.terminate()  # alone: it takes its own children with it, and says why it ends
    try:
        child.wait(timeout=GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)


if __name__ == "__main__":
    # Our starter speaks through the pipe; a signal would cut the leash instead. A handler and not SIG_IGN, which the
    # command would inherit.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: None)
    sys.exit(main(sys.argv[1:]))
