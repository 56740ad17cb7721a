"""The parts of a training step, each timed on its own with the device synchronised after it."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch

from cellsignal.bench import baselines
from cellsignal.bench.ours import CLASSES, Trainer
from cellsignal.bench.timer import now
from cellsignal.data.images.packed_store import open_store
from cellsignal.learn.batches.augment import CropFlipRotate
from cellsignal.learn.settings import AugmentationSettings
from cellsignal.tasks import RXRX1

PARTS = ("read", "decode", "move", "augment", "forward", "backward", "step")
OnPhase = Callable[[str], None]


class PhaseTimer:
    """A stopwatch: calling it with a part adds the time since the last call to that part, after synchronising the device."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds, self.last = device, dict.fromkeys(PARTS, 0.0), now(device)

    def __call__(self, part: str) -> None:
        self.seconds[part] += -self.last + (moment := now(self.device))
        self.last = moment


def measure_step(step: Callable[[OnPhase], int], *, rounds: int, device: torch.device) -> dict[str, float]:
    """Milliseconds a site of every part of a step, medians over rounds; a first step does not count."""
    step(PhaseTimer(device))
    milliseconds = defaultdict(list)
    for _ in range(rounds):
        laps = PhaseTimer(device)
        sites = step(laps)
        for part, seconds in laps.seconds.items():
            milliseconds[part].append(1000 * seconds / sites)
    return {part: median(milliseconds[part]) for part in PARTS}


def our_step(store: Path, stems: Sequence[str], trainer: Trainer) -> Callable[[OnPhase], int]:
    """Our step: pixels are read into the batch, sent as bytes, augmented and scaled on the device."""
    source, geometry, size = open_store(store), CropFlipRotate(AugmentationSettings(), seed=0), trainer.phase.training.batch_size
    buffer = torch.empty((size, *source.shapes[source.sizes[0]]), dtype=torch.uint8, pin_memory=trainer.device.type == "cuda")
    generator, _ = np.random.default_rng(0), trainer.model.train()

    def step(lap: OnPhase) -> int:
        rows = generator.integers(len(stems), size=size)
        source.read_many([stems[row] for row in rows], buffer.numpy())
        lap("read")
        images = buffer.to(trainer.device, non_blocking=True)
        targets = torch.eye(CLASSES)[torch.from_numpy(rows)].to(trainer.device)
        lap("move")
        inputs = trainer.inputs(_augmented(geometry, images, rows))
        lap("augment")
        loss = trainer.loss(inputs, targets)
        lap("forward")
        trainer.trainer.scaler.scale(loss).backward()
        lap("backward")
        trainer.trainer.scaler.step(trainer.trainer.optimizer)
        trainer.trainer.scaler.update()
        trainer.trainer.optimizer.zero_grad(set_to_none=True)
        lap("step")
        return size
    return step


def _augmented(geometry: CropFlipRotate, images: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
    """Augment a batch: at once on a GPU, image by image on a CPU."""
    if images.device.type != "cpu":
        return geometry.on_device(images, rows, epoch=0)
    augmented = torch.empty_like(images)
    for image, row, out in zip(images.numpy(), rows, augmented.numpy(), strict=True):
        geometry(image, epoch=0, site=int(row), out=out)
    return augmented


def eager_step(root: Path, stems: Sequence[str], network: baselines.Eager, *, batch_size: int) -> Callable[[OnPhase], int]:
    """A step as Brodt took it: PNGs, augmented and converted to floats on the host, collated there, and sent."""
    generator, sites = np.random.default_rng(0), baselines.Brodt(root, stems)

    def step(lap: OnPhase) -> int:
        rows = generator.integers(len(stems), size=batch_size)
        files = [[Path(f"{root / stems[row]}{suffix}").read_bytes() for suffix in RXRX1.suffixes] for row in rows]
        lap("read")
        grey = [[cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE) for content in channels] for channels in files]
        lap("decode")
        batch = torch.stack([sites.to_input(np.stack(channels, axis=-1)) for channels in grey])
        lap("augment")
        images, targets = batch.to(network.device), torch.eye(CLASSES)[torch.from_numpy(rows)].to(network.device)
        lap("move")
        network.learn(images, targets, lap=lap)
        return batch_size
    return step


def as_rows(timelines: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Rows for JSON: milliseconds per site of each part, and its share of the step."""
    return [{"lane": name, "part": part, "ms": float(f"{ms:.5g}"), "share": round(ms / (sum(parts.values()) or 1), 4)}
            for name, parts in timelines.items() for part, ms in parts.items()]
