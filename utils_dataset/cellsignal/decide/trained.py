"""Where the networks lie that a prediction needs, and which cell types have them."""

from collections.abc import Sequence
from pathlib import Path

from cellsignal.errors import InputError

JOINT = "all"  # the "cell type" of a network that was trained on all of them


def place(weights: Path, cell_type: str, name: str) -> Path:
    """The weights of the network `name` that serves a cell type: its own, else the joint one, else where its own should be.

    `weights`: the folder with `<cell_type>/<name>.safetensors`, and `all/<name>.safetensors` for joint ones. A cell
    type's own weights come first, because a joint network may be trained on, cell type by cell type.
    """
    own, joint = (Path(weights) / folder / f"{name}.safetensors" for folder in (cell_type, JOINT))
    return joint if joint.is_file() and not own.is_file() else own


def trained(weights: Path, cell_types: Sequence[str], *, networks: Sequence[str], named: bool = False) -> tuple[list[str], str]:
    """The cell types with weights of all `networks`, in their order, and one line on those that are left out, "" for none.

    `weights`: the folder that `place` looks into. Raises InputError when there is nothing
    to predict with, or when the cell types were `named` one by one and one of them lacks a network.
    """
    lacking = {name: _lacking(weights, name, networks) for name in cell_types}
    found = [name for name in cell_types if not lacking[name]]
    absent = "; ".join(f"{name} lacks {', '.join(lost)}" for name, lost in lacking.items() if lost)
    if absent and (named or not found):
        cure = "run 3-train-cell-type for it, and attach its output where this runs apart from it"
        raise InputError(f"no weights to predict with: {absent}", where=weights, cure=cure)
    return found, absent and f"left out for want of weights: {absent}"


def _lacking(weights: Path, cell_type: str, networks: Sequence[str]) -> list[str]:
    return [f"{name}.safetensors" for name in networks if not place(weights, cell_type, name).is_file()]
