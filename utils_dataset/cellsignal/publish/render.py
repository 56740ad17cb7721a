"""A kernel as the client pushes it: one folder with the notebook, its parameters baked in, and every metadata key."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cellsignal import code_identity, files
from cellsignal.errors import InputError
from cellsignal.publish import colab, earlier
from cellsignal.publish.metadata import KERNEL
from cellsignal.publish.order import CHAIN, Kernel, Plan
from cellsignal.run import notebooks
from cellsignal.run.steps import PATHS_AND_SPEED

GPU = "NvidiaTeslaT4"  # both T4s of a session
LARGEST = 700_000  # bytes of a notebook that Kaggle was seen to take
_KEPT = ("kernelspec", "language_info")  # without a kernelspec the session dies at once


def render(
    folder: Path, plan: Plan, kernel: Kernel, *, slug: str = "", mounts: Sequence[str] | None = None, goes_on: bool = False
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


def first_slugs(plan: Plan, kernel: Kernel) -> list[str]:
    """The slugs of the steps before a kernel, as planned."""
    return [other.slug for other in plan.kernels if other.step in kernel.needs]


def metadata(plan: Plan, kernel: Kernel, *, slug: str, mounts: Sequence[str]) -> dict[str, Any]:
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
    cells = [_bare(cell) for cell in notebook["cells"] if "injected-parameters" not in _tags(cell)]
    place = next((number for number, cell in enumerate(cells) if "parameters" in _tags(cell)), None)
    if place is None:
        raise InputError("no cell is tagged `parameters`", where=path, cure="tag the cell that sets them")
    cells.insert(place + 1, _injected(parameters))
    if expects:
        begins = next(number for number, cell in enumerate(cells) if "session.begin(" in "".join(cell["source"]))
        cells.insert(begins + 1, _code("expects-earlier", earlier.cell(expects)))
    kept = {key: value for key, value in notebook["metadata"].items() if key in _KEPT}
    rendered = notebooks.normalise({**notebook, "cells": cells, "metadata": kept}, where=path)
    return json.dumps(rendered, indent=1, ensure_ascii=False) + "\n"


def _tags(cell: Mapping[str, Any]) -> list[str]:
    return cell["metadata"].get("tags", [])


def _bare(cell: Mapping[str, Any]) -> dict[str, Any]:
    """A cell without outputs, counts, what papermill noted of an execution, and the badge of Colab."""
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


def identities(plan: Plan) -> dict[str, str]:
    """By step, a SHA-256 over all that decides what its kernel makes: notebook, parameters, metadata, code, the steps before.

    Parameters that only say how fast it goes are left out, and so is every room of the package that the notebook does
    not use.
    """
    return _identities(plan, _made)


def works(plan: Plan) -> dict[str, str]:
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


def _identities(plan: Plan, made: Callable[[Kernel, Mapping[str, Any]], Any]) -> dict[str, str]:
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
