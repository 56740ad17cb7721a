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
from cellsignal.run import environment, mounts
from cellsignal.run.chain import notebooks, plans, steps
from cellsignal.run.chain.steps import PATHS_AND_SPEED, Step
from cellsignal.run.recipe import Recipe
from cellsignal.run.record import manifest
from cellsignal.tasks import TASKS

CHAIN = "0-chain"
SLUG = 50  # most characters that Kaggle leaves of a slug
SECOND = "-b"  # ends the slug of a kernel's second place; every slug leaves room for it
CPU_STEPS = ("1-eda",)


@dataclass(frozen=True)
class Kernel:
    """One step as a kernel."""

    step: str
    slug: str  # without its owner
    notebook: Path
    parameters: dict[str, Any]
    gpu: bool
    code: dict[str, str]  # its identity, by part (`code_identity`)
    needs: tuple[str, ...] = ()  # steps whose outputs it mounts
    cell_type: str = ""
    outputs: tuple[str, ...] = ()  # files of the run folder that it leaves when it is complete


@dataclass(frozen=True)
class PushPlan:
    """All kernels of a recipe, each behind those that it needs, and what they share."""

    name: str  # of the recipe
    owner: str
    run: str  # the run folder in every kernel, relative to Kaggle's working folder
    kernels: tuple[Kernel, ...]
    datasets: tuple[str, ...]  # owner/slug; the package first
    competitions: tuple[str, ...]


def plan_kernels(
    recipe: Recipe, *, name: str, owner: str, kernels: Path, datasets: Sequence[str] = (), whole: bool = False, competition: bool = False
) -> PushPlan:
    """The kernels of a recipe called `name`; `whole` makes the chain one kernel.

    `datasets`: owner/slug of further data sets, which stand for the competition's plates unless `competition` attaches
    it beside them. Raises InputError for a recipe that cannot run on Kaggle.
    """
    if competition and recipe.preset:
        recipe = recipe.model_copy(update={"preset": ""})  # attached plates win over it
    values = {**recipe.model_dump(), "run": _run(recipe.run), "data": recipe.data if recipe.data.startswith("/kaggle/input/") else ""}
    _check_data(recipe, datasets)
    _check_time(recipe.time_budget_minutes)
    if whole:
        planned = [Step(CHAIN, outputs=("submission.csv", "report.html"), notebook=kernels / CHAIN / f"{CHAIN}.ipynb")]
    else:
        planned = plans.plan(plans.Shape.of(recipe), cell_types(recipe), kernels=kernels)
    plans.check(recipe, kernels=kernels)
    made = [_kernel(step, values, name=name, gpu=recipe.device != "cpu") for step in planned]
    return PushPlan(
        name=name,
        owner=owner,
        run=values["run"],
        kernels=tuple(made),
        datasets=(f"{owner}/{utility_dataset.SLUG}", *map(_dataset, datasets)),
        competitions=(TASKS[recipe.task].competition,) if competition or not (recipe.preset or recipe.data or datasets) else (),
    )


def _kernel(step: Step, values: dict[str, Any], *, name: str, gpu: bool) -> Kernel:
    assert step.notebook is not None
    return Kernel(
        step=step.name,
        slug=slug(name, step.name),
        notebook=step.notebook,
        parameters=steps.parameters(step, values),
        gpu=gpu and step.name not in CPU_STEPS,
        code=step.code,
        needs=tuple(need for need in step.needs if need != "simulate"),
        cell_type=step.cell_type,
        outputs=step.outputs,
    )


def choose_kernels(plan: PushPlan, *, only: str = "", cell_type: str = "") -> tuple[Kernel, ...]:
    """The kernels of a plan that are one step (`3`, `3-train-cell-type` or `3-train-cell-type@U2OS`) or one cell type's."""
    chosen = tuple(kernel for kernel in plan.kernels if _is(kernel, only) and cell_type in ("", kernel.cell_type))
    if not chosen:
        asked = " ".join(filter(None, [only and f"--only {only}", cell_type and f"--cell-type {cell_type}"]))
        raise InputError("no such step", where=asked, cure=f"choose from {', '.join(kernel.step for kernel in plan.kernels)}")
    return chosen


def _is(kernel: Kernel, only: str) -> bool:
    return only in ("", kernel.step, kernel.step.partition("@")[0], kernel.step.partition("-")[0])


def cell_types(recipe: Recipe) -> list[str]:
    """The cell types that a recipe trains, as far as can be told without its plates; those with most wells first."""
    task, known = TASKS[recipe.task], _known(recipe)
    if not task.cell_types:
        return []
    if unknown := [name for name in recipe.cell_types if known and name not in known]:
        raise InputError(f"no cell type {unknown[0]}", where="cell_types", cure=f"choose from {', '.join(known)}")
    chosen = recipe.cell_types or known or task.cell_types
    if recipe.experiments:
        chosen = [name for name in chosen if name in _of_experiments(recipe.experiments)]
    if not chosen:
        what = f"no experiment of {', '.join(recipe.cell_types or known)} is named"
        raise InputError(what, where="experiments", cure="name others, or leave `cell_types` empty")
    return sorted(chosen, key=list(known).index if known else chosen.index)


def _known(recipe: Recipe) -> tuple[str, ...]:
    """All cell types that there can be; () for plates of the user's own."""
    if not recipe.preset:
        return () if recipe.data else TASKS[recipe.task].cell_types
    from cellsignal.data.microscope.simulate import PRESETS, presets_of  # pulls in SciPy

    if recipe.preset not in (drawn := presets_of(TASKS[recipe.task])):
        raise InputError(f"unknown preset {recipe.preset!r}", where="preset", cure=f"use one of: {', '.join(drawn)}")
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
        raise InputError(what, where="time_budget_minutes", cure=cure)


def _run(run: str) -> str:
    """The run folder as a relative POSIX path."""
    path = PurePosixPath(run)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise InputError(f"{run!r} is no folder below Kaggle's working folder", where="run", cure="write for example runs/first")
    return str(path)


def _dataset(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+/[A-Za-z0-9_-]+", name):
        raise InputError("no data set's name", where=f"--dataset {name}", cure="write OWNER/SLUG, as in its address on Kaggle")
    return name


def slug(name: str, step: str) -> str:
    """The slug of a step's kernel: 5 to 48 characters; a long recipe name is cut and told apart by a hash."""
    tail, head = _slugify(step), _slugify(name) or "run"
    room = SLUG - len(f"cellsignal--{tail}{SECOND}")
    if len(head) > room:
        mark = hashlib.sha256(name.encode()).hexdigest()[:3]
        head = f"{head[: max(room - 4, 0)].rstrip('-')}-{mark}".lstrip("-")
    if len(head) > room:
        raise InputError("its name is too long for Kaggle", where=step, cure="shorten the name of the cell type")
    return f"cellsignal-{head}-{tail}"


def _slugify(text: str) -> str:
    """The slug of any text; accents are dropped with everything else that is not ASCII."""
    return slugify(unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode())


# What a kernel that goes on says first: that what its earlier session left is mounted.


MISSING = "its earlier session is not mounted"


def expect_earlier(step: str) -> None:
    """Raise InputError unless an attached run holds what an earlier session of `step` left.

    Without it a kernel that was pushed to go on would begin from nothing, and nobody would see it for hours. The cell that
    asks is none of the notebook's own: it does not count as code of a training.
    """
    code_identity.notebook.begin()
    if not any(manifest.read(run, step) for run in mounts.runs()):
        raise InputError(MISSING, where=step, cure=mounts.names())


def expect_cell(step: str) -> str:
    """The source of the cell that says so."""
    return f"from cellsignal.kaggle.kernel_folders import expect_earlier\n\nexpect_earlier({step!r})  # pushed to go on, not to begin from nothing"


# A kernel as the client pushes it: one folder with the notebook, its parameters baked in, and every metadata key.


GPU = "NvidiaTeslaT4"  # both T4s of a session
LARGEST = 700_000  # bytes of a notebook that Kaggle was seen to take
_KEPT = ("kernelspec", "language_info")  # without a kernelspec the session dies at once


def render(
    folder: Path, plan: PushPlan, kernel: Kernel, *, slug: str = "", mounts: Sequence[str] | None = None, goes_on: bool = False
) -> Path:
    """Write the folder of a kernel and give it. InputError when the notebook is too large.

    `slug` and `mounts` (the slugs of the owner's kernels whose outputs it finds) are the plan's when not given;
    a kernel that `goes_on` fails at once when its earlier self is not among its mounts.
    """
    text = notebook_text(kernel.notebook, kernel.parameters, expects=kernel.step if goes_on else "")
    if len(text.encode()) > LARGEST:
        raise InputError(f"more than {LARGEST:,} bytes, which Kaggle refuses", where=kernel.notebook, cure="move code into the package")
    described = metadata(plan, kernel, slug=slug or kernel.slug, mounts=first_slugs(plan, kernel) if mounts is None else mounts)
    files.write_text(folder / described["code_file"], text)
    files.write_json(folder / KERNEL, described)
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


def notebook_text(path: Path, parameters: Mapping[str, Any], *, expects: str = "") -> str:
    """A notebook with `parameters` in a cell after its own, as papermill injects them, and nothing of where it was made.

    `expects`: the step whose earlier session has to be mounted; the cell after the one that finds the package says so.
    """
    notebook = notebooks.read(path)
    cells = [_bare(cell) for cell in notebook["cells"] if "injected-parameters" not in _tags(cell) and not colab.is_cell(cell)]
    place = next((number for number, cell in enumerate(cells) if "parameters" in _tags(cell)), None)
    if place is None:
        raise InputError("no cell is tagged `parameters`", where=path, cure="tag the cell that sets them")
    cells.insert(place + 1, _injected(parameters))
    if expects:
        begins = next(number for number, cell in enumerate(cells) if "cellsignal.start(" in "".join(cell["source"]))
        cells.insert(begins + 1, _code("expects-earlier", expect_cell(expects)))
    kept = {key: value for key, value in notebook["metadata"].items() if key in _KEPT}
    rendered = notebooks.normalise({**notebook, "cells": cells, "metadata": kept}, where=path)
    return json.dumps(rendered, indent=1, ensure_ascii=False) + "\n"


def _tags(cell: Mapping[str, Any]) -> list[str]:
    return cell["metadata"].get("tags", [])


def _bare(cell: Mapping[str, Any]) -> dict[str, Any]:
    """A cell without outputs, counts, what papermill noted of an execution, and the badge for Colab."""
    bare = {**cell, "metadata": {"tags": _tags(cell)} if _tags(cell) else {}}
    if cell["cell_type"] == "code":
        return bare | {"outputs": [], "execution_count": None}
    return bare | {"source": colab.without_badge("".join(cell["source"]))}


def _injected(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The cell that sets `parameters`; texts, numbers, booleans and lists of them are Python as they print."""
    lines = ["# Parameters", *(f"{name} = {value!r}" for name, value in parameters.items())]
    return _code("injected-parameters", "\n".join(lines))


def _code(name: str, source: str) -> dict[str, Any]:
    """A code cell; `name` is its tag and its id, of which papermill draws a random one: ours must not change from push to push."""
    return {"cell_type": "code", "execution_count": None, "id": name, "metadata": {"tags": [name]}, "outputs": [], "source": source}


def identities(plan: PushPlan) -> dict[str, str]:
    """By step, a SHA-256 over all that decides what its kernel makes: notebook, parameters, metadata, code, the steps before.

    Parameters that only say how fast it goes are left out, and so is every room of the package that the notebook does
    not use.
    """
    return _identities(plan, _made)


def works(plan: PushPlan) -> dict[str, str]:
    """By step, the same but for all code: whoever mends a comment goes on with what earlier sessions left.

    Whether that can be gone on with is for the fingerprints of checkpoints and scores to say.
    """
    return _identities(plan, lambda kernel, matter: matter)


def _made(kernel: Kernel, matter: Mapping[str, Any]) -> dict[str, Any]:
    return {"notebook": notebook_text(kernel.notebook, matter), "code": kernel.code, "runs": _runs(kernel)}


def _runs(kernel: Kernel) -> dict[str, str]:
    """The code of the notebooks that the whole chain as one kernel runs."""
    found = kernel.notebook.parents[1].glob("*/*.ipynb") if kernel.step == CHAIN else ()
    return {path.stem: code_identity.cells_digest(map(notebooks.source, notebooks.code_cells(path))) for path in sorted(found)}


def _identities(plan: PushPlan, made: Callable[[Kernel, Mapping[str, Any]], Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for kernel in plan.kernels:  # each stands behind those that it needs
        matter = {name: value for name, value in kernel.parameters.items() if name == "run" or name not in PATHS_AND_SPEED}
        parts = {
            "made": made(kernel, matter),
            "metadata": metadata(plan, kernel, slug=kernel.slug, mounts=first_slugs(plan, kernel)),
            "before": [found[need] for need in kernel.needs],
        }
        found[kernel.step] = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return found
