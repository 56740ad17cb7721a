"""Notebooks: their parameters, how one is executed, why it failed, and its HTML page."""

import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from threading import Event, Lock
from typing import Any

import yaml
from typing_extensions import NotRequired, TypedDict  # pydantic needs this one before Python 3.12

from cellsignal import code_identity, files
from cellsignal.data.simulated import shown, titled
from cellsignal.errors import OF_THE_MACHINE, Faults, InputError, StepFailed
from cellsignal.run.chain.notebook_server import NotebookServer
from cellsignal.run.recipe import Recipe, keys_read_by_cells

INPUT_ERRORS = {kind.__name__ for kind in (InputError, Faults)}  # a notebook keeps only the name and the text of an error
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
CELL_DEFAULTS = ({"metadata": {}}, {"metadata": {}, "outputs": [], "execution_count": None})  # of any cell, and of one of code
SAVE_AGAIN = "open it in Jupyter and save it again"
KERNEL_NOT_STARTED = re.compile("Kernel (didn't respond|died before replying)")  # Jupyter's messages before the first cell
_page_lock = Lock()  # nbconvert's templates are not thread-safe

# What is read of a notebook before nbformat has validated it; any editor may have written it.
Language = TypedDict("Language", {"language": str | None, "name": str | None}, total=False)
Metadata = TypedDict("Metadata", {"kernelspec": Language | None, "language_info": Language | None}, total=False)
CellMetadata = TypedDict("CellMetadata", {"tags": list[str]}, total=False)


class Cell(TypedDict):
    """A cell of a notebook."""

    cell_type: str
    source: str | list[str]
    metadata: NotRequired[CellMetadata | None]


class Content(TypedDict):
    """A notebook of format 4."""

    nbformat_minor: NotRequired[int]
    metadata: NotRequired[Metadata | None]
    cells: list[Cell]


class Stopped(RuntimeError):
    """A step was ended because another one failed or the user interrupted the chain."""


def read(path: Path) -> dict[str, Any]:
    """The content of a notebook file. Raises InputError for one that is not in Jupyter's format 4, or not in Python."""
    content = files.read_json(path, cure="put a notebook there that Jupyter opens")
    if not isinstance(content, dict) or not isinstance(content.get("nbformat"), int):
        raise InputError("no notebook", where=path, cure="name an .ipynb file")
    if content["nbformat"] != 4:
        raise InputError(f"a notebook of format {content['nbformat']}", where=path, cure="save it in format 4: jupyter nbconvert --to notebook --inplace")
    files.validated(content, Content, where=path, fault="not a valid notebook", cure=SAVE_AGAIN)
    metadata = content.get("metadata") or {}
    language = (metadata.get("kernelspec") or {}).get("language") or (metadata.get("language_info") or {}).get("name") or "python"
    if "python" not in language.lower():
        raise InputError(f"a notebook in {language}", where=path, cure="name one in Python")
    cells = [cell | {key: value for key, value in CELL_DEFAULTS[cell["cell_type"] == "code"].items() if cell.get(key) is None} for cell in content["cells"]]
    return {**content, "metadata": metadata, "cells": cells}


def normalise(notebook: Mapping[str, Any], *, where: Path) -> dict[str, Any]:
    """A notebook as papermill, nbconvert and Kaggle need it: in format 4.5, with cell ids and the kernel `python3`.

    The state of widgets is left out where Colab saved it in a form that is not Jupyter's. Raises InputError, which names the
    file `where`, when the result is no valid notebook.
    """
    try:
        import nbformat  # takes a quarter of a second
    except ModuleNotFoundError:
        raise InputError("nbformat is not installed", where=where, cure='install it: python -m pip install "nbformat>=5.9"') from None
    metadata = {**notebook["metadata"], "kernelspec": KERNEL}
    widgets = metadata.get("widgets", {})
    if not isinstance(widgets, dict) or not all(isinstance(state, dict) and "state" in state for state in widgets.values()):
        del metadata["widgets"]
    normalised = {**notebook, "metadata": metadata, "nbformat_minor": max(notebook.get("nbformat_minor", 0), 5), "cells": _with_ids(notebook["cells"])}
    try:
        nbformat.validate(normalised)
    except nbformat.ValidationError as error:
        location = ".".join(map(str, error.absolute_path))
        raise InputError(f"not a valid notebook ({error.message[:200]}{', at ' * bool(location)}{location})", where=where, cure=SAVE_AGAIN) from None
    return normalised


def _with_ids(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Cells with an id each; the same cells get the same ids, so that a pushed notebook does not change."""
    cells_with_ids: list[dict[str, Any]] = []
    used_ids = {cell["id"] for cell in cells if isinstance(cell.get("id"), str)}
    for number, cell in enumerate(cells):
        name = cell.get("id")
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]{1,64}", name, re.ASCII) or name in (other["id"] for other in cells_with_ids):
            name = next(free for free in (f"cell-{number}{'-' * dashes}" for dashes in count()) if free not in used_ids)
            used_ids.add(name)
        cells_with_ids.append({**cell, "id": name})
    return cells_with_ids


def code_cells(path: Path) -> list[dict[str, Any]]:
    """The code cells of a notebook, in order."""
    return [cell for cell in read(path)["cells"] if cell["cell_type"] == "code"]


def source(cell: Mapping[str, Any]) -> str:
    """A cell's text, which is stored as one text or as a list of lines."""
    return "".join(cell["source"])


def parameter_names(path: Path) -> list[str]:
    """The names that the notebook's cell with the tag `parameters` assigns."""
    return list(code_identity.assigned_names(source(_parameters_cell(path))))


def parameters_read(path: Path) -> set[str]:
    """The parameters that the notebook reads, those of a group by dotted key, and `run`, which `cellsignal.start` reads in every notebook."""
    cells = [source(cell) for cell in code_cells(path) if not _is_parameters_cell(cell)]
    notebook_only = {name for name in parameter_names(path) if name not in Recipe.model_fields}
    return {"run"}.union(keys_read_by_cells(cells), *(notebook_only & code_identity.read_names(tree) for tree in code_identity.cell_trees(cells)))


def _parameters_cell(path: Path) -> dict[str, Any]:
    parameters_cells = [cell for cell in code_cells(path) if _is_parameters_cell(cell)]
    if len(parameters_cells) != 1:
        raise InputError(f"{len(parameters_cells)} cells are tagged `parameters`", where=path, cure="tag exactly one")
    return parameters_cells[0]


def _is_parameters_cell(cell: Mapping[str, Any]) -> bool:
    return "parameters" in cell["metadata"].get("tags", [])


def execute(
    notebook: Path, *, target: Path, parameters: Mapping[str, Any], server: NotebookServer, stop: Event
) -> None:
    """Run `notebook` with papermill in processes that end with this one; `target` is written when it has ended.

    Raises InputError for one raised in a cell, OSError for one that the machine is the reason of, such as a full disk, StepFailed
    for any other failure, Stopped when `stop` was set.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = files.temporary_path(target)
    for old in (partial, target, target.with_suffix(".html")):
        old.unlink(missing_ok=True)  # so that what is there afterwards is from this run
    content = read(notebook)
    cells = [cell | {"outputs": []} if cell["cell_type"] == "code" else cell for cell in content["cells"]]  # of an earlier execution, valid or not
    normalised = normalise({**content, "cells": cells}, where=notebook)
    with tempfile.TemporaryDirectory() as folder:
        files.write_json(Path(folder) / notebook.name, normalised)
        arguments = _papermill_arguments(Path(folder) / notebook.name, partial, parameters)
        modules = _modules(notebook)
        try:
            code, last_line = _run_logged(server, arguments, modules, folder=parameters["run"], stop=stop)
            if KERNEL_NOT_STARTED.search(last_line):  # another process took one of its ports, or the machine was busy; no cell has run
                partial.unlink(missing_ok=True)
                code, last_line = _run_logged(server, arguments, modules, folder=parameters["run"], stop=stop)
            if partial.exists():
                os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)  # of a step that was stopped
    _raise_error(target if target.exists() else notebook, code=code, last_line=last_line)


def write_page(notebook: Path) -> None:
    """Write an executed notebook as HTML beside it; where the data are simulated, its title and a banner say so."""
    import nbformat
    from nbconvert import HTMLExporter  # takes half a second

    from cellsignal.show.html import banner

    executed = nbformat.reads(json.dumps(normalise(read(notebook), where=notebook)), as_version=4)
    executed.metadata["title"] = titled(notebook.stem)
    first_text = next((cell for cell in executed.cells if cell.cell_type == "markdown"), None)
    if shown() and first_text is not None:
        first_text.source = f"{banner()}\n\n{first_text.source}"
    with _page_lock:
        page = HTMLExporter().from_notebook_node(executed)[0]
    files.write_text(notebook.with_suffix(".html"), page)


def _papermill_arguments(notebook: Path, target: Path, parameters: Mapping[str, Any]) -> list[str]:
    # YAML and not JSON: papermill would read JSON's 1e-05 as text, because it has no dot.
    values = yaml.safe_dump(dict(parameters), allow_unicode=True)
    paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (notebook, target)]
    return [*paths, "-y", values, "-k", "python3", "--no-progress-bar"]


def _modules(notebook: Path) -> set[str]:
    """The modules of this package that a notebook imports."""
    names = set().union(*map(code_identity.imported_names, code_identity.cell_trees(map(source, code_cells(notebook)))))
    return {name for name in names if name.startswith(f"{code_identity.PACKAGE.name}.")}


def _run_logged(server: NotebookServer, arguments: list[str], modules: set[str], *, folder: str, stop: Event) -> tuple[int, str]:
    """Exit code and last line of a papermill process."""
    with tempfile.TemporaryFile() as log:
        code = server.run(arguments, modules, folder=folder, log=log, stop=stop)
        if code is None:
            raise Stopped
        log.seek(0)
        return code, _last_line(log.read().decode(errors="replace"))


def _raise_error(path: Path, *, code: int, last_line: str) -> None:
    """Raise the error of a papermill run that left the notebook `path` and ended with the exit code `code`; none if it succeeded."""
    errors = (output for cell in code_cells(path) for output in cell["outputs"] if output["output_type"] == "error")
    error = next(errors, None)
    if error is not None and error["ename"] in INPUT_ERRORS:
        raise InputError(error["evalue"])
    if error is not None and (fault := re.fullmatch(r"\[Errno (\d+)\] (.*?)(?:: '(.*)')?", error["evalue"])) and int(fault[1]) in OF_THE_MACHINE:
        raise OSError(int(fault[1]), fault[2], fault[3])
    if error is not None:
        raise StepFailed(f"{error['ename']}: {_last_line(error['evalue'])}; see {path}")
    if code == 138:
        raise StepFailed(f"its kernel died, perhaps because memory ran out; see {path}")
    if code != 0:
        raise StepFailed(f"papermill ended with {code}: {last_line}; see {path}")
    states = {cell["metadata"].get("papermill", {}).get("status") for cell in code_cells(path)}
    if not states <= {"completed"} or read(path)["metadata"].get("papermill", {}).get("exception"):  # papermill exits with 0 after `sys.exit(0)` in a cell
        raise StepFailed(f"it stopped before its last cell; see {path}")


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.split("\n")) if line.strip()), "")
