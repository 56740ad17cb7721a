"""The command `cellsignal benchmark`: how fast this machine is, and two machines side by side."""

from pathlib import Path
from typing import Annotated

import typer

from cellsignal.errors import InputError
from cellsignal.files import output_file

# Everything else is imported inside the command: `--help` must not wait for PyTorch.


def benchmark(
    benchmark_files: Annotated[list[Path] | None, typer.Argument(metavar="[A.json B.json]", help="With --compare: two benchmarks.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Set two benchmarks side by side, and measure nothing.")] = False,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Data set whose sites are measured; else some are drawn.")] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="What is written.")] = Path("benchmark.json"),
    sites: Annotated[int, typer.Option(metavar="N", min=2, help="How many.")] = 64,
    image_size: Annotated[int, typer.Option(metavar="PX", min=16, help="Of drawn sites.")] = 512,
    network_size: Annotated[int, typer.Option(metavar="PX", min=0, help="That the network sees; 0: as stored on a GPU, 64 on a CPU.")] = 0,
    backbone: Annotated[str, typer.Option(metavar="NAME", help="Network.")] = "densenet121",
    batch_size: Annotated[int, typer.Option(metavar="N", min=2, help="Sites a step.")] = 8,
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="Measurements of each thing.")] = 5,
    seconds: Annotated[float, typer.Option(metavar="S", min=0, help="That each lasts at least.")] = 1.0,
    workers: Annotated[int, typer.Option(metavar="N", min=0, help="Threads that read; 0 means one a core.")] = 0,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu or cuda.")] = "auto",
    recipe: Annotated[Path | None, typer.Option(metavar="PARAMS", help="Recipe (YAML) whose cost is predicted; else Brodt's.")] = None,
) -> None:
    """Measure this machine, or set two benchmarks side by side.

    Every stage of the work is measured in this package's way, in the ways of others and against what the machine can do at
    best, on the same sites in one run; with the rates comes what a recipe will cost here and on other machines.
    """
    if compare:
        return _compare(benchmark_files or [])
    if benchmark_files:
        raise InputError("files without --compare", where="benchmark", cure="write cellsignal benchmark --compare A.json B.json")
    target = output_file(out)
    from cellsignal.run.benchmark import run_benchmark

    print(run_benchmark(
        target, recipe=recipe, data=data, sites=sites, image_size=image_size, network_size=network_size, backbone=backbone,
        batch_size=batch_size, rounds=rounds, seconds=seconds, workers=workers, device=device,
    ))  # fmt: skip
    print(f"wrote {out}")


def _compare(files: list[Path]) -> None:
    if len(files) != 2:
        raise InputError(f"{len(files)} files", where="--compare", cure="name two benchmarks: --compare A.json B.json")
    from cellsignal.bench.compare import as_text, compare, differences, read_benchmark

    first, second = map(read_benchmark, files)
    print(as_text(compare(first, second)))
    print("ratio: the second's rate by the first's; * where the ranges of their rounds do not touch")
    for line in differences(first, second):
        print(f"note: {line}")
