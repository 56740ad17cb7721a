"""One notebook as a step: what it names, how it runs, why it failed, and its page."""

import ast
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from threading import Event, Lock
from typing import Any

import yaml

from cellsignal import files
from cellsignal.errors import InputError, StepFailed
from cellsignal.run import leash, sources

GRACE = 10.0  # seconds for a notebook that shall end; a chain that shall end has 20
NO_START = "Kernel didn't respond"  # papermill, when a kernel is not there after a minute
_one_page_at_a_time = Lock()  # nbconvert's templates are not made for threads


class Unfinished(RuntimeError):
    """The time budget is spent before the work is done; the same call goes on where it stopped."""


class Stopped(RuntimeError):
    """A step was ended because another one failed or the user wished so."""


def code_cells(path: Path) -> list[dict[str, Any]]:
    """The code cells of a notebook, in order."""
    return [cell for cell in files.read_json(path)["cells"] if cell["cell_type"] == "code"]


def source(cell: Mapping[str, Any]) -> str:
    """A cell's text, whichever of the two ways it is stored."""
    return "".join(cell["source"])


def parameter_names(path: Path) -> list[str]:
    """The names that the notebook's `parameters` cell assigns."""
    tagged = [cell for cell in code_cells(path) if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise InputError(f"{len(tagged)} cells are tagged `parameters`", where=path, cure="tag exactly one")
    return [target.id for node in sources.parsed(source(tagged[0])).body if isinstance(node, ast.Assign) for target in node.targets]


def execute(
    notebook: Path, *, target: Path, parameters: Mapping[str, Any], environment: dict[str, str], stop: Event
) -> None:
    """Run `notebook` with papermill in a process of its own, which ends with ours; `target` appears when it has ended.

    Raises InputError for one raised in a cell, StepFailed for any other failure, Stopped when `stop` was set.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = files.partial(target)
    for old in (partial, target, target.with_suffix(".html")):
        old.unlink(missing_ok=True)  # what is there afterwards is of this run
    command = _command(notebook, partial, parameters)
    try:
        code, last_words = _said(command, environment=environment, stop=stop)
        if NO_START in last_words:  # another process was faster to a port, or all were busy: no cell has run yet
            partial.unlink(missing_ok=True)
            code, last_words = _said(command, environment=environment, stop=stop)
        if partial.exists():
            os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)  # of a step that was stopped
    _check(target if target.exists() else notebook, code=code, last_words=last_words)


def write_page(notebook: Path) -> None:
    """Write an executed notebook as HTML beside it."""
    from nbconvert import HTMLExporter  # half a second, and only who runs notebooks needs it

    with _one_page_at_a_time:
        page = HTMLExporter().from_filename(str(notebook))[0]
    files.write_text(notebook.with_suffix(".html"), page)


def _command(notebook: Path, target: Path, parameters: Mapping[str, Any]) -> list[str]:
    # YAML and not JSON: JSON's 1e-05 would come back as text, for want of a dot.
    values = yaml.safe_dump(dict(parameters), allow_unicode=True)
    paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (notebook, target)]
    # -P: files where the user stands, such as pandas.py, are no modules of papermill's.
    return [sys.executable, "-P", "-m", "papermill", *paths, "-y", values, "-k", "python3", "--no-progress-bar"]


def _said(command: list[str], *, environment: dict[str, str], stop: Event) -> tuple[int, str]:
    """Exit code and last line of a papermill process."""
    with tempfile.TemporaryFile() as log:
        # Nobody writes into this pipe: when it ends, because we close it or die, so does the notebook.
        process = subprocess.Popen(
            leash.command(command, grace=GRACE), env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        )
        with process.stdin:
            while process.poll() is None and not stop.wait(0.05):
                pass
        process.wait()
        if stop.is_set():
            raise Stopped
        log.seek(0)
        lines = log.read().decode(errors="replace").split("\n")
    return process.returncode, next((line for line in reversed(lines) if line.strip()), "")


def _check(path: Path, *, code: int, last_words: str) -> None:
    """Raise what a papermill run of exit code `code` that left `path` deserves."""
    error = next((error for cell in code_cells(path) for error in _errors(cell)), None)
    if error is not None and error["ename"] == "InputError":
        raise InputError(error["evalue"])
    if error is not None:
        raise StepFailed(f"{error['ename']}: {_last_line(error['evalue'])}; see {path}")
    if code == 138:
        raise StepFailed(f"its kernel died, perhaps for want of memory; see {path}")
    if code != 0:
        raise StepFailed(f"papermill ended with {code}: {last_words}; see {path}")
    if not _finished(path):
        raise StepFailed(f"it stopped before its last cell; see {path}")


def _errors(cell: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [output for output in cell["outputs"] if output["output_type"] == "error"]


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.split("\n")) if line.strip()), "")


def _finished(path: Path) -> bool:
    """Whether every cell ran: papermill also ends well after `sys.exit(0)` in the middle."""
    states = [cell["metadata"].get("papermill", {}).get("status") for cell in code_cells(path)]
    return set(states) <= {"completed"} and not files.read_json(path)["metadata"].get("papermill", {}).get("exception")
