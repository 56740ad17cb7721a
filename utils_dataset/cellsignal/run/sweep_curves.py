"""How far a running trial has come: its metric on held-out sites, epoch by epoch, from what training leaves on disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cellsignal import files, shapes
from cellsignal.errors import InputError
from cellsignal.learn.history import held_out_value

PHASE = "whole"  # the epochs on the treatments, of which the best is kept


def curve(run: Path, *, phase: str = PHASE) -> list[float]:
    """The best of the held-out sites so far after each epoch of `phase`, in the order in which the networks are trained.

    With several networks that is the mean over all of them, of which those to come count nothing: a value says as
    much at the same epoch of two trials, and never falls.
    """
    names = _networks(run)
    values: list[float] = []
    before = 0.0
    for name in names:
        rows, ended = _rows(run / "weights" / name, phase)
        best = 0.0
        for row in rows:
            best = max(best, held_out_value(row) or 0.0)
            values.append((before + best) / len(names))
        before += best
        if not ended:
            break
    return values


def _networks(run: Path) -> list[str]:
    """The folders of weights that the run fills, in its order: `all` for a joint network, the cell types, else the folds."""
    parameters = _read(run / "recipe.json", shapes.Description).get("parameters", {})
    folds = [f"fold-{fold}" for fold in range(parameters.get("folds", 0))]
    return ["all"] if parameters.get("joint") else list(parameters.get("cell_types", [])) or folds


def _rows(folder: Path, phase: str) -> tuple[list[Mapping[str, Any]], bool]:
    """The rows of a phase of the network `model`, and whether it has ended."""
    ended = _read(folder / "model.json", shapes.Card).get("history")
    rows = ended if ended is not None else _read(folder / "model.checkpoint.json", shapes.Progress).get("rows", [])
    return [row for row in rows if row.get("phase") == phase], ended is not None


def _read(path: Path, shape: Any) -> Mapping[str, Any]:
    """What a JSON file of a shape says; nothing when it is not there (any more)."""
    try:
        return files.read_json(path, shape)
    except (OSError, InputError):
        return {}
