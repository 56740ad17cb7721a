"""Everything a phase of training changes, and how it comes back from disk."""

from typing import Any

import torch

from cellsignal.files import read_json
from cellsignal.learn.averages import Average
from cellsignal.learn.checkpoint import Checkpoint, optimizer_tensors, prefixed, restore_optimizer
from cellsignal.learn.devices import compiled, gradient_scaler, resolve
from cellsignal.learn.history import held_out_value
from cellsignal.learn.models import Card, Classifier, save_weights
from cellsignal.learn.optimizers import optimizer
from cellsignal.learn.phases import Phase
from cellsignal.learn.world import World


class State:
    """Weights and their average, the weights to keep, the optimiser's moments, the scaler, and the rows of the phase's epochs.

    `found` is the checkpoint to go on from. `together`: how many batches a step of the optimiser
    takes without a virtual batch: one for each process that the phase began with. It stays when the
    phase goes on in more processes or fewer. `embed`: the model's, compiled if so wanted.
    """

    def __init__(self, model: Classifier, phase: Phase, checkpoint: Checkpoint, *, world: World,
                 found: tuple[dict[str, torch.Tensor], dict[str, Any]] | None, compile: bool = False) -> None:
        self.model, self.phase, self.checkpoint, self.world = model, phase, checkpoint, world
        self.rows, self.together = [], world.size
        self.embed = compiled(model.embed) if compile else model.embed
        device = next(model.parameters()).device
        self.precision = resolve(device, phase.precision)
        self.scaler = gradient_scaler(device, phase.precision)
        self.optimizer = optimizer(phase.optimizer, trainable(model, phase.trainable), learning_rate=phase.learning_rate,
                                   weight_decay=phase.weight_decay, momentum=phase.momentum)
        self.average = Average(model, phase.ema) if phase.ema else None
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
        self.checkpoint.save(tensors, epoch=len(self.rows), epochs=self.phase.epochs, phase=self.phase.name,
                             rows=self.rows, scaler=self.scaler.state_dict(), batches_per_step=self.together, **steps)

    def finish(self, card: Card, *, before: list[dict]) -> None:
        """Put the kept weights into the network and, with the history, into their file; forget the checkpoint."""
        self.model.load_state_dict(self.kept)
        self.model.requires_grad_(True)
        weights = self.checkpoint.weights
        if self.world.first:
            save_weights(weights, self.kept, card, fingerprint=self.checkpoint.fingerprint, precision=self.precision,
                         batches_per_step=self.together, begun_by=self.checkpoint.begun_by, history=before + self.rows)
            self.checkpoint.clear()
        self.world.meet()  # nobody reads them earlier
        self.model.origin = read_json(weights.with_suffix(".json"))["sha256"]


def _copy(model: Classifier) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def trainable(model: Classifier, part: str) -> list[torch.nn.Parameter]:
    """Let only the parameters of a part, "whole" or "head", learn, and return them."""
    model.requires_grad_(part == "whole")
    model.head.requires_grad_(True)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
