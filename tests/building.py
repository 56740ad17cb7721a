"""Networks, phases and trainings from single settings, whichever group these belong to."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cellsignal.learn.batches.dataset import SiteImages
from cellsignal.learn.networks.classifier import Classifier
from cellsignal.learn.settings import AugmentationSettings, MachineSettings, NetworkSettings, TrainingSettings
from cellsignal.learn.training.fit import TrainingSites, fit
from cellsignal.learn.training.phase import Phase
from cellsignal.settings import Settings


def network(backbone: str = "densenet-small", *, channels: int = 6, classes: int = 4, seed: int = 0, levels: Mapping[str, Sequence[str]] = {},
            **settings: Any) -> Classifier:
    """A network of a backbone; `settings`: those of its group, the covariates being those of the `levels`."""
    chosen = NetworkSettings(**{"backbone": backbone, "covariates": list(levels), **settings})
    return Classifier(chosen, channels=channels, classes=classes, seed=seed, levels=levels)


def phase(name: str, epochs: int, batch_size: int, learning_rate: float, **settings: Any) -> Phase:
    """A phase; `settings`: its own, of the training and of augmentation."""
    training, augmentation = (_of(settings, kind) for kind in (TrainingSettings, AugmentationSettings))
    training = TrainingSettings(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, **training)
    own = {key: value for key, value in settings.items() if key in Phase.model_fields}
    assert len(own) == len(settings) - len(_of(settings, TrainingSettings)) - len(_of(settings, AugmentationSettings)), settings
    return Phase(name=name, training=training, augmentation=AugmentationSettings(**augmentation), **own)


def train(model: Classifier, data: SiteImages, *, phase: Phase, weights: Path, history: Sequence[dict] = (), **options: Any) -> list[dict]:
    """Train on a CPU; `options`: further sites, what the machine does, and the others of `fit`."""
    machine, sites = _of(options, MachineSettings), {key: options[key] for key in options if key in TrainingSites.__dataclass_fields__}
    others = {key: value for key, value in options.items() if key not in (*machine, *sites)}
    model.history = list(history)
    return fit(model, TrainingSites(data, **sites), phase, weights=weights, machine=MachineSettings(**{"device": "cpu", **machine}), **others)


def _of(values: Mapping[str, Any], kind: type[Settings]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key in kind.model_fields}
