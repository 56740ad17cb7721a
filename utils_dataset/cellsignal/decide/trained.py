"""Which cell types have the networks that a prediction needs."""

from collections.abc import Sequence
from pathlib import Path

from cellsignal.errors import InputError


def trained(weights: Path, cell_types: Sequence[str], *, networks: Sequence[str], named: bool = False) -> tuple[list[str], str]:
    """The cell types with weights of all `networks`, in their order, and one line on those that are left out, "" for none.

    `weights`: the folder with one `<cell_type>/<network>.safetensors` each. Raises InputError when there is nothing
    to predict with, or when the cell types were `named` one by one and one of them lacks a network.
    """
    lacking = {name: _lacking(weights / name, networks) for name in cell_types}
    found = [name for name in cell_types if not lacking[name]]
    absent = "; ".join(f"{name} lacks {', '.join(lost)}" for name, lost in lacking.items() if lost)
    if absent and (named or not found):
        cure = "run 3-train-cell-type for it, and attach its output where this runs apart from it"
        raise InputError(f"no weights to predict with: {absent}", where=weights, cure=cure)
    return found, absent and f"left out for want of weights: {absent}"


def _lacking(folder: Path, networks: Sequence[str]) -> list[str]:
    return [f"{name}.safetensors" for name in networks if not (folder / f"{name}.safetensors").is_file()]
