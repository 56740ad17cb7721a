"""Digests of code, by which a stored result is reused only if the same code made it.

Comments, docstrings and layout change nothing, and neither does the version of Python, except for a user's own callables.
"""

import ast
import copyreg
import dis
import functools
import hashlib
import json
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from threading import Lock
from types import CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

PACKAGE = Path(__file__).resolve().parent
CODE_FILES = ("*.py", "*.jinja", "*.js")  # of the package: Python, and the templates of pages
GROUND = ""  # the name of the files that lie in no room
USER = ""  # the owner of code that is neither this package's nor installed
_STANDARD_LIBRARY = sysconfig.get_path("stdlib")
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_BLOCKS = ("body", "orelse", "handlers", "finalbody", "cases")  # the fields that hold statements
_IGNORED_MEMBERS = {"__dict__", "__doc__", "__firstlineno__", "__module__", "__qualname__", "__slotnames__", "__static_attributes__", "__weakref__"}
_RUN_MAGIC, _TIMING_MAGIC = ("run_line_magic", "run_cell_magic"), ("time", "timeit", "capture", "prun")  # of IPython, and those that run Python
_parse_lock = Lock()  # CPython 3.11 counts the depth of trees for all threads together, and raises SystemError when two build one


def parse(code: str) -> ast.Module:
    """The syntax tree of `code`, from any thread; SyntaxError where it is not Python."""
    with _parse_lock:
        return ast.parse(code)


def cell_trees(cells: Iterable[str]) -> list[ast.Module]:
    """The syntax trees of a notebook's cells, with the code that %time and its like run; without cells that are not Python, such as %%bash."""
    trees: list[ast.Module] = []
    for cell in cells:
        with suppress(SyntaxError, ImportError):
            trees.append(tree := _parse_cell(cell))
            calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _RUN_MAGIC)
            arguments = ([getattr(argument, "value", "") for argument in call.args] for call in calls)
            trees += cell_trees(code for name, *_, code in arguments if name in _TIMING_MAGIC)
    return trees


def _parse_cell(cell: str) -> ast.Module:
    """The syntax tree of a cell, as IPython would run it where it is not plain Python."""
    try:
        return parse(cell)
    except SyntaxError:
        from IPython.core.inputtransformer2 import TransformerManager  # few cells need it

        return parse(TransformerManager().transform_cell(cell))


def text_digest(code: str) -> str:
    """SHA-256 over the syntax tree of `code`; over the text itself where it is not Python."""
    try:
        return _sha256(_append_words(parse(code), []))
    except SyntaxError:
        return _sha256(code)


def _append_words(node: Any, words: list[str]) -> list[str]:
    """Append a syntax tree without docstrings as words, and return them; empty fields are left out, because each version of Python has others."""
    if isinstance(node, list):
        for child in node:
            _append_words(child, words)
    elif isinstance(node, ast.AST):
        words.append(type(node).__name__)
        documented = isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None
        for name in node._fields:
            if (value := getattr(node, name, None)) is not None and value != []:
                words.append(name)
                _append_words(value[1:] if name == "body" and documented else value, words)
    else:
        words.append(repr(node))
    words.append(")")
    return words


def package_code(*rooms: str, package: Path = PACKAGE) -> dict[str, str]:
    """SHA-256 by room (`learn`, `data`, ...) over every file in these rooms and in those that they import, and of the files in no room.

    Whole rooms, because imports do not name everything that code uses. The files of the command line are left out.
    """
    waiting, digests = [GROUND, *rooms], {}
    while waiting:
        if (room := waiting.pop()) not in digests:
            paths = (path for pattern in CODE_FILES for path in (package / room).rglob(pattern)) if room else (path for path in package.glob("*.py") if not path.name.startswith("cli"))
            files = {path.relative_to(package).as_posix(): _read_file(path, path.stat().st_mtime_ns) for path in sorted(paths)}
            digests[room] = _sha256([[name, digest] for name, (digest, _) in files.items()])
            waiting += {imported for _, imported_rooms in files.values() for imported in imported_rooms}
    return dict(sorted(digests.items()))


@functools.lru_cache(maxsize=None)
def _read_file(path: Path, modified: int) -> tuple[str, frozenset[str]]:
    """The digest of a file as it was at the time `modified`, and the rooms that it imports from."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return _sha256(text), frozenset()
    tree = parse(text)
    return _sha256(_append_words(tree, [])), frozenset(imported_rooms(tree))


def imported_rooms(code: str | ast.AST) -> set[str]:
    """The rooms of this package that `code` imports from."""
    parts = [name.split(".") for name in imported_names(code)]
    return {part[1] for part in parts if part[0] == PACKAGE.name and len(part) > 1 and (PACKAGE / part[1]).is_dir()}


def assigned_names(code: str) -> dict[str, ast.expr]:
    """The names that `code` assigns outside of blocks, annotated or not, and the expression that each is assigned last."""
    names: dict[str, ast.expr] = {}
    for node in parse(code).body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) and node.value else []
        names.update((target.id, node.value) for target in targets if isinstance(target, ast.Name))
    return names


def read_names(code: str | ast.AST) -> set[str]:
    """The names that `code` reads anywhere."""
    return {node.id for node in ast.walk(parse(code) if isinstance(code, str) else code) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def imported_run_modules(tree: ast.AST) -> list[Path]:
    """The files of the room `run` that code imports by name: they hold the part of a notebook's work that its cells do not show."""
    names = (name for name in imported_names(tree) if name.startswith(f"{PACKAGE.name}.run."))
    return sorted(filter(Path.is_file, (PACKAGE.parent.joinpath(*name.split(".")).with_suffix(".py") for name in names)))


def imported_user_modules(tree: ast.AST) -> dict[Path, str]:
    """The digests, by file, of the user's own modules that code has imported, and of those that these import."""
    digests: dict[Path, str] = {}
    waiting = [tree]
    while waiting:
        tops = {name.partition(".")[0] for name in imported_names(waiting.pop())}
        for name, module in list(sys.modules.items()):  # other threads import too
            file = getattr(module, "__file__", None) if name.partition(".")[0] in tops else None
            if file and (path := Path(file)).suffix == ".py" and path not in digests and _module_owner(name) == USER:
                digests[path] = file_digest(path)
                with suppress(OSError, SyntaxError, UnicodeDecodeError):
                    waiting.append(parse(path.read_text(encoding="utf-8")))
    return digests


def file_digest(path: Path) -> str:
    """SHA-256 over the syntax tree of a file with Python code; "" without the file."""
    try:
        return text_digest(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""


def imported_names(code: str | ast.AST) -> set[str]:
    """Dotted names that `code` imports anywhere: `from a import b` gives both `a` and `a.b`."""
    names: set[str] = set()
    nodes = [parse(code) if isinstance(code, str) else code]
    while nodes:
        node = nodes.pop()
        for block in _BLOCKS:
            nodes += getattr(node, block, ())
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@dataclass
class Notebook:
    """The cells of the notebook that this process runs, as IPython keeps them in `In`, or as a script that runs them passes them.

    Those up to the one that calls `begin` set parameters and find the package; they are not part of the identity. The modules of
    the room `run` and of the user that the other cells import are, as they were when they were first seen: files may change later.
    """

    cells: Sequence[str] = ()
    first: int = 0  # number of the first cell that counts
    digests: dict[Path, str] = field(default_factory=dict)  # of these modules, by file

    def begin(self, cells: Sequence[str] | None = None) -> None:
        """Start the identity after the cell that calls this; each further cell is appended to `cells` before it runs."""
        self.cells = self.cells if cells is None else cells
        self.first = len(self.cells)

    def code(self) -> str:
        """SHA-256 over the cells so far, in the order in which they first ran; "" without any. Repeated cells count once."""
        cells = self._counted_cells()
        # Of these cells alone: another notebook may have run in this process before.
        paths = dict.fromkeys(path for tree in cell_trees(cells) for path in imported_run_modules(tree))
        run_modules = [self.digests.setdefault(path, _read_file(path, path.stat().st_mtime_ns)[0]) for path in paths]
        digests = [*map(text_digest, cells), *run_modules, *sorted(self.user_modules().values())]
        return _sha256(list(dict.fromkeys(digests))) if cells else ""

    def user_modules(self) -> dict[Path, str]:
        """The digests, by file, of the user's own modules that the cells so far have imported."""
        found = [item for tree in cell_trees(self._counted_cells()) for item in imported_user_modules(tree).items()]
        return {path: self.digests.setdefault(path, digest) for path, digest in found}

    def _counted_cells(self) -> Sequence[str]:
        return (self.cells or getattr(sys.modules.get("__main__"), "In", ()))[self.first :]


notebook = Notebook()


def cells_digest(cells: Iterable[str]) -> str:
    """SHA-256 over the code cells of a notebook's file."""
    return _sha256(list(map(text_digest, cells)))


def changed_parts(old: Any, new: Mapping[str, Any]) -> list[str]:
    """The names of the parts that differ between two identities of code, or are in one of them only."""
    old = old if isinstance(old, Mapping) else {}
    return sorted(name or "cellsignal" for name in {*old, *new} if old.get(name) != new.get(name))


def describe(value: Any) -> Any:
    """A value that a user passed, as JSON that is the same in every process.

    A user's own functions and classes are described by bytecode, constants, defaults, closures and the global names that
    they read, a user's modules by their text; those of this package and of installed ones by their names. An object is described by
    its class and its property `facts`, or else, unless its class is this package's, by its attributes. Private attributes and paths are left out.
    """
    return _Descriptions().describe(value)


@dataclass
class _Descriptions:
    """Describes values that may contain each other: a value that comes again is replaced by its number."""

    numbers: dict[int, tuple[int, Any]] = field(default_factory=dict)  # by id, with the value itself, so that no other value gets its id

    def describe(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float | complex | bytes):
            return repr(value)
        if id(value) in self.numbers:
            return f"#{self.numbers[id(value)][0]}"
        self.numbers[id(value)] = len(self.numbers), value
        match value:
            case list() | tuple():
                return [self.describe(item) for item in value]
            case set() | frozenset():
                return sorted((self.describe(item) for item in value), key=json.dumps)
            case dict():
                return sorted(([self.describe(key), self.describe(item)] for key, item in value.items()), key=json.dumps)
            case ModuleType():
                return self.describe(_user_module_digests(value)) or value.__name__
            case MethodType():
                return [self.describe(value.__func__), self.describe(value.__self__)]
            case staticmethod() | classmethod():
                return self.describe(value.__func__)
            case property():
                return [self.describe(value.fget), self.describe(value.fset)]
            case functools.partial():
                return [self.describe(value.func), self.describe(value.args), self.describe(value.keywords)]
            case CodeType():
                return [hashlib.sha256(value.co_code).hexdigest(), *map(self.describe, (value.co_consts, value.co_names, value.co_varnames))]
            case FunctionType() if _owner(value) == USER:
                return self._describe_function(value)
            case type() if _owner(value) == USER:
                members = {name: member for name, member in vars(value).items() if name not in _IGNORED_MEMBERS}
                return [value.__qualname__, self.describe(value.__bases__), self.describe(members)]
        return self._describe_object(value)

    def _describe_object(self, value: Any) -> Any:
        name = getattr(value, "__qualname__", getattr(value, "__name__", None))
        if isinstance(name, str):  # a function or class that is not the user's
            return f"{getattr(value, '__module__', '')}.{name}"
        if hasattr(value, "detach"):  # a tensor
            value = value.detach().cpu().float().numpy()
        if hasattr(value, "tobytes"):
            return [str(getattr(value, "dtype", "")), list(getattr(value, "shape", ())), hashlib.sha256(value.tobytes()).hexdigest()]
        if hasattr(value, "to_csv"):
            return _sha256(value.to_csv())
        return [self.describe(type(value)), self.describe(getattr(value, "facts", _attributes(value)))]

    def _describe_function(self, function: FunctionType) -> Any:
        """Code without its docstring, and all that it reads from outside."""
        code, module_names = function.__code__, function.__globals__
        if function.__doc__ is not None and code.co_consts[:1] == (function.__doc__,):
            code = code.replace(co_consts=(None, *code.co_consts[1:]))
        closure = [_cell_content(cell) for cell in function.__closure__ or ()]
        names = (name for name in sorted(_global_names(code)) if name in module_names)
        read = {name: module_names[name] for name in names if not isinstance(module_names[name], Path)}
        return [self.describe(item) for item in (code, function.__defaults__, function.__kwdefaults__, closure, read)]


def _attributes(value: Any) -> Any:
    """What an object holds: its attributes, also those in __slots__, or how an object of the standard library without any would be built again, such as a range."""
    owner = _owner(type(value))
    if owner == PACKAGE.name or isinstance(value, PurePath):
        return {}
    if not hasattr(value, "__dict__") and owner in sys.stdlib_module_names:
        with suppress(TypeError):  # a lock or a stream, which cannot be built again
            parts = copyreg.dispatch_table.get(type(value), lambda value: value.__reduce_ex__(2))(value)[1:]
            return [list(part) if isinstance(part, Iterator) else part for part in parts]
    slots = (name for kind in type(value).__mro__ for name, member in vars(kind).items() if isinstance(member, MemberDescriptorType))
    attributes = {name: getattr(value, name) for name in slots if hasattr(value, name)} | getattr(value, "__dict__", {})
    return {name: item for name, item in attributes.items() if not name.startswith("_") and not isinstance(item, Path)}


def _cell_content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is not bound yet
        return None


def _global_names(code: CodeType) -> set[str]:
    """The global names that code reads, those of the functions within it too."""
    names = {instruction.argval for instruction in dis.get_instructions(code) if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names.union(*(_global_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)))


def _user_module_digests(module: ModuleType) -> list[str]:
    """The digests of a user's module and of those that it imports; none of an installed one, or of one without a file of Python code."""
    path = Path(getattr(module, "__file__", None) or "")
    if _module_owner(module.__name__) != USER or path.suffix != ".py":
        return []
    return sorted({file_digest(path), *imported_user_modules(parse(path.read_text(encoding="utf-8"))).values()})


def _owner(thing: Any) -> str:
    """The owner of a function or class: `USER`, or the name of its package where that is this one or installed."""
    return _module_owner(str(thing.__module__))


def _module_owner(module_name: str) -> str:
    """The owner of a module."""
    module = sys.modules.get(module_name)
    name, file = module_name.partition(".")[0], getattr(module, "__file__", None)
    if module is None or name == "__main__":
        return USER
    installed = file is None or file.startswith(_STANDARD_LIBRARY) or not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)
    return name if installed or name == PACKAGE.name else USER


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
