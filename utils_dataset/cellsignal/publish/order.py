"""The kernels of a recipe: one a step, what each is called on Kaggle, and whose outputs it mounts."""

import hashlib
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cellsignal.errors import InputError
from cellsignal.publish import utilities
from cellsignal.publish.metadata import slugify
from cellsignal.run import paths, plans, steps
from cellsignal.run.recipe import Recipe
from cellsignal.run.steps import Step
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
class Plan:
    """All kernels of a recipe, each behind those that it needs, and what they share."""

    name: str  # of the recipe
    owner: str
    run: str  # the run folder in every kernel, relative to Kaggle's working folder
    kernels: tuple[Kernel, ...]
    datasets: tuple[str, ...]  # owner/slug; the package first
    competitions: tuple[str, ...]


def plan(
    recipe: Recipe, *, name: str, owner: str, kernels: Path, datasets: Sequence[str] = (), whole: bool = False, competition: bool = False
) -> Plan:
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
    return Plan(
        name=name,
        owner=owner,
        run=values["run"],
        kernels=tuple(made),
        datasets=(f"{owner}/{utilities.SLUG}", *map(_dataset, datasets)),
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


def choose(plan: Plan, *, only: str = "", cell_type: str = "") -> tuple[Kernel, ...]:
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
    from cellsignal.data.simulate import PRESETS, presets_of  # pulls in SciPy

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
    if minutes > paths.LONGEST_MINUTES:
        what = f"{minutes:g} minutes, and Kaggle ends a session after 12 hours"
        cure = f"write {paths.LONGEST_MINUTES:g} or less, or 0 for 11 hours; --until-done goes on in further sessions"
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
