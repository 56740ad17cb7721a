"""The kernels of a recipe: one a step, what each is called on Kaggle, and whose outputs it mounts."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cellsignal import code_identity, files
from cellsignal.errors import InputError
from cellsignal.kaggle import colab, utility_dataset
from cellsignal.kaggle.client import KERNEL, slugify
from cellsignal.run import environment, inputs, mounts
from cellsignal.run.chain import notebooks, plans, steps
from cellsignal.run.chain.steps import Step
from cellsignal.run.recipe import PATHS_AND_SPEED, Recipe
from cellsignal.run.record import step_receipts
from cellsignal.tasks import TASKS

CHAIN, REHEARSE = "0-chain", "rehearse"
OUTPUTS_ALONE = {CHAIN: ("submission.csv", "report.html"), REHEARSE: ("rehearsal.json",)}
MAX_SLUG = 50  # characters; Kaggle cuts longer slugs
SECOND_SLUG_SUFFIX = "-b"  # of the second slug of a kernel; every slug leaves room for it
CPU_STEPS = ("1-eda", plans.PACK)


@dataclass(frozen=True)
class Kernel:
    """One step as a kernel."""

    step: str
    slug: str  # without its owner
    notebook: Path
    parameters: dict[str, Any]  # as its notebook is given them
    decisive: dict[str, Any]  # those that it reads, by dotted key
    gpu: bool
    code: dict[str, str]  # its identity, by part (`code_identity`)
    needs: tuple[str, ...] = ()  # steps whose outputs it mounts
    cell_type: str = ""
    outputs: tuple[str, ...] = ()  # files of the run folder that it leaves when it is complete

    @property
    def resumable(self) -> bool:
        """Whether it goes on with what its earlier session left: all but the look at the plates, which takes minutes."""
        return self.step != "1-eda"


@dataclass(frozen=True)
class PushPlan:
    """All kernels of a recipe, each behind those that it needs, and what they share."""

    name: str  # of the recipe
    owner: str
    run: str  # the run folder in every kernel, relative to Kaggle's working folder
    kernels: tuple[Kernel, ...]
    datasets: tuple[str, ...]  # owner/slug; the package first
    competitions: tuple[str, ...]
    dataset_versions: tuple[int, ...] = ()  # of the data sets but the package, as far as Kaggle was asked: plates that were mended there are others


def plan_kernels(
    recipe: Recipe, *, name: str, owner: str, kernels: Path, datasets: Sequence[str] = (), as_one_kernel: bool = False, rehearse: bool = False,
    competition: bool = False,
) -> PushPlan:
    """The kernels of a recipe called `name`; `as_one_kernel`: the chain in one kernel; `rehearse`: its rehearsal alone.

    `datasets`: owner/slug of further data sets, which stand for the competition's plates unless `competition` attaches
    it beside them. Raises InputError for a recipe that cannot run on Kaggle.
    """
    if competition and recipe.preset:
        recipe = recipe.model_copy(update={"preset": ""})  # attached plates win over it
    values = {**recipe.model_dump(), "run": _run_folder(recipe.run), "data": recipe.data if recipe.data.startswith("/kaggle/input/") else ""}
    _check_data(recipe, datasets)
    _check_time(recipe.machine.time_budget_minutes)
    if alone := CHAIN if as_one_kernel else REHEARSE if rehearse else "":
        planned_steps = [Step(alone, outputs=OUTPUTS_ALONE[alone], notebook=kernels / alone / f"{alone}.ipynb")]
    else:
        planned_steps = plans.plan(recipe, cell_types(recipe, own_plates=bool(datasets)), kernels=kernels)
    plans.check(recipe, kernels=kernels)
    step_kernels = [_kernel(step, values, name=name, gpu=recipe.machine.device != "cpu") for step in planned_steps]
    _check_slugs(step_kernels)
    return PushPlan(
        name=name,
        owner=owner,
        run=values["run"],
        kernels=tuple(step_kernels),
        datasets=(f"{owner}/{utility_dataset.SLUG}", *map(_dataset, datasets)),
        competitions=_competitions(recipe, datasets, always=competition),
    )


def _competitions(recipe: Recipe, datasets: Sequence[str], *, always: bool) -> tuple[str, ...]:
    """The competition that the kernels mount: where nothing else gives the images, or `always`; InputError for a task that has none."""
    if not always and (recipe.preset or recipe.data or datasets):
        return ()
    if not (slug := TASKS[recipe.task].competition):
        what = f"the images of the task {recipe.task} are those of no competition"
        raise InputError(what, where="data", cure="upload them as a data set and add --dataset OWNER/SLUG")
    return (slug,)


def _kernel(step: Step, values: dict[str, Any], *, name: str, gpu: bool) -> Kernel:
    assert step.notebook is not None
    return Kernel(
        step=step.name,
        slug=slug(name, step.name),
        notebook=step.notebook,
        parameters=steps.notebook_parameters(step, values),
        decisive=steps.parameters_read(step, values),
        gpu=gpu and step.name not in CPU_STEPS,
        code=step.code,
        needs=tuple(need for need in step.needs if need != "plates"),
        cell_type=step.cell_type,
        outputs=step.outputs,
    )


def _check_slugs(kernels: Iterable[Kernel]) -> None:
    """Refuse cell types whose kernels would be one on Kaggle, such as HeLa and HeLa+."""
    steps: dict[str, str] = {}
    for kernel in kernels:
        if (other := steps.setdefault(kernel.slug, kernel.step)) != kernel.step:
            what = f"{other} and {kernel.step} would have one name on Kaggle, {kernel.slug}"
            raise InputError(what, where="wells.cell_types", cure="rename one of the cell types, with other letters or digits")


def choose_kernels(plan: PushPlan, *, only: str = "", cell_type: str = "") -> tuple[Kernel, ...]:
    """The kernels of a plan that are one step (`3`, `3-train-cell-type` or `3-train-cell-type@U2OS`) or one cell type's."""
    chosen = tuple(kernel for kernel in plan.kernels if _matches(kernel, only) and cell_type in ("", kernel.cell_type))
    if not chosen:
        options = " ".join(filter(None, [only and f"--only {only}", cell_type and f"--cell-type {cell_type}"]))
        raise InputError("no such step", where=options, cure=f"choose from {', '.join(kernel.step for kernel in plan.kernels)}")
    return chosen


def _matches(kernel: Kernel, only: str) -> bool:
    return only in ("", kernel.step, kernel.step.partition("@")[0], kernel.step.partition("-")[0])


def cell_types(recipe: Recipe, *, own_plates: bool = False) -> list[str]:
    """The cell types that a recipe trains, as far as can be told without its plates; those with most wells first.

    `own_plates`: the user's own are attached, and their cell types can be any.
    """
    task, known_cell_types = TASKS[recipe.task], _known(recipe, own_plates=own_plates)
    if not task.cell_types:
        return []
    if unknown := [name for name in recipe.wells.cell_types if known_cell_types and name not in known_cell_types]:
        raise InputError(f"no cell type {unknown[0]}", where="wells.cell_types", cure=f"choose from {', '.join(known_cell_types)}")
    chosen = recipe.wells.cell_types or known_cell_types or task.cell_types
    if recipe.wells.experiments:
        chosen = [name for name in chosen if name in _of_experiments(recipe.wells.experiments)]
    if not chosen:
        what = f"no experiment of {', '.join(recipe.wells.cell_types or known_cell_types)} is named"
        raise InputError(what, where="wells.experiments", cure="name others, or leave `wells.cell_types` empty")
    return sorted(chosen, key=list(known_cell_types).index if known_cell_types else chosen.index)


def _known(recipe: Recipe, *, own_plates: bool) -> tuple[str, ...]:
    """All cell types that there can be; () for plates of the user's own."""
    if not recipe.preset:
        return () if recipe.data or own_plates else TASKS[recipe.task].cell_types
    from cellsignal.data.microscope.simulate import PRESETS  # pulls in SciPy

    inputs.check_preset(recipe.preset, TASKS[recipe.task])
    return PRESETS[recipe.preset].cell_types


def _of_experiments(experiments: Iterable[str]) -> set[str]:
    return {name.rpartition("-")[0] for name in experiments}


def _check_data(recipe: Recipe, datasets: Collection[str]) -> None:
    """Refuse plates that lie here and nowhere on Kaggle; those of a preset are drawn there again."""
    if recipe.data and not recipe.preset and not datasets:
        what = f"Kaggle cannot see the folder {recipe.data}"
        cure = "upload it as a data set and add --dataset OWNER/SLUG, or leave `data` empty for the competition's"
        raise InputError(what, where="data", cure=cure)


def _check_time(minutes: float) -> None:
    """Refuse a budget that outlasts what Kaggle leaves a session, so that it could not end by itself."""
    if minutes > environment.LONGEST_MINUTES:
        what = f"{minutes:g} minutes, and Kaggle ends a session after 12 hours"
        cure = f"write {environment.LONGEST_MINUTES:g} or less, or 0 for 11 hours; --until-done goes on in further sessions"
        raise InputError(what, where="machine.time_budget_minutes", cure=cure)


def _run_folder(run: str) -> str:
    """The run folder as a relative POSIX path."""
    path = PurePosixPath(run)
    environment.run_folder(run)  # refuses here what the session would, such as a name that is not valid UTF-8
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise InputError(f"{run!r} is no folder below Kaggle's working folder", where="run", cure="write for example runs/first")
    return str(path)


def _dataset(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+/[A-Za-z0-9_-]+", name):
        raise InputError("no data set's name", where=f"--dataset {name}", cure="write OWNER/SLUG, as in its address on Kaggle")
    return name


def slug(name: str, step: str) -> str:
    """The slug of a step's kernel: 5 to 48 characters; a recipe name that is cut, or has other letters than a slug, is told apart by a hash."""
    tail, head = _slugify(step), _slugify(name) or "run"
    max_head = MAX_SLUG - len(f"cellsignal--{tail}{SECOND_SLUG_SUFFIX}")
    if len(head) > max_head or head != name.lower():  # a_b and a-b would take each other's kernels, as would all names in other scripts
        suffix = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:3]
        head = f"{head[: max(max_head - 4, 0)].rstrip('-')}-{suffix}".lstrip("-")
    if len(head) > max_head:
        raise InputError("its name is too long for Kaggle", where=step, cure="shorten the name of the cell type")
    return f"cellsignal-{head}-{tail}"


def _slugify(text: str) -> str:
    """The slug of any text; accents are dropped with everything else that is not ASCII."""
    return slugify(unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode())


# What a kernel that goes on says first: that what its earlier session left is mounted.


NOT_MOUNTED = "its earlier session is not mounted"


def expect_earlier(step: str) -> None:
    """Raise InputError unless an attached run holds what an earlier session of `step` left.

    Without it a kernel that was pushed to go on would begin from nothing, and nobody would see it for hours. The cell that
    asks is none of the notebook's own: it does not count as code of a training.
    """
    code_identity.notebook.begin()
    if not any(step_receipts.read(run, step) for run in mounts.runs()):
        raise InputError(NOT_MOUNTED, where=step, cure=mounts.describe_mounts())


def expect_cell(step: str) -> str:
    """The source of the cell that says so."""
    return f"from cellsignal.kaggle.kernel_folders import expect_earlier\n\nexpect_earlier({step!r})  # pushed to go on, not to begin from nothing"


# A kernel as the client pushes it: one folder with the notebook, its parameters baked in, and every metadata key.


GPU = "NvidiaTeslaT4"  # both T4s of a session
MAX_NOTEBOOK_BYTES = 700_000  # bytes of a notebook that Kaggle was seen to take
_METADATA_KEYS = ("kernelspec", "language_info")  # without a kernelspec the session dies at once


def render(
    folder: Path, plan: PushPlan, kernel: Kernel, *, slug: str = "", mounts: Sequence[str] | None = None, resumes: bool = False
) -> Path:
    """Write the folder of a kernel and give it. InputError when the notebook is too large.

    `slug` and `mounts` (the slugs of the owner's kernels whose outputs it finds) are the plan's when not given;
    a kernel that `resumes` fails at once if its earlier session is not mounted.
    """
    text = notebook_text(kernel.notebook, kernel.parameters, resumed_step=kernel.step if resumes else "")
    if len(text.encode()) > MAX_NOTEBOOK_BYTES:
        raise InputError(f"more than {MAX_NOTEBOOK_BYTES:,} bytes, which Kaggle refuses", where=kernel.notebook, cure="move code into the package")
    kernel_metadata = metadata(plan, kernel, slug=slug or kernel.slug, mounts=first_slugs(plan, kernel) if mounts is None else mounts)
    files.write_text(folder / kernel_metadata["code_file"], text)
    files.write_json(folder / KERNEL, kernel_metadata)
    return folder


def first_slugs(plan: PushPlan, kernel: Kernel) -> list[str]:
    """The slugs of the steps before a kernel, as planned."""
    return [other.slug for other in plan.kernels if other.step in kernel.needs]


def metadata(plan: PushPlan, kernel: Kernel, *, slug: str, mounts: Sequence[str]) -> dict[str, Any]:
    """Every key of kernel-metadata.json, because the client's defaults are not what its documentation says.

    `mounts`: slugs of the owner's kernels whose outputs are mounted.
    """
    return {
        "id": f"{plan.owner}/{slug}",
        "title": slug.replace("-", " "),  # Kaggle makes the slug of the title
        "code_file": kernel.notebook.name,
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": kernel.gpu,
        "enable_tpu": False,
        "enable_internet": False,
        "dataset_sources": list(plan.datasets),
        "competition_sources": list(plan.competitions),
        "kernel_sources": [f"{plan.owner}/{name}" for name in mounts],
        "model_sources": [],
        "keywords": [],
        "machine_shape": GPU if kernel.gpu else "",
        "docker_image_pinning_type": "original",
    }


def notebook_text(path: Path, parameters: Mapping[str, Any], *, resumed_step: str = "") -> str:
    """A notebook with `parameters` in a cell after its own, as papermill injects them, and nothing of where it was made.

    `resumed_step`: the step whose earlier session has to be mounted; the cell after the one that finds the package says so.
    """
    notebook = notebooks.read(path)
    cells = [_without_outputs(cell) for cell in notebook["cells"] if "injected-parameters" not in _tags(cell) and not colab.is_cell(cell)]
    position = next((number for number, cell in enumerate(cells) if "parameters" in _tags(cell)), None)
    if position is None:
        raise InputError("no cell is tagged `parameters`", where=path, cure="tag the cell that sets them")
    cells.insert(position + 1, _parameters_cell(parameters))
    if resumed_step:
        begin_position = next(number for number, cell in enumerate(cells) if "cellsignal.start(" in "".join(cell["source"]))
        cells.insert(begin_position + 1, _code_cell("expects-earlier", expect_cell(resumed_step)))
    kept_metadata = {key: value for key, value in notebook["metadata"].items() if key in _METADATA_KEYS}
    rendered = notebooks.normalise({**notebook, "cells": cells, "metadata": kept_metadata}, where=path)
    return json.dumps(rendered, indent=1, ensure_ascii=False) + "\n"


def _tags(cell: Mapping[str, Any]) -> list[str]:
    return cell["metadata"].get("tags", [])


def _without_outputs(cell: Mapping[str, Any]) -> dict[str, Any]:
    """A cell without outputs, counts, what papermill noted of an execution, and the badge for Colab."""
    bare = {**cell, "metadata": {"tags": _tags(cell)} if _tags(cell) else {}}
    if cell["cell_type"] == "code":
        return bare | {"outputs": [], "execution_count": None}
    return bare | {"source": colab.without_badge("".join(cell["source"]))}


def _parameters_cell(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The cell that sets `parameters`; texts, numbers, booleans and lists of them are Python as they print."""
    lines = ["# Parameters", *(f"{name} = {value!r}" for name, value in parameters.items())]
    return _code_cell("injected-parameters", "\n".join(lines))


def _code_cell(name: str, source: str) -> dict[str, Any]:
    """A code cell; `name` is its tag and its id, of which papermill draws a random one: ours must not change from push to push."""
    return {"cell_type": "code", "execution_count": None, "id": name, "metadata": {"tags": [name]}, "outputs": [], "source": source}


def identities(plan: PushPlan) -> dict[str, str]:
    """By step, a SHA-256 over all that decides what its kernel makes: notebook, parameters, metadata, code, the steps before.

    Parameters that only say how fast it goes are left out, and so is every room of the package that the notebook does
    not use.
    """
    return _identities(plan, _definition)


def work_identities(plan: PushPlan) -> dict[str, str]:
    """By step, the same but for all code: whoever mends a comment goes on with what earlier sessions left.

    Whether that can be gone on with is for the fingerprints of checkpoints and scores to say.
    """
    return _identities(plan, lambda kernel, parameters: parameters)


def _definition(kernel: Kernel, parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {"notebook": notebook_text(kernel.notebook, parameters), "code": kernel.code, "runs": _chain_notebooks(kernel)}


def _chain_notebooks(kernel: Kernel) -> dict[str, str]:
    """The code of the notebooks that the whole chain as one kernel runs."""
    paths = kernel.notebook.parents[1].glob("*/*.ipynb") if kernel.step == CHAIN else ()
    return {path.stem: code_identity.cells_digest(map(notebooks.source, notebooks.code_cells(path))) for path in sorted(paths)}


def _identities(plan: PushPlan, definition: Callable[[Kernel, Mapping[str, Any]], Any]) -> dict[str, str]:
    digests: dict[str, str] = {}
    for kernel in plan.kernels:  # each stands behind those that it needs
        parameters = {name: value for name, value in kernel.decisive.items() if name == "run" or name not in PATHS_AND_SPEED}
        content = {
            "made": definition(kernel, parameters),
            "metadata": metadata(plan, kernel, slug=kernel.slug, mounts=first_slugs(plan, kernel)),
            "before": [digests[need] for need in kernel.needs],
            **({"versions": plan.dataset_versions} if plan.dataset_versions else {}),
        }
        digests[kernel.step] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return digests
