"""What a search may choose from: ranges and choices by key, checked against the recipe before anything runs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cellsignal.errors import InputError
from cellsignal.run import paths, plans, recipe
from cellsignal.run.recipe import Recipe
from cellsignal.run.sweep_space import SHARED, Space

if TYPE_CHECKING:
    from optuna.trial import Trial

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
            checked = recipe.check({**base, each.key: value}, places={each.key: lines[f"search.{each.key}"]}, where=str(space.path))
            plans.check(checked, kernels=paths.kernels())
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
    if getattr(Recipe.model_fields.get(key), "annotation", None) is float:
        numbers = {name: float(value) for name, value in numbers.items()}
    if type(log) is not bool or numbers["low"] >= numbers["high"] or numbers.get("step", 1) <= 0 or (log and (numbers["low"] <= 0 or "step" in numbers)):
        raise InputError(f"{key} is {dict(given)!r}", where=where, cure="low is below high; a range with log: true is above 0 and has no step")
    return Range(key, log=log, **numbers)
