"""Where the networks lie that a prediction needs, and which cell types have them."""

from collections.abc import Sequence
from pathlib import Path

from cellsignal.errors import InputError

JOINT = "all"  # the "cell type" of a network that was trained on all of them


def weights_path(weights: Path, cell_type: str, name: str, *, joint: bool | None = None) -> Path:
    """Where the weights of the network `name` that serves a cell type lie, or should.

    `weights`: the folder with `<cell_type>/<name>.safetensors`, and `all/<name>.safetensors` for joint ones. `joint`:
    which of the two counts, because a run that was trained both ways holds both; None, where nobody says: the cell
    type's own, else the joint ones, else where its own should be.
    """
    own, shared = (Path(weights) / folder / f"{name}.safetensors" for folder in (cell_type, JOINT))
    joint = shared.is_file() and not own.is_file() if joint is None else joint
    return shared if joint else own


def trained_cell_types(weights: Path, cell_types: Sequence[str], *, networks: Sequence[str], named: bool = False,
            joint: bool | None = None) -> tuple[list[str], str]:
    """The cell types with weights of all `networks`, in their order, and one line on those that are left out, "" for none.

    `weights` and `joint`: as `place` takes them. Raises InputError when there is nothing
    to predict with, or when the cell types were `named` one by one and one of them lacks a network.
    """
    lacking = {name: _lacking(weights, name, networks, joint) for name in cell_types}
    found = [name for name in cell_types if not lacking[name]]
    absent = "; ".join(f"{name} lacks {', '.join(lost)}" for name, lost in lacking.items() if lost)
    if absent and (named or not found):
        cure = "run 3-train-cell-type for it, and attach its output where this runs apart from it"
        raise InputError(f"no weights to predict with: {absent}", where=weights, cure=cure)
    return found, absent and f"left out for want of weights: {absent}"


def _lacking(weights: Path, cell_type: str, networks: Sequence[str], joint: bool | None) -> list[str]:
    return [f"{name}.safetensors" for name in networks if not weights_path(weights, cell_type, name, joint=joint).is_file()]
