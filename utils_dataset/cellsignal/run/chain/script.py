"""Runs the cells of a notebook as a plain script, with the parameters of a recipe and without Jupyter.

    accelerate launch --num_processes 2 -m cellsignal.run.chain.script NOTEBOOK PARAMS.yaml -p cell_type=U2OS

With `accelerate launch` (or torchrun) all its processes train together; without, `fit` starts its own.
"""

import contextlib
import io
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from cellsignal.budget import TimeSpent
from cellsignal.errors import InputError, StepFailed
from cellsignal.learn.training import distributed
from cellsignal.run import environment, recipe
from cellsignal.run.chain import notebooks
from cellsignal.run.record.session import Finished, Session


def notebook_parameters(notebook: Path, params: Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The parameters of a recipe that the notebook has, and those of `overrides` (key=value) that only notebooks have, such as cell_type.

    Raises InputError for a key that is neither the recipe's nor the notebook's.
    """
    names = notebooks.parameter_names(notebook)
    notebook_only = [name for name in names if name not in recipe.Recipe.model_fields]
    parsed = [(text, *recipe.read_override(text)) for text in overrides]
    notebook_values = {key: value for _, key, value in parsed if key in notebook_only}
    values = recipe.load(params, [text for text, key, _ in parsed if key not in notebook_only]).model_dump()
    return {**{name: values[name] for name in names if name in values}, **notebook_values}  # groups with all their keys


def execute(notebook: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Run the code cells in order, `values` after the cell with the tag `parameters`; returns the variables at the end.

    A cell that raises TimeSpent or Finished ends the notebook's session, and is the last.
    """
    cells: list[str] = []
    variables: dict[str, Any] = {"__name__": "__main__", "In": cells}  # as IPython keeps them
    for number, cell in enumerate(notebooks.code_cells(notebook), 1):
        cells.append(notebooks.source(cell))
        try:
            code = compile(notebooks.source(cell), f"{notebook.name}, code cell {number}", "exec")
        except SyntaxError as error:
            raise InputError(f"code cell {number} is not plain Python ({error.msg})", where=notebook, cure="leave out what only IPython knows, such as %time, or run it in Jupyter") from None
        try:
            exec(code, variables)
        except (TimeSpent, Finished) as reason:
            if (session := find_session(variables)) is None:
                raise
            session.end(reason)
            break
        if "parameters" in cell["metadata"].get("tags", []):
            variables.update(values)
    return variables


def find_session(variables: Mapping[str, Any]) -> Session | None:
    """The session that a notebook has started, if any."""
    return next((value for value in variables.values() if isinstance(value, Session)), None)


def main(
    notebook: Annotated[Path, typer.Argument(metavar="NOTEBOOK")],
    params: Annotated[Path, typer.Argument(metavar="PARAMS.yaml")],
    override: Annotated[list[str], typer.Option("-p", metavar="KEY=VALUE", help="Override a parameter.")] = [],
) -> None:
    """Run a notebook's cells as a plain script.

    Exits with 3 when its time budget is spent; under a launcher, for which that would be a failure, with 0.
    """
    notebook, params = (Path(environment.expand_path(path)) for path in (notebook, params))
    values = notebook_parameters(notebook, params, override)
    group = distributed.current_group(values["machine"]["device"])
    silent = group is not None and not group.is_main_process  # only the first process prints
    try:
        with contextlib.redirect_stdout(io.StringIO()) if silent else contextlib.nullcontext():
            session = find_session(execute(notebook, values))
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    if session is not None and session.spent:
        print(f"time budget spent: {session.spent}; give the same command again to continue", file=io.StringIO() if silent else sys.stderr)
        sys.exit(0 if group else 3)


if __name__ == "__main__":
    try:
        typer.run(main)
    except (InputError, StepFailed) as error:
        print(error, file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)
