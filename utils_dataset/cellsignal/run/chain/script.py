"""A notebook as a plain script: its cells one after the other, with the parameters of a recipe, and no Jupyter.

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
from cellsignal.run.record.cells import Finished
from cellsignal.run.record.session import Session


def parameters(notebook: Path, params: Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """What of a recipe the notebook takes, and what it alone knows, such as cell_type; `overrides` are key=value.

    Raises InputError for a key that neither the recipe nor the notebook has.
    """
    names = notebooks.parameter_names(notebook)
    own = [name for name in names if name not in recipe.Recipe.model_fields]
    given = [(text, *recipe.read_override(text)) for text in overrides]
    mine = {key: value for _, key, value in given if key in own}
    rest = [text for text, key, _ in given if key not in own]
    values = recipe.load(params, rest).model_dump()
    return {**{name: values[name] for name in names if name in values}, **mine}  # whole groups, which tell all that they are


def execute(notebook: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Run the code cells in order, `values` after the cell tagged `parameters`; gives the variables at the end.

    A cell that raises TimeSpent ends the notebook's session, and is the last.
    """
    cells: list[str] = []
    variables: dict[str, Any] = {"__name__": "__main__", "In": cells}  # as IPython keeps them
    for number, cell in enumerate(notebooks.code_cells(notebook), 1):
        cells.append(notebooks.source(cell))
        try:
            exec(compile(notebooks.source(cell), f"{notebook.name}, code cell {number}", "exec"), variables)
        except (TimeSpent, Finished) as reason:
            if (session := session_of(variables)) is None:
                raise
            session.end(reason)
            break
        if "parameters" in cell["metadata"].get("tags", []):
            variables.update(values)
    return variables


def session_of(variables: Mapping[str, Any]) -> Session | None:
    """The session that a notebook has begun, if it has."""
    return next((value for value in variables.values() if isinstance(value, Session)), None)


def main(
    notebook: Annotated[Path, typer.Argument(metavar="NOTEBOOK")],
    params: Annotated[Path, typer.Argument(metavar="PARAMS.yaml")],
    override: Annotated[list[str], typer.Option("-p", metavar="KEY=VALUE", help="Override a parameter.")] = [],
) -> None:
    """Run a notebook's cells as a plain script.

    Exits with 3 when its time budget is spent; under a launcher, which takes that for a failure, with 0.
    """
    notebook, params = (Path(environment.expanded(path)) for path in (notebook, params))
    values = parameters(notebook, params, override)
    others = distributed.current_group(values["machine"]["device"])
    silent = others is not None and not others.is_main_process  # one of them speaks for all
    try:
        with contextlib.redirect_stdout(io.StringIO()) if silent else contextlib.nullcontext():
            session = session_of(execute(notebook, values))
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    if session is not None and session.spent:
        print(f"time budget spent: {session.spent}; the same command goes on", file=io.StringIO() if silent else sys.stderr)
        sys.exit(0 if others else 3)


if __name__ == "__main__":
    try:
        typer.run(main)
    except (InputError, StepFailed) as error:
        print(error, file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)
