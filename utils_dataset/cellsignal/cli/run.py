"""The commands `cellsignal run` and `cellsignal bundle`: a run, the same made again, and its archive."""

import time
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cellsignal.errors import InputError

if TYPE_CHECKING:
    from cellsignal.run.recipe import Recipe

# Everything else is imported inside the commands: `--help` must not wait for pandas.

Out = Annotated[str | None, typer.Option(metavar="DIR", help="Run folder, instead of runs/<name of PARAMS>.")]


class StartingPoint(StrEnum):
    """From where a run is made again."""

    scratch = "scratch"
    weights = "weights"
    scores = "scores"


class Machine(StrEnum):
    """A machine whose memory and rates are known, or the one at hand, whose rates are measured."""

    t4x2 = "t4x2"
    p100 = "p100"
    l4 = "l4"
    a100 = "a100"
    h100 = "h100"
    here = "here"


def run(
    params: Annotated[Path, typer.Argument(metavar="PARAMS", help="YAML file of the recipe.")],
    parameter: Annotated[list[str] | None, typer.Option("-p", metavar="KEY=VALUE", help="Override; repeatable.")] = None,
    out: Out = None,
    start_from: Annotated[StartingPoint | None, typer.Option("--from", help="Repeat a finished run from this point; the plates are kept.")] = None,
    ray: Annotated[str, typer.Option(metavar="ADDRESS", help="Ray cluster to work on: HOST:PORT, auto, or local.")] = "",
    storage: Annotated[str, typer.Option(metavar="URL", help="What its machines share, if not the run folder.")] = "",
    machine: Annotated[Machine | None, typer.Option(case_sensitive=False, help="Run nothing: forecast memory and time there; here: measured by a few steps.")] = None,
) -> None:
    """Go from plates to a submission and a report.

    The same call again goes on where an earlier one stopped, and repeats only what changed. It exits with 3 when
    its time budget (machine.time_budget_minutes) is spent.

    --from first prints what it overwrites, and does not ask. From scores, it only repeats the assignment: minutes, and no image
    is opened. From weights, it predicts and decides with them as they are, and trains nothing. From scratch, it
    makes everything again.

    --ray draws plates, trains and predicts on the machines of a Ray cluster, and decides here. They see the run folder and
    the plates, or all reach --storage (file:///shared/run, s3://bucket/run), over which files then go to and fro.
    """
    from cellsignal.run import recipe

    if out is not None and not out.strip():
        raise InputError("--out is empty", cure="name a folder, or leave --out away")
    if storage and not ray:
        raise InputError("--storage is for machines of a cluster", cure="add --ray ADDRESS, or omit --storage")
    given = {"--out": out, "--from": start_from, "--ray": ray, "--storage": storage}
    if machine is not None and (useless := [name for name, value in given.items() if value]):
        raise InputError(f"--machine runs nothing, and {' and '.join(useless)} would be of no use", cure=f"leave out --machine, or {' and '.join(useless)}")
    checked = recipe.load(params, parameter or ())
    if machine is not None:
        from cellsignal.run import forecast, rehearse

        print(forecast.forecast(checked, rehearse.this_machine(checked) if machine is Machine.here else machine.value))
        return
    _print_forecast(checked)
    from cellsignal.run.chain import chain
    from cellsignal.run.record.results import summary

    executor = None
    if ray:
        from cellsignal.run.cluster.ray_cluster import Cluster

        executor = Cluster(ray, storage)
    began = time.monotonic()
    folder = chain.run_chain(checked, run=out or "", start_from=start_from.value if start_from else "", executor=executor)
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    print(f"{summary(folder)}\ntime        {minutes} min {seconds} s")


def _print_forecast(recipe: "Recipe") -> None:
    """What a recipe needs on the GPUs that are here; nothing without any."""
    from cellsignal import provenance

    if recipe.machine.device != "cpu" and (gpus := provenance.hardware()["gpus"]):
        from cellsignal.run import forecast

        host = forecast.gpu_host(gpus)
        with suppress(InputError):  # the run says it itself
            print(forecast.forecast(recipe, lambda backbone: host) if host else f"no forecast for {gpus[0]}: --machine here measures it", flush=True)


def bundle(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a finished run.")],
    out: Annotated[Path | None, typer.Option(metavar="ZIP", help="Archive to write, instead of RUN.zip.")] = None,
) -> None:
    """Write the archive that Kaggle asks of winners.

    Code, recipe, weights, scores and submission, exact requirements, and a README that tells three ways to make the
    submission again. No pixel of the data is in it. The same run gives the same bytes.
    """
    from cellsignal.run.bundle import bundle

    written = bundle.bundle(run, out)
    print(f"wrote {written}, {written.stat().st_size / 1e6:.1f} MB")


# The command `cellsignal sweep`: many runs on the same plates, and one table of what each is worth.


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
    from cellsignal.run.sweep.sweep import run_sweep

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
        raise InputError("a seed is listed twice", where="--seeds", cure="name each once")
    return [int(part) for part in parts]
