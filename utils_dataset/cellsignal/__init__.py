"""CellSignal: plates go in, a submission and a report come out."""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from cellsignal.budget import TimeSpent

if TYPE_CHECKING:
    from cellsignal.run.record.session import Session

__all__ = ["TimeSpent", "start"]
__version__ = "0.1.0"


def start(namespace: Mapping[str, Any], step: str) -> "Session":
    """Begin a notebook: `session = cellsignal.start(globals(), "1-eda")`; see `cellsignal.run.record.session.start`."""
    # Not an import: `import cellsignal` must stay fast, and the identity of no other room's code hangs on that of `run`.
    return import_module("cellsignal.run.record.session").start(namespace, step)
