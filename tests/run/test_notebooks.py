"""One notebook as a step: every way to end that is not success is told apart."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event, Timer

import pytest

from cellsignal import files
from cellsignal.errors import InputError
from cellsignal.run import notebooks, paths
from cellsignal.run.notebooks import StepFailed

FAILURES = {
    "from cellsignal.errors import InputError\nraise InputError('bad row', where='a.csv:3', cure='mend it')": (
        InputError,
        "^a.csv:3: bad row; mend it$",
    ),
    "1 / 0": (StepFailed, "ZeroDivisionError: division by zero; see .*1-eda.ipynb"),
    "import os\nos._exit(0)": (StepFailed, "kernel died.*see .*1-eda.ipynb"),
    "import sys\nsys.exit(0)": (StepFailed, "SystemExit|stopped before its last cell"),
}


def run(notebook: Path, folder: Path, *, stop: Event | None = None, **parameters: object) -> Path:
    target = folder / "notebooks/1-eda.ipynb"
    given = {"run": str(folder), **parameters}
    environment = paths.kernel_environment(folder)
    notebooks.execute(notebook, target=target, parameters=given, environment=environment, stop=stop or Event())
    notebooks.write_page(target)
    return target


def test_success_leaves_the_notebook_and_its_page(tmp_path: Path, write_toy: Callable[..., Path]) -> None:
    body = "import sys\nprint(sys.executable, run)"
    target = run(write_toy(tmp_path, "1-eda", body=body), tmp_path / "a {brace} é")
    shown = str(files.read_json(target)["cells"])
    assert paths.sys.executable in shown and "a {brace} é" in shown
    assert "<html" in target.with_suffix(".html").read_text()
    assert sorted(path.name for path in target.parent.iterdir()) == ["1-eda.html", "1-eda.ipynb"]


@pytest.mark.parametrize("body", FAILURES, ids=["input", "error", "death", "exit"])
def test_failure(tmp_path: Path, write_toy: Callable[..., Path], body: str) -> None:
    kind, text = FAILURES[body]
    with pytest.raises(kind, match=text):
        run(write_toy(tmp_path, "1-eda", body=body), tmp_path)
    assert (tmp_path / "notebooks/1-eda.ipynb").is_file()
    assert not (tmp_path / "notebooks/1-eda.html").exists()


def test_a_running_notebook_can_be_stopped(tmp_path: Path, write_toy: Callable[..., Path]) -> None:
    stop = Event()
    Timer(2, stop.set).start()
    with pytest.raises(notebooks.Stopped):
        run(write_toy(tmp_path, "1-eda", body="import time\ntime.sleep(60)"), tmp_path, stop=stop)
    with files.locked(tmp_path / paths.KERNELS_LOCK, patience=10):
        pass  # its kernel has gone too
    assert not list((tmp_path / "notebooks").iterdir())


def test_small_numbers_stay_numbers(tmp_path: Path, write_toy: Callable[..., Path]) -> None:
    run(write_toy(tmp_path, "1-eda", body="assert isinstance(rate, float), rate"), tmp_path, rate=1e-5)


def test_parameter_names(tmp_path: Path, write_toy: Callable[..., Path]) -> None:
    path = write_toy(tmp_path, "2-pretrain-controls")
    assert notebooks.parameter_names(path) == ["run", "seed", "cell_type", "pretrain_epochs"]
    path.write_text(path.read_text().replace('"parameters"', '"other"'))
    with pytest.raises(InputError, match="0 cells are tagged"):
        notebooks.parameter_names(path)


@pytest.mark.parametrize("failures, tries", [(1, 2), (9, 2)])
def test_a_kernel_that_does_not_start_is_started_once_more(
    tmp_path: Path, write_toy: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, failures: int, tries: int
) -> None:
    ways, tried = notebooks._said, []

    def papermill(command: list[str], **options: object) -> tuple[int, str]:
        notebook, target = map(Path, command[command.index("papermill") + 1 :][:2])
        tried.append(target)
        if len(tried) > failures:
            return ways(command, **options)
        target.write_text(notebook.read_text())
        return 1, "RuntimeError: Kernel didn't respond in 60 seconds"

    monkeypatch.setattr(notebooks, "_said", papermill)
    if failures == 1:
        assert run(write_toy(tmp_path, "1-eda"), tmp_path).is_file()
    else:
        with pytest.raises(StepFailed, match="Kernel didn't respond in 60 seconds; see "):
            run(write_toy(tmp_path, "1-eda"), tmp_path)
    assert len(tried) == tries


@pytest.fixture
def shadows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder holds files with names of modules, and a module of the user's."""
    folder = tmp_path / "here"
    folder.mkdir()
    for name in ("random", "copy", "socket", "yaml", "pandas", "papermill", "psutil"):
        (folder / f"{name}.py").write_text(f"raise SystemExit('the wrong {name}')")
    (folder / "ours.py").write_text("answer = 42")
    monkeypatch.chdir(folder)


def test_files_in_the_current_folder_take_no_modules_place(
    tmp_path: Path, write_toy: Callable[..., Path], shadows: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", ":.")  # whose empty part is the current folder too
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # as the command sets it for its own processes
    body = """import os, random, yaml, ours
assert ours.answer == 42 and "here" not in random.__file__ + yaml.__file__
print(os.environ["PYTHONPATH"], os.environ.get("PYTHONSAFEPATH"))"""
    target = run(write_toy(tmp_path, "1-eda", body=body), tmp_path / "run")
    assert f"{paths.PACKAGE.parent} None\\n" in str(files.read_json(target)["cells"])


def test_nor_in_processes_that_the_command_starts(shadows: None) -> None:
    code = """import multiprocessing
from cellsignal import cli
cli.app = lambda **options: print(multiprocessing.get_context("spawn").Pool(1).map(abs, [-7]))
cli.main()"""
    ended = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120)
    assert ended.stdout == "[7]\n", ended.stderr
