"""The command `cellsignal`: reads arguments, calls the package, says what it wrote."""

import io
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

if find_spec("fcntl") is None:  # all that follows keeps its files apart by these locks
    sys.exit("cellsignal: error: this system has no POSIX file locks; on Windows run it inside WSL")

from cellsignal.budget import TimeSpent
from cellsignal.cli import embed, kaggle, profiles, rehearse, run
from cellsignal.errors import InputError, StepFailed, system_error
from cellsignal.files import is_json_with, output_file
from cellsignal.run import environment

(UsageError,) = typer.BadParameter.__bases__  # of the Click that this Typer uses: its own, or the installed one

# Everything else is imported inside the commands: `cellsignal --help` must not wait for PyTorch.

app = typer.Typer(
    help="Plates go in, a submission and a report come out.",
    epilog="Example: cellsignal run papermill_params/demo.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(kaggle.app, name="kaggle")
app.command(epilog="Example: cellsignal run papermill_params/demo.yaml -p seed=1 --out runs/second")(run.run)
app.command(epilog="Example: cellsignal rehearse papermill_params/brodt.yaml")(rehearse.rehearse)
app.command(epilog="Example: cellsignal bundle runs/demo --out demo.zip")(run.bundle)
app.command(epilog="Example: cellsignal sweep papermill_params/tiny.yaml sweep.yaml --seeds 0,1,2")(run.sweep)
app.command(epilog="Example: cellsignal embed runs/demo --out embeddings.parquet")(embed.embed)
app.command(epilog="Example: cellsignal profile runs/demo/embeddings.parquet --out runs/demo/profiles")(profiles.profile)
colab = typer.Typer(help="The notebooks on Colab.", no_args_is_help=True, rich_markup_mode=None, epilog="Example: cellsignal colab init")
app.add_typer(colab, name="colab")

Data = Annotated[Path, typer.Argument(metavar="DATA", help="Folder of the data set.")]
CellTypes = Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only its images; repeatable.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Method(StrEnum):
    """How siRNAs are chosen from scores."""

    raw = "raw"
    greedy = "greedy"
    exact = "exact"
    expected = "expected"


@app.command(epilog="Example: cellsignal simulate plates --preset tiny --seed 1")
def simulate(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to fill; a killed simulation goes on.")],
    preset: Annotated[str, typer.Option(help="Size and difficulty: demo, small, hard, tiny; atlas-demo, atlas-tiny.")] = "demo",
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    like: Annotated[Path | None, typer.Option(help="Folder of real tables whose layout to render.")] = None,
    experiments: Annotated[str, typer.Option(help="Part of --like: names, separated by commas.")] = "",
    image_size: Annotated[int | None, typer.Option(help="Pixels per side.")] = None,
) -> None:
    """Draw plates with a virtual microscope.

    They come in the competition's format, with solution.csv beside them.
    """
    from cellsignal.data.microscope.simulate import simulate

    names = tuple(name.strip() for name in experiments.split(",") if name.strip())
    simulate(out, preset=preset, seed=seed, like=like, experiments=names, image_size=image_size)
    print(f"wrote {out}")


@app.command(epilog="Example: cellsignal check plates")
def check(data: Data, cell_type: CellTypes = None) -> None:
    """Look at every row and every image.

    Prints one table of what is missing, duplicated or damaged, and then exits with 2. Also names plates
    whose controls are missing or look unlike those of other plates, which is no fault of the files.
    """
    from cellsignal.data import simulated
    from cellsignal.data.check import check_dataset
    from cellsignal.data.control_separation import control_lines

    problems = check_dataset(data, cell_types=cell_type or ())
    for line in control_lines(data, cell_types=cell_type or ()):
        print(line)
    if len(problems):
        print(problems.to_string(index=False, justify="left", max_colwidth=None))
        on_purpose = "; simulated plates lack two images of one site on purpose, as the real ones lack some" if simulated.is_simulated(data) else ""
        raise InputError(f"problems: {len(problems)}", where=data, cure=f"fix the problems in the table above{on_purpose}")
    print(f"{data}: no problem in any row or image")


class Release(StrEnum):
    """What can be downloaded without an account."""

    rxrx1 = "rxrx1"


@app.command(epilog="Example: cellsignal download rxrx1 --cell-type U2OS --out plates")
def download(
    release: Annotated[Release, typer.Argument(metavar="RELEASE", help="rxrx1.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to fill.")] = Path("data/rxrx1"),
    tables: Annotated[bool, typer.Option("--tables", help="The tables alone, 1.3 MB.")] = False,
    cell_type: CellTypes = None,
    check_images: Annotated[bool, typer.Option("--check/--no-check", help="Look at every image afterwards.")] = True,
) -> None:
    """Download a public data set, and check it.

    All of RxRx1 is one archive of 49 GB, and needs twice that on the disk until it is unpacked. Cell types are read out of
    it on the server: U2OS is about a tenth of it, HUVEC half. A killed download goes on.
    """
    from cellsignal.data.download.rxrx1 import download_rxrx1

    if tables and cell_type:
        raise InputError("--tables and --cell-type contradict each other", cure="give one of them")
    download_rxrx1(out, tables=tables, cell_types=cell_type or (), check_images=check_images)


class Codec(StrEnum):
    """How pixels are kept; none of them loses any."""

    raw = "raw"
    lz4 = "lz4"
    zstd = "zstd"


class Format(StrEnum):
    """Of the files."""

    plates = "plates"
    ome_zarr = "ome-zarr"


@app.command(epilog="Example: cellsignal pack plates packed --codec lz4")
def pack(
    data: Data,
    out: Annotated[Path, typer.Argument(metavar="STORE", help="Folder to fill; a killed packing goes on.")],
    codec: Annotated[Codec, typer.Option(help="raw reads fastest, zstd is smallest; lz4 and zstd need blosc2.")] = Codec.raw,
    format: Annotated[Format, typer.Option(help="One file a plate; or OME-Zarr plates to share, slower, which need zarr.")] = Format.plates,
    sizes: Annotated[str, typer.Option(metavar="PX,...", help="Longer sides of the copies; else the images' own.")] = "",
    cell_type: CellTypes = None,
    jobs: Annotated[int, typer.Option(metavar="N", min=0, help="Sites read side by side; 0: one a core.")] = 0,
    verify: Annotated[bool, typer.Option("--verify", help="Read everything back and compare the sums.")] = False,
    ray: Annotated[str, typer.Option(metavar="ADDRESS", help="Ray cluster that packs; its machines see both folders.")] = "",
) -> None:
    """Pack the images of a data set, one file a plate.

    STORE is a data set of its own, with the same tables and the same pixels: name it as `data`. Reduced copies are means
    over areas, rounded to whole numbers.
    """
    from cellsignal.data.packing import pack

    plan = pack.plan_pack(data, codec=codec.value, sizes=_sizes(sizes), cell_types=cell_type or (), format=format.value)
    print("\n".join(pack.size_lines(plan)))
    with _parallel_map(ray) as parallel_map:
        written = pack.pack(plan, out, jobs=jobs or None, parallel_map=parallel_map)
    if verify:
        from cellsignal.data.check import verify as compare

        print(f"compared {compare(out):,} copies of sites with their sums")
    print(f"wrote {out}" if written else f"{out} was whole already")


def _parallel_map(address: str) -> AbstractContextManager[Any]:
    """Who packs side by side on a cluster; nobody without one."""
    if not address:
        return nullcontext()
    from cellsignal.run.cluster import ray_cluster

    return ray_cluster.open_parallel_map(address)


def _sizes(text: str) -> list[int]:
    """The numbers in a text like `512,256`."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and 0 < int(part) < 2**16 for part in parts):
        raise InputError(f"{text!r} is no list of sizes", where="--sizes", cure="write for example --sizes 512,256")
    return [int(part) for part in parts]


@app.command(epilog="Example: cellsignal layout plates --json")
def layout(data: Data, as_json: AsJson = False) -> None:
    """Show the plate design of a data set.

    That is the plate groups, the group on each plate of the training experiments, and the experiments
    that share a layout. JSON counts groups from 0.
    """
    from cellsignal.data.tables import plate_design, wells

    found = plate_design.layout(wells.read_tables(data).wells)
    if as_json:
        print(json.dumps(found))
        return
    print("plate groups of", ", ".join(str(len(group)) for group in found["groups"]) or "none", "siRNAs")
    for experiment, rotation in found["rotations"].items():
        numbers = " ".join(str(index + 1) if index >= 0 else "-" for index in rotation)
        print(f"{experiment:10} groups on plates 1 to {len(rotation)}: {numbers}")
    for pair in found["duplicates"]:
        shift = pair["plate_shift"]
        said = "shift unknown" if shift is None else f"plates shifted by {shift}"
        print(f"same layout: {' and '.join(pair['experiments'])}, {said}")


@app.command(epilog="Example: cellsignal assign scores --data plates --out submission.csv")
def assign(
    scores: Annotated[list[Path], typer.Argument(metavar="SCORES...", help="Files of scores, or folders of them.")],
    data: Annotated[Path, typer.Option(metavar="DATA", help="Folder of the data set.")],
    out: Annotated[Path, typer.Option(metavar="CSV", help="Submission to write.")],
    method: Annotated[Method, typer.Option(help="Best siRNA of each well (raw), or each siRNA once.")] = Method.expected,
    groups: Annotated[bool, typer.Option("--groups/--no-groups", help="Use the plate groups.")] = True,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="SCORES hold probabilities.")] = False,
    rotation_prior: Annotated[float, typer.Option(metavar="P", min=0.0001, max=0.9999, help="Prior probability that the plate groups are rotated as in training.")] = 0.99,
    min_group_posterior: Annotated[float, typer.Option(metavar="P", min=0, max=0.9999, help="Least posterior at which groups are used.")] = 0.0,
    known_layouts: Annotated[bool, typer.Option("--known-layouts", help="Copy the layout of a training experiment whose controls lie in the same wells.")] = False,
    confidence: Annotated[Path | None, typer.Option(metavar="CSV", help="Second file, instead of OUT.confidence.csv.")] = None,
    sets: Annotated[Path | None, typer.Option(metavar="PARQUET", help="Write prediction sets too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a submission from the scores of any network.

    SCORES are Parquet, CSV (.csv, .csv.gz) or NPZ files: id_code and one column per class number, natural-log
    probabilities. Scored training wells calibrate the temperature: score those that were held out, and no others.

    Prints how each experiment was decided. In that table group_posterior is the probability that the plate groups
    lie in this order on plates 1, 2, ...; surprise, by how many bits the scores favour another order over every
    rotation; labelled, the number of wells that calibrated the temperature; confidence, its mean over the wells.
    Then the accuracy of the raw predictions, estimated from the plate groups without labels.

    --sets writes, for each well and a coverage of 0.8, 0.9 and 0.95, the siRNAs among which the right one is.
    """
    from cellsignal.decide.commands import accuracy_table, assign_files, routes_table
    from cellsignal.decide.settings import AssignmentSettings
    from cellsignal.decide.submission import confidence_path

    settings = AssignmentSettings(method=method.value, plate_groups=groups, rotation_prior=rotation_prior, min_group_posterior=min_group_posterior,
                                  known_layouts=known_layouts)
    assigned = assign_files(scores, settings, data=data, out=out, confidence=confidence, sets=sets, probabilities=probabilities)
    if as_json:
        print(json.dumps(assigned.records))
        return
    written = f"{out}, {confidence or confidence_path(out)} and {sets}" if sets else f"{out} and {confidence or confidence_path(out)}"
    print("\n".join(filter(None, [routes_table(assigned), accuracy_table(assigned), f"wrote {written}"])))


@app.command(epilog="Example: cellsignal score runs/demo/submission.csv plates/solution.csv")
def score(
    submission: Annotated[Path, typer.Argument(metavar="SUBMISSION")],
    solution: Annotated[Path, typer.Argument(metavar="SOLUTION")],
    as_json: AsJson = False,
) -> None:
    """Tell the accuracy of a submission, or for the Protein Atlas its macro F1.

    Overall, by cell type and by experiment, or by class. The submission must answer each well of the solution once, and no
    other.
    """
    from cellsignal.decide.commands import score_files

    found = score_files(submission, solution)
    if as_json:
        print(json.dumps(found))
        return
    rows = {"all": next(iter(found.values())), **{name: value for key in found if key.startswith("by_") for name, value in found[key].items()}}
    width = max(12, *map(len, rows))
    for name, value in rows.items():
        print(f"{name:{width}} {value:.4f}")


@app.command(epilog="Example: cellsignal benchmark --data plates --out here.json")
def benchmark(
    benchmark_files: Annotated[list[Path] | None, typer.Argument(metavar="[A.json B.json]", help="With --compare: two benchmarks.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Set two benchmarks side by side, and measure nothing.")] = False,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Data set whose sites are measured; else some are drawn.")] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="What is written.")] = Path("benchmark.json"),
    sites: Annotated[int, typer.Option(metavar="N", min=2, help="How many.")] = 64,
    image_size: Annotated[int, typer.Option(metavar="PX", min=16, help="Of drawn sites.")] = 512,
    network_size: Annotated[int, typer.Option(metavar="PX", min=0, help="Size of the network's input; 0: as stored on a GPU, 64 on a CPU.")] = 0,
    backbone: Annotated[str, typer.Option(metavar="NAME", help="Network.")] = "densenet121",
    batch_size: Annotated[int, typer.Option(metavar="N", min=2, help="Sites a step.")] = 8,
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="Measurements of each thing.")] = 5,
    seconds: Annotated[float, typer.Option(metavar="S", min=0, help="Least duration of each measurement.")] = 1.0,
    workers: Annotated[int, typer.Option(metavar="N", min=0, help="Threads that read in training; 0 means one a core.")] = 0,
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
    target = output_file(out, kind="benchmark", is_of_kind=lambda path: is_json_with(path, "schema", "machine", "method", "rows"))
    from cellsignal.run.kernels.benchmark import run_benchmark

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


@colab.command("init", epilog="Example: cellsignal colab init --repository OWNER/NAME --ref v0.1.0")
def init_colab(
    repository: Annotated[str, typer.Option(metavar="OWNER/NAME", help="On GitHub; else Git's remote `origin`.")] = "",
    ref: Annotated[str, typer.Option(metavar="REF", help="Tag, branch or commit; else this version's tag.")] = "",
) -> None:
    """Say where the notebooks are published.

    Writes the badges that open them on Colab into README and notebooks, and what their first cell installs there.
    """
    from cellsignal.kaggle import colab

    repository, ref, changed = colab.init(repository=repository, ref=ref)
    place = f"lead to {repository} at {ref}"
    print(f"{len(changed)} files now {place}; commit and push them" if changed else f"all files {place} already")
    if not colab.commit_of(environment.repository(), ref):  # so that it cannot be on GitHub either
        print(f"note: Git knows no tag, branch or commit {ref} here; Colab needs it on GitHub")


def _expand_paths(group: typer.Typer) -> None:
    """Let every command read `~` in its paths: a shell leaves it in --out=~/run and in what a program calls us with."""
    for command in group.registered_commands:
        command.callback = _with_expanded_paths(command.callback)
    for inner in group.registered_groups:
        _expand_paths(inner.typer_instance)


def _with_expanded_paths(command: Callable[..., None]) -> Callable[..., None]:
    def expanded(value: object) -> object:
        if isinstance(value, list):
            return [expanded(each) for each in value]
        return Path(environment.expand_path(value)) if isinstance(value, Path) else value

    return wraps(command)(lambda **given: command(**{name: expanded(value) for name, value in given.items()}))


_expand_paths(app)


class _Ended(BaseException):
    """A signal asked us to end; no handler for KeyboardInterrupt on the way shall take it for its own."""


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise _Ended(128 + number)


def main() -> NoReturn:
    """Entry point: exits 0 when done, 2 when the input is at fault, 1 when a step failed, 3 when its time is spent, 130 when interrupted."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # under nohup we outlive our terminal
            signal.signal(number, _end)
    environment.shield_children()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names may hold what the terminal, or Unicode, has no letter for
    try:
        code = app(prog_name="cellsignal", standalone_mode=False)
        print(end="", flush=True)  # here, where it can still be said that nobody takes the output
    except UsageError as error:
        _exit(_usage(error), code=2)
    except InputError as error:
        _exit(error, code=2)
    except StepFailed as error:
        _exit(error, code=1)
    except TimeSpent as spent:  # no error: the same command continues
        print(spent)
        sys.exit(3)
    except OSError as error:  # no right to write, no space left
        if (lost := _lost_output()) is None:
            _exit(system_error(error, doing=" ".join(["cellsignal", *sys.argv[1:2]])), code=2)
        if not isinstance(lost, BrokenPipeError):
            _exit(InputError(f"cannot be written to ({lost.strerror})", where="standard output", cure="send it elsewhere"), code=2)
        sys.exit(1)  # who read it has gone, as `head` does
    except (_Ended, SystemError) as stopped:
        ended = stopped if isinstance(stopped, _Ended) else stopped.__cause__  # which compiled code wraps, such as Ray's
        if not isinstance(ended, _Ended):
            raise
        print("cellsignal: interrupted", file=sys.stderr)
        sys.exit(ended.args[0])
    sys.exit(code or 0)


def _lost_output() -> OSError | None:
    """Why standard output takes no more, if so; what was to go there is then forgotten."""
    try:
        print(end="", flush=True)
        return None
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error


def _usage(error: Exception) -> InputError:
    """A usage error in one line; without any argument it is the help and no error."""
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message())
        sys.exit(0)
    command = error.ctx.command_path if error.ctx else "cellsignal"
    return InputError(error.format_message().rstrip("."), cure=f"see {command} --help")


def _exit(error: Exception, *, code: int) -> NoReturn:
    print(f"cellsignal: error: {error}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
