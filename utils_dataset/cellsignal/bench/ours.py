"""This package's data path, training step and prediction, as candidates of the benchmark."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cellsignal.bench.sample import CHANNELS
from cellsignal.bench.timer import WorkFunction
from cellsignal.data.images import reader
from cellsignal.data.images.packed_store import open_store
from cellsignal.data.packing import pack
from cellsignal.decide.predict.inference import PlateInference, log_probabilities
from cellsignal.learn.batches.augment import build_augmentation
from cellsignal.learn.batches.dataset import SiteImages, group_batches, read_batches
from cellsignal.learn.devices import autocast, gradient_scaler
from cellsignal.learn.networks.classifier import Classifier
from cellsignal.learn.settings import AugmentationSettings, MachineSettings, NetworkSettings, TrainingSettings
from cellsignal.learn.training import epoch as training
from cellsignal.learn.training.epoch import BufferPool, training_inputs
from cellsignal.learn.training.optim import build_optimizer
from cellsignal.learn.training.phase import Phase

CLASSES = 1108
LEARNING_RATE = 1e-3


def pack_store(root: Path, out: Path) -> Path:
    """Pack a data set into a store of raw pixels."""
    pack.pack(pack.plan_pack(root, codec="raw"), out, progress=False)
    return out


def reading(store: Path, stems: Sequence[str]) -> WorkFunction:
    """Sites from the store, one by one, into one buffer."""
    store_reader = open_store(store)
    buffer = np.empty(store_reader.shapes[store_reader.sizes[0]], np.uint8)

    def work() -> float:
        for stem in stems:
            store_reader.read(stem, buffer)
        return len(stems)
    return work


def reading_pngs(root: Path, stems: Sequence[str]) -> WorkFunction:
    """Sites from PNGs, every checksum looked at."""
    def work() -> float:
        for stem in stems:
            reader.read_site(root, stem)
        return len(stems)
    return work


def dataset(root: Path, sites: pd.DataFrame, *, cache: bool = False) -> SiteImages:
    """Sites as in training: random symmetries of the square, 1,108 classes; from memory with `cache`."""
    return SiteImages(root, sites, class_numbers=range(CLASSES), augment=build_augmentation(AugmentationSettings(), seed=0), cache=cache)


def batches_of(count: int, batch_size: int, *, min_batches: int) -> list[np.ndarray]:
    """Shuffled rows of `count` sites in whole batches, epoch after epoch, until there are `min_batches` batches."""
    generator, batches = np.random.default_rng(0), []
    size = min(batch_size, count)
    while len(batches) < min_batches:
        rows = generator.permutation(count)
        batches += np.split(rows[:count // size * size], count // size)
    return batches[:min_batches]


class Trainer:
    """Our network in training: Adam, binary cross-entropy, the precision of the device."""

    def __init__(self, backbone: str, *, batch_size: int, device: torch.device, precision: str = "auto", workers: int = 0) -> None:
        self.model = Classifier(NetworkSettings(backbone=backbone), channels=CHANNELS, classes=CLASSES).to(device)
        self.phase = Phase(name="benchmark", training=TrainingSettings(epochs=1, batch_size=batch_size, learning_rate=LEARNING_RATE))
        self.machine = MachineSettings(precision=precision, num_workers=workers)
        self.trainer = training.Trainer(self.model, build_optimizer(self.phase.training, self.model.parameters()), self.phase, self.machine,
                                        scaler=gradient_scaler(device, precision))
        self.device, self.number, self.buffers = device, 0, BufferPool()

    def epoch(self, data: SiteImages, *, batches: int) -> WorkFunction:
        """Training steps of one batch each."""
        steps = group_batches(batches_of(len(data), self.phase.training.batch_size, min_batches=batches), 1)
        sites = sum(len(rows) for [rows] in steps)

        def work() -> float:
            self.number += 1
            training.train_epoch(self.trainer, data, steps, epoch=self.number)
            return sites
        return work

    def inputs(self, images: torch.Tensor) -> torch.Tensor:
        """The network's input from uint8[N, C, H, W] on the device, as in training; valid until the next batch."""
        with autocast(self.device, self.machine.precision):
            return training_inputs(self.model, images, None, phase=self.phase, epoch=0, batch_number=0, buffers=self.buffers)

    def loss(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss of network inputs against targets float[N, classes] on the device."""
        with autocast(self.device, self.machine.precision):
            logits = self.model.classify(self.model.embed(inputs)).float()
        return self.phase.losses(logits, targets, None)

    def adapted(self, images: np.ndarray) -> np.ndarray:
        """Log-probabilities float32[N, classes] of images uint8[N, C, H, W], normalised by all of them."""
        return log_probabilities(PlateInference(self.model, images, precision=self.machine.precision), "adapted")[0]


def augmenting(images: np.ndarray, trainer: Trainer, *, data: SiteImages) -> WorkFunction:
    """Images in memory, batch by batch: a random symmetry each, then what the network sees; no reading ahead."""
    size, numbers = trainer.phase.training.batch_size, iter(range(10**9))
    batches = batches_of(len(images), size, min_batches=max(1, len(images) // size))
    data.cached = list(images)

    def work() -> float:
        for batch_images, _ in read_batches(data, batches, epoch=next(numbers), device=trainer.device):
            trainer.inputs(batch_images)
        return sum(map(len, batches))
    return work
