"""One notebook as a step: what it names, how it runs, why it failed, and its page."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from threading import Event, Lock
from typing import Any

import yaml

from cellsignal import files
from cellsignal.code_identity import assigned, loaded
from cellsignal.data.simulated import shown, titled
from cellsignal.errors import Faults, InputError, StepFailed
from cellsignal.run.chain import leash
from cellsignal.run.recipe import Recipe, keys_read_by_cells

INPUT_ERRORS = {kind.__name__ for kind in (InputError, Faults)}  # a notebook keeps no more of an error than its name and text
GRACE = 10.0  # seconds for a notebook that shall end; a chain that shall end has 20
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
MISSING = ({"metadata": {}}, {"metadata": {}, "outputs": [], "execution_count": None})  # what some leave out of a cell, and of one of code
NO_START = "Kernel didn't respond"  # papermill, when a kernel is not there after a minute
_one_page_at_a_time = Lock()  # nbconvert's templates are not made for threads


class Stopped(RuntimeError):
    """A step was ended because another one failed or the user wished so."""


def read(path: Path) -> dict[str, Any]:
    """A notebook as it lies there. Raises InputError when it is none that Jupyter 4 or later wrote, or not one of Python."""
    found = files.read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get("nbformat"), int):
        raise InputError("no notebook", where=path, cure="name an .ipynb file")
    if found["nbformat"] != 4 or not isinstance(found.get("cells"), list):
        raise InputError(f"a notebook of format {found['nbformat']}", where=path, cure="save it in format 4: jupyter nbconvert --to notebook --inplace")
    metadata = found.get("metadata") or {}
    language = (metadata.get("kernelspec") or {}).get("language") or (metadata.get("language_info") or {}).get("name") or "python"
    if "python" not in language.lower():
        raise InputError(f"a notebook in {language}", where=path, cure="name one in Python")
    cells = [cell | {key: value for key, value in MISSING[cell.get("cell_type") == "code"].items() if key not in cell} for cell in found["cells"]]
    return {**found, "metadata": metadata, "cells": cells}


def normalise(notebook: Mapping[str, Any], *, where: Path) -> dict[str, Any]:
    """A notebook as papermill, nbconvert and Kaggle can use it, wherever it was saved: of format 4.5, and with the kernel `python3`.

    Cells have ids; the state of widgets is left out where it is not in Jupyter's form, as Colab saves it. Raises InputError,
    which names the file `where`, when it still is no valid notebook.
    """
    try:
        import nbformat  # a quarter of a second, and only who handles notebooks needs it
    except ModuleNotFoundError:
        raise InputError("nbformat is not installed", where=where, cure='install it: python -m pip install "nbformat>=5.9"') from None
    metadata = {**notebook["metadata"], "kernelspec": KERNEL}
    if not all("state" in state for state in metadata.get("widgets", {}).values()):
        del metadata["widgets"]
    whole = {**notebook, "metadata": metadata, "nbformat_minor": max(notebook.get("nbformat_minor", 0), 5), "cells": _with_ids(notebook["cells"])}
    try:
        nbformat.validate(whole)
    except nbformat.ValidationError as error:
        place = ".".join(map(str, error.absolute_path))
        raise InputError(f"not a valid notebook ({error.message[:200]}{', at ' * bool(place)}{place})", where=where, cure="open it in Jupyter and save it again") from None
    return whole


def _with_ids(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Cells with an id each; the same cells get the same ids, which are part of what is pushed."""
    named: list[dict[str, Any]] = []
    taken = {cell.get("id") for cell in cells}
    for number, cell in enumerate(cells):
        name = cell.get("id")
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]{1,64}", name, re.ASCII) or name in (each["id"] for each in named):
            name = next(free for free in (f"cell-{number}{'-' * dashes}" for dashes in count()) if free not in taken)
            taken.add(name)
        named.append({**cell, "id": name})
    return named


def code_cells(path: Path) -> list[dict[str, Any]]:
    """The code cells of a notebook, in order."""
    return [cell for cell in read(path)["cells"] if cell["cell_type"] == "code"]


def source(cell: Mapping[str, Any]) -> str:
    """A cell's text, whichever of the two ways it is stored."""
    return "".join(cell["source"])


def parameter_names(path: Path) -> list[str]:
    """The names that the notebook's `parameters` cell assigns."""
    return list(assigned(source(_parameters_cell(path))))


def parameters_read(path: Path) -> set[str]:
    """The parameters that the notebook reads, those of a group by dotted key, and `run`, which `cellsignal.start` reads in every notebook."""
    cells = [source(cell) for cell in code_cells(path) if not _has_parameters(cell)]
    own = {name for name in parameter_names(path) if name not in Recipe.model_fields}
    return {"run"}.union(keys_read_by_cells(cells), *(own & loaded(cell) for cell in cells))


def _parameters_cell(path: Path) -> dict[str, Any]:
    tagged = [cell for cell in code_cells(path) if _has_parameters(cell)]
    if len(tagged) != 1:
        raise InputError(f"{len(tagged)} cells are tagged `parameters`", where=path, cure="tag exactly one")
    return tagged[0]


def _has_parameters(cell: Mapping[str, Any]) -> bool:
    return "parameters" in cell["metadata"].get("tags", [])


def execute(
    notebook: Path, *, target: Path, parameters: Mapping[str, Any], environment: dict[str, str], stop: Event
) -> None:
    """Run `notebook` with papermill in a process of its own, which ends with ours; `target` appears when it has ended.

    Raises InputError for one raised in a cell, StepFailed for any other failure, Stopped when `stop` was set.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = files.temporary_path(target)
    for old in (partial, target, target.with_suffix(".html")):
        old.unlink(missing_ok=True)  # what is there afterwards is of this run
    normalised = normalise(read(notebook), where=notebook)
    with tempfile.TemporaryDirectory() as folder:
        files.write_json(Path(folder) / notebook.name, normalised)
        command = _command(Path(folder) / notebook.name, partial, parameters)
        try:
            code, last_words = _run_logged(command, environment=environment, stop=stop)
            if NO_START in last_words:  # another process was faster to a port, or all were busy: no cell has run yet
                partial.unlink(missing_ok=True)
                code, last_words = _run_logged(command, environment=environment, stop=stop)
            if partial.exists():
                os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)  # of a step that was stopped
    _check(target if target.exists() else notebook, code=code, last_words=last_words)


def write_page(notebook: Path) -> None:
    """Write an executed notebook as HTML beside it; its title says when the data are simulated, and so does a banner."""
    import nbformat
    from nbconvert import HTMLExporter  # half a second, and only who runs notebooks needs it

    from cellsignal.show.html import banner

    executed = nbformat.reads(json.dumps(normalise(read(notebook), where=notebook)), as_version=4)
    executed.metadata["title"] = titled(notebook.stem)
    for first in [cell for cell in executed.cells if cell.cell_type == "markdown"][:shown()]:
        first.source = f"{banner()}\n\n{first.source}"
    with _one_page_at_a_time:
        page = HTMLExporter().from_notebook_node(executed)[0]
    files.write_text(notebook.with_suffix(".html"), page)


def _command(notebook: Path, target: Path, parameters: Mapping[str, Any]) -> list[str]:
    # YAML and not JSON: JSON's 1e-05 would come back as text, for want of a dot.
    values = yaml.safe_dump(dict(parameters), allow_unicode=True)
    paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (notebook, target)]
    # -P: files where the user stands, such as pandas.py, are no modules of papermill's.
    return [sys.executable, "-P", "-m", "papermill", *paths, "-y", values, "-k", "python3", "--no-progress-bar"]


def _run_logged(command: list[str], *, environment: dict[str, str], stop: Event) -> tuple[int, str]:
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
    if error is not None and error["ename"] in INPUT_ERRORS:
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
    return set(states) <= {"completed"} and not read(path)["metadata"].get("papermill", {}).get("exception")
