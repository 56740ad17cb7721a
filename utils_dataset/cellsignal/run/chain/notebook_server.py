"""A process that runs notebooks by forking: papermill, its kernel and what the cells import are loaded once for all notebooks of a run.

`python -P -c "from cellsignal.run.chain.notebook_server import main; main(FD)"` serves the process that holds the other end of the
socket FD. Each notebook is run by three processes, each the child of the one before: one that watches, papermill, and the kernel.
What the cells import is not loaded before where there is a GPU, because CUDA does not survive a fork, and elsewhere than on Linux.
"""

import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from threading import Event, Lock
from types import TracebackType
from typing import IO, Any, Self

from cellsignal import code_identity
from cellsignal.run import environment
from cellsignal.run.chain import parent_watchdog

GRACE_SECONDS = 10.0  # for a notebook that is asked to end; a chain that is asked to end has 20
POLL_SECONDS = 0.02
NOTEBOOK_MODULES = ("papermill.cli", "ipykernel.kernelapp", "psutil")
GPU_DEVICES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")


class NotebookServer:
    """The server of this process, started with the first notebook and ended with the `with` block; `environment`: its variables."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self._processes: list[subprocess.Popen[bytes]] = []  # the last one serves; those before, of older code, end with their notebooks
        self._control: socket.socket | None = None
        self._code = 0
        self._lock = Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()
        for process in self._processes:
            process.wait()

    def run(self, arguments: Sequence[str], modules: Collection[str], *, folder: str, log: IO[bytes], stop: Event) -> int | None:
        """Run papermill with some command-line arguments, its output in `log`; returns its exit code, None when `stop` was set.

        `modules`: those that the kernel will import. The notebook ends when this process does, and a few seconds later if it was
        killed: until then its processes hold the lock of the run folder `folder`.
        """
        job, remote = socket.socketpair()
        with job:
            with remote, self._lock:
                self._start()
                socket.send_fds(self._control, [b"\n"], [remote.fileno(), log.fileno()])
            try:
                job.sendall(json.dumps({"arguments": list(arguments), "modules": sorted(modules), "folder": folder}).encode() + b"\n")
                while not stop.is_set() and not select.select([job], [], [], 0.05)[0]:
                    pass
                if stop.is_set():
                    job.shutdown(socket.SHUT_WR)
                code = job.recv(16)  # when all processes of the notebook have ended
            except (BrokenPipeError, ConnectionResetError):
                code = b""
        return None if stop.is_set() else int(code or -signal.SIGKILL)  # without a code, its processes were killed

    def _start(self) -> None:
        """Start the process, unless it runs and has the code of now."""
        code = max(path.stat().st_mtime_ns for path in code_identity.PACKAGE.rglob("*.py"))
        if self._processes and self._processes[-1].poll() is None and code == self._code:
            return
        self._close()
        self._control, remote = socket.socketpair()
        with remote:
            # Frozen modules hide their files from the debugger, which prints a warning.
            command = [sys.executable, "-P", "-Xfrozen_modules=off", "-c", f"from {__name__} import main; main({remote.fileno()})"]
            quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            self._processes.append(subprocess.Popen(command, env=self.environment, pass_fds=[remote.fileno()], start_new_session=True, **quiet))
        self._code = code

    def _close(self) -> None:
        """Have the process end when its notebooks have."""
        if self._control is not None:
            self._control.close()


class ForkedProcess:
    """A child that calls a function and then exits; with the methods of subprocess.Popen. Start it while there is only one thread."""

    stdin = stdout = stderr = None

    def __init__(self, function: Callable[[], object]) -> None:
        self.returncode: int | None = None
        self._lock = Lock()
        self.pid = os.fork()
        if self.pid == 0:
            function()
            sys.exit()

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        with self._lock:
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code when it has ended; subprocess.TimeoutExpired after `timeout` seconds."""
        if timeout is None:
            with suppress(ChildProcessError):  # it has ended, and was polled
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        end = time.monotonic() + (timeout or 0.0)
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("a forked process", timeout)
            time.sleep(POLL_SECONDS)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


class ForkedKernel(ForkedProcess):
    """A kernel that waits for the command by which Jupyter would start it: that of ipykernel_launcher."""

    def __init__(self) -> None:
        reader, writer = os.pipe()
        self._command = os.fdopen(writer, "w")
        super().__init__(lambda: self._run(reader))
        os.close(reader)
        with suppress(PermissionError):  # the child may have done so itself
            os.setpgid(self.pid, self.pid)

    def start(self, command: Sequence[str], *, cwd: str | None = None, **_: Any) -> Self:
        """Start it as `jupyter_client.launcher.launch_kernel` would, with the environment variables of this process."""
        json.dump({"arguments": command[command.index("ipykernel_launcher") + 1 :], "folder": cwd}, self._command)
        self._command.close()
        return self

    def _run(self, reader: int) -> None:
        from ipykernel import kernelapp

        os.setpgid(0, 0)  # a group of its own, which Jupyter signals
        self._command.close()
        with open(reader) as pipe:
            text = pipe.read()
        if not text:  # papermill has ended before
            sys.exit()
        start = json.loads(text)
        if start["folder"]:
            os.chdir(start["folder"])
        sys.argv = ["ipykernel_launcher", *start["arguments"]]
        sys.path.append("")  # otherwise IPython puts the current folder before the installed packages, and a file there takes a package's place
        kernelapp.launch_new_instance([*start["arguments"], f"--IPKernelApp.parent_handle={os.getppid()}"])


def main(descriptor: int) -> None:
    """Serve until the other end of the socket is closed; in a child, run one notebook."""
    control = socket.socket(fileno=descriptor)
    control.set_inheritable(False)
    _load(NOTEBOOK_MODULES)
    while True:
        _, descriptors, *_ = socket.recv_fds(control, 1, 2)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG if descriptors else 0)[0]:  # of the last ones too, whose time and memory the system adds to ours
                pass
        if not descriptors:
            return
        for received in descriptors:
            os.set_inheritable(received, False)
        job, log = descriptors
        request = json.loads(_read_line(job))
        if request["modules"] and sys.platform == "linux" and not any(map(os.path.exists, GPU_DEVICES)):
            _load(request["modules"])
            code_identity.package_code("run")  # which every session asks for
        gc.freeze()  # otherwise each collection in a child would copy all that is loaded
        if os.fork() == 0:
            control.close()
            _watch(request["arguments"], job, log, folder=request["folder"])
            os._exit(0)  # taking down all modules would take seconds
        os.close(job)
        os.close(log)


def _load(modules: Collection[str]) -> None:
    for name in modules:
        with suppress(Exception):  # a notebook that needs it will fail by itself
            import_module(name)


def _read_line(descriptor: int) -> bytes:
    with open(descriptor, "rb", buffering=0, closefd=False) as file:
        return file.readline()


def _watch(arguments: Sequence[str], job: int, log: int, *, folder: str) -> None:
    """Run papermill, end it when the other end of `job` is closed, and send its exit code there; all with the lock of the run folder."""
    os.setsid()
    for target in (1, 2):
        os.dup2(log, target)
    os.close(log)
    parent_watchdog.ignore_signals()
    environment.lock_run_folder(folder)
    if select.select([job], [], [], 0)[0]:  # the chain was killed while this process started; another one may have begun since
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, parent_watchdog.SIGNALS)  # a signal that came before papermill's own handlers would be ignored
    papermill = ForkedProcess(lambda: _run_papermill(arguments, job))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, parent_watchdog.SIGNALS)
    code = parent_watchdog.watch(papermill, pipe=job, grace=GRACE_SECONDS)
    with suppress(OSError):  # nobody waits any more
        os.write(job, str(code).encode())


def _run_papermill(arguments: Sequence[str], job: int) -> None:
    os.close(job)
    os.setsid()
    for number in parent_watchdog.SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, parent_watchdog.SIGNALS)
    kernel = ForkedKernel()  # now, because papermill has threads

    from jupyter_client.provisioning import local_provisioner
    from papermill.cli import papermill

    local_provisioner.launch_kernel = kernel.start
    papermill(list(arguments), standalone_mode=False)
    os._exit(0)  # a failure raises, and has time
