"""How long functions are."""

import ast
from collections.abc import Iterator


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    """All functions and methods of a file."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def length(function: ast.FunctionDef) -> int:
    """Lines from `def` to the end, the docstring not counted."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        lines -= docstring.end_lineno - docstring.lineno + 1
    return lines
