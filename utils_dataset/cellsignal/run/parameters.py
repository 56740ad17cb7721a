"""A notebook's parameters, however they were set, checked by the recipe's rules before the notebook does anything."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationInfo, field_validator

from cellsignal import code_identity, settings
from cellsignal.errors import InputError
from cellsignal.files import is_plain
from cellsignal.profiles.settings import ProfileSettings
from cellsignal.run import recipe
from cellsignal.run.recipe import ALL, Recipe
from cellsignal.settings import Names, Settings
from cellsignal.tasks import TASKS


class MeasurementSettings(Settings):
    """With which sites, and how often, each thing is measured."""

    sites: int = Field(64, ge=2, multiple_of=2, description="an even number; where there are fewer, turned copies fill up")
    image_size: int = Field(512, ge=16, description="side of drawn sites, in px")
    network_size: int = Field(0, ge=0, description="side of what the network sees, in px; 0: as stored on a GPU, 64 on a CPU")
    rounds: int = Field(5, ge=1, description="measurements of each thing, in another order every time")
    seconds: float = Field(1.0, ge=0, description="that each measurement lasts at least")


INJECTED = "# Parameters"  # the first line of the cell that papermill inserts after the notebook's own parameters
PAPERMILL_PREFIX = "PAPERMILL_"  # of the names that its option --inject-paths adds
WHERE = "parameters"


class NotebookParameters(Recipe):
    """A recipe's parameters, and those that only notebooks have."""

    cell_type: str = Field("all", description="cell type of the network; all: one network for all of them")
    network_name: str = Field("model", description="name of the network's weights")
    start_from: Literal["", "weights", "scores"] = Field("", description="what lies in the run folder and is not made again")
    score_only: Names = Field([], description="experiments to score, and decide nothing; empty means score all, and decide", examples=[["U2OS-03"]])
    runs: Names = Field([], description="run folders to compare", examples=[["runs/demo", "runs/second"]])
    table: str = Field("", description="table of profiles; empty means the embeddings of a run")
    random_table: str = Field("", description="the same wells by a network with random weights; empty means none")
    profile: ProfileSettings = Field(default_factory=ProfileSettings, description="how profiles are corrected and measured")
    measurement: MeasurementSettings = Field(default_factory=MeasurementSettings, description="how a machine is measured")

    @field_validator("cell_type", "network_name")
    @classmethod
    def _check_plain_name(cls, name: str, info: ValidationInfo) -> str:
        if not is_plain(name) and (name or info.field_name == "network_name"):  # notebooks about no cell type have an empty one
            raise ValueError("it names a file: use letters, digits and any of _.+-, a letter or digit first")
        return name


class CheckedParameters(NamedTuple):
    """The parameters of a notebook after all checks."""

    recipe: Recipe  # with the defaults of what the notebook leaves out
    notebook_only: dict[str, Any]  # those that a recipe does not have
    given: dict[str, Any]  # the values that the notebook or its user set, by dotted key


def check(namespace: Mapping[str, Any]) -> CheckedParameters:
    """The recipe that a notebook's variables make; what they leave out has its default.

    `namespace`: the notebook's variables, among them IPython's `In`, the cells that have run; without it no name is unknown. Of a
    group that is injected, as `papermill -f RECIPE.yaml` does, all keys count as set. Raises InputError for a value that breaks a
    rule, and for an injected name that is neither the recipe's nor the notebook's.
    """
    cells = list(reversed(namespace.get("In", ())))
    injected = next((_assigned_names(text) for text in cells if text.startswith(INJECTED)), [])
    # The cell of the notebook's own parameters assigns `run`.
    in_notebook = next((names for text in cells if not text.startswith(INJECTED) and "run" in (names := _assigned_names(text))), [])
    known = [*Recipe.model_fields, *(in_notebook or NotebookParameters.model_fields)]
    unknown = next((name for name in injected if name not in known and not name.startswith(PAPERMILL_PREFIX)), None)
    if unknown is not None:
        cure = settings.unknown_key_advice(unknown, Recipe, renamed=recipe.RENAMED_KEYS, other_keys=in_notebook)
        raise InputError(f"unknown parameter {unknown!r}", where=WHERE, cure=cure)
    assigned = {*in_notebook, *injected} or set(namespace)
    values = {name: namespace[name] for name in NotebookParameters.model_fields if name in assigned and name in namespace}
    checked = recipe.check(values, model=NotebookParameters, where=WHERE, example=_papermill_example)
    whole_recipe = Recipe.model_construct(**{name: getattr(checked, name) for name in Recipe.model_fields})
    set_by_key = {key for key in settings.flatten(values) if key.partition(".")[0] not in injected}
    given = {key: value for key, value in settings.flatten(checked.model_dump()).items() if key in set_by_key or key.partition(".")[0] in injected}
    cell_types = [name for name in (*whole_recipe.wells.cell_types, values.get("cell_type", ALL)) if name not in ("", ALL)]
    if cell_types and not whole_recipe.data:
        from cellsignal.run import inputs, mounts  # pulls in pandas

        if not mounts.data_sets(TASKS[whole_recipe.task]):  # these take precedence over the preset, and have cell types of their own
            inputs.check_cell_types(cell_types, run=whole_recipe.run, preset=whole_recipe.preset, where=WHERE)
    return CheckedParameters(whole_recipe, {name: value for name, value in values.items() if name not in Recipe.model_fields}, given)


def _assigned_names(cell: str) -> list[str]:
    """The names that a cell assigns; none where it is not Python."""
    try:
        return list(code_identity.assigned_names(cell))
    except SyntaxError:
        return []


def _papermill_example(key: str, value: Any) -> str:
    """How to pass a group or a list to papermill, whose option -p passes every value as text."""
    if not isinstance(value, str):
        return ""
    setting = settings.field(NotebookParameters, key)
    if group := settings.group_of(NotebookParameters, key):
        first = next(iter(group.model_fields))
        return f" (papermill: -y '{key}: {{{first}: {group.model_fields[first].default}}}')"
    return f" (papermill: -y '{key}: {settings.list_example(setting)}')" if setting.annotation in (Names, list[int]) and "." not in key else ""
