"""Networks, phases and trainings from single settings, whichever group these belong to."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from cellsignal.receipts import Receipt
from cellsignal.learn import settings
from cellsignal.learn.batches.dataset import SiteImages
from cellsignal.learn.networks.backbones import BACKBONES, Backbone
from cellsignal.learn.networks.classifier import Classifier
from cellsignal.learn.settings import AugmentationSettings, MachineSettings, NetworkSettings, TrainingSettings
from cellsignal.learn.training.epoch import Trainer, train_epoch
from cellsignal.learn.training.fit import TrainingSites, fit
from cellsignal.learn.training.phase import Phase
from cellsignal.run import recipe
from cellsignal.run.recipe import Recipe
from cellsignal.settings import Settings, keys, nest


def make_network(backbone: str = "densenet-small", *, channels: int = 6, classes: int = 4, seed: int = 0, levels: Mapping[str, Sequence[str]] = {},
                 **chosen: Any) -> Classifier:
    """A network of a backbone; `chosen`: the settings of its group, the covariates being those of the `levels`."""
    made = NetworkSettings(**{"backbone": backbone, "covariates": list(levels), **chosen})
    return Classifier(made, channels=channels, classes=classes, seed=seed, levels=levels)


def make_phase(name: str, epochs: int, batch_size: int, learning_rate: float, **chosen: Any) -> Phase:
    """A phase; `chosen`: settings, its own, of the training and of augmentation."""
    training, augmentation = (_of(chosen, kind) for kind in (TrainingSettings, AugmentationSettings))
    own = {key: value for key, value in chosen.items() if key in Phase.model_fields}
    assert {*own, *training, *augmentation} >= set(chosen), chosen
    training |= {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    return Phase(name=name, training=TrainingSettings(**training), augmentation=AugmentationSettings(**augmentation), **own)


def train_phase(model: Classifier, data: SiteImages, *, phase: Phase, weights: Path, history: Sequence[dict] = (), **options: Any) -> list[dict]:
    """Train on a CPU; `options`: further sites, what the machine does, and the others of `fit`."""
    machine, sites = _of(options, MachineSettings), {key: options[key] for key in options if key in TrainingSites.__dataclass_fields__}
    others = {key: value for key, value in options.items() if key not in (*machine, *sites)}
    model.history = list(history)
    return fit(model, TrainingSites(data, **sites), phase, weights=weights, machine=MachineSettings(**{"device": "cpu", **machine}), **others)


def run_epoch(model: Classifier, data: SiteImages, steps: list, optimizer: torch.optim.Optimizer, *, phase: Phase, epoch: int = 0,
              precision: str = "auto", **trainer: Any) -> dict[str, float] | None:
    """One epoch of training; `trainer`: further fields of `Trainer`."""
    return train_epoch(Trainer(model, optimizer, phase, MachineSettings(precision=precision), **trainer), data, steps, epoch=epoch)


def history_of(weights: Path) -> list[dict]:
    """The history in the receipt beside weights."""
    return Receipt.read(weights.with_suffix(".json")).details["history"]


def add_backbone(name: str, backbone: Backbone) -> None:
    """A backbone of one's own: its code, and its name among those that settings may have."""
    BACKBONES[name] = backbone
    if name not in settings.BACKBONES:
        settings.BACKBONES.append(name)


def _of(values: Mapping[str, Any], kind: type[Settings]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key in kind.model_fields}


def recipe_of(values: Mapping[str, Any]) -> Recipe:
    """A checked recipe of plain keys, dotted ones, and those of groups by their last part, which no other key has."""
    return recipe.check(in_groups(values))


def in_groups(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, named as `recipe_of` takes them, in their groups; other names stay."""
    names = {key.rpartition(".")[2]: key for key in keys(Recipe)}
    return nest({key if key in Recipe.model_fields else names.get(key, key): value for key, value in values.items()})


def dataset_size(sites: pd.DataFrame) -> Any:
    """The counts of a table of sites with columns split and well_type, by which the cost of a recipe is predicted."""
    from cellsignal.bench import cost

    treatment = sites["well_type"] == "treatment"
    treatments = {split: ((sites["split"] == split) & treatment).sum() for split in ("train", "held_out", "test")}
    controls = {split: ((sites["split"] == split) & ~treatment).sum() for split in ("train", "held_out")}
    plate = sites[treatment].groupby(["experiment", "plate"]).size().max()
    return cost.DatasetSize(treatments["train"], treatments["held_out"], treatments["test"], controls["train"], controls["held_out"], plate)
