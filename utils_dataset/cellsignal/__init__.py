"""CellSignal: plates go in, a submission and a report come out."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from cellsignal.budget import TimeSpent

__all__ = ["TimeSpent", "start"]
__version__ = "0.1.0"


def start(namespace: Mapping[str, Any], step: str) -> Any:
    """Begin a notebook, `session = cellsignal.start(globals(), "1-eda")`, and give its `cellsignal.run.record.session.Session`."""
    # Not an import: `import cellsignal` must stay fast, and the identity of no other room's code hangs on that of `run`.
    return import_module("cellsignal.run.record.session").start(namespace, step)
