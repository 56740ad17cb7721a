"""Groups of settings: each knows its keys, their types, rules and defaults, and reports the first invalid value in one line."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import SequenceMatcher
from math import isfinite
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

from cellsignal.errors import InputError
from cellsignal.files import is_plain

Names = list[str]
MIN_SIMILARITY = 0.6  # from which on a name is suggested in place of another one


class Settings(BaseModel):
    """A group of settings. An invalid value or an unknown key raises InputError in one line.

    `subsets`: the fields that a part of the program takes, such as one phase of a training, by the name of the property that
    returns them.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)
    subsets: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise first_error(type(self), values, error, where=type(self).__name__) from None

    __init__.__pydantic_base_init__ = True  # pydantic makes a group inside another one without it, so that an error has the whole key

    def subset(self, name: str, **changes: Any) -> Self:
        """The same group with the fields of a subset; the others have their defaults, except for `changes`."""
        return type(self)(**{field: getattr(self, field) for field in self.subsets[name]} | changes)


def rule_error(key: str, reason: str) -> PydanticCustomError:
    """The error of a rule between groups: the dotted key to blame, and why."""
    return PydanticCustomError("rule", "{reason}", {"reason": reason, "key": key})


def group_of(model: type[BaseModel], name: str) -> type[Settings] | None:
    """The group that a field holds; None for a field without a group, or one that does not exist."""
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


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted key; a mapping is a group."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= {f"{name}.{key}": group_value for key, group_value in value.items()} if isinstance(value, Mapping) else {name: value}
    return flat


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values in their groups, from values by dotted key."""
    return update({}, values)


def update(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of values in groups with `changes`, by dotted key or as a mapping with some keys of a group."""
    updated = {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}
    for key, value in flatten(changes).items():
        group, _, name = key.rpartition(".")
        if group and isinstance(updated.setdefault(group, {}), dict):
            updated[group][name] = value
        else:
            updated[key] = value
    return updated


def first_error(
    model: type[BaseModel], values: Mapping[str, Any], error: ValidationError, *, locations: Mapping[str, str] = {}, where: str = "parameters",
    renamed: Mapping[str, str] = {}, example: Callable[[str, Any], str] = lambda key, value: "",
) -> InputError:
    """The first invalid value of `values` in one line: key, value, reason, location and cure; an unknown key comes first.

    `locations`: where each dotted key, or else its group, was set; `where` for all others. `renamed`: new keys by old name. `example`
    adds to the cure how a value is passed.
    """
    errors = error.errors(include_url=False)
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    key = first.get("ctx", {}).get("key") or _dotted_key(model, first["loc"])
    location = locations.get(key, locations.get(key.partition(".")[0], where))
    if first["type"] == "extra_forbidden":
        return InputError(f"unknown key {key!r}", where=location, cure=unknown_key_advice(key, model, renamed=renamed))
    by_key = flatten(values) if "." in key else values
    value = by_key[key] if key in by_key else field(model, key).default
    reason = first["msg"].removeprefix("Value error, ")
    if group_of(model, key):
        reason = "it is a group of keys"
    return InputError(f"{key} is {value!r}: {reason[0].lower()}{reason[1:]}", where=location, cure=_cure(model, key, value) + example(key, value))


def _dotted_key(model: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    """The dotted key of a pydantic location."""
    group = group_of(model, str(loc[0]))
    return f"{loc[0]}.{loc[1]}" if group and len(loc) > 1 else str(loc[0])


def unknown_key_advice(key: str, model: type[BaseModel], *, renamed: Mapping[str, str] = {}, other_keys: Iterable[str] = ()) -> str:
    """The cure for a key that is neither in a model nor among `other_keys`: its new name, its group, or the most similar of their keys."""
    if key in renamed:
        return f"it is called {renamed[key]!r} now"
    plain = [name for name in model.model_fields if not group_of(model, name)]
    groups = [name for name in model.model_fields if group_of(model, name)]
    if key in (known := [*groups, *keys(model), *other_keys]):  # with a dot, where a file has the group itself
        group, _, name = key.rpartition(".")
        return f"write it in its group: {group}: {{{name}: {_yaml(field(model, key).get_default(call_default_factory=True))}}}"
    most_similar = max(known, key=lambda name: _similarity(key, name))
    if _similarity(key, most_similar) >= MIN_SIMILARITY:
        return f"did you mean {most_similar!r}?"
    return f"known keys: {', '.join(plain)}" + (f", and those of the groups {', '.join(groups)}" if groups else "")


def _similarity(key: str, name: str) -> float:
    """The similarity of two keys, from 0 to 1: as a whole, or without their groups, which a user may have left out."""
    pairs = ((key, name), (key.rpartition(".")[2], name.rpartition(".")[2]))
    return max(SequenceMatcher(None, *pair).ratio() for pair in pairs)


def _cure(model: type[BaseModel], key: str, value: Any) -> str:
    """How to write `value` so that it is valid for `key`."""
    setting, name = field(model, key), key.rpartition(".")[2]
    kind, default = setting.annotation, setting.get_default(call_default_factory=True)
    if group := group_of(model, key):
        first = next(iter(group.model_fields))
        return f"write its keys below it, indented, such as {key}: {{{first}: {_yaml(group.model_fields[first].default)}}}"
    if value is None:
        return f"give it a value, or leave the line out for {default!r}"
    if kind in (float, int) and isinstance(value, str):
        return _number_cure(value, kind)
    if "\0" in str(value):
        return "name another folder"
    if set("~$%") & set(str(value)):
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
    """A list as YAML that is valid for a field."""
    return f"[{', '.join(map(str, setting.examples[0]))}]" if setting.examples else "[15, 25]"


def _number_cure(text: str, kind: type) -> str:
    """How to write a number that YAML reads as text, such as 1e-3: its numbers need a dot."""
    try:
        number = kind(float(text))
    except (ValueError, OverflowError):
        return "write a number without quotes"
    mantissa, e, exponent = text.strip().lower().partition("e")
    dotted = f"{float(mantissa)}e{exponent if exponent[:1] in '+-' else '+' + exponent}" if e else number
    return f"write {number if kind is int else dotted}" if isfinite(number) else "write a finite number"


# Rules that several groups share.


def check_distinct(names: Names) -> Names:
    """Names as they are; ValueError where one is repeated."""
    if len(set(names)) < len(names):
        raise ValueError("a name stands there twice")
    return names


def check_folder_names(names: Names) -> Names:
    """Distinct names that folders can have; ValueError for any other name."""
    invalid = next((name for name in check_distinct(names) if not is_plain(name)), None)
    if invalid is not None:
        raise ValueError(f"{invalid!r} cannot be the name of a folder: letters, digits and any of _.+- do, a letter or digit first")
    return names


def check_rising(numbers: Iterable[int]) -> list[int]:
    """Numbers as they are; ValueError unless they are above 0 and rise."""
    numbers = list(numbers)
    if min(numbers, default=1) < 1 or numbers != sorted(numbers):
        raise ValueError("write whole numbers above 0, the smallest first")
    return numbers
