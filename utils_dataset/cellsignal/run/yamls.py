"""YAML of parameters: the line of every key, limits on what a file may hold, and no number that YAML's versions read differently."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from cellsignal.errors import InputError

LARGEST = 1_000_000  # characters of a file
DEEPEST = 20  # lists and mappings inside each other
MOST = 10_000  # values, those that an alias repeats counted each time
DIGITS = 40  # characters of a number
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
# PyYAML reads YAML 1.1, where 010 is 8, 1:30 is 90, 0b11 is 3 and 1_000 is 1000; in YAML 1.2 they are 10 and three texts.
_AMBIGUOUS = re.compile(r".*[_:].*|[-+]?0[b0-9]+")


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Values by key and `file:line` by key; InputError with file, line and cure when it is no list of `key: value`."""
    node, values = load_file(path)
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
    return {str(key): value for key, value in values.items()}, places


def load_file(path: Path) -> tuple[yaml.Node | None, Any]:
    """The tree of a YAML file, which knows its lines, and its content; InputError names the line at fault."""
    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read(LARGEST + 1)
    except FileNotFoundError:
        raise InputError("no such file", where=path, cure="name one of papermill_params/*.yaml") from None
    except IsADirectoryError:
        raise InputError("is a folder", where=path, cure="name one of the YAML files in it") from None
    except UnicodeDecodeError:
        raise InputError("not UTF-8 text", where=path, cure="save it as UTF-8") from None
    if len(text) > LARGEST:
        raise InputError(f"more than {LARGEST:,} characters", where=path, cure="name a file of parameters")
    try:
        return _load(text, place=lambda mark: f"{path}:{mark.line + 1}")
    except yaml.MarkedYAMLError as error:
        place = f"{path}:{error.problem_mark.line + 1}" if error.problem_mark else path
        raise InputError(f"not YAML ({error.problem})", where=place, cure="write `key: value`, one a line") from None
    except yaml.YAMLError as error:
        raise InputError(f"not YAML ({error})", where=path, cure="write `key: value`, one a line") from None


def read_override(text: str) -> tuple[str, Any]:
    """Key and value of a `key=value` text; InputError when it is none."""
    place = f"-p {text}" if len(text) < 200 else f"-p {text[:100]}…"
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError("not key=value", where=place, cure="write for example -p seed=1")
    try:
        return key.strip(), _load(value, place=lambda mark: place)[1] if value.strip() else ""
    except yaml.YAMLError:
        raise InputError("the value is not YAML", where=place, cure="write for example -p 'cell_types=[U2OS]'") from None


def _load(text: str, *, place: Callable[[yaml.Mark], str]) -> tuple[yaml.Node | None, Any]:
    """The tree of a text and its content; `place` says where a mark lies. Raises YAMLError, and InputError for what YAML allows."""
    _check_size(text, place)
    loader = yaml.SafeLoader(text)
    node = loader.get_single_node()
    for scalar in _scalars(node):
        where = place(scalar.start_mark)
        if scalar.tag in NUMBERS and len(scalar.value) > DIGITS:
            raise InputError(f"a number of {len(scalar.value):,} characters", where=where, cure=f"write at most {DIGITS}")
        try:
            scalar.value.encode()  # "\\udcff" is a text for YAML, and none that can be written
            value = loader.construct_object(scalar)
        except (ValueError, LookupError, AttributeError) as error:  # 2001-99-99 is a date for YAML, and none for Python
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=scalar.start_mark) from None
        if scalar.tag in NUMBERS and scalar.style is None and _AMBIGUOUS.fullmatch(scalar.value):
            what = f"{scalar.value} is {value} in YAML 1.1, and something else in YAML 1.2"
            raise InputError(what, where=where, cure="write a number without leading zeros, `_` and `:`, or a text in quotes")
    return node, None if node is None else loader.construct_document(node)


def _check_size(text: str, place: Callable[[yaml.Mark], str]) -> None:
    """Refuse what would grow beyond all measure, before a tree is made of it."""
    sizes: dict[str, int] = {}  # of the nodes that an alias may repeat
    within: list[tuple[str | None, int]] = []  # the nodes around: their anchors, and what had been counted before
    count = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            within.append((event.anchor, count))
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in (anchor for anchor, _ in within):
                raise InputError(f"*{event.anchor} stands inside itself", where=place(event.start_mark), cure="write out what it shall be")
            count += sizes.get(event.anchor, 0)  # one that nobody defined is found later
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            count += 1
        if isinstance(event, yaml.ScalarEvent) and event.anchor:
            sizes[event.anchor] = 1
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = within.pop()
            sizes |= {anchor: count - before} if anchor else {}
        if len(within) > DEEPEST:
            raise InputError(f"more than {DEEPEST} lists or mappings inside each other", where=place(event.start_mark), cure="write it flat")
        if count > MOST:
            raise InputError(f"more than {MOST:,} values, aliases written out", where=place(event.start_mark), cure="write fewer")


def _scalars(node: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    """The single values of a tree, keys too; what an alias repeats comes once."""
    waiting, seen = [node], set()
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, yaml.ScalarNode):
            yield each
        elif isinstance(each, yaml.MappingNode):
            waiting += [part for pair in each.value for part in pair]
        elif isinstance(each, yaml.SequenceNode):
            waiting += each.value
