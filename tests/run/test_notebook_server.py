"""What notebooks import is loaded once for all of them, and never of older code."""

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import psutil
import pytest

from cellsignal import code_identity, files
from cellsignal.errors import InputError
from cellsignal.run import environment
from cellsignal.run.chain import notebook_server, notebooks
from cellsignal.run.chain.notebook_server import GPU_DEVICES, NotebookServer

BODY = """import sys, psutil
files.write_json(folder / "seen.json", {"loaded": "cellsignal.budget" in sys.modules, "server": psutil.Process().parents()[2].pid})
import cellsignal.budget"""


@pytest.mark.slow
@pytest.mark.ci
def test_modules_are_loaded_once_and_again_when_the_code_changes(tmp_path: Path, write_toy: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    notebook, package = write_toy(tmp_path, "1-eda", body=BODY), tmp_path / "cellsignal"
    package.mkdir()
    (package / "code.py").touch()
    monkeypatch.setattr(code_identity, "PACKAGE", package)

    def execute() -> int:
        notebooks.execute(notebook, target=tmp_path / "out.ipynb", parameters={"run": str(tmp_path)}, server=server, stop=Event())
        seen = files.read_json(tmp_path / "seen.json")
        assert seen["loaded"] != any(map(os.path.exists, GPU_DEVICES)), "before the cell imports it"
        return seen["server"]

    with NotebookServer(environment.kernel_environment(tmp_path)) as server:
        first = execute()
        assert execute() == first
        os.kill(first, signal.SIGKILL)
        psutil.Process(first).wait()
        second = execute()
        os.utime(package / "code.py", (2**32, 2**32))
        third = execute()
        assert len({first, second, third}) == 3
    assert not psutil.pid_exists(second) and not psutil.pid_exists(third)


@pytest.mark.slow
@pytest.mark.ci
def test_a_notebook_of_older_code_ends_in_its_own_time(tmp_path: Path, write_toy: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    body = "import time\n(folder / 'begun').touch()\nwhile not (folder / 'end').is_file(): time.sleep(0.1)"
    slow, quick, package = write_toy(tmp_path, "1-eda", body=body), write_toy(tmp_path, "4-predict-assign", body="pass"), tmp_path / "cellsignal"
    package.mkdir()
    (package / "code.py").touch()
    monkeypatch.setattr(code_identity, "PACKAGE", package)
    with NotebookServer(environment.kernel_environment(tmp_path)) as server, ThreadPoolExecutor(1) as pool:

        def execute(notebook: Path) -> None:
            notebooks.execute(notebook, target=tmp_path / f"{notebook.stem}-out.ipynb", parameters={"run": str(tmp_path)}, server=server, stop=Event())

        older = pool.submit(execute, slow)
        while not (tmp_path / "begun").is_file():
            time.sleep(0.1)
        os.utime(package / "code.py", (2**32, 2**32))
        execute(quick)
        assert not older.done()
        (tmp_path / "end").touch()
        older.result()


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.slow
@pytest.mark.ci
def test_the_time_of_notebooks_counts_as_that_of_the_run(tmp_path: Path, write_toy: Callable[..., Path]) -> None:
    notebook = write_toy(tmp_path, "1-eda", body="import time\nwhile time.process_time() < 5: pass")
    before = cpu_seconds()
    with NotebookServer(environment.kernel_environment(tmp_path)) as server:
        notebooks.execute(notebook, target=tmp_path / "out.ipynb", parameters={"run": str(tmp_path)}, server=server, stop=Event())
    assert cpu_seconds() - before > 5


HOLD = """import sys
from pathlib import Path
from threading import Event
from cellsignal.run import environment
from cellsignal.run.chain import notebooks
from cellsignal.run.chain.notebook_server import NotebookServer
notebook, run = map(Path, sys.argv[1:])
with NotebookServer(environment.kernel_environment(run)) as server:
    notebooks.execute(notebook, target=run / "out.ipynb", parameters={"run": str(run)}, server=server, stop=Event())"""
SLEEP = """import os, time
files.write_json(folder / "pids.json", [os.getpid(), os.getppid()])
time.sleep(600)"""


@pytest.mark.slow
@pytest.mark.ci
def test_a_run_folder_is_locked_until_papermill_has_written_its_notebook(tmp_path: Path, write_toy: Callable[..., Path]) -> None:
    """Of a killed chain too; its kernel ends before."""
    notebook, lock = write_toy(tmp_path, "1-eda", body=SLEEP), tmp_path / environment.KERNELS_LOCK
    chain = subprocess.Popen([sys.executable, "-c", HOLD, str(notebook), str(tmp_path)], stderr=subprocess.DEVNULL)
    while not (tmp_path / "pids.json").is_file():
        assert chain.poll() is None
        time.sleep(0.1)
    kernel, papermill = map(psutil.Process, files.read_json(tmp_path / "pids.json"))
    papermill.suspend()
    chain.kill()
    chain.wait()
    kernel.kill()
    while kernel.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.1)
    with pytest.raises(InputError, match="in use"), files.locked(lock, timeout=0.5):
        pass
    papermill.resume()
    with files.locked(lock, timeout=60):
        assert not papermill.is_running()


def test_a_request_of_a_chain_that_was_killed_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server may get it only after it has imported papermill, when the next chain works in the folder."""
    monkeypatch.setattr(notebook_server, "_run_papermill", lambda arguments, job: ((tmp_path / "executed").touch(), os._exit(0)))
    for chain_lives in (True, False):
        chain, job = socket.socketpair()
        if not chain_lives:
            chain.close()
        log = os.open(tmp_path / "log.txt", os.O_CREAT | os.O_WRONLY)
        watcher = notebook_server.ForkedProcess(lambda: (notebook_server._watch([], job.fileno(), log, folder=str(tmp_path)), os._exit(0)))
        assert watcher.wait(timeout=30) == 0
        assert (tmp_path / "executed").exists() == chain_lives, (tmp_path / "log.txt").read_text()
        (tmp_path / "executed").unlink(missing_ok=True)
        job.close()
        chain.close()
        os.close(log)
