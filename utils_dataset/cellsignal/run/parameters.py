"""A notebook's parameters, whoever set them, held to the recipe's rules before the notebook does anything."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from cellsignal.code_identity import assigned
from cellsignal.errors import InputError
from cellsignal.files import is_plain
from cellsignal.run import recipe
from cellsignal.run.chain.plans import ALL
from cellsignal.run.recipe import Names, Recipe
from cellsignal.tasks import TASKS

INJECTED = "# Parameters"  # how the cell begins that papermill puts after the notebook's own
OF_PAPERMILL = "PAPERMILL_"  # how the names begin that its option --inject-paths adds
WHERE = "parameters"


class NotebookParameters(Recipe):
    """A recipe's parameters, and those that only notebooks have."""

    cell_type: str = Field("all", description="cell type of the network; all: one network for all of them")
    network: str = Field("model", description="name of the network's weights")
    stored: Literal["", "weights", "scores"] = Field("", description="what lies in the run folder and is not made again")
    scored: Names = Field([], description="experiments to score, and decide nothing; empty means score all, and decide")
    runs: Names = Field([], description="run folders to compare")
    sites: int = Field(64, ge=2, multiple_of=2, description="sites that the benchmark measures with")
    image_size: int = Field(512, ge=16, description="side of drawn sites, in px")
    network_size: int = Field(0, ge=0, description="side of what the network sees, in px; 0 means as the device affords")
    rounds: int = Field(5, ge=1, description="measurements of each thing")
    seconds: float = Field(1.0, ge=0, description="that each measurement lasts at least")

    @field_validator("cell_type", "network")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if name and not is_plain(name):
            raise ValueError("it names a file: use letters, digits and any of _.+-, a letter or digit first")
        return name

    @field_validator("compare_batches")
    @classmethod
    def _something_to_compare(cls, wanted: bool) -> bool:
        return wanted  # the notebook that predicts does not know the virtual batch


def check(namespace: Mapping[str, Any]) -> NotebookParameters:
    """A notebook's parameters; refused is one that breaks a rule of the recipe, and an injected one that neither recipe nor notebook knows.

    `namespace`: the notebook's variables, among them IPython's `In`, the cells that have run; without it no name is unknown.
    A recipe's other parameters may be injected too, as `papermill -f RECIPE.yaml` does. Raises InputError.
    """
    cells = list(reversed(namespace.get("In", ())))
    injected = next((_assigned(text) for text in cells if text.startswith(INJECTED)), [])
    own = next((names for text in cells if not text.startswith(INJECTED) and "run" in (names := _assigned(text))), [])
    known = [*Recipe.model_fields, *(own or NotebookParameters.model_fields)]
    unknown = next((name for name in injected if name not in known and not name.startswith(OF_PAPERMILL)), None)
    if unknown is not None:
        raise InputError(f"unknown parameter {unknown!r}", where=WHERE, cure=recipe.nearest(unknown, own or known))
    set_here = {*own, *injected} or set(namespace)
    values = {name: namespace[name] for name in NotebookParameters.model_fields if name in set_here and name in namespace}
    checked = recipe.check(values, model=NotebookParameters, where=WHERE, example=_with_papermill)
    named = [name for name in (*values.get("cell_types", []), values.get("cell_type", ALL)) if name not in ("", ALL)]
    if named and not values.get("data"):
        from cellsignal.run import inputs, mounts  # pulls in pandas

        if not mounts.data_sets(TASKS[values.get("task", "rxrx1")]):  # these win over the preset, and have cell types of their own
            inputs.check_cell_types(named, preset=values.get("preset", ""), where=WHERE)
    return checked


def _assigned(cell: str) -> list[str]:
    """The names that a cell assigns; none of one that is no Python."""
    try:
        return list(assigned(cell))
    except SyntaxError:
        return []


def _with_papermill(key: str, value: Any) -> str:
    """How papermill is given a truth or a list: its option -p passes words as text."""
    kind = NotebookParameters.model_fields[key].annotation
    if not isinstance(value, str) or kind not in (bool, Names, list[int]):
        return ""
    return f" (papermill: -p {key} False, or -y '{key}: false')" if kind is bool else f" (papermill: -y '{key}: {recipe.list_example(key)}')"
