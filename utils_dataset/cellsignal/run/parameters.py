"""A notebook's parameters, whoever set them, held to the recipe's rules before the notebook does anything."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from pydantic import Field, field_validator

from cellsignal import settings
from cellsignal.bench.settings import MeasurementSettings
from cellsignal.code_identity import assigned
from cellsignal.errors import InputError
from cellsignal.files import is_plain
from cellsignal.run import recipe
from cellsignal.run.chain.plans import ALL
from cellsignal.run.recipe import Recipe
from cellsignal.settings import Names
from cellsignal.tasks import TASKS

INJECTED = "# Parameters"  # how the cell begins that papermill puts after the notebook's own
OF_PAPERMILL = "PAPERMILL_"  # how the names begin that its option --inject-paths adds
WHERE = "parameters"


class NotebookParameters(Recipe):
    """A recipe's parameters, and those that only notebooks have."""

    cell_type: str = Field("all", description="cell type of the network; all: one network for all of them")
    network_name: str = Field("model", description="name of the network's weights")
    stored: Literal["", "weights", "scores"] = Field("", description="what lies in the run folder and is not made again")
    scored: Names = Field([], description="experiments to score, and decide nothing; empty means score all, and decide", examples=[["U2OS-03"]])
    runs: Names = Field([], description="run folders to compare", examples=[["runs/demo", "runs/second"]])
    measurement: MeasurementSettings = Field(default_factory=MeasurementSettings, description="how a machine is measured")

    @field_validator("cell_type", "network_name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if name and not is_plain(name):
            raise ValueError("it names a file: use letters, digits and any of _.+-, a letter or digit first")
        return name


class Checked(NamedTuple):
    """A notebook's parameters: the whole recipe, and by dotted key the values that somebody gave."""

    recipe: Recipe
    own: dict[str, Any]  # those that only this notebook has
    given: dict[str, Any]


def check(namespace: Mapping[str, Any]) -> Checked:
    """The recipe that a notebook's variables make; what they leave out has its default.

    `namespace`: the notebook's variables, among them IPython's `In`, the cells that have run; without it no name is unknown. A
    group that is injected, as `papermill -f RECIPE.yaml` does, is given as a whole. Raises InputError for a value that breaks a
    rule, and for an injected name that neither recipe nor notebook knows.
    """
    cells = list(reversed(namespace.get("In", ())))
    injected = next((_assigned(text) for text in cells if text.startswith(INJECTED)), [])
    own = next((names for text in cells if not text.startswith(INJECTED) and "run" in (names := _assigned(text))), [])
    known = [*Recipe.model_fields, *(own or NotebookParameters.model_fields)]
    unknown = next((name for name in injected if name not in known and not name.startswith(OF_PAPERMILL)), None)
    if unknown is not None:
        cure = settings.nearest(unknown, Recipe, known_as=recipe.FORMERLY, others=own)
        raise InputError(f"unknown parameter {unknown!r}", where=WHERE, cure=cure)
    set_here = {*own, *injected} or set(namespace)
    values = {name: namespace[name] for name in NotebookParameters.model_fields if name in set_here and name in namespace}
    checked = recipe.check(values, model=NotebookParameters, where=WHERE, example=_with_papermill)
    whole = Recipe.model_construct(**{name: getattr(checked, name) for name in Recipe.model_fields})
    dumped = settings.flat(checked.model_dump())
    shown = {key for key in settings.flat(values) if key.partition(".")[0] not in injected}
    given = {key: value for key, value in dumped.items() if key in shown or key.partition(".")[0] in injected}
    named = [name for name in (*whole.wells.cell_types, values.get("cell_type", ALL)) if name not in ("", ALL)]
    if named and not whole.data:
        _check_drawn(named, whole)
    return Checked(whole, {name: values[name] for name in values if name not in Recipe.model_fields}, given)


def _check_drawn(cell_types: Names, checked: Recipe) -> None:
    from cellsignal.run import inputs, mounts  # pulls in pandas

    if not mounts.data_sets(TASKS[checked.task]):  # these win over the preset, and have cell types of their own
        inputs.check_cell_types(cell_types, preset=checked.preset, where=WHERE)


def _assigned(cell: str) -> list[str]:
    """The names that a cell assigns; none of one that is no Python."""
    try:
        return list(assigned(cell))
    except SyntaxError:
        return []


def _with_papermill(key: str, value: Any) -> str:
    """How papermill is given a group or a list: its option -p passes words as text."""
    if not isinstance(value, str):
        return ""
    setting = settings.field(NotebookParameters, key)
    if group := settings.group_of(NotebookParameters, key):
        first = next(iter(group.model_fields))
        return f" (papermill: -y '{key}: {{{first}: {group.model_fields[first].default}}}')"
    return f" (papermill: -y '{key}: {settings.list_example(setting)}')" if setting.annotation in (Names, list[int]) and "." not in key else ""
