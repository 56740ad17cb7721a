"""The parameters of a run: one flat YAML file, every key known, every value of its type."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from cellsignal.errors import InputError

Names = list[str]


class Recipe(BaseModel):
    """Every parameter a run may set; names and meanings are those of the notebooks' parameters cells."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    data: str = Field("", description="folder of the data set; empty means <run>/data")
    preset: str = Field("", description="virtual microscope that fills `data` when it is not there yet")
    run: str = Field("", description="run folder; empty means runs/<name of the YAML file>")
    seed: int = Field(0, ge=0, lt=2**32, description="one seed for plates, splits, weights and batches")
    cell_types: Names = Field([], description="cell types to train; empty means all")
    experiments: Names = Field([], description="experiments to use; empty means all")
    split: Literal["experiment", "random"] = Field("experiment", description="what is held out from training")
    held_out: int = Field(1, ge=1, description="held-out experiments per cell type")
    # Spelt out, because learn.models.BACKBONES would bring PyTorch; a test keeps the two equal.
    backbone: Literal["densenet121", "densenet-small"] = Field("densenet121", description="network, by name")
    batch_size: int = Field(16, ge=2, description="sites per batch; one alone has no batch statistics")
    batches: Literal["plate", "experiment", "mixed"] = Field("plate", description="which wells share a batch")
    virtual_batch: int = Field(0, ge=0, description="sites per step of the optimiser; 0 means one batch")
    compare_batches: bool = Field(False, description="train once more from the same pretraining, without the virtual batch, for its rung")
    pretrain_epochs: int = Field(100, ge=0, description="epochs on the 31 control classes")
    head_epochs: int = Field(0, ge=0, description="epochs on the treatments that train the new head only")
    epochs: int = Field(375, ge=0, description="epochs on the treatments, the whole network")
    final_epochs: int = Field(0, ge=0, description="last epochs on all labelled wells, the held-out ones too")
    learning_rate: float = Field(1.0e-3, gt=0, description="of the optimiser, before its schedule")
    final_learning_rate: float = Field(1.0e-4, gt=0, description="of the last epochs, constant")
    mixup: float = Field(0.0, ge=0, description="alpha of MixUp in the last epochs; 0 means none")
    weight_decay: float = Field(0.0, ge=0, description="of the optimiser")
    schedule: Literal["steps", "cosine"] = Field("steps", description="how the learning rate falls")
    augment: Literal["d4", "none"] = Field("d4", description="flips and quarter turns, or nothing")
    plate_input: bool = Field(False, description="give the network the number of the plate as one-hot input")
    precision: Literal["auto", "fp32", "fp16", "bf16"] = Field("auto", description="of the arithmetic; auto asks the GPU")
    statistics: Literal["running", "batch", "adapted"] = Field(
        "adapted", description="whose batch-normalisation statistics the prediction uses"
    )
    scope: Literal["plate", "experiment"] = Field("plate", description="wells that share statistics")
    smallest_batch: int = Field(32, ge=2, description="of the batches over whose sizes `batch` averages")
    largest_batch: int = Field(128, ge=2, description="of the batches over whose sizes `batch` averages")
    passes: int = Field(1, ge=1, description="sizes from smallest to largest batch; Brodt took all 97")
    assignment: Literal["raw", "greedy", "exact", "expected"] = Field("expected", description="how siRNAs are chosen")
    groups: bool = Field(True, description="allow only the siRNAs of a plate's group")
    rotation_prior: float = Field(0.99, gt=0, lt=1, description="probability that groups lie rotated as in training")
    certainty: float = Field(0.95, gt=0, lt=1, description="least probability at which groups are believed")
    known_layouts: bool = Field(False, description="solve an experiment outright whose controls repeat a known layout")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where networks run")
    workers: int = Field(0, ge=0, description="processes that read images")
    parallel: int = Field(2, ge=1, description="notebooks at once")
    processes: int = Field(0, ge=0, description="training processes; 0 means one per GPU")
    time_budget_minutes: float = Field(
        0.0, ge=0, description="work stops cleanly in time and goes on at the next call; 0 means 11 hours on Kaggle, no limit elsewhere"
    )

    @field_validator("data", "run")
    @classmethod
    def _path(cls, name: str) -> str:
        if "\0" in name:
            raise ValueError("no path has a NUL character")
        return name

    @field_validator("virtual_batch")
    @classmethod
    def _holds_a_batch(cls, sites: int, info: ValidationInfo) -> int:
        if 0 < sites < info.data.get("batch_size", 0):
            raise ValueError(f"a virtual batch holds whole batches, here of {info.data['batch_size']}; 0 means none")
        return sites

    @field_validator("largest_batch")
    @classmethod
    def _at_least_the_smallest(cls, sites: int, info: ValidationInfo) -> int:
        if sites < info.data.get("smallest_batch", 0):
            raise ValueError(f"it is below smallest_batch, {info.data['smallest_batch']}")
        return sites

    @field_validator("compare_batches")
    @classmethod
    def _something_to_compare(cls, wanted: bool, info: ValidationInfo) -> bool:
        if wanted and not info.data.get("virtual_batch"):
            raise ValueError("without a virtual_batch there is nothing to compare")
        return wanted

    @field_validator("cell_types", "experiments")
    @classmethod
    def _named_once(cls, names: Names) -> Names:
        if len(set(names)) < len(names):
            raise ValueError("a name stands there twice")
        return names


def load(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a YAML file, let `key=value` texts override it, and check all before anything runs.

    An empty `run` becomes runs/<stem of the file>. Raises InputError with file, line and cure.
    """
    values, places = _read_yaml(Path(path))
    for text in overrides:
        key, value = _read_override(text)
        values[key], places[key] = value, f"-p {text}"
    values["run"] = values.get("run", "") or f"runs/{Path(path).stem}"
    return check(values, places=places, where=str(path))


def check(values: Mapping[str, Any], *, places: Mapping[str, str] = {}, where: str = "parameters") -> Recipe:
    """Make a Recipe of `values`; the first fault becomes an InputError that says where and how to mend it."""
    unknown = next((key for key in values if key not in Recipe.model_fields), None)
    if unknown is not None:
        raise InputError(f"unknown key {unknown!r}", where=places.get(unknown, where), cure=_nearest(unknown))
    try:
        return Recipe.model_validate(dict(values))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        key = str(fault["loc"][0])
        reason = fault["msg"].removeprefix("Value error, ")
        what = f"{key} is {values[key]!r}: {reason[0].lower()}{reason[1:]}"
        raise InputError(what, where=places.get(key, where), cure=_cure(key, values[key])) from None


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Values by key and `file:line` by key."""
    node = _compose(path)
    if node is None:
        return {}, {}
    if not isinstance(node, yaml.MappingNode):
        raise InputError("not a list of `key: value` lines", where=path, cure="write one parameter a line, such as `seed: 0`")
    places: dict[str, str] = {}
    for key, _ in node.value:
        place = f"{path}:{key.start_mark.line + 1}"
        if key.value in places:
            raise InputError(f"{key.value!r} is set twice", where=place, cure=f"keep this or {places[key.value]}")
        places[str(key.value)] = place
    return {str(key): value for key, value in yaml.safe_load(path.read_text(encoding="utf-8")).items()}, places


def _compose(path: Path) -> yaml.Node | None:
    """The file's YAML tree, after a trial of its values; faults name their line."""
    try:
        text = path.read_text(encoding="utf-8")
        yaml.safe_load(text)
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except FileNotFoundError:
        raise InputError("no such file", where=path, cure="name one of papermill_params/*.yaml") from None
    except IsADirectoryError:
        raise InputError("is a folder", where=path, cure="name one of the YAML files in it") from None
    except UnicodeDecodeError:
        raise InputError("not UTF-8 text", where=path, cure="save it as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        place = f"{path}:{error.problem_mark.line + 1}" if error.problem_mark else path
        raise InputError(f"not YAML ({error.problem})", where=place, cure="write `key: value`, one a line") from None
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise InputError(f"not YAML ({error})", where=path, cure="write `key: value`, one a line") from None


def _read_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError("not key=value", where=f"-p {text}", cure="write for example -p seed=1")
    try:
        return key.strip(), yaml.safe_load(value) if value.strip() else ""
    except (yaml.YAMLError, ValueError):  # 2001-99-99 is a date for YAML, and none for Python
        raise InputError("the value is not YAML", where=f"-p {text}", cure="write for example -p 'cell_types=[U2OS]'") from None


def _nearest(key: str) -> str:
    known = list(Recipe.model_fields)
    near = get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"


def _cure(key: str, value: Any) -> str:
    """How to write `value` so that it fits `key`."""
    field = Recipe.model_fields[key]
    kind = field.annotation
    if value is None:
        return f"give it a value, or leave the line out for {field.default!r}"
    if kind in (float, int) and isinstance(value, str):
        return _number(value, kind)
    if kind is str and isinstance(value, str):
        return "name another folder"
    if kind is str:
        return f'write it in quotes: {key}: "{value}"'
    if kind == Names:
        example = "[HUVEC, U2OS]" if key == "cell_types" else "[U2OS-01, U2OS-02]"
        return f"write a list of different names, such as {key}: {example}"
    if kind is bool:
        return f"write {key}: true or {key}: false"
    return f"write for example {key}: {field.default}"


def _number(text: str, kind: type) -> str:
    """YAML reads 1e-3 as text, because its numbers need a dot: say how to write the same number."""
    try:
        number = kind(float(text))
    except (ValueError, OverflowError):
        return "write a number without quotes"
    mantissa, e, exponent = text.strip().lower().partition("e")
    dotted = f"{float(mantissa)}e{exponent if exponent[:1] in '+-' else '+' + exponent}" if e else number
    return f"write {number if kind is int else dotted}"

