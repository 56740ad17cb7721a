"""What a sweep tries: a YAML file of variants, a grid, or ranges to search."""

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

KINDS = ("variants", "grid", "search")
SHARED = ("task", "data", "preset", "run", "seed")  # what the trials have in common, or the sweep decides
LONGEST = 80  # characters of a name: it becomes a folder's


@dataclass(frozen=True)
class Variant:
    """One set of parameters: its name, its YAML file, and the keys that differ from it."""

    name: str
    params: Path
    changes: Mapping[str, Any]

    @property
    def slug(self) -> str:
        """Its name as that of a folder."""
        return re.sub(r"[^\w.=+-]+", "-", self.name).strip("-.") or "variant"


@dataclass(frozen=True)
class Space:
    """A file of things to try: `variants` and `grid` as Variants, `search` as ranges by key; what decides between them."""

    kind: str
    path: Path
    measure: str  # "" for the usual one
    variants: tuple[Variant, ...] = ()
    ranges: Mapping[str, Mapping[str, Any]] | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The parameters that every trial sets: those of a grid or a search."""
        return tuple(self.ranges or (self.variants[0].changes if self.kind == "grid" else ()))

    def lines(self) -> dict[str, str]:
        """`file:line` of each key in the file, by the names on the way to it, joined by dots."""
        return dict(recipe.key_places(recipe.load_file(self.path)[0], self.path))


def read(path: Path, *, params: Path) -> Space:
    """Read a file of things to try with the recipe `params`.

    Raises InputError, which names the line, when it is no such file; what its keys are set to is checked by `values`.
    """
    given, where = _top(Path(path))
    kind = _one_kind(given, where, path)
    measure = str(given.get("measure", ""))
    content = _mapping(given[kind], where=where[kind])
    if kind == "search":
        return Space(kind, Path(path), measure, ranges=content)
    listed = _grid(content, params, where) if kind == "grid" else _variants(content, params, where, folder=Path(path).parent)
    _distinct(listed, where, kind)
    return Space(kind, Path(path), measure, tuple(listed))


def values(variant: Variant, *, seed: int, overrides: Iterable[str] = (), where: Mapping[str, str] = {}) -> dict[str, Any]:
    """Every parameter of a trial: the variant's YAML file, the overrides, what the variant changes, and the seed.

    `where` tells the line of a key by `variants.NAME.KEY` or `grid.KEY`.
    """
    given, places = recipe.read(variant.params, overrides)
    for key in variant.changes:
        places[key] = where.get(f"variants.{variant.name}.{key}", where.get(f"grid.{key}", variant.name))
        if key in SHARED:
            cure = "set it in the recipe, or use --seeds" if key == "seed" else "set it in the recipe that the sweep starts from"
            raise InputError(f"{key} is the same for all trials", where=places[key], cure=cure)
    checked = recipe.check({**settings.changed(given, variant.changes), "seed": seed}, places=places, where=str(variant.params))
    plans.check(checked, kernels=environment.kernels())
    return checked.model_dump()


def _top(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What the file says and where it says it."""
    tree, content = recipe.load_file(path)
    if not isinstance(tree, yaml.MappingNode):
        raise InputError("not a list of `key: value` lines", where=path, cure=f"begin with one of: {', '.join(KINDS)}")
    places: dict[str, str] = {}
    for key, place in recipe.key_places(tree, path):
        if key in places:
            raise InputError(f"{key!r} stands there twice", where=place, cure=f"keep this or {places[key]}")
        places[key] = place
    return content, places


def _one_kind(given: Mapping[str, Any], where: Mapping[str, str], path: Path) -> str:
    unknown = [key for key in given if key not in (*KINDS, "measure")]
    if unknown:
        raise InputError(f"unknown key {unknown[0]!r}", where=where[str(unknown[0])], cure=f"known keys: {', '.join(KINDS)}, measure")
    kinds = [key for key in KINDS if key in given]
    if len(kinds) != 1:
        found = " and ".join(kinds) or "neither variants, grid nor search"
        raise InputError(f"holds {found}", where=path, cure=f"keep exactly one of: {', '.join(KINDS)}")
    return kinds[0]


def _mapping(content: Any, *, where: str) -> dict[str, Any]:
    if not isinstance(content, dict) or not content:
        raise InputError("nothing to try", where=where, cure="put `name: ...` lines below it, indented")
    return {str(key): value for key, value in content.items()}


def _variants(content: Mapping[str, Any], params: Path, where: Mapping[str, str], *, folder: Path) -> list[Variant]:
    listed = []
    for name, changes in content.items():
        place = where.get(f"variants.{name}", where["variants"])
        if changes is not None and not isinstance(changes, dict):
            raise InputError(f"{name} is {changes!r}", where=place, cure=f"write {name}: {{training.epochs: 10}}, or {name}: {{}}")
        changes = {str(key): value for key, value in (changes or {}).items()}
        own = changes.pop("recipe", None)
        listed.append(Variant(name, _recipe(own, params, folder, where=place) if own is not None else params, settings.flat(changes)))
    return listed


def _recipe(name: Any, params: Path, folder: Path, *, where: str) -> Path:
    """The YAML file that a variant names: beside the file of the sweep, beside its recipe, or where we stand."""
    places = [place / environment.expanded(str(name)) for place in (folder, params.parent, Path())]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise InputError(f"no recipe {name}", where=where, cure=f"put it into {folder}, or give its path")
    return found


def _grid(content: Mapping[str, Any], params: Path, where: Mapping[str, str]) -> list[Variant]:
    """Every combination of the listed values."""
    for key, listed in content.items():
        if not isinstance(listed, list) or not listed:
            raise InputError(f"{key} is {listed!r}", where=where[f"grid.{key}"], cure=f"write a list of values, such as {key}: [1, 2]")
    rows = [dict(zip(content, row)) for row in product(*content.values())]
    return [Variant(",".join(f"{key.rpartition('.')[2]}={_short(value)}" for key, value in row.items()), params, row) for row in rows]


def _short(value: Any) -> str:
    return "+".join(map(_short, value)) if isinstance(value, list) else str(value).lower() if isinstance(value, bool) else str(value)


def _distinct(listed: Iterable[Variant], where: Mapping[str, str], kind: str) -> None:
    seen: dict[str, str] = {}
    for variant in listed:
        place = where.get(f"{kind}.{variant.name}", where[kind])
        if len(variant.slug) > LONGEST:
            raise InputError(f"the name {variant.name[:20]}… is longer than {LONGEST} characters", where=place, cure="list it as one of `variants`, with a short name")
        if variant.slug in seen:
            raise InputError(f"{variant.name!r} and {seen[variant.slug]!r} make the same folder", where=place, cure="rename one")
        seen[variant.slug] = variant.name


# What a search may choose from: ranges and choices by key, checked against the recipe before anything runs.


CURE = "write {low: 1.0e-4, high: 1.0e-2, log: true}, {low: 2, high: 8, step: 2} or {choices: [adam, sgd]}"


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
        """The values that a recipe must take for it to take all of them."""
        return self.choices or (self.low, self.high)

    def suggest(self, trial: "Trial") -> Any:
        """The value that Optuna chooses for a trial, or chose before."""
        if self.choices:  # as JSON, because Optuna keeps no lists
            return json.loads(trial.suggest_categorical(self.key, [json.dumps(choice) for choice in self.choices]))
        if isinstance(self.low, int):
            return trial.suggest_int(self.key, self.low, self.high, log=self.log, step=int(self.step or 1))
        return trial.suggest_float(self.key, self.low, self.high, log=self.log, step=self.step)


def ranges(space: Space, *, base: Mapping[str, Any]) -> list[Range]:
    """The ranges of a file with `search`; every end must fit the recipe whose values are `base`.

    Raises InputError with the line at fault.
    """
    lines = space.lines()
    found = [_range(key, given, where=lines.get(f"search.{key}", str(space.path))) for key, given in (space.ranges or {}).items()]
    for each in found:
        for value in each.ends:
            checked = recipe.check(settings.changed(base, {each.key: value}), places={each.key: lines[f"search.{each.key}"]}, where=str(space.path))
            plans.check(checked, kernels=environment.kernels())
    return found


def _range(key: str, given: Any, *, where: str) -> Range:
    if key in SHARED:
        raise InputError(f"{key} is the same for all trials", where=where, cure="leave it out of the search")
    if isinstance(given, dict) and set(given) == {"choices"} and isinstance(given["choices"], list) and given["choices"]:
        return Range(key, choices=tuple(given["choices"]))
    if not isinstance(given, dict) or not {"low", "high"} <= set(given) <= {"low", "high", "log", "step"}:
        raise InputError(f"{key} is {given!r}", where=where, cure=CURE)
    return _numbers(key, given, where=where)


def _numbers(key: str, given: Mapping[str, Any], *, where: str) -> Range:
    """A range of numbers, whole ones where the recipe wants such."""
    numbers = {name: given[name] for name in ("low", "high", "step") if given.get(name) is not None}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{name} of {key} is {value!r}", where=where, cure="write a number, with a dot where it has an exponent: 1.0e-4")
    log = given.get("log", False)
    if key in settings.keys(Recipe) and settings.field(Recipe, key).annotation is float:
        numbers = {name: float(value) for name, value in numbers.items()}
    if type(log) is not bool or numbers["low"] >= numbers["high"] or numbers.get("step", 1) <= 0 or (log and (numbers["low"] <= 0 or "step" in numbers)):
        raise InputError(f"{key} is {dict(given)!r}", where=where, cure="low is below high; a range with log: true is above 0 and has no step")
    return Range(key, log=log, **numbers)
