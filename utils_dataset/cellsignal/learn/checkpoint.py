"""The state of a training on disk: always whole, never pickled, and only resumed by the same training."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from cellsignal.files import sha256, write_bytes, write_json


class Checkpoint:
    """Tensors in `<stem>.checkpoint-<epoch>.safetensors`, everything else in `<stem>.checkpoint.json`.

    The JSON is written last and names its tensors with their SHA-256: replacing it is the moment
    at which a checkpoint comes to be. `fingerprint` holds whatever must not change between runs.
    While a phase trains, a terminal shows `phase`, `epoch` and `epochs` of that JSON (run.progress).
    """

    def __init__(self, weights: Path, *, fingerprint: dict[str, Any]) -> None:
        self.path = weights.with_suffix(".checkpoint.json")
        self.fingerprint = json.loads(json.dumps(fingerprint))

    def save(self, tensors: dict[str, torch.Tensor], *, phase: str, epoch: int, epochs: int, **state: Any) -> None:
        """Write a checkpoint after `epoch` of `epochs` epochs and forget the one before."""
        tensors_path = self.path.with_name(f"{self.path.stem}-{epoch}.safetensors")
        write_bytes(tensors_path, save({name: tensor.detach().contiguous() for name, tensor in tensors.items()}))
        facts = {"phase": phase, "epoch": epoch, "epochs": epochs, "tensors": tensors_path.name, "sha256": sha256(tensors_path)}
        write_json(self.path, {**facts, **state, "fingerprint": self.fingerprint})
        self._sweep(keep=tensors_path.name)

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """The newest checkpoint of this very training, or None: absent, damaged or another training's."""
        try:
            state = json.loads(self.path.read_text())
            tensors_path = self.path.with_name(state["tensors"])
            if state["fingerprint"] != self.fingerprint or sha256(tensors_path) != state["sha256"]:
                return None
            found = load_file(tensors_path), state
            self.path.touch()  # in use again: whoever watches may show it
            return found
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def clear(self) -> None:
        """Remove every file of the checkpoint: the training is over."""
        self.path.unlink(missing_ok=True)
        self._sweep(keep="")

    def _sweep(self, *, keep: str) -> None:
        for path in self.path.parent.glob(f"{self.path.stem}-*.safetensors"):
            if path.name != keep:
                path.unlink(missing_ok=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's state as flat named tensors, for safetensors."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{i}.{key}": torch.as_tensor(value) for i, slot in state.items() for key, value in slot.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Undo `optimizer_tensors`; entries of other names are ignored."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    whole = optimizer.state_dict()
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, slot, key = name.split(".")
            parameter = parameters[int(slot)]
            if tensor.shape == parameter.shape:
                # In the parameter's order of memory: fused steps read both side by side, whatever their
                # strides, and files know no channels last.
                tensor = torch.empty_like(parameter, device=tensor.device).copy_(tensor)
            whole["state"].setdefault(int(slot), {})[key] = tensor
    optimizer.load_state_dict(whole)


def prefixed(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The entries whose name starts with `prefix`, without it."""
    return {name[len(prefix):]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
