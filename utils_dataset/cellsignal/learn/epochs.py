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
from cellsignal.learn.covariates import hidden
from cellsignal.learn.devices import autocast, gradient_scaler
from cellsignal.learn.losses import smoothed
from cellsignal.learn.metrics import METRICS
from cellsignal.learn.mixup import mixup
from cellsignal.learn.models import Classifier
from cellsignal.learn.phases import Phase
from cellsignal.learn.told import Told
from cellsignal.learn.world import ALONE, SharedStatistics, World


def train_epoch(model: Classifier, data: SiteImages, steps: list[list[np.ndarray]], optimizer: torch.optim.Optimizer, *,
                phase: Phase, epoch: int = 0, scaler: torch.amp.GradScaler | None = None, workers: int = 0,
                world: World = ALONE, pace: Pace | None = None) -> dict[str, float] | None:
    """Take one step of the optimiser for each virtual batch of `steps` (see `virtual_batches`).

    A step follows the mean gradient over all sites of its virtual batch, however unequal its
    batches are. A step whose fp16 gradients overflow is skipped by the scaler, with its gradients.
    In a `world` of several processes each takes whole batches of every step, and the gradients are
    summed before the step, so that all of them step alike, or skip alike.
    Returns the loss, a mean over sites, and the data's metric (`learn.metrics`). None when the epoch was broken off, because it would have been late (`pace`).
    """
    device, metric = next(model.parameters()).device, METRICS[data.metric]
    scaler = scaler or gradient_scaler(device, phase.precision)
    total = torch.cat([torch.zeros(1, dtype=torch.float64), metric.none(model.classes)]).to(device)
    numbers = iter(range(sum(map(len, steps))))
    shares = [(sum(map(len, step)), world.mine([(next(numbers), rows) for rows in step])) for step in steps]
    batches = serve(data, [rows for _, share in shares for _, rows in share], epoch=epoch, workers=workers)
    told = Told(model, data.root, data.sites)
    learning = [weight for group in optimizer.param_groups for weight in group["params"]]
    with training_mode(model, phase.trainable, world=world) as statistics:
        for sites, share in shares:
            optimizer.zero_grad(set_to_none=True)
            for (number, _), (images, rows) in zip(share, batches):
                statistics.age(number)
                key = (phase.seed, epoch, number)
                loss, counts = _batch_loss(model, data, images, rows, told[rows], phase=phase, key=key)
                scaler.scale(loss * (len(rows) / sites)).backward()
                # No float(): a GPU would wait.
                total += torch.cat([(loss.detach() * len(rows)).double()[None], counts])
            if world.sum_gradients(learning, late=pace is not None and pace.late()):
                return None
            scaler.step(optimizer)
            scaler.update()
        statistics.gather(sum(map(len, steps)))
    total, sites = world.sum(total), sum(sites for sites, _ in shares)
    return {"loss": total[0].item() / sites, data.metric: metric.value(total[1:], sites)}


@contextmanager
def training_mode(model: Classifier, trainable: str, *, world: World = ALONE) -> Iterator[SharedStatistics]:
    """Inside, batches are normalised by themselves; a body that is not trained keeps its running statistics."""
    if trainable == "head":
        with batch_statistics(model):
            model.head.train()
            yield SharedStatistics(model.head, world)
    else:
        yield SharedStatistics(model.train(), world)


def _batch_loss(model: Classifier, data: SiteImages, images: torch.Tensor, rows: torch.Tensor, told: dict[str, torch.Tensor], *,
                phase: Phase, key: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean loss of a batch and the counts of its metric."""
    device = next(model.parameters()).device
    torch.manual_seed(random_key(*key))  # for layers that draw, such as dropout, whichever process has the batch
    images = images.to(device, non_blocking=True)
    targets = data.targets(rows).to(device, non_blocking=True)
    if "covariates" in told:
        told["covariates"] = hidden(told["covariates"], model.covariates, key=key)
    if phase.mixup:
        images, targets, *mixed = mixup(phase.mixup, images, targets, *told.values(), key=key)
        told = dict(zip(told, mixed, strict=True))
    with autocast(device, phase.precision):
        logits = model(images, **told).float()
    towards = 0.5 if data.multilabel else 1 / model.classes
    smooth = smoothed(targets, phase.label_smoothing, towards=towards) if phase.label_smoothing else targets
    loss = phase.losses(logits, targets, smooth=smooth, margin=phase.margin, scale=phase.margin_scale)
    return loss, METRICS[data.metric].counts(logits.detach(), targets)


@torch.inference_mode()
def held_out_score(model: Classifier, data: SiteImages | None, *, phase: Phase, workers: int = 0,
                   world: World = ALONE) -> float | None:
    """The data's metric on held-out sites, normalised by the held-out sites of their own scope.

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
        counts = _counts(model, data, world.mine(batches), precision=phase.precision, workers=workers)
    counts += _counts(model.eval(), data, world.mine(alone), precision=phase.precision, workers=workers)
    return METRICS[data.metric].value(world.sum(counts), len(data))


def _held_out_batches(sites: pd.DataFrame, scope: str, *, size: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Batches of rows that share a scope, and batches of the rows that are alone in theirs."""
    alone = [rows[0] for rows in scope_rows(sites, scope) if len(rows) == 1]
    others = np.setdiff1d(np.arange(len(sites)), alone)
    batches = epoch_batches(sites.iloc[others], batch_size=size, scope=scope, seed=0, epoch=0) if len(others) else []
    return [others[rows] for rows in batches], [np.array([row]) for row in alone]


def _counts(model: Classifier, data: SiteImages, batches: list[np.ndarray], *, precision: str, workers: int) -> torch.Tensor:
    """The counts of the data's metric over all batches."""
    device, metric = next(model.parameters()).device, METRICS[data.metric]
    counts, told = metric.none(model.classes).to(device), Told(model, data.root, data.sites)
    with autocast(device, precision):
        for images, rows in serve(data, batches, workers=workers):
            logits = model(images.to(device, non_blocking=True), **told[rows])
            counts += metric.counts(logits, data.targets(rows).to(device))
    return counts
