"""One pass over the training sites, and one over the held-out ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import numpy as np
import torch
from torch.nn import functional

from cellsignal.learn.batches import SiteImages, epoch_batches, serve
from cellsignal.learn.batchnorm import batch_statistics
from cellsignal.learn.devices import autocast, gradient_scaler
from cellsignal.learn.losses import LOSSES
from cellsignal.learn.mixup import mixup
from cellsignal.learn.models import Classifier
from cellsignal.learn.phases import Phase

# Up to this many image pixels (N*H*W) of held-out sites share a batch: a plate of 64 px, 32 sites of 512 px.
HELD_OUT_PIXELS = 2**23


def train_epoch(model: Classifier, data: SiteImages, steps: list[list[np.ndarray]], optimizer: torch.optim.Optimizer, *,
                phase: Phase, epoch: int = 0, scaler: torch.amp.GradScaler | None = None, workers: int = 0) -> dict[str, float]:
    """Take one step of the optimiser for each virtual batch of `steps` (see `virtual_batches`).

    A step follows the mean gradient over all sites of its virtual batch, however unequal its
    batches are. A step whose fp16 gradients overflow is skipped by the scaler, with its gradients.
    Returns loss and accuracy, means over sites; a mixed site counts as the one that dominates it.
    """
    device = next(model.parameters()).device
    scaler = scaler or gradient_scaler(device, phase.precision)
    totals, number = torch.zeros(2, dtype=torch.float64, device=device), 0
    batches = serve(data, [rows for step in steps for rows in step], epoch=epoch, workers=workers)
    with training_mode(model, phase.trainable):
        for step in steps:
            optimizer.zero_grad(set_to_none=True)
            sites = sum(map(len, step))
            for images, labels, rows in islice(batches, len(step)):
                key = (phase.seed, epoch, number)
                loss, hits = _batch_loss(model, images, labels, data.plates[rows], phase=phase, key=key)
                scaler.scale(loss * (len(labels) / sites)).backward()
                totals += torch.stack([loss.detach() * len(labels), hits])  # no float(): a GPU would wait
                number += 1
            scaler.step(optimizer)
            scaler.update()
    loss, accuracy = (totals / sum(len(rows) for step in steps for rows in step)).tolist()
    return {"loss": loss, "accuracy": accuracy}


@contextmanager
def training_mode(model: Classifier, trainable: str) -> Iterator[None]:
    """Inside, batches are normalised by themselves; a body that is not trained keeps its running statistics."""
    if trainable == "head":
        with batch_statistics(model):
            model.head.train()
            yield
    else:
        model.train()
        yield


def _batch_loss(model: Classifier, images: torch.Tensor, labels: torch.Tensor, plates: torch.Tensor, *,
                phase: Phase, key: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean loss of a batch and the number of its sites that are named rightly."""
    device = next(model.parameters()).device
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
def held_out_accuracy(model: Classifier, data: SiteImages | None, *, phase: Phase, workers: int = 0) -> float | None:
    """Share of held-out sites named rightly, normalised as in training: by the sites of their own scope.

    A scope goes through the network whole when it is at most HELD_OUT_PIXELS, else in parts of
    nearly equal size. None when there are no such sites.
    """
    if data is None or not len(data):
        return None
    device = next(model.parameters()).device
    height, width = data.image(0).shape[1:]
    size = max(2, HELD_OUT_PIXELS // (height * width))
    hits = torch.zeros((), dtype=torch.int64, device=device)
    batches = epoch_batches(data.sites, batch_size=size, scope=phase.scope, seed=0, epoch=0)
    with batch_statistics(model), autocast(device, phase.precision):
        for images, labels, rows in serve(data, batches, workers=workers):
            logits = model(images.to(device, non_blocking=True), data.plates[rows])
            hits += (logits.argmax(1) == labels.to(device)).sum()
    return hits.item() / len(data)
