"""The search space of a sweep: a YAML file of variants, a grid, or ranges to search."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cellsignal import settings
from cellsignal.errors import InputError
from cellsignal.run import environment, recipe
from cellsignal.run.chain import plans
from cellsignal.run.recipe import Recipe

if TYPE_CHECKING:
    from optuna.trial import Trial

SWEEP_KINDS = ("variants", "grid", "search")
SHARED_KEYS = ("task", "data", "preset", "run", "seed")  # the same in all trials, or set by the sweep
MAX_NAME_LENGTH = 80  # of a variant, whose folder has this name


@dataclass(frozen=True)
class Variant:
    """One set of parameters: its name, its YAML file, and the keys that differ from it."""

    name: str
    params: Path
    changes: Mapping[str, Any]

    @property
    def slug(self) -> str:
        """Its name in a form that a folder can have."""
        return re.sub(r"[^\w.=+-]+", "-", self.name).strip("-.") or "variant"


@dataclass(frozen=True)
class Space:
    """The content of the file: `variants` and `grid` as Variants, `search` as ranges by key, and the measure that chooses the best."""

    kind: str
    path: Path
    measure: str  # "" for the default
    variants: tuple[Variant, ...] = ()
    ranges: Mapping[str, Mapping[str, Any]] | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The parameters that every trial sets: those of a grid or a search."""
        return tuple(self.ranges or (self.variants[0].changes if self.kind == "grid" else ()))

    def lines(self) -> dict[str, str]:
        """`file:line` of each key in the file, by the keys above it and its own, joined by dots."""
        return dict(recipe.key_locations(recipe.load_yaml(self.path)[0], self.path))


def read(path: Path, *, params: Path) -> Space:
    """Read the search space of a sweep of the recipe `params`.

    Raises InputError, which names the line, when the file is not of this form; `values` checks the parameters.
    """
    content, lines = _read_file(Path(path))
    kind = _only_kind(content, lines, path)
    measure = str(content.get("measure", ""))
    tried = _mapping(content[kind], where=lines[kind])
    if kind == "search":
        return Space(kind, Path(path), measure, ranges=tried)
    variants = _grid(tried, params, lines) if kind == "grid" else _variants(tried, params, lines, folder=Path(path).parent)
    _check_names(variants, lines, kind)
    return Space(kind, Path(path), measure, tuple(variants))


def values(variant: Variant, *, seed: int, overrides: Iterable[str] = (), lines: Mapping[str, str] = {}) -> dict[str, Any]:
    """Every parameter of a trial: the variant's YAML file, the overrides, what the variant changes, and the seed.

    `lines`: `file:line` by `variants.NAME.KEY` or `grid.KEY`.
    """
    base, locations = recipe.read(variant.params, overrides)
    for key in variant.changes:
        locations[key] = lines.get(f"variants.{variant.name}.{key}", lines.get(f"grid.{key}", variant.name))
        if key in SHARED_KEYS:
            cure = "set it in the recipe, or use --seeds" if key == "seed" else "set it in the recipe that the sweep starts from"
            raise InputError(f"{key} is the same for all trials", where=locations[key], cure=cure)
    checked = recipe.check({**settings.update(base, variant.changes), "seed": seed}, locations=locations, where=str(variant.params))
    plans.check(checked, kernels=environment.kernels_folder())
    return checked.model_dump()


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The content of the file, and `file:line` by key."""
    tree, content = recipe.load_yaml(path)
    if not isinstance(tree, yaml.MappingNode):
        raise InputError("not a list of `key: value` lines", where=path, cure=f"begin with one of: {', '.join(SWEEP_KINDS)}")
    lines: dict[str, str] = {}
    for key, line in recipe.key_locations(tree, path):
        if key in lines:
            raise InputError(f"{key!r} stands there twice", where=line, cure=f"keep this or {lines[key]}")
        lines[key] = line
    return content, lines


def _only_kind(content: Mapping[str, Any], lines: Mapping[str, str], path: Path) -> str:
    unknown = [key for key in content if key not in (*SWEEP_KINDS, "measure")]
    if unknown:
        raise InputError(f"unknown key {unknown[0]!r}", where=lines[str(unknown[0])], cure=f"known keys: {', '.join(SWEEP_KINDS)}, measure")
    kinds = [key for key in SWEEP_KINDS if key in content]
    if len(kinds) != 1:
        named = " and ".join(kinds) or "neither variants, grid nor search"
        raise InputError(f"holds {named}", where=path, cure=f"keep exactly one of: {', '.join(SWEEP_KINDS)}")
    return kinds[0]


def _mapping(content: Any, *, where: str) -> dict[str, Any]:
    if not isinstance(content, dict) or not content:
        raise InputError("nothing to try", where=where, cure="put `name: ...` lines below it, indented")
    return {str(key): value for key, value in content.items()}


def _variants(content: Mapping[str, Any], params: Path, lines: Mapping[str, str], *, folder: Path) -> list[Variant]:
    variants = []
    for name, changes in content.items():
        line = lines.get(f"variants.{name}", lines["variants"])
        if changes is not None and not isinstance(changes, dict):
            raise InputError(f"{name} is {changes!r}", where=line, cure=f"write {name}: {{training.epochs: 10}}, or {name}: {{}}")
        changes = {str(key): value for key, value in (changes or {}).items()}
        recipe_name = changes.pop("recipe", None)
        variant_params = params if recipe_name is None else _recipe_path(recipe_name, params, folder, where=line)
        variants.append(Variant(name, variant_params, settings.flatten(changes)))
    return variants


def _recipe_path(name: Any, params: Path, folder: Path, *, where: str) -> Path:
    """The YAML file that a variant names: beside the file of the sweep, beside its recipe, or in the current folder."""
    paths = [parent / environment.expand_path(str(name)) for parent in (folder, params.parent, Path())]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise InputError(f"no recipe {name}", where=where, cure=f"put it into {folder}, or give its path")
    return path


def _grid(content: Mapping[str, Any], params: Path, lines: Mapping[str, str]) -> list[Variant]:
    """Every combination of the listed values."""
    for key, values in content.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"{key} is {values!r}", where=lines[f"grid.{key}"], cure=f"write a list of values, such as {key}: [1, 2]")
    rows = [dict(zip(content, row)) for row in product(*content.values())]
    return [Variant(",".join(f"{key.rpartition('.')[2]}={_short_text(value)}" for key, value in row.items()), params, row) for row in rows]


def _short_text(value: Any) -> str:
    return "+".join(map(_short_text, value)) if isinstance(value, list) else str(value).lower() if isinstance(value, bool) else str(value)


def _check_names(variants: Iterable[Variant], lines: Mapping[str, str], kind: str) -> None:
    names_by_slug: dict[str, str] = {}
    for variant in variants:
        line = lines.get(f"{kind}.{variant.name}", lines[kind])
        if not variant.name.isprintable():
            raise InputError(f"the name {variant.name!r} has characters that cannot be shown", where=line, cure="rename it")
        if len(variant.slug) > MAX_NAME_LENGTH:
            raise InputError(f"the name {variant.name[:20]}… is longer than {MAX_NAME_LENGTH} characters", where=line, cure="list it as one of `variants`, with a short name")
        if variant.slug in names_by_slug:
            raise InputError(f"{variant.name!r} and {names_by_slug[variant.slug]!r} make the same folder", where=line, cure="rename one")
        names_by_slug[variant.slug] = variant.name


# The ranges and choices of a search, checked with the recipe before anything runs.


RANGE_CURE = "write {low: 1.0e-4, high: 1.0e-2, log: true}, {low: 2, high: 8, step: 2} or {choices: [adam, sgd]}"


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, or one of `choices`."""

    key: str
    low: float = 0
    high: float = 0
    log: bool = False
    step: float | None = None
    choices: tuple[Any, ...] = ()

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that are checked: if they are valid, so are those between them."""
        return self.choices or (self.low, self.high)

    def suggest(self, trial: "Trial") -> Any:
        """The value that Optuna suggests for a trial, or suggested before."""
        if self.choices:  # as JSON, because Optuna stores no lists
            return json.loads(trial.suggest_categorical(self.key, [json.dumps(choice) for choice in self.choices]))
        if isinstance(self.low, int):
            return trial.suggest_int(self.key, self.low, self.high, log=self.log, step=int(self.step or 1))
        return trial.suggest_float(self.key, self.low, self.high, log=self.log, step=self.step)


def ranges(space: Space, *, base: Mapping[str, Any]) -> list[Range]:
    """The ranges of a file with `search`; every end must be valid in the recipe whose values are `base`.

    Raises InputError with the invalid line.
    """
    lines = space.lines()
    all_ranges = [_range(key, content, where=lines.get(f"search.{key}", str(space.path))) for key, content in (space.ranges or {}).items()]
    for one_range in all_ranges:
        key = one_range.key
        for value in one_range.ends:
            checked = recipe.check(settings.update(base, {key: value}), locations={key: lines[f"search.{key}"]}, where=str(space.path))
            plans.check(checked, kernels=environment.kernels_folder())
    return all_ranges


def _range(key: str, content: Any, *, where: str) -> Range:
    if key in SHARED_KEYS:
        raise InputError(f"{key} is the same for all trials", where=where, cure="leave it out of the search")
    if isinstance(content, dict) and set(content) == {"choices"} and isinstance(content["choices"], list) and content["choices"]:
        return Range(key, choices=tuple(content["choices"]))
    if not isinstance(content, dict) or not {"low", "high"} <= set(content) <= {"low", "high", "log", "step"}:
        raise InputError(f"{key} is {content!r}", where=where, cure=RANGE_CURE)
    return _number_range(key, content, where=where)


def _number_range(key: str, content: Mapping[str, Any], *, where: str) -> Range:
    """A range of numbers, as floats where the recipe has a float."""
    numbers = {name: content[name] for name in ("low", "high", "step") if content.get(name) is not None}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{name} of {key} is {value!r}", where=where, cure="write a number, with a dot where it has an exponent: 1.0e-4")
    log = content.get("log", False)
    if key in settings.keys(Recipe) and settings.field(Recipe, key).annotation is float:
        numbers = {name: float(value) for name, value in numbers.items()}
    if isinstance(numbers["low"], int) and not all(isinstance(value, int) for value in numbers.values()):
        raise InputError(f"{key} is {dict(content)!r}", where=where, cure="write whole numbers for low, high and step")
    if type(log) is not bool or numbers["low"] >= numbers["high"] or numbers.get("step", 1) <= 0 or (log and (numbers["low"] <= 0 or "step" in numbers)):
        raise InputError(f"{key} is {dict(content)!r}", where=where, cure="low is below high; a range with log: true is above 0 and has no step")
    return Range(key, log=log, **numbers)
