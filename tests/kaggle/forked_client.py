"""The real client, started by fork: what it imports is loaded once for all tests, and a call costs a tenth of its time.

`python forked_client.py serve SOCKET` loads the client's libraries, then forgets the client itself, which logs in when it is
imported. `python forked_client.py SOCKET …` stands for `python -m kaggle …`: it sends arguments, environment, folder and
streams there, where a fork becomes the client, and ends as that ends.
"""

import json
import os
import select
import socket
import subprocess
import sys
from pathlib import Path

REQUEST = 1 << 20  # bytes of the largest call


def serve(place: str) -> None:
    """Fork for each call, until whoever started us closes our standard input."""
    import contextlib

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        import kaggle.cli  # noqa: F401
    for name in [name for name in sys.modules if name.partition(".")[0] == "kaggle"]:
        del sys.modules[name]
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(place)
        listening.listen(64)
        while 0 not in select.select([listening, 0], [], [])[0]:
            connection, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                _become_client(connection)
            connection.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def _become_client(connection: socket.socket) -> None:
    """Be `python -m kaggle` as the caller would have started it."""
    import runpy
    import tempfile
    import traceback
    from threading import Thread

    sent, streams, _, _ = socket.recv_fds(connection, REQUEST, 3)
    call = json.loads(sent)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(call["environment"])
    os.chdir(call["folder"])
    tempfile.tempdir = None
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", errors="backslashreplace")
    sys.argv = ["kaggle", *call["arguments"]]
    Thread(target=lambda: connection.recv(1) or os._exit(1), daemon=True).start()  # the caller was killed
    code = 0
    try:
        runpy.run_module("kaggle", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall(b"%d" % code)
    os._exit(0)


def call(place: str, arguments: list[str]) -> int:
    """Have the arguments worked through; gives the exit code."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(place)
        request = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
        socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
        return int(connection.recv(16) or b"1")


def start(client: Path, place: Path) -> subprocess.Popen[bytes]:
    """Start serving the client whose packages lie in `client`; closing the process's stdin ends it."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(client), "HOME": str(place.parent)}
    process = subprocess.Popen([sys.executable, "-P", __file__, "serve", str(place)], stdin=subprocess.PIPE, env=environment)
    while not place.exists():
        if process.poll() is not None:
            raise RuntimeError(f"the client in {client} could not be loaded")
        select.select([], [], [], 0.02)
    return process


def command(place: Path) -> list[str]:
    """How to call what serves at `place`."""
    return [sys.executable, "-I", "-S", __file__, str(place)]


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        sys.exit(call(sys.argv[1], sys.argv[2:]))
