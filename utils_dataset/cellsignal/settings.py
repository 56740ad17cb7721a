"""Groups of settings: each knows its keys, their types, rules and defaults, and the first fault becomes one line."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import SequenceMatcher
from math import isfinite
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

from cellsignal.errors import InputError
from cellsignal.files import is_plain

Names = list[str]
NEAR = 0.6  # likeness from which on a name is taken for another one


class Settings(BaseModel):
    """A group of settings. Made with a value that breaks a rule, or with an unknown key, it raises InputError in one line.

    `parts`: by the name of a property that gives a part of the group, such as what one phase of a training takes, the
    fields that it takes.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise fault(type(self), values, error, where=type(self).__name__) from None

    __init__.__pydantic_base_init__ = True  # a group inside another one is made without it, so that its fault tells the whole key

    def part(self, name: str, **changes: Any) -> Self:
        """The same group with the fields of a part alone, the others at their defaults but for `changes`."""
        return type(self)(**{field: getattr(self, field) for field in self.parts[name]} | changes)


def broken(key: str, reason: str) -> PydanticCustomError:
    """What a rule between groups raises: the dotted key that is at fault, and why."""
    return PydanticCustomError("rule", "{reason}", {"reason": reason, "key": key})


def group_of(model: type[BaseModel], name: str) -> type[Settings] | None:
    """The group that a field holds; None for a field that is none, or that is not there."""
    kind = model.model_fields[name].annotation if name in model.model_fields else None
    return kind if isinstance(kind, type) and issubclass(kind, Settings) else None


def keys(model: type[BaseModel]) -> Iterator[str]:
    """Every key of a model, those of its groups as `group.key`."""
    for name in model.model_fields:
        group = group_of(model, name)
        yield from (f"{name}.{key}" for key in keys(group)) if group else (name,)


def field(model: type[BaseModel], key: str) -> Any:
    """The pydantic field of a dotted key."""
    group, _, name = key.rpartition(".")
    return (group_of(model, group) if group else model).model_fields[name]


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted key; a mapping is a group."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, Mapping) else {name: value}
    return found


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values in their groups, from values by dotted key."""
    return changed({}, values)


def changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values in groups, some of them changed, which dotted keys name; a mapping changes what it names of a group."""
    found = {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}
    for key, value in flat(changes).items():
        group, _, name = key.rpartition(".")
        if group and isinstance(found.setdefault(group, {}), dict):
            found[group][name] = value
        else:
            found[key] = value
    return found


def fault(
    model: type[BaseModel], values: Mapping[str, Any], error: ValidationError, *, places: Mapping[str, str] = {}, where: str = "parameters",
    known_as: Mapping[str, str] = {}, example: Callable[[str, Any], str] = lambda key, value: "",
) -> InputError:
    """The first fault of `values` in one line: key, value, reason, place and cure; an unknown key comes first.

    `places`: where each dotted key was set, else its group, else `where`. `known_as`: keys by an earlier name. `example` adds to
    the cure how a value is passed.
    """
    found = error.errors(include_url=False)
    first = next((each for each in found if each["type"] == "extra_forbidden"), found[0])
    key = first.get("ctx", {}).get("key") or _key(model, first["loc"])
    place = places.get(key, places.get(key.partition(".")[0], where))
    if first["type"] == "extra_forbidden":
        return InputError(f"unknown key {key!r}", where=place, cure=nearest(key, model, known_as=known_as))
    given = flat(values) if "." in key else values
    value = given[key] if key in given else field(model, key).default
    reason = first["msg"].removeprefix("Value error, ")
    if group_of(model, key):
        reason = "it is a group of keys"
    return InputError(f"{key} is {value!r}: {reason[0].lower()}{reason[1:]}", where=place, cure=_cure(model, key, value) + example(key, value))


def _key(model: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    """The dotted key that pydantic's location leads to."""
    group = group_of(model, str(loc[0]))
    return f"{loc[0]}.{loc[1]}" if group and len(loc) > 1 else str(loc[0])


def nearest(key: str, model: type[BaseModel], *, known_as: Mapping[str, str] = {}, others: Iterable[str] = ()) -> str:
    """The cure for a key that neither a model nor `others` have: its name today, or the nearest of their keys."""
    if key in known_as:
        return f"it is called {known_as[key]!r} now"
    own = [*keys(model), *others]
    best = max(own, key=lambda name: _likeness(key, name))
    if _likeness(key, best) >= NEAR:
        return f"did you mean {best!r}?"
    plain = [name for name in model.model_fields if not group_of(model, name)]
    groups = [name for name in model.model_fields if group_of(model, name)]
    return f"known keys: {', '.join(plain)}" + (f", and those of the groups {', '.join(groups)}" if groups else "")


def _likeness(key: str, name: str) -> float:
    """How alike two keys are, from 0 to 1: as a whole, or without their groups, which a user may have left out."""
    pairs = ((key, name), (key.rpartition(".")[2], name.rpartition(".")[2]))
    return max(SequenceMatcher(None, *pair).ratio() for pair in pairs)


def _cure(model: type[BaseModel], key: str, value: Any) -> str:
    """How to write `value` so that it fits `key`."""
    setting, name = field(model, key), key.rpartition(".")[2]
    kind, default = setting.annotation, setting.get_default(call_default_factory=True)
    if group := group_of(model, key):
        first = next(iter(group.model_fields))
        return f"write its keys below it, indented, such as {key}: {{{first}: {_yaml(group.model_fields[first].default)}}}"
    if value is None:
        return f"give it a value, or leave the line out for {default!r}"
    if kind in (float, int) and isinstance(value, str):
        return _number(value, kind)
    if "\0" in str(value):
        return "name another folder"
    if "~" in str(value) or "$" in str(value):
        return ""  # the reason says it
    if kind is str and isinstance(value, str):
        return f"write for example {name}: {default or 'imagenet'}"
    if kind is str:
        return f'write it in quotes: {name}: "{value}"'
    if kind in (Names, list[int]):
        return f"write a list of {'different names' if kind == Names else 'rising numbers'}, such as {name}: {list_example(setting)}"
    if kind is bool:
        return f"write {name}: true or {name}: false"
    return f"write for example {name}: {_yaml(default)}"


def _yaml(value: Any) -> str:
    return repr(value) if value == "" else str(value).lower() if isinstance(value, bool) else str(value)


def list_example(setting: Any) -> str:
    """A list as YAML that fits a field."""
    return f"[{', '.join(map(str, setting.examples[0]))}]" if setting.examples else "[15, 25]"


def _number(text: str, kind: type) -> str:
    """YAML reads 1e-3 as text, because its numbers need a dot: say how to write the same number."""
    try:
        number = kind(float(text))
    except (ValueError, OverflowError):
        return "write a number without quotes"
    mantissa, e, exponent = text.strip().lower().partition("e")
    dotted = f"{float(mantissa)}e{exponent if exponent[:1] in '+-' else '+' + exponent}" if e else number
    return f"write {number if kind is int else dotted}" if isfinite(number) else "write a finite number"


# Rules that several groups share.


def distinct(names: Names) -> Names:
    """Names as they are; ValueError where one comes twice."""
    if len(set(names)) < len(names):
        raise ValueError("a name stands there twice")
    return names


def folder_names(names: Names) -> Names:
    """Different names that folders can have; ValueError for another one."""
    odd = next((name for name in distinct(names) if not is_plain(name)), None)
    if odd is not None:
        raise ValueError(f"{odd!r} cannot be the name of a folder: letters, digits and any of _.+- do, a letter or digit first")
    return names


def rising(numbers: Iterable[int]) -> list[int]:
    """Numbers as they are; ValueError unless they are above 0 and rise."""
    numbers = list(numbers)
    if min(numbers, default=1) < 1 or numbers != sorted(numbers):
        raise ValueError("write whole numbers above 0, the smallest first")
    return numbers
