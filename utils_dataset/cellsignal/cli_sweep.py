"""The command `cellsignal sweep`: many runs on the same plates, and one table of what each is worth."""

import time
from pathlib import Path
from typing import Annotated

import typer

from cellsignal.errors import InputError

# Everything else is imported inside the command: `--help` must not wait for pandas.


def sweep(
    params: Annotated[Path, typer.Argument(metavar="PARAMS", help="YAML file of the recipe that is varied.")],
    space: Annotated[Path, typer.Argument(metavar="SPACE", help="YAML file of what to try: `variants`, `grid` or `search`.")],
    trials: Annotated[int, typer.Option(metavar="N", min=0, help="Of a search, in all; 0 means 20.")] = 0,
    seeds: Annotated[str, typer.Option(metavar="A,B,...", help="Every trial once with each; else the recipe's seed.")] = "",
    jobs: Annotated[int, typer.Option(metavar="N", min=1, help="Trials side by side.")] = 2,
    parameter: Annotated[list[str] | None, typer.Option("-p", metavar="KEY=VALUE", help="Override, in every trial; repeatable.")] = None,
    out: Annotated[str | None, typer.Option(metavar="DIR", help="Folder, instead of sweeps/<name of SPACE>.")] = None,
) -> None:
    """Try a recipe in many ways, on the same plates.

    Each trial is a run of its own. A trial that fails leaves its reason in results.csv, and the others go on; the same call
    again goes on where an earlier one was killed, and repeats only what failed or changed. Plates are drawn once.
    """
    if out is not None and not out.strip():
        raise InputError("--out is empty", cure="name a folder, or leave --out away")
    numbers = _seeds(seeds)
    from cellsignal.run.sweep import run_sweep

    began = time.monotonic()
    folder = run_sweep(params, space, out=out or "", seeds=numbers, jobs=jobs, trials=trials, overrides=parameter or ())
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    print(f"{(folder / 'results.md').read_text(encoding='utf-8')}\nwrote {folder / 'results.csv'}\ntime {minutes} min {seconds} s")


def _seeds(text: str) -> list[int]:
    """The numbers in a text like `0,1,2`."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) < 2**32 for part in parts):
        raise InputError(f"{text!r} is no list of seeds", where="--seeds", cure="write for example --seeds 0,1,2")
    if len(set(map(int, parts))) < len(parts):
        raise InputError("a seed stands there twice", where="--seeds", cure="name each once")
    return [int(part) for part in parts]
