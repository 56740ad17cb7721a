"""One notebook as a step: every way to end that is not success is told apart."""

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event, Timer
from typing import Any

import nbformat
import pytest

from cellsignal import files
from cellsignal.data import simulated
from cellsignal.errors import InputError
from cellsignal.kaggle import kernel_folders
from cellsignal.run import environment as paths
from cellsignal.run.chain import notebooks
from cellsignal.run.chain.notebook_server import NotebookServer
from cellsignal.run.chain.notebooks import StepFailed
from cellsignal.run.recipe import Recipe

FAILURES = {
    "from cellsignal.errors import InputError\nraise InputError('bad row', where='a.csv:3', cure='mend it')": (
        InputError,
        "^a.csv:3: bad row; mend it$",
    ),
    "from cellsignal.data.images.reader import read_site\nread_site('plates', 'B02_s1')": (
        InputError,
        "^plates/B02_s1_w1.png: no such file; add the image, or leave out the site$",
    ),
    "1 / 0": (StepFailed, "ZeroDivisionError: division by zero; see .*1-eda.ipynb"),
    "raise OSError(28, 'No space left on device', '/x/y')": (OSError, r"^\[Errno 28\] No space left on device: '/x/y'$"),  # the chain says what helps
    "open('/nowhere/x')": (StepFailed, "FileNotFoundError: .*/nowhere/x'; see .*1-eda.ipynb"),
    "import os\nos._exit(0)": (StepFailed, "kernel died.*see .*1-eda.ipynb"),
    "import sys\nsys.exit(0)": (StepFailed, "SystemExit|stopped before its last cell"),
}


def run(notebook: Path, folder: Path, *, stop: Event | None = None, **parameters: object) -> Path:
    target = folder / "notebooks/1-eda.ipynb"
    given = {"run": str(folder), **parameters}
    environment = paths.kernel_environment(folder)
    with NotebookServer(environment) as server:
        notebooks.execute(notebook, target=target, parameters=given, server=server, stop=stop or Event())
    notebooks.write_page(target)
    return target


def test_success_leaves_the_notebook_and_its_page(tmp_path: Path, write_toy: Callable[..., Path]) -> None:
    body = "import sys\nprint(sys.executable, run)"
    target = run(write_toy(tmp_path, "1-eda", body=body), tmp_path / "a {brace} é")
    shown = str(files.read_json(target)["cells"])
    assert paths.sys.executable in shown and "a {brace} é" in shown
    assert "<html" in target.with_suffix(".html").read_text()
    assert sorted(path.name for path in target.parent.iterdir()) == ["1-eda.html", "1-eda.ipynb"]


@pytest.mark.parametrize("drawn", [True, False])
def test_the_page_of_simulated_data_says_so(tmp_path: Path, drawn: bool) -> None:
    cells = [nbformat.v4.new_markdown_cell("# Look"), nbformat.v4.new_markdown_cell("more"), nbformat.v4.new_code_cell("1")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "1-eda.ipynb")
    before = (tmp_path / "1-eda.ipynb").read_bytes()
    with simulated.showing(drawn):
        notebooks.write_page(tmp_path / "1-eda.ipynb")
    text = (tmp_path / "1-eda.html").read_text()
    assert f"<title>1-eda{' (simulated data)' * drawn}</title>" in text
    assert (text.count("<b>Simulated data.</b>"), text.count('role="note"')) == (drawn, drawn)
    assert (tmp_path / "1-eda.ipynb").read_bytes() == before


@pytest.mark.parametrize("body", FAILURES, ids=["input", "image", "error", "full disk", "no file", "death", "exit"])
def test_failure(tmp_path: Path, write_toy: Callable[..., Path], body: str) -> None:
    kind, text = FAILURES[body]
    with pytest.raises(kind, match=text):
        run(write_toy(tmp_path, "1-eda", body=body), tmp_path)
    assert (tmp_path / "notebooks/1-eda.ipynb").is_file()
    assert not (tmp_path / "notebooks/1-eda.html").exists()


def test_every_kind_of_bad_input_is_known_by_its_name() -> None:
    """A notebook keeps only the name of an error's class, so whoever adds one adds it there."""
    rooms = ("data", "learn", "decide", "show", "bench", "run")  # what notebooks import
    files = [*paths.PACKAGE.glob("*.py"), *(path for room in rooms for path in (paths.PACKAGE / room).rglob("*.py"))]
    trees = [ast.parse(path.read_text()) for path in files]
    kinds = {node.name: {ast.unparse(base) for base in node.bases} for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    assert {name for name, bases in kinds.items() if bases & notebooks.INPUT_ERRORS} == notebooks.INPUT_ERRORS - {"InputError"}


@pytest.mark.slow
@pytest.mark.ci
def test_a_running_notebook_can_be_stopped(tmp_path: Path, write_toy: Callable[..., Path]) -> None:
    stop = Event()
    Timer(2, stop.set).start()
    with pytest.raises(notebooks.Stopped):
        run(write_toy(tmp_path, "1-eda", body="import time\ntime.sleep(60)"), tmp_path, stop=stop)
    with files.locked(tmp_path / paths.KERNELS_LOCK, timeout=10):
        pass  # its kernel has gone too
    assert not list((tmp_path / "notebooks").iterdir())


def test_small_numbers_stay_numbers(tmp_path: Path, write_toy: Callable[..., Path]) -> None:
    run(write_toy(tmp_path, "1-eda", body="assert isinstance(training['learning_rate'], float), training"), tmp_path, training={"learning_rate": 1e-5})


def test_parameter_names(tmp_path: Path, write_toy: Callable[..., Path]) -> None:
    path = write_toy(tmp_path, "2-pretrain-controls")
    assert notebooks.parameter_names(path) == [*Recipe.model_fields, "cell_type"]
    path.write_text(path.read_text().replace('"parameters"', '"other"'))
    with pytest.raises(InputError, match="0 cells are tagged"):
        notebooks.parameter_names(path)


@pytest.mark.parametrize("failures, tries", [(1, 2), (9, 2)])
def test_a_kernel_that_does_not_start_is_started_once_more(
    tmp_path: Path, write_toy: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, failures: int, tries: int
) -> None:
    ways, tried = notebooks._run_logged, []

    def papermill(server: NotebookServer, arguments: list[str], modules: set[str], **options: Event) -> tuple[int, str]:
        notebook, target = map(Path, arguments[:2])
        tried.append(target)
        if len(tried) > failures:
            return ways(server, arguments, modules, **options)
        target.write_text(notebook.read_text())
        return 1, "RuntimeError: Kernel didn't respond in 60 seconds"

    monkeypatch.setattr(notebooks, "_run_logged", papermill)
    if failures == 1:
        assert run(write_toy(tmp_path, "1-eda"), tmp_path).is_file()
    else:
        with pytest.raises(StepFailed, match="Kernel didn't respond in 60 seconds; see "):
            run(write_toy(tmp_path, "1-eda"), tmp_path)
    assert len(tried) == tries


@pytest.mark.parametrize("failures", [1, 9])
def test_a_kernel_that_dies_before_the_first_cell_is_started_once_more(
    tmp_path: Path, write_toy: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    """As one does whose port another process takes between the moment Jupyter chose it and the moment the kernel binds it."""
    profile = tmp_path / "ipython/profile_default"
    profile.mkdir(parents=True)
    starts = tmp_path / "starts"
    die = f"with open({str(starts)!r}, 'a+') as file:\n    file.write('x')\n    number = file.tell()\nif number <= {failures}:\n    os._exit(1)"
    (profile / "ipython_kernel_config.py").write_text(f"import os\n{die}\n")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    if failures == 1:
        assert run(write_toy(tmp_path, "1-eda"), tmp_path).is_file()
    else:
        with pytest.raises(StepFailed, match="Kernel died before replying to kernel_info; see "):
            run(write_toy(tmp_path, "1-eda"), tmp_path)
    assert starts.read_text() == "xx"


@pytest.fixture
def shadows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder holds files with names of modules, and a module of the user's."""
    folder = tmp_path / "here"
    folder.mkdir()
    for name in ("random", "copy", "socket", "yaml", "pandas", "papermill", "psutil", "cellsignal", "types", "sitecustomize"):
        (folder / f"{name}.py").write_text(f"raise SystemExit('the wrong {name}')")
    (folder / "torch").mkdir()
    (folder / "torch/__init__.py").write_text("raise SystemExit('the wrong torch')")
    (folder / "ours.py").write_text("answer = 42")
    monkeypatch.chdir(folder)


def test_files_in_the_current_folder_take_no_modules_place(
    tmp_path: Path, write_toy: Callable[..., Path], shadows: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f":.:{Path.cwd()}")  # three times the current folder
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # as the command sets it for its own processes
    # pandas and torch are not loaded before the notebook runs, as nothing is where there is a GPU
    body = """import os, random, yaml, pandas, torch, ours
assert ours.answer == 42 and "here" not in random.__file__ + yaml.__file__
print(os.environ["PYTHONPATH"], os.environ.get("PYTHONSAFEPATH"))"""
    target = run(write_toy(tmp_path, "1-eda", body=body), tmp_path / "run")
    assert f"{paths.PACKAGE.parent} None\\n" in str(files.read_json(target)["cells"])


def test_nor_in_processes_that_the_command_starts(shadows: None) -> None:
    code = """import multiprocessing
from cellsignal.cli import main as cli
cli.app = lambda **options: print(multiprocessing.get_context("spawn").Pool(1).map(abs, [-7]))
cli.main()"""
    ended = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120)
    assert ended.stdout == "[7]\n", ended.stderr


COLAB = {"application/vnd.jupyter.widget-state+json": {"0a1b": {"model_module": "@jupyter-widgets/base", "model_name": "LayoutModel", "state": {}}}}


def as_colab(notebook: dict[str, Any]) -> None:
    """As Colab saves it: format 4.0, ids in the metadata, widgets without Jupyter's `state`."""
    notebook |= {"nbformat_minor": 0, "metadata": {"colab": {"provenance": []}, "accelerator": "GPU", "widgets": COLAB,
                                                   "kernelspec": {"name": "python3", "display_name": "Python 3"}}}  # fmt: skip
    for cell in notebook["cells"]:
        cell["metadata"]["id"] = cell.pop("id")


def of_conda(notebook: dict[str, Any]) -> None:
    notebook["metadata"] = {"kernelspec": {"display_name": "Python [conda env:cells]", "language": "python", "name": "conda-env-cells-py"}}


def of_no_kernel(notebook: dict[str, Any]) -> None:
    notebook["metadata"] = {}


def with_one_id_twice(notebook: dict[str, Any]) -> None:
    for cell in notebook["cells"]:
        cell["id"] = "twice"


def with_a_cell_that_lacks_all_but_its_text(notebook: dict[str, Any]) -> None:
    notebook["cells"][-1] = {"cell_type": "code", "source": notebook["cells"][-1]["source"]}


def with_keys_without_a_value(notebook: dict[str, Any]) -> None:
    notebook["metadata"] = {"kernelspec": None, "widgets": None}
    for cell in notebook["cells"]:
        cell["id"] = ["x"]
    notebook["cells"][-1] |= {"metadata": None, "outputs": None}


def with_all_faults(notebook: dict[str, Any]) -> None:
    for fault in (with_one_id_twice, of_conda, with_a_cell_that_lacks_all_but_its_text):
        fault(notebook)


def with_outputs_that_are_not_valid(notebook: dict[str, Any]) -> None:
    """As some editors keep the messages of a kernel, and as formats before 4 wrote outputs."""
    notebook["cells"][-1]["outputs"] = [{"output_type": "display_data", "data": {}, "metadata": {}, "transient": {"display_id": "0a"}}, {"output_type": "pyout"}]


ELSEWHERE = [as_colab, of_conda, of_no_kernel, with_one_id_twice, with_a_cell_that_lacks_all_but_its_text, with_keys_without_a_value,
             with_outputs_that_are_not_valid, with_all_faults]


def saved_elsewhere(path: Path, saved: Callable[[dict[str, Any]], None]) -> Path:
    written = files.read_json(path)
    saved(written)
    files.write_json(path, written)
    return path


def check_notebook(notebook: dict[str, Any]) -> None:
    nbformat.validate(notebook)
    assert notebook["metadata"]["kernelspec"] == {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert notebook["nbformat_minor"] == 5 and len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])


@pytest.mark.parametrize("saved", ELSEWHERE)
def test_a_notebook_saved_elsewhere_is_pushed(tmp_path: Path, write_toy: Callable[..., Path], saved: Callable) -> None:
    path = saved_elsewhere(write_toy(tmp_path, "1-eda"), saved)
    pushed = json.loads(kernel_folders.notebook_text(path, {"run": "runs/one"}))
    check_notebook(pushed)
    assert "widgets" not in pushed["metadata"]
    assert kernel_folders.notebook_text(path, {"run": "runs/one"}) == json.dumps(pushed, indent=1, ensure_ascii=False) + "\n"  # ids are not drawn


@pytest.mark.parametrize("saved", [as_colab, with_all_faults, with_outputs_that_are_not_valid])
def test_a_notebook_saved_elsewhere_is_executed_and_has_its_page(tmp_path: Path, write_toy: Callable[..., Path], saved: Callable) -> None:
    check_notebook(files.read_json(run(saved_elsewhere(write_toy(tmp_path, "1-eda"), saved), tmp_path / "run")))


def test_the_page_of_a_notebook_that_was_executed_elsewhere(tmp_path: Path, write_toy: Callable[..., Path]) -> None:
    target = saved_elsewhere(write_toy(tmp_path, "1-eda"), as_colab)
    written = files.read_json(target)
    notebooks.write_page(target)
    assert "<title>1-eda</title>" in target.with_suffix(".html").read_text()
    kept = {"application/vnd.jupyter.widget-state+json": {"state": {}, "version_major": 2, "version_minor": 0}}
    assert notebooks.normalise(written | {"metadata": {"widgets": kept}}, where=target)["metadata"]["widgets"] == kept


@pytest.mark.parametrize(
    "notebook, fault",
    [({"nbformat": 3, "worksheets": []}, "a notebook of format 3; save it in format 4: jupyter nbconvert --to notebook --inplace"),
     ([], "no notebook; name an .ipynb file"),
     ({"nbformat": 4, "nbformat_minor": 5, "cells": [], "metadata": {"kernelspec": {"name": "ir", "language": "R"}}}, "a notebook in R; name one in Python"),
     ({"nbformat": 4, "nbformat_minor": 5, "cells": [{"cell_type": "code", "source": 3}], "metadata": {}},
      "not a valid notebook (cells.0.source.str: input should be a valid string); open it in Jupyter and save it again"),
     ({"nbformat": 4, "nbformat_minor": 5, "cells": [{"cell_type": "code", "source": "", "prompt_number": 1}], "metadata": {}},
      "not a valid notebook (Additional properties are not allowed ('prompt_number' was unexpected), at cells.0); open it in Jupyter and save it again"),
     ({"nbformat": 4, "nbformat_minor": None, "cells": []},
      "not a valid notebook (nbformat_minor: input should be a valid integer); open it in Jupyter and save it again"),
     ({"nbformat": 4, "metadata": [], "cells": []}, "not a valid notebook (metadata: input should be a valid dictionary); open it in Jupyter and save it again"),
     ({"nbformat": 4, "cells": [None]}, "not a valid notebook (cells.0: input should be a valid dictionary); open it in Jupyter and save it again"),
     ({"nbformat": 4, "cells": [{"cell_type": "code"}]}, "not a valid notebook (cells.0.source: field required); open it in Jupyter and save it again")],
)  # fmt: skip
def test_what_is_no_notebook_of_python_is_refused(tmp_path: Path, notebook: Any, fault: str) -> None:
    path = tmp_path / "x.ipynb"
    files.write_json(path, notebook)
    with pytest.raises(InputError) as caught:
        run(path, tmp_path / "run")
    assert str(caught.value) == f"{path}: {fault}" and not list((tmp_path / "run").rglob("*.ipynb"))


def test_a_byte_order_mark_before_a_notebook_is_nothing(tmp_path: Path, write_toy: Callable[..., Path]) -> None:
    path = write_toy(tmp_path, "1-eda")
    plain, text = notebooks.read(path), path.read_bytes()
    path.write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))
    assert notebooks.read(path) == plain
    path.write_bytes(text[:-9])
    with pytest.raises(InputError, match="not readable as JSON .*; put a notebook there that Jupyter opens$"):
        notebooks.read(path)
