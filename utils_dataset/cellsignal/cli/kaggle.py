"""The commands `cellsignal kaggle …`: the bundle on Kaggle, from the first name to the submission."""

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from cellsignal.cli.run import Machine
from cellsignal.errors import InputError, StepFailed

if TYPE_CHECKING:
    from cellsignal.kaggle.kernel_folders import Kernel, PushPlan
    from cellsignal.kaggle.push_state import PushedKernel
    from cellsignal.run.recipe import Recipe

# Everything else is imported inside the commands: `--help` must not wait for pandas.

app = typer.Typer(
    help="Run a recipe on Kaggle, one kernel per step.",
    epilog="Example: cellsignal kaggle push papermill_params/tiny.yaml",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Params = Annotated[Path, typer.Argument(metavar="PARAMS", help="YAML file of the recipe.")]
Overrides = Annotated[list[str] | None, typer.Option("-p", metavar="KEY=VALUE", help="Override; repeatable.")]
Build = Annotated[Path | None, typer.Option(metavar="DIR", help="Of the rendered kernels, instead of build/<name of PARAMS>.")]
User = Annotated[str, typer.Option(metavar="NAME", help="Your Kaggle user name; default: that of the client's login.")]
Poll = Annotated[float, typer.Option(metavar="SECONDS", min=0, max=86400, help="Between two looks at what runs.")]

_Rehearsal = TypedDict("_Rehearsal", {"text": list[str]})  # what is read here of rehearsal.json


@app.command(epilog="Example: cellsignal kaggle init --user NAME")
def init(user: Annotated[str | None, typer.Option(metavar="NAME", help="Your Kaggle user name; default: that of the client's login.")] = None) -> None:
    """Write your name where the plain client looks for it.

    `kaggle kernels push` and `kaggle datasets create` then work in this checkout. Commit the files or not, as you like.
    """
    from cellsignal.kaggle import account

    owner, written = account.init(user)
    print(f"{owner} is written into {len(written)} metadata files")


@app.command(epilog="Example: cellsignal kaggle push papermill_params/brodt.yaml --until-done")
def push(
    params: Params,
    parameter: Overrides = None,
    only: Annotated[str, typer.Option(metavar="STEP", help="3, 3-train-cell-type, 3-train-cell-type@U2OS, or 0-chain.")] = "",
    cell_type: Annotated[str, typer.Option(metavar="X", help="Only the steps of this cell type.")] = "",
    dataset: Annotated[list[str] | None, typer.Option(metavar="OWNER/SLUG", help="Data set to attach; repeatable.")] = None,
    competition: Annotated[bool, typer.Option("--competition", help="Attach the competition beside --dataset.")] = False,
    until_done: Annotated[bool, typer.Option("--until-done", help="Push again until every step is complete.")] = False,
    rehearse: Annotated[bool, typer.Option("--rehearse", help="Only a few steps of each phase, in minutes: speed, memory, hours.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the kernels and print their order, no network.")] = False,
    machine: Annotated[Machine | None, typer.Option(help="Whose memory and hours to forecast, instead of t4x2, which Kaggle gives.")] = None,
    session_timeout: Annotated[float, typer.Option(metavar="HOURS", min=0, help="Longest time to wait for a running session to end.")] = 13.0,
    queue_timeout: Annotated[float, typer.Option(metavar="HOURS", min=0, help="Longest time to wait for a queued session to start.")] = 24.0,
    poll: Poll = 60.0,
    user: User = "",
    build: Build = None,
) -> None:
    """Run a recipe on Kaggle.

    First comes a forecast for real plates: memory, hours, sessions and weeks of quota, network by network; what cannot fit is
    refused. One kernel a step; each is pushed when those it needs are complete, at most 2 GPU and 5 CPU sessions at a time.
    The same call again goes on where an earlier one stopped, and pushes only what is not complete or has changed.

    With --rehearse one kernel takes a few real steps of each phase on Kaggle's own machine, and what it measured is printed.
    """
    from cellsignal.kaggle import client, kernel_folders, push_state
    from cellsignal.run import environment, recipe

    if rehearse and (only or cell_type or until_done):
        raise InputError("--rehearse is one kernel of minutes", cure="leave --only, --cell-type and --until-done away")
    checked = recipe.load(params, parameter or ())  # before anybody is asked
    owner = client.check_owner(user or (_written_owner() if dry_run else _owner()))
    options = {"kernels": environment.kernels_folder(), "datasets": dataset or [], "as_one_kernel": only in (kernel_folders.CHAIN, "0"), "rehearse": rehearse, "competition": competition}
    plan = kernel_folders.plan_kernels(checked, name=params.stem, owner=owner, **options)
    chosen = kernel_folders.choose_kernels(plan, only=only, cell_type=cell_type)
    folder = build or push_state.folder_of(plan.name)
    on_plates = checked.model_copy(update={"preset": ""}) if competition else checked  # attached plates win over a preset
    if machine is not None or (on_plates.machine.device != "cpu" and not on_plates.preset):  # drawn plates are small, and take minutes
        _forecast(on_plates, machine or Machine.t4x2, plates_on_kaggle=bool(dataset or checked.data))
    if dry_run:
        _dry_run(folder, plan, chosen)
        return
    from cellsignal.budget import TimeSpent
    from cellsignal.kaggle import utility_dataset
    from cellsignal.kaggle.push import PushRunner, Waiting

    with push_state.open_state(folder, recipe=params) as pushed:
        if not rehearse:
            pushed.forget_ended(kernel_folders.REHEARSE)
        upload = partial(utility_dataset.publish_dataset, owner, waiting=utility_dataset.Waiting(interval=min(poll, 5.0)))
        spent = PushRunner(plan, pushed, upload, Waiting(session_timeout * 3600, queue_timeout * 3600, poll, until_done)).drive(chosen)
    if spent:
        progress_text = "; ".join(f"{step}: {progress}" for step, progress in spent.items())
        raise TimeSpent(f"time budget spent in {progress_text}; give the same command again to continue, or add --until-done")
    if rehearse:
        print(_rehearsed(pushed.steps[kernel_folders.REHEARSE]))
    print(f"complete: {', '.join(kernel.step for kernel in chosen)}")


def _forecast(recipe: "Recipe", machine: Machine, *, plates_on_kaggle: bool) -> None:
    """Print what a recipe needs; InputError for what cannot fit. Of plates that only Kaggle has, their cell types may be unknown here."""
    from cellsignal.run import forecast
    from cellsignal.run.rehearse import this_machine

    try:
        needed = forecast.forecast(recipe, this_machine(recipe) if machine is Machine.here else machine.value)
    except InputError as error:
        if not plates_on_kaggle:
            raise
        print(f"no forecast: {error.what}", flush=True)
        return
    print(needed, flush=True)
    needed.check()


def _rehearsed(kernel: "PushedKernel") -> str:
    """What a rehearsal on Kaggle printed."""
    import tempfile

    from cellsignal import files
    from cellsignal.kaggle import client

    name = f"{kernel.run}/rehearsal.json"
    with tempfile.TemporaryDirectory() as folder:
        client.output(kernel.version_slug, Path(folder), f"^{re.escape(name)}$")
        try:
            return "\n".join(files.read_json(Path(folder) / name, _Rehearsal)["text"])
        except InputError:  # client 2.2.4 stores the page of a failed download as the file
            raise StepFailed(f"rehearse: Kaggle gave no {name}; give the same command again, or see {kernel.url}") from None


def _owner() -> str:
    from cellsignal.kaggle import client

    return client.username()


def _written_owner() -> str:
    """The name that `init` wrote into the checkout: nobody else is asked without network."""
    from cellsignal import files
    from cellsignal.kaggle import client
    from cellsignal.run import environment

    path = environment.kernels_folder().parent / client.KERNEL
    metadata = files.read_json(path) if path.is_file() else {}
    owner = str(metadata.get("id", "")).partition("/")[0] if isinstance(metadata, dict) else ""
    if owner in ("", client.PLACEHOLDER):
        raise InputError("your name on Kaggle is not known without network", cure="add --user NAME")
    return owner


def _dry_run(folder: Path, plan: "PushPlan", chosen: "tuple[Kernel, ...]") -> None:
    """Write the kernels and say in which order they would be pushed."""
    from cellsignal.kaggle import kernel_folders

    for number, kernel in enumerate(chosen, 1):
        kernel_folders.render(folder / kernel.step, plan, kernel)
        session, mounts = "GPU" if kernel.gpu else "CPU", ", ".join(kernel.needs)
        print(f"{number}. {kernel.step} as {plan.owner}/{kernel.slug}, {session}" + (f", after {mounts}" if mounts else ""))
    print(f"wrote {folder}")


@app.command(epilog="Example: cellsignal kaggle watch papermill_params/brodt.yaml")
def watch(params: Params, poll: Poll = 60.0, build: Build = None) -> None:
    """Show the status of pushed kernels until none is running."""
    from cellsignal.kaggle import push_state
    from cellsignal.kaggle import watch as watching

    pushed = push_state.read(build or push_state.folder_of(params.stem), recipe=params)
    watching.refuse_failed(watching.watch(pushed, interval=poll))


@app.command(epilog="Example: cellsignal kaggle pull papermill_params/brodt.yaml")
def pull(
    params: Params,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Run folder to fill, instead of runs/<name of PARAMS>.")] = None,
    build: Build = None,
) -> None:
    """Fetch what a pushed recipe made.

    Every file is checked against its step's receipt before it moves into the run folder, and a report is written.
    """
    from cellsignal.kaggle import pull as pulling
    from cellsignal.kaggle import push_state
    from cellsignal.run import environment, recipe
    from cellsignal.run.record.results import summary

    run = environment.run_folder(str(out or recipe.load(params).run))
    pushed = push_state.read(build or push_state.folder_of(params.stem), recipe=params)  # without its lock: a push may go on for days
    pulled = pulling.pull(pushed, run)
    commits = sorted({each.details["commit"] for each in pulled.receipts.values() if each.details.get("commit")})
    print(summary(pulled.run))
    if pulled.left_out:
        print(f"left out    {pulled.left_out}, which was pushed with other parameters: push it again")
    print(f"fetched     {pulled.files} files of {len(pulled.receipts)} steps, each as its receipt says; commit {', '.join(commits) or 'unknown'}")


@app.command(epilog="Example: cellsignal kaggle submit papermill_params/brodt.yaml -m 'the first one'")
def submit(
    recipe_or_csv: Annotated[Path, typer.Argument(metavar="PARAMS|CSV", help="Recipe whose submission to send, or the file itself.")],
    message: Annotated[str, typer.Option("-m", "--message", help="What Kaggle shows beside the score.")] = "",
    data: Annotated[Path | None, typer.Option(metavar="DATA", help="Folder of the competition's tables, else the sample is fetched.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Run folder, instead of runs/<name of PARAMS>.")] = None,
) -> None:
    """Check a submission against the competition's sample, then send it."""
    from cellsignal.kaggle import competition as submitting
    from cellsignal.run import environment, recipe

    file = recipe_or_csv
    if recipe_or_csv.suffix.lower() in (".yaml", ".yml"):
        checked = recipe.load(recipe_or_csv)
        file = submitting.submission_of_run(Path(out or environment.run_folder(checked.run)))
        if not checked.preset and checked.data:  # simulated plates are no sample of the competition's wells
            data = data or submitting.sample_folder(environment.data_folder(checked.data))
    elif out is not None:
        raise InputError("--out names the folder of a recipe's run", where=recipe_or_csv, cure="leave it out, or name the recipe")
    print(submitting.submit(file, message=message or f"cellsignal {recipe_or_csv.stem}", data=data))
    print(f"sent {file}")


@app.command(epilog="Example: cellsignal kaggle download --cell-type U2OS --out plates")
def download(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to fill.")] = Path("data/competition"),
    tables: Annotated[bool, typer.Option("--tables", help="The tables alone.")] = False,
    cell_type: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only its images; repeatable.")] = None,
    check_images: Annotated[bool, typer.Option("--check/--no-check", help="Look at every image afterwards.")] = True,
) -> None:
    """Download the competition's files, and check them.

    Kaggle offers all images as one archive of 49 GB. A single cell type needs that download too, but less disk space. You must
    have accepted the competition's rules.
    """
    from cellsignal.kaggle.competition import download_competition

    if tables and cell_type:
        raise InputError("--tables and --cell-type contradict each other", cure="give one of them")
    download_competition(out, tables=tables, cell_types=cell_type or (), check_images=check_images)
