"""The house rules."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from cellsignal.code_identity import imported_names
from cellsignal.run.environment import PACKAGE

FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = {"data": 1, "learn": 2, "decide": 3, "profiles": 2, "show": 3, "bench": 4, "run": 5, "kaggle": 6, "cli": 7}  # who stands higher may import who stands lower
GROUND = {path.name for path in PACKAGE.glob("*.py")}
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())


# The package


@cache
def code(path: Path) -> str:
    return path.read_text()


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(code(path))


@cache
def modules(path: Path) -> set[Path]:
    """The package's files that a file imports itself."""
    paths = {PACKAGE.joinpath(*name.split(".")[1:]).with_suffix(".py") for name in imported_names(code(path)) if name.startswith(f"{PACKAGE.name}.")}
    return {other for other in paths if other in FILES}


@each_file
def test_no_bare_except_no_pickle_no_environment(path: Path) -> None:
    nodes = list(ast.walk(parsed(path)))
    assert not [node.lineno for node in nodes if isinstance(node, ast.ExceptHandler) and node.type is None]
    calls = {f"{ast.unparse(node)}" for node in nodes if isinstance(node, ast.Attribute)}
    assert not calls & {"torch.load", "torch.save", "pd.read_pickle", "joblib.load", "joblib.dump"}
    assert not {name.split(".")[0] for name in imported_names(code(path))} & {"pickle", "cloudpickle", "dill"}
    if path != PACKAGE / "run/environment.py":
        assert not [call for call in calls if call.startswith(("os.environ", "os.getenv", "os.putenv"))]
        assert not imported_names(code(path)) & {"os.environ", "os.getenv"}


@each_file
def test_public_things_are_documented_and_typed(path: Path) -> None:
    assert ast.get_docstring(parsed(path))
    for node in parsed(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            assert all(argument.annotation for argument in arguments), node.name


@cache
def reached(path: Path) -> set[Path]:
    """The package's files that a file imports, and those that these import."""
    seen, left = set(), set(modules(path))
    while left:
        seen |= left
        left = set().union(*map(modules, left)) - seen
    return seen


def room(path: Path) -> str:
    name = path.relative_to(PACKAGE).as_posix()
    return name.split("/")[0] if "/" in name else ""


@each_file
def test_imports_run_downwards(path: Path) -> None:
    mine, on_ground = room(path), path.relative_to(PACKAGE).as_posix() in GROUND
    others = [other for other in modules(path) if other.relative_to(PACKAGE).as_posix() not in GROUND]
    upwards = [other for other in others if on_ground or (room(other) != mine and ROOMS[room(other)] >= ROOMS[mine])]
    assert upwards == []


@cache
def depth(rooms: str) -> int:
    """Longest chain of rooms below one room."""
    below = {room(other) for path in FILES if room(path) == rooms for other in modules(path)}
    return 1 + max((depth(other) for other in below - {rooms, ""}), default=0)


def test_a_notebook_stands_on_three_rooms_at_most() -> None:
    assert max(depth(name) for name in ("show", "decide", "profiles", "learn", "data")) <= 3


@each_file
def test_no_module_imports_itself_in_a_circle(path: Path) -> None:
    assert path not in reached(path)


def test_the_map_names_every_file() -> None:
    rows = re.findall(r"^\| (the ground|`[\w/]+/`) \| (.+) \|$", (PACKAGE.parent / "README.md").read_text(), flags=re.MULTILINE)
    named = {PACKAGE / ("" if folder == "the ground" else folder.strip("`")) / name for folder, files in rows for name in re.findall(r"`(\w+\.py)`", files)}
    assert named == {path for path in FILES if path.name != "__init__.py"}
