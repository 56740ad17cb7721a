"""The commands `cellsignal run` and `cellsignal bundle`: a run, the same made again, and its archive."""

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cellsignal.errors import InputError

# Everything else is imported inside the commands: `--help` must not wait for pandas.

Out = Annotated[str | None, typer.Option(metavar="DIR", help="Run folder, instead of runs/<name of PARAMS>.")]


class Way(StrEnum):
    """From where a run is made again."""

    scratch = "scratch"
    weights = "weights"
    scores = "scores"


def run(
    params: Annotated[Path, typer.Argument(metavar="PARAMS", help="YAML file, one parameter a line.")],
    parameter: Annotated[list[str] | None, typer.Option("-p", metavar="KEY=VALUE", help="Override; repeatable.")] = None,
    out: Out = None,
    way: Annotated[Way | None, typer.Option("--from", help="Make it again from here; the plates stay.")] = None,
) -> None:
    """Go from plates to a submission and a report.

    The same call again goes on where an earlier one stopped, and repeats only what changed. It exits with 3 when
    its time budget (time_budget_minutes) is spent.

    --from says first what it overwrites, and asks nothing. From scores, it only decides again: minutes, and no image
    is opened. From weights, it predicts and decides with them as they are, and trains nothing. From scratch, it
    makes everything again.
    """
    from cellsignal.run import recipe

    if out is not None and not out.strip():
        raise InputError("--out is empty", cure="name a folder, or leave --out away")
    checked = recipe.load(params, parameter or ())
    from cellsignal.run import chain
    from cellsignal.run.summary import summary

    began = time.monotonic()
    folder = chain.run_chain(checked, run=out or "", way=way.value if way else "")
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    print(f"{summary(folder)}\ntime        {minutes} min {seconds} s")


def bundle(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a finished run.")],
    out: Annotated[Path | None, typer.Option(metavar="ZIP", help="Archive to write, instead of RUN.zip.")] = None,
) -> None:
    """Write the archive that Kaggle asks of winners.

    Code, recipe, weights, scores and submission, exact requirements, and a README that tells three ways to make the
    submission again. No pixel of the data is in it. The same run gives the same bytes.
    """
    from cellsignal.run import bundle

    written = bundle.bundle(run, out)
    print(f"wrote {written}, {written.stat().st_size / 1e6:.1f} MB")
