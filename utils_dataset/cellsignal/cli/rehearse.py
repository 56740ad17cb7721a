"""The command `cellsignal rehearse`: a few real steps of each phase of a recipe on this machine, and what a run would need."""

from pathlib import Path
from typing import Annotated

import typer

# Everything else is imported inside the command: `--help` must not wait for PyTorch.


def rehearse(
    params: Annotated[Path, typer.Argument(metavar="PARAMS", help="YAML file of the recipe.")],
    parameter: Annotated[list[str] | None, typer.Option("-p", metavar="KEY=VALUE", help="Override; repeatable.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON to write.")] = None,
) -> None:
    """Take a few real steps of each phase of a recipe on this machine, with its own batches, image sizes and precision.

    Prints one row a phase: images per second, peak memory, and whether the loader keeps up; then the forecast of memory,
    hours and sessions with these rates. The sites are those of the recipe's data, or drawn where there are none. Exits with 2
    and names the setting where something does not fit.
    """
    from cellsignal.files import is_json_with, output_file
    from cellsignal.run import recipe, rehearse

    target = output_file(out, kind="rehearsal", is_of_kind=lambda path: is_json_with(path, "recipe", "rows", "sessions", "text")) if out else None
    checked = recipe.load(params, parameter or ())
    rehearsal = rehearse.rehearse(checked)
    print(rehearsal)
    if target:
        rehearsal.write(target, recipe=checked)
        print(f"wrote {out}")
