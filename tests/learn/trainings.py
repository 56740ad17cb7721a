"""A training that takes a second, for the tests that interrupt one or share it out."""

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from building import add_backbone, make_network, make_phase, train_phase
from cellsignal.learn.settings import AugmentationSettings, MachineSettings
from cellsignal.learn.batches.augment import build_augmentation
from cellsignal.learn.networks.backbones import Backbone
from cellsignal.learn.batches.dataset import SiteImages
from cellsignal.learn.networks.batchnorm import batch_statistics
from cellsignal.budget import Budget, TimeSpent
from cellsignal.learn.networks.classifier import ModelConfig, Classifier

CLASSES = [0, 10, 20, 30]


def write_patches(root: Path) -> tuple[Path, pd.DataFrame]:
    """Draw the sites that conftest describes."""
    rng, rows = np.random.default_rng(0), []
    for experiment in ("HUVEC-01", "HUVEC-02"):
        for plate in (1, 2):
            gain = rng.uniform(0.4, 1.0, size=(6, 1, 1))
            for i in range(8):
                stem = f"train/{experiment}/Plate{plate}/B{i + 2:02d}_s1"
                image = rng.uniform(0, 80, (6, 32, 32))
                image[i % 4, ::2] += 150  # the class is a striped channel
                _write(root / stem, (image * gain).astype(np.uint8))
                rows.append({"experiment": experiment, "plate": plate, "well": f"B{i + 2:02d}", "site": 1, "stem": stem,
                             "sirna": i % 4 * 10, "well_type": "treatment", "id_code": f"{experiment}_{plate}_B{i + 2:02d}"})
    return root, pd.DataFrame(rows).astype({"sirna": "Int64"})


def _write(stem: Path, image: np.ndarray) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    for channel, picture in enumerate(image, 1):
        cv2.imwrite(f"{stem}_w{channel}.png", picture)


class Epochs(Budget):
    """Time for so many more epochs, whatever the clock says."""

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.epochs = epochs

    def fits(self, seconds: float) -> bool:
        self.epochs -= 1
        return self.epochs >= 0


def small(patches: tuple, weights: Path, *, model: Classifier | None = None, watch: bool = True, cache: bool = True,
          augment: str = "none", kind: type[SiteImages] = SiteImages, options: dict | None = None, **changes) -> list[dict]:
    """Train on one experiment of `patches`, watch the other; `changes` are the phase's, `options` fit's."""
    root, sites = patches
    first = sites["experiment"] == "HUVEC-01"
    data, held_out = (kind(root, part, class_numbers=CLASSES, cache=cache) for part in (sites[first], sites[~first]))
    data.augment = build_augmentation(AugmentationSettings(symmetries=augment), seed=0)
    machine = {key: changes.pop(key) for key in list(changes) if key in MachineSettings.model_fields}
    phase = make_phase(**{"name": "train", "epochs": 4, "batch_size": 8, "learning_rate": 3e-3} | changes)
    return train_phase(model or make_network("densenet-small", channels=6, classes=4), data, phase=phase, weights=weights, held_out=held_out if watch else None, **{**machine, **(options or {})})


def cut_short(patches: tuple, weights: Path, **knobs: Any) -> str:
    """Train as `small` does until the time is spent; how far it came."""
    with pytest.raises(TimeSpent) as spent:
        small(patches, weights, **knobs)
    return str(spent.value)


def steady(*, kind: torch.dtype = torch.float64) -> tuple[Classifier, float]:
    """A network to which rounding stays rounding, and how far sums taken in another order may move it and its losses.

    A deep network magnifies rounding without a bound: in its last layers a batch of two sites is normalised over two
    numbers, and Adam divides gradients by their own size. Here one layer normalises, over hundreds of pixels, and
    plain gradient descent (`STEADY`) is linear. A number is then a sum of at most 7 sites x 32 x 32 pixels in each of at
    most 16 steps, each term rounded once: rounding errors of both signs add up as the root of their count (Higham 2002).
    """
    add_backbone("one-norm", Backbone(lambda channels: (nn.Sequential(
        nn.Conv2d(channels, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 8)))
    model = make_network("one-norm", channels=6, classes=4).to(kind)
    return model, torch.finfo(kind).eps * (16 * 7 * 32 * 32) ** 0.5


STEADY = {"optimizer": "sgd", "learning_rate": 0.1}


class Guess:
    """Names sites by the network itself: those whose best class is better than the others by enough."""

    def __init__(self, others: SiteImages, share: float = 0.5) -> None:
        self.others, self.share, self.asked = others, share, []

    def __call__(self, model: Classifier, config: ModelConfig, epoch: int) -> np.ndarray:
        assert not model.training and config.class_numbers == CLASSES
        images = torch.from_numpy(np.stack([self.others.image(row) for row in range(len(self.others))]))
        with torch.inference_mode(), batch_statistics(model):
            best, labels = model(images).softmax(1).max(1)
        self.asked.append(epoch)
        return np.where(best >= best.quantile(1 - self.share), labels, -1)


def pseudo(patches: tuple) -> dict:
    """Sites without labels: those of the other experiment, under another name."""
    root, sites = patches
    others = sites[sites["experiment"] == "HUVEC-02"].assign(experiment="HUVEC-03")
    others["sirna"] = pd.array([pd.NA] * len(others), "Int64")
    data = SiteImages(root, others, class_numbers=CLASSES)
    return {"unlabelled": data, "relabel": Guess(data)}


PHASES = {"head": {"trainable": "head", "epochs": 2},
          "model": {"epochs": 6, "mixup_alpha": 0.4, "cutmix_alpha": 1.0, "ema_decay": 0.9, "optimizer": "radam", "pseudo_label_epochs": 3}}


def session(root: str, sites: str, folder: str, *, seconds: float | None = None, elsewhere: str = "", death: tuple | list = ()) -> None:
    """Train until both phases end, the `seconds` are over, or the process dies at a write of a checkpoint (`death`: how, which)."""
    if death:
        _die_writing(*death)
    patches = Path(root), pd.read_csv(sites).astype({"sirna": "Int64"})
    model, history = make_network("densenet-small", channels=6, classes=4), []
    budget = Budget(None if seconds is None else time.time() + seconds)
    words = "whole"
    for name, changes in PHASES.items():
        options = {"budget": budget, "history": history, "resume_folders": [Path(elsewhere)] if elsewhere else [], **pseudo(patches)}
        try:
            history = small(patches, Path(folder) / f"{name}.safetensors", model=model, options=options, augment="d4",
                            **{"name": name, "batch_size": 3, "virtual_batch": 7} | changes)
        except TimeSpent as spent:
            words = str(spent)
            break
    print(words, flush=True)


def take_up(weights: Path, folder: Path) -> None:
    """Copy weights that an earlier session finished, as a notebook does at its beginning."""
    if weights.with_suffix(".json").is_file():
        folder.mkdir(exist_ok=True)
        for path in (weights, weights.with_suffix(".json")):
            shutil.copy(path, folder)


def _die_writing(how: str, which: int) -> None:
    """Kill this process when the `which`-th file of a checkpoint is half written, is to be renamed, or has just been."""
    replace, count = os.replace, 0
    def deadly(source: Path, target: Path) -> None:
        nonlocal count
        count += ".checkpoint" in Path(target).name
        last = count == which
        if last and how == "half":
            os.truncate(source, Path(source).stat().st_size // 2)
        if last and how != "after":
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
    os.replace = deadly
