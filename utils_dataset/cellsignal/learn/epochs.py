"""One pass over the training sites, and one over the held-out ones."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from torch.nn import functional

from cellsignal.learn.augment import random_key
from cellsignal.learn.batches import SiteImages, epoch_batches, scope_rows, serve
from cellsignal.learn.batchnorm import EXACT_PIXELS, batch_statistics
from cellsignal.learn.budget import Pace
from cellsignal.learn.devices import autocast, gradient_scaler
from cellsignal.learn.losses import LOSSES
from cellsignal.learn.mixup import mixup
from cellsignal.learn.models import Classifier
from cellsignal.learn.phases import Phase
from cellsignal.learn.world import ALONE, SharedStatistics, World


def train_epoch(model: Classifier, data: SiteImages, steps: list[list[np.ndarray]], optimizer: torch.optim.Optimizer, *,
                phase: Phase, epoch: int = 0, scaler: torch.amp.GradScaler | None = None, workers: int = 0,
                world: World = ALONE, pace: Pace | None = None) -> dict[str, float] | None:
    """Take one step of the optimiser for each virtual batch of `steps` (see `virtual_batches`).

    A step follows the mean gradient over all sites of its virtual batch, however unequal its
    batches are. A step whose fp16 gradients overflow is skipped by the scaler, with its gradients.
    In a `world` of several processes each takes whole batches of every step, and the gradients are
    summed before the step, so that all of them step alike, or skip alike.
    Returns loss and accuracy, means over sites; a mixed site counts as the one that dominates it.
    None when the epoch was broken off, because it would have been late (`pace`).
    """
    device = next(model.parameters()).device
    scaler = scaler or gradient_scaler(device, phase.precision)
    totals = torch.zeros(2, dtype=torch.float64, device=device)
    numbers = iter(range(sum(map(len, steps))))
    shares = [(sum(map(len, step)), world.mine([(next(numbers), rows) for rows in step])) for step in steps]
    batches = serve(data, [rows for _, share in shares for _, rows in share], epoch=epoch, workers=workers)
    learning = [weight for group in optimizer.param_groups for weight in group["params"]]
    with training_mode(model, phase.trainable, world=world) as statistics:
        for sites, share in shares:
            optimizer.zero_grad(set_to_none=True)
            for (number, _), (images, labels, rows) in zip(share, batches):
                statistics.age(number)
                key = (phase.seed, epoch, number)
                loss, hits = _batch_loss(model, images, labels, data.plates[rows], phase=phase, key=key)
                scaler.scale(loss * (len(labels) / sites)).backward()
                totals += torch.stack([loss.detach() * len(labels), hits])  # no float(): a GPU would wait
            if world.sum_gradients(learning, late=pace is not None and pace.late()):
                return None
            scaler.step(optimizer)
            scaler.update()
        statistics.gather(sum(map(len, steps)))
    loss, accuracy = (world.sum(totals) / sum(sites for sites, _ in shares)).tolist()
    return {"loss": loss, "accuracy": accuracy}


@contextmanager
def training_mode(model: Classifier, trainable: str, *, world: World = ALONE) -> Iterator[SharedStatistics]:
    """Inside, batches are normalised by themselves; a body that is not trained keeps its running statistics."""
    if trainable == "head":
        with batch_statistics(model):
            model.head.train()
            yield SharedStatistics(model.head, world)
    else:
        yield SharedStatistics(model.train(), world)


def _batch_loss(model: Classifier, images: torch.Tensor, labels: torch.Tensor, plates: torch.Tensor, *,
                phase: Phase, key: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean loss of a batch and the number of its sites that are named rightly."""
    device = next(model.parameters()).device
    torch.manual_seed(random_key(*key))  # for layers that draw, such as dropout, whichever process has the batch
    images = images.to(device, non_blocking=True)
    targets = functional.one_hot(labels.to(device, non_blocking=True), model.classes).float()
    if phase.mixup:
        if model.plates:
            plates = functional.one_hot(plates, model.plates)
        images, targets, plates = mixup(phase.mixup, images, targets, plates, key=key)
    with autocast(device, phase.precision):
        logits = model(images, plates).float()
    hits = (logits.argmax(1) == targets.argmax(1)).sum()
    return LOSSES[phase.loss](logits, targets), hits


@torch.inference_mode()
def held_out_accuracy(model: Classifier, data: SiteImages | None, *, phase: Phase, workers: int = 0,
                      world: World = ALONE) -> float | None:
    """Share of held-out sites named rightly, normalised by the held-out sites of their own scope.

    These are whole plates (or experiments) where whole experiments are held out; with a random split
    they are only a part of each, and its statistics are coarser. A scope goes through the network
    whole when it is at most EXACT_PIXELS, else in parts of nearly equal size; a site alone in its
    scope gets the running statistics. None when there are no held-out sites.
    """
    if data is None or not len(data):
        return None
    height, width = data.image(0).shape[1:]
    batches, alone = _held_out_batches(data.sites, phase.scope, size=max(2, EXACT_PIXELS // (height * width)))
    with batch_statistics(model):
        hits = _hits(model, data, world.mine(batches), precision=phase.precision, workers=workers)
    hits += _hits(model.eval(), data, world.mine(alone), precision=phase.precision, workers=workers)
    return world.sum(hits).item() / len(data)


def _held_out_batches(sites: pd.DataFrame, scope: str, *, size: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Batches of rows that share a scope, and batches of the rows that are alone in theirs."""
    alone = [rows[0] for rows in scope_rows(sites, scope) if len(rows) == 1]
    others = np.setdiff1d(np.arange(len(sites)), alone)
    batches = epoch_batches(sites.iloc[others], batch_size=size, scope=scope, seed=0, epoch=0) if len(others) else []
    return [others[rows] for rows in batches], [np.array([row]) for row in alone]


def _hits(model: Classifier, data: SiteImages, batches: list[np.ndarray], *, precision: str, workers: int) -> torch.Tensor:
    """How many sites of the batches are named rightly."""
    device = next(model.parameters()).device
    hits = torch.zeros((), dtype=torch.int64, device=device)
    with autocast(device, precision):
        for images, labels, rows in serve(data, batches, workers=workers):
            logits = model(images.to(device, non_blocking=True), data.plates[rows])
            hits += (logits.argmax(1) == labels.to(device)).sum()
    return hits
