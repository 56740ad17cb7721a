"""Phases of training: epochs, checkpoints, the weights that are kept."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from tqdm.auto import tqdm

from cellsignal.errors import InputError
from cellsignal.files import read_json, write_json
from cellsignal.learn.batches import SiteImages, epoch_batches, virtual_batches
from cellsignal.learn.budget import Budget
from cellsignal.learn.checkpoint import Checkpoint, optimizer_tensors, prefixed, restore_optimizer
from cellsignal.learn.devices import gradient_scaler, pick, resolve
from cellsignal.learn.epochs import held_out_accuracy, train_epoch
from cellsignal.learn.models import Card, Classifier, check_sha256, save_weights
from cellsignal.learn.phases import Phase

History = list[dict]


def fit(
    model: Classifier,
    data: SiteImages,
    *,
    phase: Phase,
    weights: Path,
    held_out: SiteImages | None = None,
    history: Sequence[dict] = (),
    workers: int = 0,
    fingerprint: dict | None = None,
    on_epoch: Callable[[History], None] = lambda history: None,
    budget: Budget | None = None,
    elsewhere: Sequence[Path] = (),
    device: str = "auto",
    processes: int = 0,
) -> History:
    """Train `model` through one phase; it and the file `weights` end with the weights that are kept.

    Kept are the best on the held-out sites, or the last (phase.keep, and always without held-out
    sites). Held-out sites are scored with the statistics of the held-out sites of their scope, whole
    plates where whole experiments are held out, because so test plates are predicted (Brodt's
    solution); with a random split they are only a part of each plate. Adam with AMSGrad. A killed phase goes on at its last whole epoch
    and ends with the same weights bit for bit; a finished one is not repeated while phase, data
    classes, `fingerprint` and the weights it began with (model.origin) are the same.

    Returns, and writes into the JSON beside the weights, the rows of earlier phases (`history`) and
    one an epoch: phase, epoch, loss, accuracy (of the training batches), held_out_accuracy (None
    where not measured), learning_rate, seconds. Raises InputError when the loss is no longer a number.
    """
    checkpoint = Checkpoint(weights, fingerprint={
        **(fingerprint or {}), **vars(phase), "class_numbers": data.class_numbers, "backbone": model.backbone,
        "plates": model.plates, "origin": model.origin})
    if (ended := finished(weights, checkpoint.fingerprint, before=history)) is not None:
        model.load_state_dict(load_file(weights))
        model.origin = read_json(weights.with_suffix(".json"))["sha256"]
        on_epoch(ended)
        return ended
    budget = budget or Budget()
    state = _State(model.to(pick(device)), phase, checkpoint, before=history)
    bar = tqdm(range(len(state.rows), phase.epochs), initial=len(state.rows), total=phase.epochs, desc=phase.name, unit="epoch")
    for epoch in bar:
        if not budget.fits(max((row["seconds"] for row in state.rows), default=0.0)):
            budget.stop(f"{phase.name}, epoch {epoch} of {phase.epochs}")
            return state.history
        row = _epoch(state, data, held_out, phase=phase, epoch=epoch, workers=workers)
        state.end_epoch(row)
        bar.set_postfix({name: f"{row[name]:.4f}" for name in ("loss", "held_out_accuracy") if row[name] is not None})
        on_epoch(state.history)
    well_types = sorted(data.sites["well_type"].unique().tolist())
    state.finish(weights, Card(model.backbone, model.channels, data.class_numbers, well_types, phase.scope, model.plates))
    return state.history


def _epoch(state: "_State", data: SiteImages, held_out: SiteImages | None, *, phase: Phase, epoch: int, workers: int) -> dict:
    """Train and score one epoch; returns its row of the history."""
    started = time.perf_counter()
    rate = set_learning_rate(state.optimizer, phase.rate(epoch))
    torch.manual_seed(phase.seed * 100_003 + epoch)  # for layers that draw, such as dropout
    batches = epoch_batches(data.sites, batch_size=phase.batch_size, scope=phase.scope, seed=phase.seed, epoch=epoch)
    steps = virtual_batches(batches, phase.virtual_batch)
    row = train_epoch(state.model, data, steps, state.optimizer, phase=phase, epoch=epoch, scaler=state.scaler, workers=workers)
    if not math.isfinite(row["loss"]):
        raise InputError(f"the loss is {row['loss']} in epoch {epoch + 1}", where=f"phase {phase.name}",
                         cure="lower the learning rate, or set precision: fp32")
    row["held_out_accuracy"] = held_out_accuracy(state.model, held_out, phase=phase, workers=workers)
    return {"phase": phase.name, "epoch": epoch + 1, **row, "learning_rate": rate, "seconds": time.perf_counter() - started}


class _State:
    """Everything a phase changes: weights, the weights to keep, the optimiser's moments, the scaler, the rows."""

    def __init__(self, model: Classifier, phase: Phase, checkpoint: Checkpoint, *, before: Sequence[dict]) -> None:
        self.model, self.phase, self.checkpoint = model, phase, checkpoint
        self.before, self.rows = list(before), []
        device = next(model.parameters()).device
        self.precision = resolve(device, phase.precision)
        self.scaler = gradient_scaler(device, phase.precision)
        self.optimizer = torch.optim.Adam(trainable(model, phase.trainable), lr=phase.learning_rate,
                                          weight_decay=phase.weight_decay, amsgrad=True, fused=True)
        self.kept = _copy(model)
        if (found := checkpoint.load()) is not None:
            self._restore(*found)

    def _restore(self, tensors: dict[str, torch.Tensor], facts: dict) -> None:
        self.rows, self.kept = facts["rows"], prefixed(tensors, "kept.")
        self.model.load_state_dict(prefixed(tensors, "model."))
        restore_optimizer(self.optimizer, tensors)
        if facts["scaler"]:  # empty where there was nothing to scale
            self.scaler.load_state_dict(facts["scaler"])

    @property
    def history(self) -> History:
        """The rows of earlier phases and of this one."""
        return self.before + self.rows

    def end_epoch(self, row: dict) -> None:
        """Note an epoch's results, keep its weights when they are to be kept, and write all to disk."""
        self.rows.append(row)
        measured = [past["held_out_accuracy"] for past in self.rows]
        if self.phase.keep == "last" or measured[-1] is None or measured[-1] >= max(measured):
            self.kept = _copy(self.model)
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"kept.{name}": tensor for name, tensor in self.kept.items()}
        tensors |= optimizer_tensors(self.optimizer)
        self.checkpoint.save(tensors, epoch=len(self.rows), epochs=self.phase.epochs, phase=self.phase.name,
                             rows=self.rows, scaler=self.scaler.state_dict())

    def finish(self, weights: Path, card: Card) -> None:
        """Put the kept weights into the network and, with the history, into their file; forget the checkpoint."""
        self.model.load_state_dict(self.kept)
        self.model.requires_grad_(True)
        facts = {"fingerprint": self.checkpoint.fingerprint, "precision": self.precision, "history": self.history}
        self.model.origin = save_weights(weights, self.kept, card, **facts)
        self.checkpoint.clear()


def _copy(model: Classifier) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def trainable(model: Classifier, part: str) -> list[torch.nn.Parameter]:
    """Let only the parameters of a part, "whole" or "head", learn, and return them."""
    model.requires_grad_(part == "whole")
    model.head.requires_grad_(True)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def finished(weights: Path, fingerprint: dict, *, before: Sequence[dict] = ()) -> History | None:
    """The history of a phase that already ended with these weights and this fingerprint, or None.

    In front of its own rows stand those of `before`, in the JSON too: other earlier phases may have
    ended with the very weights that this one began with.
    """
    try:
        facts = read_json(weights.with_suffix(".json"))
        check_sha256(weights, facts["sha256"])
        if facts["fingerprint"] != Checkpoint(weights, fingerprint=fingerprint).fingerprint:
            return None
        told = [*before, *facts["history"][len(facts["history"]) - facts["fingerprint"]["epochs"]:]]
    except (InputError, KeyError, TypeError):  # absent or damaged: it is simply not finished
        return None
    if told != facts["history"]:
        write_json(weights.with_suffix(".json"), {**facts, "history": told})
    return told


def history_of(weights: Path) -> History:
    """The history in the JSON beside `weights`, for the phase that follows; InputError when there is none."""
    facts = read_json(weights.with_suffix(".json"))
    if not isinstance(facts, dict) or not isinstance(facts.get("history"), list):
        raise InputError("has no history", where=weights.with_suffix(".json"), cure="run the step that writes it again")
    return facts["history"]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> float:
    """Set the rate of every parameter group, and return it."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate
