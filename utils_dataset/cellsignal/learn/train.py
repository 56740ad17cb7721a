"""Epochs, checkpoints, the best weights on held-out experiments."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from cellsignal.errors import InputError
from cellsignal.files import read_json
from cellsignal.learn.batches import SiteImages, epoch_batches, scope_rows, serve
from cellsignal.learn.batchnorm import batch_statistics
from cellsignal.learn.checkpoint import Checkpoint, optimizer_tensors, prefixed, restore_optimizer
from cellsignal.learn.losses import LOSSES
from cellsignal.learn.models import Card, Classifier, check_sha256, save_weights

History = list[dict[str, float]]


def fit(
    model: Classifier,
    data: SiteImages,
    *,
    held_out: SiteImages,
    weights: Path,
    phase: str,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float = 0.0,
    schedule: str = "steps",
    scope: str = "plate",
    loss: str = "bce",
    seed: int = 0,
    workers: int = 0,
    fingerprint: dict | None = None,
    on_epoch: Callable[[History], None] = lambda history: None,
) -> History:
    """Train `model` and write the weights that were best on the held-out experiments.

    Batches come from one plate, experiment or anywhere (`scope`); held-out sites are scored with
    the statistics of whole scopes, because that is how they will be predicted (Brodt's solution). Adam with
    AMSGrad. A killed training goes on at its last whole epoch and ends with the same weights bit
    for bit; a finished one with the same `fingerprint` is not repeated. `weights` ends with the best
    state; the JSON beside it with the history: one row an epoch with loss, accuracy (of the training
    batches), held_out_accuracy, learning_rate and seconds.
    """
    fingerprint = {**(fingerprint or {}), "phase": phase, "epochs": epochs, "batch_size": batch_size,
                   "learning_rate": learning_rate, "weight_decay": weight_decay, "schedule": schedule,
                   "scope": scope, "loss": loss, "seed": seed, "class_numbers": data.class_numbers,
                   "backbone": model.backbone}
    if (history := finished(weights, fingerprint)) is not None:
        on_epoch(history)
        return history
    state = _State(model, torch.optim.Adam(model.parameters(), lr=learning_rate, weight_decay=weight_decay, amsgrad=True),
                   Checkpoint(weights, fingerprint=fingerprint))
    bar = tqdm(range(len(state.history), epochs), initial=len(state.history), total=epochs, desc=phase, unit="epoch")
    for epoch in bar:
        started = time.perf_counter()
        rate = set_learning_rate(state.optimizer, learning_rate_at(epoch, epochs, learning_rate, schedule=schedule))
        torch.manual_seed(seed * 100_003 + epoch)  # for layers that draw, such as dropout
        batches = epoch_batches(data.sites, batch_size=batch_size, scope=scope, seed=seed, epoch=epoch)
        row = train_epoch(model, serve(data, batches, epoch=epoch, workers=workers), state.optimizer, loss=LOSSES[loss])
        row["held_out_accuracy"] = held_out_accuracy(model, held_out, scope=scope, workers=workers)
        row |= {"learning_rate": rate, "seconds": time.perf_counter() - started}
        state.end_epoch({"phase": phase, "epoch": epoch + 1, **row}, epochs=epochs)
        bar.set_postfix(loss=f"{row['loss']:.4f}", held_out=f"{row['held_out_accuracy']:.3f}")
        on_epoch(state.history)
    well_types = sorted(data.sites["well_type"].unique().tolist())
    state.finish(weights, Card(model.backbone, model.channels, data.class_numbers, well_types))
    return state.history


class _State:
    """Everything a training changes: weights, the best weights so far, the optimiser's moments, the history."""

    def __init__(self, model: Classifier, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
        self.model, self.optimizer, self.checkpoint = model, optimizer, checkpoint
        self.history: History = []
        self.best: dict[str, torch.Tensor] = model.state_dict()
        if (found := checkpoint.load()) is not None:
            tensors, state = found
            self.history, self.best = state["history"], prefixed(tensors, "best.")
            model.load_state_dict(prefixed(tensors, "model."))
            restore_optimizer(optimizer, tensors)

    def end_epoch(self, row: dict, *, epochs: int) -> None:
        """Note an epoch's results, keep its weights when they are the best, and write all to disk."""
        self.history.append(row)
        if row["held_out_accuracy"] >= max(past["held_out_accuracy"] for past in self.history):
            self.best = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        tensors |= optimizer_tensors(self.optimizer)
        self.checkpoint.save(tensors, epoch=len(self.history), epochs=epochs, history=self.history)

    def finish(self, weights: Path, card: Card) -> None:
        """Write the best weights with their history and forget the checkpoint."""
        save_weights(weights, self.best, card, fingerprint=self.checkpoint.fingerprint, history=self.history)
        self.checkpoint.clear()


def finished(weights: Path, fingerprint: dict) -> History | None:
    """The history of a training that already ended with these weights and this fingerprint, or None."""
    try:
        facts = read_json(weights.with_suffix(".json"))
        check_sha256(weights, facts["sha256"])
        same = facts["fingerprint"] == Checkpoint(weights, fingerprint=fingerprint).fingerprint
        return facts["history"] if same else None
    except (InputError, KeyError, TypeError):  # absent or damaged: it is simply not finished
        return None


def train_epoch(model: nn.Module, batches: Iterable[tuple], optimizer: torch.optim.Optimizer, *,
                loss: Callable) -> dict[str, float]:
    """One pass over `batches` of (images, labels, rows); returns mean loss and accuracy over sites."""
    device = next(model.parameters()).device
    model.train()
    totals = np.zeros(3)
    for images, labels, _ in batches:
        logits = model(images.to(device))
        targets = nn.functional.one_hot(labels.to(device), logits.shape[1]).float()
        value = loss(logits, targets)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        hits = (logits.argmax(1).cpu() == labels).sum()
        totals += [float(value.detach()) * len(labels), float(hits), len(labels)]
    return {"loss": totals[0] / totals[2], "accuracy": totals[1] / totals[2]}


@torch.inference_mode()
def held_out_accuracy(model: nn.Module, data: SiteImages, *, scope: str, workers: int = 0) -> float:
    """Share of sites named rightly, each plate (or experiment) normalised by its own statistics."""
    if not len(data):
        return 0.0
    device = next(model.parameters()).device
    hits = 0
    with batch_statistics(model):
        for images, labels, _ in serve(data, scope_rows(data.sites, scope), workers=workers):
            hits += int((model(images.to(device)).argmax(1).cpu() == labels).sum())
    return hits / len(data)


def learning_rate_at(epoch: int, epochs: int, base: float, *, schedule: str) -> float:
    """The rate of an epoch: "steps" divides by 10 at 320/375 and 350/375 of the way (Brodt's solution)."""
    if schedule == "cosine":
        return base * 0.5 * (1 + np.cos(np.pi * epoch / epochs))
    return base * 0.1 ** ((epoch >= epochs * 320 / 375) + (epoch >= epochs * 350 / 375))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> float:
    """Set the rate of every parameter group, and return it."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate
