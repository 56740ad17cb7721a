"""The state of a training on disk: always complete, never pickled, and resumed by the same training only."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from cellsignal import json_schemas
from cellsignal.code_identity import changed_parts
from cellsignal.files import sha256, write_bytes
from cellsignal.learn.devices import compile_function, gradient_scaler, resolve_precision
from cellsignal.learn.history import held_out_value
from cellsignal.learn.networks.checkpointing import Checkpointing
from cellsignal.learn.networks.classifier import Classifier, ModelConfig, recorded_sha256, save_weights
from cellsignal.learn.settings import MachineSettings
from cellsignal.learn.training.distributed import ProcessGroup
from cellsignal.learn.training.epoch import Trainer
from cellsignal.learn.training.optim import WeightAverage, build_optimizer
from cellsignal.learn.training.phase import Phase
from cellsignal.receipts import Receipt

CODE_KEY = "code"  # key in a fingerprint: the code that trains, by part (`code_identity`)


class Checkpoint:
    """Tensors in `<stem>.checkpoint-<epoch>.safetensors`, everything else in their receipt, `<stem>.checkpoint.json`.

    A checkpoint counts from the moment its receipt is replaced; the receipt is marked incomplete, because the phase is.
    `fingerprint`, the receipt's identity, holds everything that must not change between sessions. Only a checkpoint copied from
    another folder may differ in its `CODE_KEY`; `earlier_code` then lists the code that wrote it.
    While a phase trains, a terminal shows `phase`, `epoch` and `epochs` of the details (run.progress).
    """

    def __init__(self, weights: Path, *, fingerprint: dict[str, Any]) -> None:
        self.weights, self.path = weights, weights.with_suffix(".checkpoint.json")
        self.fingerprint = json.loads(json.dumps(fingerprint))
        self.earlier_code: list[Any] = []

    def code_differences(self, fingerprint: Mapping[str, Any]) -> list[str]:
        """The parts of the code that differ from those of an otherwise equal fingerprint; empty for any other fingerprint."""
        equal = {**fingerprint, CODE_KEY: None} == {**self.fingerprint, CODE_KEY: None}
        return changed_parts(fingerprint.get(CODE_KEY), self.fingerprint.get(CODE_KEY, {})) if equal else []

    def local_code_differences(self) -> list[str]:
        """`code_differences` of the checkpoint beside the weights; empty without one."""
        receipt = self._find_receipt(self.path, any_code=True)
        return self.code_differences(receipt.identity) if receipt else []

    def save(self, tensors: dict[str, torch.Tensor], *, phase: str, epoch: int, epochs: int, **state: Any) -> None:
        """Write a checkpoint after `epoch` of `epochs` epochs and remove the previous one."""
        tensors_path = self.path.with_name(f"{self.path.stem}-{epoch}.safetensors")
        write_bytes(tensors_path, save({name: tensor.detach().contiguous() for name, tensor in tensors.items()}))
        details = {"phase": phase, "epoch": epoch, "epochs": epochs, **state, "earlier_code": self.earlier_code}
        Receipt(self.path, self.fingerprint, {tensors_path.name: sha256(tensors_path)}, complete=False, details=details).write()
        self._remove_tensors(keep=tensors_path.name)

    def copy_latest(self, folders: Sequence[Path]) -> None:
        """Copy this training's checkpoint with the most epochs from `folders`, unless the local one has as many.

        The folders may be read-only; damaged checkpoints are skipped. A checkpoint of other code is copied only where there is
        none of this code, and a line reports it.
        """
        if not folders:
            return
        local = self._find_receipt(self.path)
        if local and self._read_tensors(local) is None:
            local = None
        paths = [folder / self.path.name for folder in folders if Path(folder) != self.path.parent]
        receipts = [receipt for path in paths if (receipt := self._find_receipt(path, any_code=True))]
        for receipt in sorted(receipts, key=lambda receipt: (receipt.identity != self.fingerprint, -receipt.details["epoch"])):
            differences = self.code_differences(receipt.identity)
            if local and (differences or receipt.details["epoch"] <= local.details["epoch"]):
                return
            if (content := self._read_tensors(receipt)) is not None:
                [name] = receipt.outputs
                write_bytes(self.path.with_name(name), content)
                earlier_code = receipt.details.get("earlier_code", [])
                if differences:
                    print(f"{self.weights.name}: resumes after epoch {receipt.details['epoch']} of {receipt.path.parent}, "
                          f"which other code trained ({', '.join(differences)})")
                    earlier_code = [*earlier_code, receipt.identity.get(CODE_KEY)]
                replace(receipt, path=self.path, identity=self.fingerprint, details={**receipt.details, "earlier_code": earlier_code}).write()
                self._remove_tensors(keep=name)
                return

    def load(self) -> tuple[dict[str, torch.Tensor], Mapping[str, Any]] | None:
        """Tensors and details of this training's newest checkpoint; None if it is absent, damaged or of another training."""
        receipt = self._find_receipt(self.path)
        content = self._read_tensors(receipt) if receipt else None
        if content is None:
            return None
        try:
            tensors = load(content)
        except SafetensorError:
            return None
        self.earlier_code = receipt.details.get("earlier_code", [])
        self.path.touch()  # in use again: a terminal that watches the run may show it
        return tensors, receipt.details

    def clear(self) -> None:
        """Remove every file of the checkpoint: the training is over."""
        self.path.unlink(missing_ok=True)
        self._remove_tensors(keep="")

    def _find_receipt(self, path: Path, *, any_code: bool = False) -> Receipt | None:
        """The receipt of a checkpoint; None if it is absent, damaged or of another training."""
        receipt = Receipt.find(path, json_schemas.CheckpointDetails)
        if receipt is None or len(receipt.outputs) != 1 or "earlier_code" not in receipt.details:  # older checkpoints name tensors differently
            return None
        return receipt if receipt.identity == self.fingerprint or (any_code and self.code_differences(receipt.identity)) else None

    @staticmethod
    def _read_tensors(receipt: Receipt) -> bytes | None:
        """The content of a receipt's file of tensors; None if its SHA-256 is not the recorded one."""
        [(name, digest)] = receipt.outputs.items()
        try:
            content = receipt.path.with_name(name).read_bytes()
        except (OSError, ValueError):
            return None
        return content if hashlib.sha256(content).hexdigest() == digest else None

    def _remove_tensors(self, *, keep: str) -> None:
        for path in self.path.parent.glob(f"{self.path.stem}-*.safetensors"):
            if path.name != keep:
                path.unlink(missing_ok=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's state as flat named tensors, for safetensors."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{i}.{key}": torch.as_tensor(value)
            for i, slot in state.items() for key, value in slot.items() if value is not None}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Undo `optimizer_tensors`; entries of other names are ignored."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state_dict = optimizer.state_dict()
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, slot, key = name.split(".")
            parameter = parameters[int(slot)]
            if tensor.shape == parameter.shape:
                # In the memory format of the parameter: fused steps read both in parallel whatever their strides, and
                # files do not store channels last.
                tensor = torch.empty_like(parameter, device=tensor.device).copy_(tensor)
            state_dict["state"].setdefault(int(slot), {})[key] = tensor
    optimizer.load_state_dict(state_dict)


def without_prefix(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The entries whose name starts with `prefix`, under the rest of their name."""
    return {name[len(prefix):]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


# Everything that a phase of training changes, and how it is restored from disk.


class TrainingState:
    """Weights, their moving average, the selected weights, the optimiser's state, the gradient scaler, and the rows of the phase's epochs.

    `saved`: tensors and details of the checkpoint to resume from. `batches_per_step`: the number of batches per step of the
    optimiser without a virtual batch, one for each process that the phase started with; it does not change when the phase
    resumes with another number of processes. `checkpointing`: that of the network's body.
    """

    def __init__(self, model: Classifier, phase: Phase, checkpoint: Checkpoint, *, machine: MachineSettings, process_group: ProcessGroup,
                 saved: tuple[dict[str, torch.Tensor], dict[str, Any]] | None, checkpointing: Checkpointing | None = None) -> None:
        self.model, self.phase, self.checkpoint, self.process_group = model, phase, checkpoint, process_group
        self.rows, self.batches_per_step = [], process_group.size
        device = next(model.parameters()).device
        self.precision = resolve_precision(device, machine.precision)
        self.scaler = gradient_scaler(device, machine.precision)
        self.optimizer = build_optimizer(phase.training, trainable_parameters(model, phase.trainable))
        self.average = WeightAverage(model, phase.training.ema_decay) if phase.training.ema_decay else None
        self.trainer = Trainer(model, self.optimizer, phase, machine, process_group, self.scaler, self.average,
                               compile_function(model.embed) if machine.compile else model.embed, checkpointing)
        self.selected = _copy_weights(model)
        if saved is not None:
            self._restore(*saved)

    @property
    def network(self) -> Classifier:
        """The network that is scored and selected: with averaged weights if there are any."""
        return self.model if self.average is None else self.average.network

    def _restore(self, tensors: dict[str, torch.Tensor], details: dict) -> None:
        self.rows, self.batches_per_step = details["rows"], details.get("batches_per_step", 1)
        self.model.load_state_dict(without_prefix(tensors, "model."))
        device = next(self.model.parameters()).device
        self.selected = {name: tensor.to(device) for name, tensor in without_prefix(tensors, "selected.").items()}
        restore_optimizer(self.optimizer, tensors)
        if self.average is not None:
            self.average.steps = details["average_steps"]
            self.average.network.load_state_dict(without_prefix(tensors, "average."))
        if details["scaler"]:  # empty without fp16
            self.scaler.load_state_dict(details["scaler"])

    def end_epoch(self, row: dict) -> None:
        """Record the row of an epoch, select its weights if they are the best so far or the last count, and write a checkpoint."""
        self.rows.append(row)
        values = [held_out_value(past) for past in self.rows]
        if self.phase.keep == "last" or values[-1] is None or values[-1] >= max(values):
            self.selected = _copy_weights(self.network)
        if not self.process_group.is_main_process:
            return
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"selected.{name}": tensor for name, tensor in self.selected.items()}
        tensors |= optimizer_tensors(self.optimizer)
        steps = {}
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.network.state_dict().items()}
            steps = {"average_steps": self.average.steps}
        self.checkpoint.save(tensors, epoch=len(self.rows), epochs=self.phase.training.epochs, phase=self.phase.name,
                             rows=self.rows, scaler=self.scaler.state_dict(), batches_per_step=self.batches_per_step, **steps)

    def finish(self, config: ModelConfig, *, earlier_history: list[dict]) -> None:
        """Load the selected weights into the network, write them and the history, and remove the checkpoint."""
        self.model.load_state_dict(self.selected)
        self.model.requires_grad_(True)
        weights = self.checkpoint.weights
        if self.process_group.is_main_process:
            save_weights(weights, self.selected, config, identity=self.checkpoint.fingerprint, precision=self.precision,
                         batches_per_step=self.batches_per_step, earlier_code=self.checkpoint.earlier_code, history=earlier_history + self.rows)
            self.checkpoint.clear()
        self.process_group.barrier()  # no process reads the weights earlier
        self.model.origin = recorded_sha256(Receipt.read(weights.with_suffix(".json")))


def _copy_weights(model: Classifier) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def trainable_parameters(model: Classifier, part: str) -> list[torch.nn.Parameter]:
    """Freeze all parameters outside `part`, "whole" or "head", and return the others."""
    model.requires_grad_(part == "whole")
    model.head.requires_grad_(True)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
