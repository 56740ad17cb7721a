"""What code says to Python, as digests: whoever reuses an earlier result compares them, to know whether the same code made it.

Comments, docstrings and layout change nothing, and neither does the version of Python, but for callables of a user's own.
"""

import ast
import dis
import functools
import hashlib
import json
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

PACKAGE = Path(__file__).resolve().parent
GROUND = ""  # the name of the files that lie in no room
USER = ""
_LIBRARY = sysconfig.get_path("stdlib")
_HIDDEN = {"__dict__", "__doc__", "__firstlineno__", "__module__", "__qualname__", "__static_attributes__", "__weakref__"}
_one_tree_at_a_time = Lock()  # CPython 3.11 counts the depth of trees for all threads together, and takes fright


def parsed(code: str) -> ast.Module:
    """The syntax tree of `code`, from any thread; SyntaxError where it is no Python."""
    with _one_tree_at_a_time:
        return ast.parse(code)


def text_digest(code: str) -> str:
    """SHA-256 over what `code` says to Python; over the text itself where it is no Python."""
    try:
        return _tree_digest(parsed(code))
    except SyntaxError:
        return _sha256(code)


def _tree_digest(tree: ast.AST) -> str:
    told: list[str] = []
    _tell(tree, told)
    return _sha256(told)


def _tell(node: Any, told: list[str]) -> None:
    """A syntax tree in words without docstrings; empty fields are left out, of which each version of Python has others."""
    if isinstance(node, list):
        for each in node:
            _tell(each, told)
    elif isinstance(node, ast.AST):
        told.append(type(node).__name__)
        for name in node._fields:
            if (value := getattr(node, name, None)) is not None and value != []:
                told.append(name)
                _tell(value[1:] if name == "body" and _has_docstring(node) else value, told)
    else:
        told.append(repr(node))
    told.append(")")


def _has_docstring(node: ast.AST) -> bool:
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    first = node.body[0]
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)


def package_code(*rooms: str, package: Path = PACKAGE) -> dict[str, str]:
    """SHA-256 by room (`learn`, `data`, ...) over every file in these rooms and in those that they import, and of the files in none.

    Whole rooms, because imports do not tell everything that code uses. The command line's files are left out.
    """
    left, found = [GROUND, *rooms], {}
    while left:
        if (room := left.pop()) not in found:
            files = _files(package, room)
            found[room] = _sha256([[path.relative_to(package).as_posix(), _file(path, path.stat().st_mtime_ns)[0]] for path in files])
            left += {below for path in files for below in _file(path, path.stat().st_mtime_ns)[1]}
    return dict(sorted(found.items()))


def rooms_of(code: str) -> set[str]:
    """The rooms of this package that `code` imports from."""
    return _rooms(parsed(code))


def _rooms(tree: ast.Module) -> set[str]:
    parts = [name.split(".") for name in _imported(tree)]
    return {part[1] for part in parts if part[0] == PACKAGE.name and len(part) > 1 and (PACKAGE / part[1]).is_dir()}


def assigned(code: str) -> dict[str, ast.expr]:
    """The names that `code` assigns outside of blocks, annotated or not, and what is assigned last."""
    found: dict[str, ast.expr] = {}
    for node in parsed(code).body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) and node.value else []
        found.update((target.id, node.value) for target in targets if isinstance(target, ast.Name))
    return found


def loaded(code: str) -> set[str]:
    """The names that `code` reads anywhere."""
    return {node.id for node in ast.walk(parsed(code)) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def imported(code: str) -> set[str]:
    """Dotted names that `code` imports anywhere: `from a import b` gives both `a` and `a.b`."""
    return _imported(parsed(code))


def run_modules(tree: ast.AST) -> list[Path]:
    """The files of the room `run` that code imports by name: where a notebook keeps work that its page does not show."""
    places = (PACKAGE.parent.joinpath(*name.split(".")).with_suffix(".py") for name in _imported(tree) if name.startswith(f"{PACKAGE.name}.run."))
    return sorted(filter(Path.is_file, places))


def _imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def _files(package: Path, room: str) -> list[Path]:
    if room:
        return sorted((package / room).rglob("*.py"))
    return sorted(path for path in package.glob("*.py") if not path.name.startswith("cli"))


@functools.lru_cache(maxsize=None)
def _file(path: Path, written: int) -> tuple[str, frozenset[str]]:
    """The digest of a file as it was `written`, and the rooms that it imports from."""
    tree = parsed(path.read_text(encoding="utf-8"))
    return _tree_digest(tree), frozenset(_rooms(tree))


class Notebook:
    """The cells of the notebook that this process runs, as IPython keeps them in `In`, or a script does in its place.

    Those up to the one that called `begin` set parameters and find the package: they are no part of what is identified. The
    modules of the room `run` that the others import are, as they were when they were first seen: files may change meanwhile.
    """

    def __init__(self) -> None:
        self.cells: Sequence[str] = ()
        self.first = 0
        self.modules: dict[Path, str] = {}

    def begin(self, cells: Sequence[str] | None = None) -> None:
        """What counts begins after the cell that calls this; `cells` grows by each one before it runs."""
        self.cells = self.cells if cells is None else cells
        self.first = len(self.cells)

    def code(self) -> str:
        """SHA-256 over the cells so far, in the order in which they first ran; "" without any. One that ran twice counts once."""
        cells = (self.cells or getattr(sys.modules.get("__main__"), "In", ()))[self.first :]
        for cell in cells:
            with suppress(SyntaxError):
                for path in run_modules(parsed(cell)):
                    self.modules.setdefault(path, _file(path, path.stat().st_mtime_ns)[0])
        return _sha256(list(dict.fromkeys([*map(text_digest, cells), *self.modules.values()]))) if cells else ""


notebook = Notebook()


def cells_digest(cells: Iterable[str]) -> str:
    """SHA-256 over the code cells of a notebook's file."""
    return _sha256(list(map(text_digest, cells)))


def changed(old: Any, new: Mapping[str, Any]) -> list[str]:
    """The names of what differs between two identities of code, or stands in one of them only."""
    old = old if isinstance(old, Mapping) else {}
    return sorted(name or "cellsignal" for name in {*old, *new} if old.get(name) != new.get(name))


def described(value: Any) -> Any:
    """A value that a user gave, as JSON that is the same in every process; callables by what their code says.

    Functions and classes of a user's own are told by bytecode, constants, defaults, closures and the global names that
    they read; those of this package and of installed ones by their names. Of objects the class counts and what they tell
    as `facts`, or else, but for this package's, their attributes. Private attributes and paths do not count.
    """
    return _Described()(value)


class _Described:
    """Describes values that may hold each other; what was told before is told by its number."""

    def __init__(self) -> None:
        self.told: dict[int, tuple[int, Any]] = {}  # with the value itself, so that no other takes its place in memory

    def __call__(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float | complex | bytes):
            return repr(value)
        if id(value) in self.told:
            return f"#{self.told[id(value)][0]}"
        self.told[id(value)] = len(self.told), value
        match value:
            case list() | tuple():
                return [self(each) for each in value]
            case set() | frozenset():
                return sorted((self(each) for each in value), key=json.dumps)
            case dict():
                return sorted(([self(key), self(each)] for key, each in value.items()), key=json.dumps)
            case ModuleType():
                return value.__name__
            case MethodType():
                return [self(value.__func__), self(value.__self__)]
            case staticmethod() | classmethod():
                return self(value.__func__)
            case property():
                return [self(value.fget), self(value.fset)]
            case functools.partial():
                return [self(value.func), self(value.args), self(value.keywords)]
            case CodeType():
                return [hashlib.sha256(value.co_code).hexdigest(), *map(self, (value.co_consts, value.co_names, value.co_varnames))]
            case FunctionType() if _owner(value) == USER:
                return self._function(value)
            case type() if _owner(value) == USER:
                members = {name: each for name, each in vars(value).items() if name not in _HIDDEN}
                return [value.__qualname__, self(value.__bases__), self(members)]
        return self._object(value)

    def _object(self, value: Any) -> Any:
        name = getattr(value, "__qualname__", getattr(value, "__name__", None))
        if isinstance(name, str):  # a function or class that is not the user's
            return f"{getattr(value, '__module__', '')}.{name}"
        if hasattr(value, "detach"):  # a tensor
            value = value.detach().cpu().float().numpy()
        if hasattr(value, "tobytes"):
            return [str(getattr(value, "dtype", "")), list(getattr(value, "shape", ())), hashlib.sha256(value.tobytes()).hexdigest()]
        if hasattr(value, "to_csv"):
            return _sha256(value.to_csv())
        settings = {} if _owner(type(value)) == PACKAGE.name else getattr(value, "__dict__", {})
        settings = {name: each for name, each in settings.items() if not name.startswith("_") and not isinstance(each, Path)}
        return [self(type(value)), self(getattr(value, "facts", settings))]

    def _function(self, function: FunctionType) -> Any:
        """Code without its docstring, and all that it reads from outside."""
        code, known = function.__code__, function.__globals__
        if function.__doc__ is not None and code.co_consts[:1] == (function.__doc__,):
            code = code.replace(co_consts=(None, *code.co_consts[1:]))
        closure = [_content(cell) for cell in function.__closure__ or ()]
        read = {name: known[name] for name in sorted(_globals(code)) if name in known and not isinstance(known[name], Path)}
        return [self(each) for each in (code, function.__defaults__, function.__kwdefaults__, closure, read)]


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is not bound yet
        return None


def _globals(code: CodeType) -> set[str]:
    """The global names that code reads, in the functions within it too."""
    names = {each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names.union(*(_globals(each) for each in code.co_consts if isinstance(each, CodeType)))


def _owner(thing: Any) -> str:
    """Whose a function or class is: `USER`, or its package where that is this one or installed."""
    module = sys.modules.get(str(thing.__module__))
    name, file = str(thing.__module__).partition(".")[0], getattr(module, "__file__", None)
    if module is None or name == "__main__":
        return USER
    installed = file is None or file.startswith(_LIBRARY) or not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)
    return name if installed or name == PACKAGE.name else USER


def _sha256(told: Any) -> str:
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
