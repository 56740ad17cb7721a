"""The files of the networks for a prediction, and the cell types that have them."""

from collections.abc import Sequence
from pathlib import Path

from cellsignal.errors import InputError

JOINT_FOLDER = "all"  # folder of networks that were trained on all cell types


def weights_path(weights: Path, cell_type: str, name: str, *, joint: bool | None = None) -> Path:
    """The path of the weights of the network `name` for a cell type, which need not exist.

    `weights`: the folder with `<cell_type>/<name>.safetensors`, and `all/<name>.safetensors` for joint networks. `joint`: which
    of the two to use, because a run may hold both; None prefers the cell type's own if it exists, then the joint one.
    """
    own, shared = (Path(weights) / folder / f"{name}.safetensors" for folder in (cell_type, JOINT_FOLDER))
    joint = shared.is_file() and not own.is_file() if joint is None else joint
    return shared if joint else own


def trained_cell_types(weights: Path, cell_types: Sequence[str], *, networks: Sequence[str], explicit: bool = False,
                       joint: bool | None = None) -> tuple[list[str], str]:
    """The cell types with weights of all `networks`, and a line about those that are left out, "" for none.

    `weights` and `joint`: as in `weights_path`. Raises InputError if no cell type has weights, or if the cell types were chosen
    one by one (`explicit`) and one of them lacks a network.
    """
    missing = {name: _missing_weights(weights, name, networks, joint) for name in cell_types}
    trained = [name for name in cell_types if not missing[name]]
    note = "; ".join(f"{name} lacks {', '.join(files)}" for name, files in missing.items() if files)
    if note and (explicit or not trained):
        cure = "run 3-train-cell-type for it, and attach its output if this runs elsewhere"
        raise InputError(f"no weights to predict with: {note}", where=weights, cure=cure)
    return trained, note and f"left out without weights: {note}"


def _missing_weights(weights: Path, cell_type: str, networks: Sequence[str], joint: bool | None) -> list[str]:
    return [f"{name}.safetensors" for name in networks if not weights_path(weights, cell_type, name, joint=joint).is_file()]
