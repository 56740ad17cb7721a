"""One training step, cut into its parts, each waited for: what takes how long when nothing goes on beside it."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch

from cellsignal.bench import baselines
from cellsignal.bench.ours import CLASSES, Learner
from cellsignal.bench.timer import now
from cellsignal.data.images.packed_store import open_store
from cellsignal.learn.settings import AugmentationSettings
from cellsignal.learn.batches.augment import CropFlipRotate
from cellsignal.tasks import RXRX1

PARTS = ("read", "decode", "move", "augment", "forward", "backward", "step")
Lap = Callable[[str], None]


class Laps:
    """A stopwatch: `lap(part)` adds the time since the last call to a part, the device waited for."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds, self.last = device, dict.fromkeys(PARTS, 0.0), now(device)

    def __call__(self, part: str) -> None:
        self.seconds[part] += -self.last + (moment := now(self.device))
        self.last = moment


def measure_step(step: Callable[[Lap], int], *, rounds: int, device: torch.device) -> dict[str, float]:
    """Milliseconds a site of every part of a step, medians over rounds; a first step does not count."""
    step(Laps(device))
    found = defaultdict(list)
    for _ in range(rounds):
        laps = Laps(device)
        sites = step(laps)
        for part, seconds in laps.seconds.items():
            found[part].append(1000 * seconds / sites)
    return {part: median(found[part]) for part in PARTS}


def our_step(store: Path, stems: Sequence[str], learner: Learner) -> Callable[[Lap], int]:
    """A step of ours: plain pixels are read into the batch, sent as bytes, and turned and scaled where they arrive."""
    source, geometry, size = open_store(store), CropFlipRotate(AugmentationSettings(), seed=0), learner.phase.training.batch_size
    buffer = torch.empty((size, *source.shapes[source.sizes[0]]), dtype=torch.uint8, pin_memory=learner.device.type == "cuda")
    places, _ = np.random.default_rng(0), learner.model.train()

    def step(lap: Lap) -> int:
        rows = places.integers(len(stems), size=size)
        source.read_many([stems[row] for row in rows], buffer.numpy())
        lap("read")
        images = buffer.to(learner.device, non_blocking=True)
        targets = torch.eye(CLASSES)[torch.from_numpy(rows)].to(learner.device)
        lap("move")
        seen = learner.inputs(_turned(geometry, images, rows))
        lap("augment")
        loss = learner.loss(seen, targets)
        lap("forward")
        learner.learner.scaler.scale(loss).backward()
        lap("backward")
        learner.learner.scaler.step(learner.learner.optimizer)
        learner.learner.scaler.update()
        learner.learner.optimizer.zero_grad(set_to_none=True)
        lap("step")
        return size
    return step


def _turned(geometry: CropFlipRotate, images: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
    """On a GPU all at once; on a CPU one after the other, as while they are read."""
    if images.device.type != "cpu":
        return geometry.on_device(images, rows, epoch=0)
    turned = torch.empty_like(images)
    for image, row, out in zip(images.numpy(), rows, turned.numpy(), strict=True):
        geometry(image, epoch=0, site=int(row), out=out)
    return turned


def eager_step(root: Path, stems: Sequence[str], network: baselines.Eager, *, batch_size: int) -> Callable[[Lap], int]:
    """A step as Brodt took it: PNGs, turned and made floats on the host, put together there, and sent."""
    places, sites = np.random.default_rng(0), baselines.Brodt(root, stems)

    def step(lap: Lap) -> int:
        rows = places.integers(len(stems), size=batch_size)
        files = [[Path(f"{root / stems[row]}{suffix}").read_bytes() for suffix in RXRX1.suffixes] for row in rows]
        lap("read")
        grey = [[cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE) for content in each] for each in files]
        lap("decode")
        batch = torch.stack([sites.made(np.stack(each, axis=-1)) for each in grey])
        lap("augment")
        images, targets = batch.to(network.device), torch.eye(CLASSES)[torch.from_numpy(rows)].to(network.device)
        lap("move")
        network.learn(images, targets, lap=lap)
        return batch_size
    return step


def as_rows(lanes: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """As JSON has it: for each lane the parts' milliseconds a site and their shares of the whole."""
    return [{"lane": lane, "part": part, "ms": float(f"{ms:.5g}"), "share": round(ms / (sum(parts.values()) or 1), 4)}
            for lane, parts in lanes.items() for part, ms in parts.items()]
