"""The state of a training on disk: always whole, never pickled, and only resumed by the same training."""

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
from cellsignal.learn.devices import compiled, gradient_scaler, resolve_precision
from cellsignal.learn.networks.classifier import Classifier, ModelConfig, recorded_sha256, save_weights
from cellsignal.learn.settings import MachineSettings
from cellsignal.learn.training.distributed import ProcessGroup
from cellsignal.learn.training.epoch import Learner
from cellsignal.learn.training.optim import WeightAverage, optimizer
from cellsignal.learn.training.phase import Phase
from cellsignal.receipts import Receipt

CODE = "code"  # in a fingerprint: which code trains, by part (`code_identity`)


class Checkpoint:
    """Tensors in `<stem>.checkpoint-<epoch>.safetensors`, everything else in their receipt, `<stem>.checkpoint.json`.

    Replacing the receipt is the moment at which a checkpoint comes to be; it is not complete, because the phase is not.
    `fingerprint`, its identity, holds whatever must not change between runs; only what is taken up
    from another folder may be of other `CODE`, and `begun_by` then tells of which.
    While a phase trains, a terminal shows `phase`, `epoch` and `epochs` of its details (run.progress).
    """

    def __init__(self, weights: Path, *, fingerprint: dict[str, Any]) -> None:
        self.weights, self.path = weights, weights.with_suffix(".checkpoint.json")
        self.fingerprint = json.loads(json.dumps(fingerprint))
        self.begun_by: list[Any] = []

    def other_code(self, found: Mapping[str, Any]) -> list[str]:
        """What of the code differs from that of a fingerprint that is else the same; nothing for any other one."""
        alike = {**found, CODE: None} == {**self.fingerprint, CODE: None}
        return changed_parts(found.get(CODE), self.fingerprint.get(CODE, {})) if alike else []

    def save(self, tensors: dict[str, torch.Tensor], *, phase: str, epoch: int, epochs: int, **state: Any) -> None:
        """Write a checkpoint after `epoch` of `epochs` epochs and forget the one before."""
        tensors_path = self.path.with_name(f"{self.path.stem}-{epoch}.safetensors")
        write_bytes(tensors_path, save({name: tensor.detach().contiguous() for name, tensor in tensors.items()}))
        details = {"phase": phase, "epoch": epoch, "epochs": epochs, **state, "begun_by": self.begun_by}
        Receipt(self.path, self.fingerprint, {tensors_path.name: sha256(tensors_path)}, complete=False, details=details).write()
        self._sweep(keep=tensors_path.name)

    def adopt(self, folders: Sequence[Path]) -> None:
        """Copy the checkpoint of this very training that came furthest from `folders`, unless our own came as far.

        The folders may be read-only; a damaged checkpoint gives way to the next. One that other code began is taken
        where there is none of this code, and a line says so.
        """
        if not folders:
            return
        own = self._find(self.path)
        if own and self._tensors(own) is None:
            own = None
        places = [folder / self.path.name for folder in folders if Path(folder) != self.path.parent]
        others = [found for path in places if (found := self._find(path, any_code=True))]
        for found in sorted(others, key=lambda found: (found.identity != self.fingerprint, -found.details["epoch"])):
            differs = self.other_code(found.identity)
            if own and (differs or found.details["epoch"] <= own.details["epoch"]):
                return
            if (content := self._tensors(found)) is not None:
                [name] = found.outputs
                write_bytes(self.path.with_name(name), content)
                begun_by = found.details.get("begun_by", [])
                if differs:
                    print(f"{self.weights.name}: goes on at epoch {found.details['epoch']} of {found.path.parent}, whose code was other ({', '.join(differs)})")
                    begun_by = [*begun_by, found.identity.get(CODE)]
                replace(found, path=self.path, identity=self.fingerprint, details={**found.details, "begun_by": begun_by}).write()
                self._sweep(keep=name)
                return

    def left_by_other_code(self) -> list[str]:
        """What of the code differs from that of the checkpoint that lies here, if it is else of this training."""
        found = self._find(self.path, any_code=True)
        return self.other_code(found.identity) if found else []

    def _find(self, path: Path, *, any_code: bool = False) -> Receipt | None:
        """The receipt of a checkpoint; None when it is absent, damaged or another training's."""
        found = Receipt.find(path, json_schemas.CheckpointDetails)
        if found is None or len(found.outputs) != 1:
            return None
        return found if found.identity == self.fingerprint or (any_code and self.other_code(found.identity)) else None

    @staticmethod
    def _tensors(receipt: Receipt) -> bytes | None:
        """The file of tensors that a receipt is about; None when it is not the one on record."""
        [(name, digest)] = receipt.outputs.items()
        try:
            content = receipt.path.with_name(name).read_bytes()
        except (OSError, ValueError):
            return None
        return content if hashlib.sha256(content).hexdigest() == digest else None

    def load(self) -> tuple[dict[str, torch.Tensor], Mapping[str, Any]] | None:
        """The newest checkpoint of this very training, its tensors and details, or None: absent, damaged or another training's."""
        found = self._find(self.path)
        content = self._tensors(found) if found else None
        if content is None:
            return None
        try:
            tensors = load(content)
        except SafetensorError:
            return None
        self.begun_by = found.details.get("begun_by", [])
        self.path.touch()  # in use again: whoever watches may show it
        return tensors, found.details

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
    return {f"optimizer.{i}.{key}": torch.as_tensor(value)
            for i, slot in state.items() for key, value in slot.items() if value is not None}


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


# What the rows of a training's history say, whatever its metric.


HELD_OUT = "held_out_"


def metric_of(row: dict) -> str:
    """By what an epoch's row was measured, such as "accuracy" or "macro_f1" (`learn.metrics`)."""
    return next((key.removeprefix(HELD_OUT) for key in row if key.startswith(HELD_OUT)), "accuracy")


def held_out_value(row: dict) -> float | None:
    """What an epoch's row says of the held-out sites; None where they were not measured."""
    return row.get(HELD_OUT + metric_of(row))


# Everything a phase of training changes, and how it comes back from disk.


class TrainingState:
    """Weights and their average, the weights to keep, the optimiser's moments, the scaler, and the rows of the phase's epochs.

    `found` is the checkpoint to go on from. `together`: how many batches a step of the optimiser
    takes without a virtual batch: one for each process that the phase began with. It stays when the
    phase goes on in more processes or fewer.
    """

    def __init__(self, model: Classifier, phase: Phase, checkpoint: Checkpoint, *, machine: MachineSettings, world: ProcessGroup,
                 found: tuple[dict[str, torch.Tensor], dict[str, Any]] | None) -> None:
        self.model, self.phase, self.checkpoint, self.world = model, phase, checkpoint, world
        self.rows, self.together = [], world.size
        device = next(model.parameters()).device
        self.precision = resolve_precision(device, machine.precision)
        self.scaler = gradient_scaler(device, machine.precision)
        self.optimizer = optimizer(phase.training, trainable(model, phase.trainable))
        self.average = WeightAverage(model, phase.training.ema_decay) if phase.training.ema_decay else None
        self.learner = Learner(model, self.optimizer, phase, machine, world, self.scaler, self.average,
                               compiled(model.embed) if machine.compile else model.embed)
        self.kept = _copy(model)
        if found is not None:
            self._restore(*found)

    @property
    def network(self) -> Classifier:
        """What is scored and kept: the average of the weights where there is one, else the weights."""
        return self.model if self.average is None else self.average.network

    def _restore(self, tensors: dict[str, torch.Tensor], facts: dict) -> None:
        self.rows, self.together = facts["rows"], facts.get("batches_per_step", 1)
        self.model.load_state_dict(prefixed(tensors, "model."))
        device = next(self.model.parameters()).device
        self.kept = {name: tensor.to(device) for name, tensor in prefixed(tensors, "kept.").items()}
        restore_optimizer(self.optimizer, tensors)
        if self.average is not None:
            self.average.steps = facts["average_steps"]
            self.average.network.load_state_dict(prefixed(tensors, "average."))
        if facts["scaler"]:  # empty where there was nothing to scale
            self.scaler.load_state_dict(facts["scaler"])

    def end_epoch(self, row: dict) -> None:
        """Note an epoch's results, keep its weights when they are to be kept, and write all to disk."""
        self.rows.append(row)
        measured = [held_out_value(past) for past in self.rows]
        if self.phase.keep == "last" or measured[-1] is None or measured[-1] >= max(measured):
            self.kept = _copy(self.network)
        if not self.world.first:
            return
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"kept.{name}": tensor for name, tensor in self.kept.items()}
        tensors |= optimizer_tensors(self.optimizer)
        steps = {}
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.network.state_dict().items()}
            steps = {"average_steps": self.average.steps}
        self.checkpoint.save(tensors, epoch=len(self.rows), epochs=self.phase.training.epochs, phase=self.phase.name,
                             rows=self.rows, scaler=self.scaler.state_dict(), batches_per_step=self.together, **steps)

    def finish(self, card: ModelConfig, *, before: list[dict]) -> None:
        """Put the kept weights into the network and, with the history, into their file; forget the checkpoint."""
        self.model.load_state_dict(self.kept)
        self.model.requires_grad_(True)
        weights = self.checkpoint.weights
        if self.world.first:
            save_weights(weights, self.kept, card, identity=self.checkpoint.fingerprint, precision=self.precision,
                         batches_per_step=self.together, begun_by=self.checkpoint.begun_by, history=before + self.rows)
            self.checkpoint.clear()
        self.world.meet()  # nobody reads them earlier
        self.model.origin = recorded_sha256(Receipt.read(weights.with_suffix(".json")))


def _copy(model: Classifier) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def trainable(model: Classifier, part: str) -> list[torch.nn.Parameter]:
    """Let only the parameters of a part, "whole" or "head", learn, and return them."""
    model.requires_grad_(part == "whole")
    model.head.requires_grad_(True)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
