"""How the cells of a notebook end together: one that ends the session leaves nothing to do for those that follow."""

import ast
from collections.abc import Callable
from types import TracebackType
from typing import Any

from cellsignal.budget import TimeSpent

NAME = "_cellsignal_cell"  # of the watch among a notebook's variables


class Finished(Exception):
    """The notebook's work is whole before its last cell; the message says what was done."""


class CellWatch(ast.NodeTransformer):
    """Ends a session when a cell raises TimeSpent or Finished: that cell ends well, and those that follow do nothing.

    IPython hands its exceptions to handlers (`set_custom_exc`) and still counts the cell as failed, so that papermill and
    Kaggle would stop with an error. As one of IPython's `ast_transformers` this puts each cell's statements into a
    `with` block; all other errors pass it as they are.
    """

    def __init__(self, end: Callable[[TimeSpent | Finished], None]) -> None:
        self.end, self.ended, self.value = end, False, None

    def watch(self, shell: Any) -> None:
        """Watch the cells that follow in an IPython shell, in place of a watch that an earlier call set up."""
        shell.ast_transformers[:] = [each for each in shell.ast_transformers if not isinstance(each, CellWatch)]
        shell.ast_transformers.append(self)
        shell.user_ns[NAME] = self

    def visit_Module(self, cell: ast.Module) -> ast.Module:
        """The cell in a `with` block, its last value after it where IPython looks for it; an empty one when all has ended."""
        future = [node for node in cell.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]  # always first
        inside = cell.body[len(future) :]
        if self.ended or not inside:
            cell.body = []
            return cell
        shown: list[ast.stmt] = []
        if isinstance(inside[-1], ast.Expr):
            value = ast.Attribute(ast.Name(NAME, ast.Load()), "value", ast.Store())
            inside[-1] = ast.copy_location(ast.Assign([value], inside[-1].value), inside[-1])
            shown = ast.parse(f"{NAME}.value").body
        guarded = ast.With([ast.withitem(ast.Name(NAME, ast.Load()))], inside)
        cell.body = [*future, ast.copy_location(guarded, inside[0]), *shown]
        return ast.fix_missing_locations(cell)

    def __enter__(self) -> None:
        self.value = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> bool:
        if not isinstance(error, TimeSpent | Finished):
            return False
        self.ended = True
        self.end(error)
        return True
