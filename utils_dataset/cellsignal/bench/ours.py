"""How this package does it: the store, bytes to the device, one fast step, statistics of the whole plate in one pass."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cellsignal.bench.sample import CHANNELS
from cellsignal.bench.timer import Piece
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
RATE = 1e-3


def packed(root: Path, out: Path) -> Path:
    """The store of a data set, its pixels as they are."""
    pack.pack(pack.plan_pack(root, codec="raw"), out, progress=False)
    return out


def reading(store: Path, stems: Sequence[str]) -> Piece:
    """Sites from the store, one by one, into one buffer."""
    source = open_store(store)
    buffer = np.empty(source.shapes[source.sizes[0]], np.uint8)

    def work() -> float:
        for stem in stems:
            source.read(stem, buffer)
        return len(stems)
    return work


def reading_pngs(root: Path, stems: Sequence[str]) -> Piece:
    """Sites from PNGs, every checksum looked at."""
    def work() -> float:
        for stem in stems:
            reader.read_site(root, stem)
        return len(stems)
    return work


def dataset(root: Path, sites: pd.DataFrame, *, cache: bool = False) -> SiteImages:
    """Sites as a training has them: random symmetries of the square, 1,108 classes; from memory with `cache`."""
    return SiteImages(root, sites, class_numbers=range(CLASSES), augment=build_augmentation(AugmentationSettings(), seed=0), cache=cache)


def batches_of(count: int, batch_size: int, *, least: int) -> list[np.ndarray]:
    """Shuffled rows of `count` sites in whole batches, epoch after epoch, until there are `least` batches."""
    generator, found = np.random.default_rng(0), []
    size = min(batch_size, count)
    while len(found) < least:
        rows = generator.permutation(count)
        found += np.split(rows[:count // size * size], count // size)
    return found[:least]


class Learner:
    """A network of ours on its way through a training: adaptive moments, binary cross-entropy, the precision that the card likes."""

    def __init__(self, backbone: str, *, batch_size: int, device: torch.device, precision: str = "auto", workers: int = 0) -> None:
        self.model = Classifier(NetworkSettings(backbone=backbone), channels=CHANNELS, classes=CLASSES).to(device)
        self.phase = Phase(name="benchmark", training=TrainingSettings(epochs=1, batch_size=batch_size, learning_rate=RATE))
        self.machine = MachineSettings(precision=precision, num_workers=workers)
        self.learner = training.Learner(self.model, build_optimizer(self.phase.training, self.model.parameters()), self.phase, self.machine,
                                        scaler=gradient_scaler(device, precision))
        self.device, self.number, self.buffers = device, 0, BufferPool()

    def epoch(self, data: SiteImages, *, batches: int) -> Piece:
        """So many steps, one batch each, as a training takes them."""
        steps = group_batches(batches_of(len(data), self.phase.training.batch_size, least=batches), 1)
        sites = sum(len(rows) for [rows] in steps)

        def work() -> float:
            self.number += 1
            training.train_epoch(self.learner, data, steps, epoch=self.number)
            return sites
        return work

    def inputs(self, pictures: torch.Tensor) -> torch.Tensor:
        """What the network is to see of uint8[N, C, H, W] on the device, until the next batch, as in a training."""
        with autocast(self.device, self.machine.precision):
            return training_inputs(self.model, pictures, None, phase=self.phase, epoch=0, batch_number=0, buffers=self.buffers)

    def loss(self, seen: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss of what the network sees, against targets float[N, classes] on the device."""
        with autocast(self.device, self.machine.precision):
            logits = self.model.classify(self.model.embed(seen)).float()
        return self.phase.losses(logits, targets, None)

    def adapted(self, pictures: np.ndarray) -> np.ndarray:
        """Log-probabilities float32[N, classes] of pictures uint8[N, C, H, W], normalised by all of them."""
        return log_probabilities(PlateInference(self.model, pictures, precision=self.machine.precision), "adapted")[0]


def augmenting(pictures: np.ndarray, learner: Learner, *, data: SiteImages) -> Piece:
    """Pictures in memory, batch by batch: a random symmetry each, then what the network sees; no reading ahead."""
    size, numbers = learner.phase.training.batch_size, iter(range(10**9))
    batches = batches_of(len(pictures), size, least=max(1, len(pictures) // size))
    data.cached = list(pictures)

    def work() -> float:
        for images_, _ in read_batches(data, batches, epoch=next(numbers), device=learner.device):
            learner.inputs(images_)
        return sum(map(len, batches))
    return work
