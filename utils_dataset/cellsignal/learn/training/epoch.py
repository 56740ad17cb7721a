"""One pass over the training sites, and one over the held-out ones."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch.nn import functional

from cellsignal.budget import DeadlineMonitor
from cellsignal.errors import InputError
from cellsignal.learn.batches.augment import random_key
from cellsignal.learn.batches.dataset import SiteImages, epoch_batches, iter_batches, scope_rows
from cellsignal.learn.batches.mixup import Mix, mixture
from cellsignal.learn.devices import autocast, gradient_scaler, tuned
from cellsignal.learn.networks.batchnorm import EXACT_PIXELS, batch_statistics, without_tracking
from cellsignal.learn.networks.classifier import Classifier
from cellsignal.learn.networks.covariates import CONTROLS, SideInputs, mask_covariates, plate_means
from cellsignal.learn.settings import MachineSettings
from cellsignal.learn.training.distributed import ALONE, ProcessGroup, SharedStatistics
from cellsignal.learn.training.losses import smooth_targets
from cellsignal.learn.training.metrics import METRICS
from cellsignal.learn.training.optim import WeightAverage
from cellsignal.learn.training.phase import Phase

# What happens to the images of a training batch on the device, on their way to the network.


CHANNELS = 5  # keeps the draws of channel scales and shifts apart from those of mixtures


class BufferPool:
    """Memory in which the images of one batch after another are prepared: on a CPU, fresh memory costs more than the arithmetic."""

    def __init__(self) -> None:
        self.memory: torch.Tensor | None = None

    def take(self, shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Room for images [N, C, H, W], channels last; what was taken before is overwritten."""
        count, channels, height, width = shape
        numbers = count * channels * height * width
        if self.memory is None or len(self.memory) < numbers or (self.memory.dtype, self.memory.device) != (dtype, device):
            self.memory = torch.empty(numbers, dtype=dtype, device=device)
        return self.memory[:numbers].view(count, height, width, channels).permute(0, 3, 1, 2)


def training_inputs(model: Classifier, images: torch.Tensor, moments: torch.Tensor | None, *, phase: Phase, epoch: int,
                    number: int, mix: Mix | None = None, room: BufferPool | None = None) -> torch.Tensor:
    """Images [N, C, H, W] of batch `number` of an epoch as the body is to see them: prepared, jittered, mixed, resized.

    Random things depend on (phase.seed, epoch, number) alone. With a `room` the answer lasts until the next batch.
    """
    scale, shift = phase.augmentation.channel_scale, phase.augmentation.channel_shift
    jitters = scale or shift
    if mix is not None and mix.window is not None and model.settings.standardise == "none" and not jitters:
        # What is only divided by 255 may as well be cut before: bytes are less than floats.
        images, mix = mix.images(images), None
    prepared = model.prepare(images, moments, out=room and room.take(images.shape, dtype=model.dtype, device=images.device))
    if jitters:
        prepared = jittered(prepared, scale=scale, shift=shift, key=(phase.seed, epoch, number))
    if mix is not None:
        prepared = mix.images(prepared).contiguous(memory_format=torch.channels_last)
    return resized(prepared, phase.size(epoch))


def jittered(images: torch.Tensor, *, scale: float, shift: float, key: tuple[int, ...]) -> torch.Tensor:
    """Each channel of each image [N, C, H, W] times N(1, scale) and plus N(0, shift), in its own units, where it lies (Sypetkowski: 0.1 both)."""
    drawn = torch.from_numpy(np.random.default_rng((*key, CHANNELS)).normal(size=(2, *images.shape[:2], 1, 1)))
    factors, terms = drawn.to(images.device, images.dtype, non_blocking=True)
    return images.mul_(1 + scale * factors).add_(shift * terms)


def resized(images: torch.Tensor, size: int | None) -> torch.Tensor:
    """Images [N, C, H, W] whose longer side has `size` px; None leaves them as they are.

    Smaller ones are means over areas, without aliases; larger ones are bilinear.
    """
    longer = max(images.shape[-2:])
    if size is None or size == longer:
        return images
    sides = [max(1, round(side * size / longer)) for side in images.shape[-2:]]
    way = {"mode": "area"} if size < longer else {"mode": "bilinear", "align_corners": False}
    return functional.interpolate(images, sides, **way).contiguous(memory_format=torch.channels_last)


# The controls that a network with control features is shown beside each batch.


STREAM = 6  # keeps the choice of controls apart from other draws
NEGATIVE = 0.25  # share of the controls beside a training batch that are negative, where a plate has as many
Means = tuple[torch.Tensor, torch.Tensor]


class ControlReferences:
    """Control sites of the plates that `sites` lie on, and what they tell a network of each of these sites.

    Raises InputError for a plate with fewer than two control sites, which have no batch statistics.
    """

    def __init__(self, model: Classifier, controls: SiteImages, sites: pd.DataFrame) -> None:
        self.model, self.controls, self.told = model, controls, SideInputs(model, controls.root, controls.sites)
        places = pd.MultiIndex.from_frame(pd.concat([sites, controls.sites])[["experiment", "plate"]])
        codes = torch.from_numpy(places.factorize()[0])
        self.asked, self.plates = codes[:len(sites)], codes[len(sites):]
        self.positive = torch.from_numpy((controls.sites["well_type"] == CONTROLS[0]).to_numpy(copy=True))
        few = torch.bincount(self.plates, minlength=len(codes))[self.asked] < 2
        if few.any():
            place = sites.iloc[int(few.nonzero()[0])]
            raise InputError("fewer than two control sites, and this network refers to controls",
                             where=f"{place['experiment']}, plate {place['plate']}", cure="add the plate's controls, or train without control_features")

    def beside(self, rows: torch.Tensor, *, count: int | None = None, key: tuple[int, ...] = ()) -> np.ndarray:
        """Which controls to show beside sites `rows`: all of their plates, or `count` of them, chosen by `key`."""
        mine = np.flatnonzero(np.isin(self.plates, self.asked[rows]))
        if count is None or count >= len(mine):
            return mine
        mine = np.random.default_rng((*key, STREAM)).permutation(mine)
        positive, negative = mine[self.positive[mine].numpy()], mine[~self.positive[mine].numpy()]
        fewer = negative[:max(1, round(NEGATIVE * count), count - len(positive))]
        return np.sort(np.concatenate([fewer, positive[:count - len(fewer)]]))

    def means(self, rows: torch.Tensor, beside: np.ndarray, *, epoch: int = 0, size: int | None = None) -> Means:
        """Mean features of the positive and negative controls `beside`, for each of the sites `rows`: two of [N, F].

        They are a batch of their own, normalised by itself, and no running statistic takes notice.
        """
        device = next(self.model.parameters()).device
        [(images, _)] = iter_batches(self.controls, [beside], epoch=epoch, device=device)
        with without_tracking(self.model):
            prepared = self.model.prepare(images, self.told[beside].get("moments"))
            features = self.model.embed(resized(prepared, size)).float()
        there = {"positive": self.positive[beside], "plates": self.plates[beside], "asked": self.asked[rows]}
        return plate_means(features, **{name: tensor.to(device, non_blocking=True) for name, tensor in there.items()})


@dataclass(frozen=True)
class Learner:
    """A network with all that moves it. An `average` of the weights follows each step; `embed` is another way, such as a compiled
    one, to the network's features; in a `world` of several processes all of them step alike.
    """

    model: Classifier
    optimizer: torch.optim.Optimizer
    phase: Phase
    machine: MachineSettings = MachineSettings()
    world: ProcessGroup = ALONE
    scaler: torch.amp.GradScaler | None = None
    average: WeightAverage | None = None
    embed: Callable[[torch.Tensor], torch.Tensor] | None = None


def train_epoch(learner: Learner, data: SiteImages, steps: list[list[np.ndarray]], *, epoch: int = 0, controls: SiteImages | None = None,
                pace: DeadlineMonitor | None = None) -> dict[str, float] | None:
    """Take one step of the optimiser for each virtual batch of `steps` (see `virtual_batches`).

    A step follows the mean gradient over all sites of its virtual batch, however unequal its
    batches are. A step whose fp16 gradients overflow is skipped by the scaler, with its gradients.
    In a world of several processes each takes whole batches of every step, and the gradients are
    summed before the step, so that all of them step alike, or skip alike. `controls`: the sites to which a network with
    control features refers.
    Returns the loss, a mean over sites, and the data's metric (`learn.metrics`). None when the epoch
    was broken off, because it would have been late (`pace`).
    """
    model, optimizer, phase, world, average = learner.model, learner.optimizer, learner.phase, learner.world, learner.average
    scaler = learner.scaler or gradient_scaler(_device(model), learner.machine.precision)
    totals, last = _Totals(model, data), np.cumsum([len(step) for step in steps]).tolist()
    numbers = iter(range(sum(map(len, steps))))
    shares = [(sum(map(len, step)), world.mine([(next(numbers), rows) for rows in step])) for step in steps]
    mine = [rows for _, share in shares for _, rows in share]
    loss_of = _LossStep(learner, data, epoch, controls)
    learning = [weight for group in optimizer.param_groups for weight in group["params"]]
    pictures = iter_batches(data, mine, epoch=epoch, workers=learner.machine.num_workers, device=_device(model))
    ready, fast = training_mode(model, phase.trainable, world=world, average=average), tuned(_device(model), map(len, mine))
    with ready as statistics, fast, closing(pictures) as batches:
        for (sites, share), end in zip(shares, last, strict=True):
            optimizer.zero_grad(set_to_none=True)
            for (number, _), (images, rows) in zip(share, batches):
                statistics.age(number)
                loss, counts = loss_of(images, rows, number)
                scaler.scale(loss * (len(rows) / sites)).backward()
                totals.add(loss.detach() * len(rows), counts)
            if world.sum_gradients(learning, late=pace is not None and pace.is_late()):
                return None
            scaler.step(optimizer)
            scaler.update()
            if average is not None:
                statistics.catch_up(end)
                average.follow(model)
        statistics.gather(sum(map(len, steps)))
        if average is not None:
            average.settle(model)
    return totals.row(world, sum(sites for sites, _ in shares))


def _device(model: Classifier) -> torch.device:
    return next(model.parameters()).device


class _Totals:
    """Loss and counts of the metric, summed over batches and then over processes."""

    def __init__(self, model: Classifier, data: SiteImages) -> None:
        self.name, self.metric = data.metric, METRICS[data.metric]
        self.sums = torch.cat([torch.zeros(1, dtype=torch.float64), self.metric.none(model.classes)]).to(_device(model))

    def add(self, loss: torch.Tensor, counts: torch.Tensor) -> None:
        self.sums += torch.cat([loss.double()[None], counts])  # no float(): a GPU would wait

    def row(self, world: ProcessGroup, sites: int) -> dict[str, float]:
        sums = world.sum(self.sums)
        return {"loss": sums[0].item() / sites, self.name: self.metric.value(sums[1:], sites)}


@contextmanager
def training_mode(model: Classifier, trainable: str, *, world: ProcessGroup = ALONE,
                  average: WeightAverage | None = None) -> Iterator[SharedStatistics]:
    """Inside, batches are normalised by themselves; a body that is not trained keeps its running statistics."""
    if trainable == "head":
        with batch_statistics(model):
            model.head.train()
            yield SharedStatistics(model.head, world, average=average and average.network.head)
    else:
        yield SharedStatistics(model.train(), world, average=average and average.network)


class _LossStep:
    """Turns the batches of an epoch into losses."""

    def __init__(self, learner: Learner, data: SiteImages, epoch: int, controls: SiteImages | None) -> None:
        self.model = model = learner.model
        self.phase, self.precision, self.embed = learner.phase, learner.machine.precision, learner.embed or model.embed
        self.data, self.epoch, self.room = data, epoch, BufferPool()
        self.told = SideInputs(model, data.root, data.sites)
        self.references = ControlReferences(model, controls, data.sites) if model.settings.control_features else None

    def __call__(self, images: torch.Tensor, rows: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean loss of batch `number` and the counts of its metric."""
        model, phase, key = self.model, self.phase, (self.phase.seed, self.epoch, number)
        torch.manual_seed(random_key(*key))  # for layers that draw, such as dropout, whichever process has the batch
        mix = mixture(len(rows), phase.augmentation, key=key)
        mix = mix and mix.exact(images)
        told = self._told(rows, mix, key)
        moments = told.pop("moments", None)
        targets = self.data.targets(rows).to(images.device, non_blocking=True)
        targets = targets if mix is None else mix.blend(targets)
        with autocast(images.device, self.precision):
            seen = training_inputs(model, images, moments, phase=phase, epoch=self.epoch, number=number, mix=mix,
                                   room=self.room)
            features = self.embed(seen)
            logits = _wide(model.classify(features, **told, **self._referred(rows, mix, key)))
            cosines = model.cosines(features) if phase.losses.cosines else None
        return self._loss(logits, targets.to(logits.dtype), cosines), METRICS[self.data.metric].counts(logits.detach(), targets)

    def _told(self, rows: torch.Tensor, mix: Mix | None, key: tuple[int, ...]) -> dict[str, torch.Tensor]:
        """Beside the images: moments as they are, covariates with some of them hidden and mixed."""
        told = self.told[rows]
        if "covariates" in told:
            covariates = mask_covariates(told["covariates"], self.model.covariates, key=key)
            told["covariates"] = covariates if mix is None else mix.blend(covariates)
        return told

    def _referred(self, rows: torch.Tensor, mix: Mix | None, key: tuple[int, ...]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """The features of as many controls as a batch has sites, at the size of the others' images."""
        if self.references is None:
            return {}
        beside = self.references.beside(rows, count=self.phase.training.batch_size, key=key)
        means = self.references.means(rows, beside, epoch=self.epoch, size=self.phase.size(self.epoch))
        return {"references": means if mix is None else tuple(mix.blend(mean) for mean in means)}

    def _loss(self, logits: torch.Tensor, targets: torch.Tensor, cosines: torch.Tensor | None) -> torch.Tensor:
        settings = self.phase.training
        share, towards = settings.label_smoothing, 0.5 if self.data.multilabel else 1 / self.model.classes
        smooth = smooth_targets(targets, share, towards=towards) if share else None
        return self.phase.losses(logits, targets, cosines, smooth=smooth, margin=settings.margin, scale=settings.margin_scale)


def _wide(logits: torch.Tensor) -> torch.Tensor:
    """Logits in fp32 at least, whatever autocast made of them; those of a network in float64 keep their bits."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@torch.inference_mode()
def evaluate(model: Classifier, data: SiteImages | None, *, scope: str, machine: MachineSettings = MachineSettings(),
             world: ProcessGroup = ALONE, controls: SiteImages | None = None) -> float | None:
    """The data's metric on held-out sites, normalised by the held-out sites of their own scope.

    These are whole plates (or experiments) where whole experiments are held out; with a random split
    they are only a part of each, and its statistics are coarser. A scope goes through the network
    whole when it is at most EXACT_PIXELS, else in parts of nearly equal size; a site alone in its
    scope gets the running statistics. None when there are no held-out sites.
    """
    if data is None or not len(data):
        return None
    _, height, width = data.shape
    batches, alone = _held_out_batches(data.sites, scope, size=max(2, EXACT_PIXELS // (height * width)))
    known = {"machine": machine, "controls": controls}
    with batch_statistics(model):
        counts = _counts(model, data, world.mine(batches), **known)
    counts += _counts(model.eval(), data, world.mine(alone), **known)
    return METRICS[data.metric].value(world.sum(counts), len(data))


def _held_out_batches(sites: pd.DataFrame, scope: str, *, size: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Batches of rows that share a scope, and batches of the rows that are alone in theirs."""
    alone = [rows[0] for rows in scope_rows(sites, scope) if len(rows) == 1]
    others = np.setdiff1d(np.arange(len(sites)), alone)
    batches = epoch_batches(sites.iloc[others], batch_size=size, scope=scope, seed=0, epoch=0) if len(others) else []
    return [others[rows] for rows in batches], [np.array([row]) for row in alone]


def _counts(model: Classifier, data: SiteImages, batches: list[np.ndarray], *, machine: MachineSettings,
            controls: SiteImages | None) -> torch.Tensor:
    """The counts of the data's metric over all batches."""
    metric, told = METRICS[data.metric], SideInputs(model, data.root, data.sites)
    references = ControlReferences(model, controls, data.sites) if model.settings.control_features else None
    counts = metric.none(model.classes).to(_device(model))
    with autocast(counts.device, machine.precision):
        for images, rows in iter_batches(data, batches, workers=machine.num_workers, device=counts.device):
            known = told[rows]
            if references is not None:
                known["references"] = references.means(rows, references.beside(rows))
            logits = model(images, **known)
            counts += metric.counts(logits, data.targets(rows).to(counts.device))
    return counts
