"""One epoch over the training sites, the evaluation on the held-out sites, and the metrics of both."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pandas as pd
import torch
from torch.nn import functional

from cellsignal.budget import DeadlineMonitor
from cellsignal.errors import InputError
from cellsignal.learn.batches.augment import Mix, draw_mix, random_key
from cellsignal.learn.batches.dataset import SiteImages, epoch_batches, read_batches, scope_rows
from cellsignal.learn.devices import autocast, cudnn_benchmark, gradient_scaler
from cellsignal.learn.networks.batchnorm import CPU_BATCH_PIXELS, batch_statistics, without_tracking
from cellsignal.learn.networks.checkpointing import Checkpointing
from cellsignal.learn.networks.classifier import Classifier
from cellsignal.learn.networks.covariates import CONTROL_TYPES, SideInputs, mask_covariates, plate_means
from cellsignal.learn.settings import MachineSettings
from cellsignal.learn.training.distributed import SINGLE_PROCESS, ProcessGroup, RunningStatistics
from cellsignal.learn.training.losses import smooth_targets
from cellsignal.learn.training.optim import WeightAverage
from cellsignal.learn.training.phase import Phase

# Metrics of an epoch, computed from counts that are summed over batches and processes.


@dataclass(frozen=True)
class Metric:
    """`counts(logits, targets)` of a batch, and `value(summed counts, number of sites)`."""

    num_counts: int
    per_class: bool  # whether each class has counts of its own
    counts: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    value: Callable[[torch.Tensor, int], float]

    def zero_counts(self, classes: int) -> torch.Tensor:
        """The counts before the first site, float64[M]."""
        return torch.zeros(self.num_counts * (classes if self.per_class else 1), dtype=torch.float64)


def _correct_sites(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The number of sites classified correctly; a mixed site counts as its larger part."""
    return (logits.argmax(1) == targets.argmax(1)).sum().double()[None]


def _class_counts(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """For each class the true positives; then the predicted and the actual positives."""
    predicted, actual = logits > 0, targets > 0.5
    return torch.cat([(predicted & actual).sum(0), predicted.sum(0), actual.sum(0)]).double()


def _macro_f1(counts: torch.Tensor) -> float:
    correct, predicted, actual = counts.reshape(3, -1)
    return (2 * correct / (predicted + actual).clamp(min=1)).mean().item()


# A class that no site has and that is predicted for none counts 0, as in scikit-learn and on Kaggle.
METRICS = {
    "accuracy": Metric(1, False, _correct_sites, lambda counts, sites: counts.item() / sites),
    "macro_f1": Metric(3, True, _class_counts, lambda counts, sites: _macro_f1(counts)),
}


# The images of a training batch on the device, before the network sees them.

CHANNEL_STREAM = 5  # separates the random numbers of channel scales and shifts from those of MixUp and CutMix


class BufferPool:
    """Memory that is reused for the images of every batch: on a CPU, allocating it anew costs more than the arithmetic."""

    def __init__(self) -> None:
        self.memory: torch.Tensor | None = None

    def take(self, shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """A tensor [N, C, H, W], channels last; it overwrites the one that was taken before."""
        count, channels, height, width = shape
        size = count * channels * height * width
        if self.memory is None or len(self.memory) < size or (self.memory.dtype, self.memory.device) != (dtype, device):
            self.memory = torch.empty(size, dtype=dtype, device=device)
        return self.memory[:size].view(count, height, width, channels).permute(0, 3, 1, 2)


def training_inputs(model: Classifier, images: torch.Tensor, channel_statistics: torch.Tensor | None, *, phase: Phase, epoch: int,
                    batch_number: int, mix: Mix | None = None, buffers: BufferPool | None = None) -> torch.Tensor:
    """The body's input for a training batch [N, C, H, W]: prepared, with jittered channels, mixed, resized.

    Random numbers depend on (phase.seed, epoch, batch_number) alone. With `buffers` the result is valid until the next batch.
    """
    scale, shift = phase.augmentation.channel_scale, phase.augmentation.channel_shift
    jitter = scale or shift
    if mix is not None and mix.window is not None and model.settings.standardise == "none" and not jitter:
        # Images that are only divided by 255 can be mixed before that: bytes are smaller than floats.
        images, mix = mix.mix_images(images), None
    prepared = model.prepare(images, channel_statistics, out=buffers and buffers.take(images.shape, dtype=model.dtype, device=images.device))
    if jitter:
        prepared = jitter_channels(prepared, scale=scale, shift=shift, key=(phase.seed, epoch, batch_number))
    if mix is not None:
        prepared = mix.mix_images(prepared).contiguous(memory_format=torch.channels_last)
    return resize_images(prepared, phase.image_size(epoch))


def jitter_channels(images: torch.Tensor, *, scale: float, shift: float, key: tuple[int, ...]) -> torch.Tensor:
    """Multiply each channel of each image [N, C, H, W] by N(1, scale) and add N(0, shift), in place and after scaling (Sypetkowski: 0.1 both)."""
    normal = torch.from_numpy(np.random.default_rng((*key, CHANNEL_STREAM)).normal(size=(2, *images.shape[:2], 1, 1)))
    factors, terms = normal.to(images.device, images.dtype, non_blocking=True)
    return images.mul_(1 + scale * factors).add_(shift * terms)


def resize_images(images: torch.Tensor, size: int | None) -> torch.Tensor:
    """Images [N, C, H, W] resized to a longer side of `size` px; None leaves them as they are.

    Shrinking averages over areas, to avoid aliasing; enlarging is bilinear.
    """
    longer = max(images.shape[-2:])
    if size is None or size == longer:
        return images
    new_shape = [max(1, round(side * size / longer)) for side in images.shape[-2:]]
    options = {"mode": "area"} if size < longer else {"mode": "bilinear", "align_corners": False}
    return functional.interpolate(images, new_shape, **options).contiguous(memory_format=torch.channels_last)


# The controls that a network with control features sees beside each batch.

CONTROL_STREAM = 6  # separates the random choice of controls from other random numbers
NEGATIVE_SHARE = 0.25  # of the controls beside a training batch, if a plate has as many negative ones
ControlMeans = tuple[torch.Tensor, torch.Tensor]


class ControlReferences:
    """Control sites of the plates of `sites`, and their mean features for each of these sites.

    Raises InputError for a plate with fewer than two control sites, which have no batch statistics.
    """

    def __init__(self, model: Classifier, controls: SiteImages, sites: pd.DataFrame) -> None:
        self.model, self.controls, self.side_inputs = model, controls, SideInputs(model, controls.root, controls.sites)
        plates = pd.MultiIndex.from_frame(pd.concat([sites, controls.sites])[["experiment", "plate"]])
        codes = torch.from_numpy(plates.factorize()[0])
        self.site_plates, self.control_plates = codes[:len(sites)], codes[len(sites):]
        self.positive = torch.from_numpy((controls.sites["well_type"] == CONTROL_TYPES[0]).to_numpy(copy=True))
        too_few = torch.bincount(self.control_plates, minlength=len(codes))[self.site_plates] < 2
        if too_few.any():
            site = sites.iloc[int(too_few.nonzero()[0])]
            raise InputError("fewer than two control sites, and this network has control features",
                             where=f"{site['experiment']}, plate {site['plate']}", cure="add the plate's controls, or train without control_features")

    def select_controls(self, rows: torch.Tensor, *, count: int | None = None, key: tuple[int, ...] = ()) -> np.ndarray:
        """The controls for the sites `rows`: all of their plates, or `count` of them, chosen by `key`."""
        controls = np.flatnonzero(np.isin(self.control_plates, self.site_plates[rows]))
        if count is None or count >= len(controls):
            return controls
        controls = np.random.default_rng((*key, CONTROL_STREAM)).permutation(controls)
        positive, negative = controls[self.positive[controls].numpy()], controls[~self.positive[controls].numpy()]
        negative = negative[:max(1, round(NEGATIVE_SHARE * count), count - len(positive))]
        return np.sort(np.concatenate([negative, positive[:count - len(negative)]]))

    def mean_features(self, rows: torch.Tensor, controls: np.ndarray, *, epoch: int = 0, size: int | None = None) -> ControlMeans:
        """Mean features of the positive and the negative ones of `controls` on the plate of each site in `rows`, two of [N, F].

        The controls are a batch of their own, normalised by itself, and do not change running statistics.
        """
        device = next(self.model.parameters()).device
        [(images, _)] = read_batches(self.controls, [controls], epoch=epoch, device=device)
        with without_tracking(self.model):
            prepared = self.model.prepare(images, self.side_inputs[controls].get("channel_statistics"))
            features = self.model.embed(resize_images(prepared, size)).float()
        labels = {"positive": self.positive[controls], "control_plates": self.control_plates[controls], "site_plates": self.site_plates[rows]}
        return plate_means(features, **{name: tensor.to(device, non_blocking=True) for name, tensor in labels.items()})


@dataclass(frozen=True)
class Trainer:
    """A network with everything that a training step needs.

    `average`: the moving average of the weights, updated after each step. `embed`: replaces model.embed, for example by a
    compiled function. `process_group`: the processes that take each step together. `checkpointing`: that of the network's
    body, of which there will be more when memory runs out.
    """

    model: Classifier
    optimizer: torch.optim.Optimizer
    phase: Phase
    machine: MachineSettings = MachineSettings()
    process_group: ProcessGroup = SINGLE_PROCESS
    scaler: torch.amp.GradScaler | None = None
    average: WeightAverage | None = None
    embed: Callable[[torch.Tensor], torch.Tensor] | None = None
    checkpointing: Checkpointing | None = None


def train_epoch(trainer: Trainer, data: SiteImages, steps: list[list[np.ndarray]], *, epoch: int = 0, controls: SiteImages | None = None,
                deadline_monitor: DeadlineMonitor | None = None) -> dict[str, float] | None:
    """Take one step of the optimiser for each virtual batch of `steps` (see `virtual_batches`).

    A step follows the mean gradient over all sites of its virtual batch, even if its batches differ in size. The scaler skips
    a step whose fp16 gradients overflow. Several processes share out the batches of each step and sum their gradients before
    it, so that all of them take, or skip, the same steps. `controls`: the control sites for a network with control features.
    A step in which memory runs out is repeated from its beginning with more gradient checkpointing, if `trainer` has it.

    Returns the loss (mean over sites) and the data's metric (`learn.training.epoch.METRICS`), or None if the epoch was stopped
    because it would have ended too late (`deadline_monitor`).
    """
    model, optimizer, phase, process_group, average = trainer.model, trainer.optimizer, trainer.phase, trainer.process_group, trainer.average
    scaler = trainer.scaler or gradient_scaler(_model_device(model), trainer.machine.precision)
    scaler.scale(torch.zeros((), device=_model_device(model)))  # it could not take a step otherwise in a process without a batch
    totals, step_ends = _EpochTotals(model, data), np.cumsum([len(step) for step in steps]).tolist()
    numbers = iter(range(sum(map(len, steps))))
    # For each step its number of sites, and this process's batches with their numbers in the epoch.
    shards = [(sum(map(len, step)), process_group.shard([(next(numbers), rows) for rows in step])) for step in steps]
    batch_rows = [rows for _, shard in shards for _, rows in shard]
    batch_loss = _BatchLoss(trainer, data, epoch, controls)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    reader = read_batches(data, batch_rows, epoch=epoch, workers=trainer.machine.num_workers, device=_model_device(model))
    mode = training_mode(model, phase.trainable, process_group=process_group, average=average)
    with mode as statistics, cudnn_benchmark(_model_device(model), map(len, batch_rows)), closing(reader) as batches:
        for (sites, shard), step_end in zip(shards, step_ends, strict=True):
            images_of_step = islice(batches, len(shard))
            saved = statistics.copy() if trainer.checkpointing is not None else None
            optimizer.zero_grad(set_to_none=True)
            while True:
                sums = []
                try:
                    for (number, _), (images, rows) in zip(shard, images_of_step, strict=True):
                        statistics.start_batch(number)
                        loss, counts = batch_loss(images, rows, number)
                        scaler.scale(loss * (len(rows) / sites)).backward()
                        sums.append((loss.detach() * len(rows), counts))
                    break
                except torch.OutOfMemoryError:
                    if saved is None:
                        raise
                # Here, because the exception holds the tensors of the pass that failed.
                loss = images = counts = None
                optimizer.zero_grad(set_to_none=True)
                torch.cuda.empty_cache()
                trainer.checkpointing.save_memory(max(len(rows) for _, rows in shard))
                statistics.restore(saved)
                deque(images_of_step, maxlen=0)  # the next step begins with its own images
                images_of_step = read_batches(data, [rows for _, rows in shard], epoch=epoch, device=_model_device(model))
            for loss_sum, counts in sums:
                totals.add(loss_sum, counts)
            if process_group.sum_gradients(parameters, late=deadline_monitor is not None and deadline_monitor.is_late()):
                return None
            scaler.step(optimizer)
            scaler.update()
            if average is not None:
                statistics.decay_to(step_end)
                average.update(model)
        statistics.reduce(sum(map(len, steps)))
        if average is not None:
            average.copy_counters(model)
    return totals.means(process_group, sum(sites for sites, _ in shards))


def _model_device(model: Classifier) -> torch.device:
    return next(model.parameters()).device


class _EpochTotals:
    """Loss and counts of the metric, summed over batches and then over processes."""

    def __init__(self, model: Classifier, data: SiteImages) -> None:
        self.name, self.metric = data.metric, METRICS[data.metric]
        self.sums = torch.cat([torch.zeros(1, dtype=torch.float64), self.metric.zero_counts(model.classes)]).to(_model_device(model))

    def add(self, loss: torch.Tensor, counts: torch.Tensor) -> None:
        self.sums += torch.cat([loss.double()[None], counts])  # float() would synchronise with the GPU

    def means(self, process_group: ProcessGroup, sites: int) -> dict[str, float]:
        sums = process_group.sum(self.sums)
        return {"loss": sums[0].item() / sites, self.name: self.metric.value(sums[1:], sites)}


@contextmanager
def training_mode(model: Classifier, trainable: str, *, process_group: ProcessGroup = SINGLE_PROCESS,
                  average: WeightAverage | None = None) -> Iterator[RunningStatistics]:
    """Inside, every batch is normalised by itself; a frozen body keeps its running statistics."""
    if trainable == "head":
        with batch_statistics(model):
            model.head.train()
            yield RunningStatistics(model.head, process_group, average=average and average.network.head)
    else:
        yield RunningStatistics(model.train(), process_group, average=average and average.network)


class _BatchLoss:
    """The loss of a batch, with everything that an epoch needs for it."""

    def __init__(self, trainer: Trainer, data: SiteImages, epoch: int, controls: SiteImages | None) -> None:
        self.model = model = trainer.model
        self.phase, self.precision, self.embed = trainer.phase, trainer.machine.precision, trainer.embed or model.embed
        self.data, self.epoch, self.buffers = data, epoch, BufferPool()
        self.side_inputs = SideInputs(model, data.root, data.sites)
        self.references = ControlReferences(model, controls, data.sites) if model.settings.control_features else None

    def __call__(self, images: torch.Tensor, rows: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean loss of batch `number` and the counts of its metric."""
        model, phase, key = self.model, self.phase, (self.phase.seed, self.epoch, number)
        torch.manual_seed(random_key(*key))  # for layers such as dropout, whichever process has the batch
        mix = draw_mix(len(rows), phase.augmentation, key=key)
        mix = mix and mix.with_pixel_share(images)
        inputs = self._side_inputs(rows, mix, key)
        channel_statistics = inputs.pop("channel_statistics", None)
        targets = self.data.targets(rows).to(images.device, non_blocking=True)
        targets = targets if mix is None else mix.blend(targets)
        with autocast(images.device, self.precision):
            prepared = training_inputs(model, images, channel_statistics, phase=phase, epoch=self.epoch, batch_number=number, mix=mix,
                                       buffers=self.buffers)
            features = self.embed(prepared)
            logits = model.classify(features, **inputs, **self._control_means(rows, mix, key))
            # In fp32 at least, whatever autocast made of them; a network in float64 keeps its bits.
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            cosines = model.cosines(features) if phase.losses.uses_cosines else None
        return self._loss(logits, targets.to(logits.dtype), cosines), METRICS[self.data.metric].counts(logits.detach(), targets)

    def _side_inputs(self, rows: torch.Tensor, mix: Mix | None, key: tuple[int, ...]) -> dict[str, torch.Tensor]:
        """Moments, and covariates, some of them masked and all of them mixed."""
        inputs = self.side_inputs[rows]
        if "covariates" in inputs:
            covariates = mask_covariates(inputs["covariates"], self.model.covariates, key=key)
            inputs["covariates"] = covariates if mix is None else mix.blend(covariates)
        return inputs

    def _control_means(self, rows: torch.Tensor, mix: Mix | None, key: tuple[int, ...]) -> dict[str, ControlMeans]:
        """Mean features of as many controls as a batch has sites, from images of the same size."""
        if self.references is None:
            return {}
        controls = self.references.select_controls(rows, count=self.phase.training.batch_size, key=key)
        means = self.references.mean_features(rows, controls, epoch=self.epoch, size=self.phase.image_size(self.epoch))
        return {"references": means if mix is None else tuple(mix.blend(mean) for mean in means)}

    def _loss(self, logits: torch.Tensor, targets: torch.Tensor, cosines: torch.Tensor | None) -> torch.Tensor:
        settings = self.phase.training
        smoothing, uniform = settings.label_smoothing, 0.5 if self.data.multilabel else 1 / self.model.classes
        smoothed = smooth_targets(targets, smoothing, uniform=uniform) if smoothing else None
        return self.phase.losses(logits, targets, cosines, smoothed=smoothed, margin=settings.margin, scale=settings.margin_scale)


@torch.inference_mode()
def evaluate(model: Classifier, data: SiteImages | None, *, scope: str, machine: MachineSettings = MachineSettings(),
             process_group: ProcessGroup = SINGLE_PROCESS, controls: SiteImages | None = None, running: bool = False) -> float | None:
    """The data's metric on held-out sites, normalised by the held-out sites of their own scope; None without such sites.

    `running`: all sites are normalised by the running statistics instead.

    A scope is a whole plate (or experiment) where whole experiments are held out, and a part of it, with coarser statistics,
    under a random split. It is one batch if it has at most CPU_BATCH_PIXELS, otherwise several of nearly equal size. A site
    that is alone in its scope is normalised by the running statistics.
    """
    if data is None or not len(data):
        return None
    _, height, width = data.shape
    batches, single_sites = _held_out_batches(data.sites, scope, size=max(2, CPU_BATCH_PIXELS // (height * width)))
    if running:
        batches, single_sites = [], [*single_sites, *batches]
    options = {"machine": machine, "controls": controls}
    with batch_statistics(model):
        counts = _metric_counts(model, data, process_group.shard(batches), **options)
    counts += _metric_counts(model.eval(), data, process_group.shard(single_sites), **options)
    return METRICS[data.metric].value(process_group.sum(counts), len(data))


def _held_out_batches(sites: pd.DataFrame, scope: str, *, size: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Batches of rows that share a scope, and batches of one row each for sites that are alone in their scope."""
    single = [rows[0] for rows in scope_rows(sites, scope) if len(rows) == 1]
    shared = np.setdiff1d(np.arange(len(sites)), single)
    batches = epoch_batches(sites.iloc[shared], batch_size=size, scope=scope, seed=0, epoch=0) if len(shared) else []
    return [shared[rows] for rows in batches], [np.array([row]) for row in single]


def _metric_counts(model: Classifier, data: SiteImages, batches: list[np.ndarray], *, machine: MachineSettings,
                   controls: SiteImages | None) -> torch.Tensor:
    """The counts of the data's metric over all batches."""
    metric, side_inputs = METRICS[data.metric], SideInputs(model, data.root, data.sites)
    references = ControlReferences(model, controls, data.sites) if model.settings.control_features else None
    counts = metric.zero_counts(model.classes).to(_model_device(model))
    with autocast(counts.device, machine.precision):
        for images, rows in read_batches(data, batches, workers=machine.num_workers, device=counts.device):
            inputs = side_inputs[rows]
            if references is not None:
                inputs["references"] = references.mean_features(rows, references.select_controls(rows))
            logits = model(images, **inputs)
            counts += metric.counts(logits, data.targets(rows).to(counts.device))
    return counts
