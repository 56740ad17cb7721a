"""Which of the package's files a piece of code uses, found by reading imports and running nothing."""

import ast
from collections.abc import Iterator
from pathlib import Path
from threading import Lock

from cellsignal import files
from cellsignal.run.paths import PACKAGE

_one_tree_at_a_time = Lock()  # CPython 3.11 counts the depth of trees for all threads together, and takes fright


def parsed(code: str) -> ast.Module:
    """The syntax tree of `code`, from any thread."""
    with _one_tree_at_a_time:
        return ast.parse(code)


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
    names: set[str] = set()
    for node in ast.walk(parsed(code)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def modules(code: str) -> set[Path]:
    """The package's files that `code` imports itself."""
    return {path for name in imported(code) if (path := _module(name)) is not None}


def _module(name: str) -> Path | None:
    """The file of a module of this package; None for a package, an object in a module, or foreign code."""
    room, *rest = name.split(".")
    path = PACKAGE.joinpath(*rest).with_suffix(".py")
    return path if room == PACKAGE.name and rest and path.is_file() else None


def closure(code: str) -> dict[str, str]:
    """SHA-256 of every file of the package that `code` uses, directly or through others, by relative path."""
    found: set[Path] = set()
    for path in _reach(modules(code), found):
        found.add(path)
    return {path.relative_to(PACKAGE).as_posix(): files.sha256(path) for path in sorted(found)}


def _reach(paths: set[Path], found: set[Path]) -> Iterator[Path]:
    for path in paths - found:
        if path not in found:
            yield path
            yield from _reach(modules(path.read_text(encoding="utf-8")), found)
