"""A YAML file of parameters, with the line of every key."""

from pathlib import Path
from typing import Any

import yaml

from cellsignal.errors import InputError


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Values by key and `file:line` by key; InputError with file, line and cure when it is no list of `key: value`."""
    node = compose(path)
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


def compose(path: Path) -> yaml.Node | None:
    """The tree of a YAML file, after a trial of its values; InputError names the line at fault."""
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


def read_override(text: str) -> tuple[str, Any]:
    """Key and value of a `key=value` text; InputError when it is none."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError("not key=value", where=f"-p {text}", cure="write for example -p seed=1")
    try:
        return key.strip(), yaml.safe_load(value) if value.strip() else ""
    except (yaml.YAMLError, ValueError):  # 2001-99-99 is a date for YAML, and none for Python
        raise InputError("the value is not YAML", where=f"-p {text}", cure="write for example -p 'cell_types=[U2OS]'") from None
