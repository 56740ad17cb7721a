"""One adapted pass against Brodt's 97 over as many batch sizes, on the same weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from building import make_network, make_phase, train_phase
from cellsignal.learn.settings import AugmentationSettings
from cellsignal.data.images.reader import whole_sites
from cellsignal.data.microscope.simulate import PRESETS, simulate
from cellsignal.data.tables.wells import Tables, read_tables
from cellsignal.decide.evaluate.ladder import accuracy
from cellsignal.decide.predict.predict import ScoringOptions, score_experiments
from cellsignal.decide.settings import PredictionSettings
from cellsignal.files import read_json
from cellsignal.learn.batches.augment import build_augmentation
from cellsignal.learn.batches.dataset import make_train_held_out

BRODT = PredictionSettings(smallest_batch=32, largest_batch=128, num_batch_sizes=97)
# 72 treatment sites a plate, so that most of the 97 sizes are smaller than it.
PLATES = replace(PRESETS["demo"], cell_types=("HUVEC",), classes=144, train=4, test=3, image_size=48, pixel_size=4.0,
                 phenotype=5.0, repeats=())


def train(tables: Tables, weights: Path, *, seed: int) -> None:
    """A small network for the treatments of the training experiments, good enough to tell methods apart."""
    sites, _ = whole_sites(tables.root, tables.sites[(tables.sites["dataset"] == "train") & (tables.sites["well_type"] == "treatment")])
    data, _ = make_train_held_out(tables.root, sites.assign(split="train"), augment=build_augmentation(AugmentationSettings(), seed=seed))
    model = make_network("densenet-small", channels=6, classes=len(data.class_numbers), seed=seed)
    train_phase(model, data, weights=weights, phase=make_phase("whole", epochs=16, batch_size=16, learning_rate=3e-3, schedule="cosine", seed=seed))


def compare(root: Path, *, seed: int) -> dict[str, dict]:
    """By kind of statistics: accuracy on the test wells, images through the network, seconds."""
    simulate(root / "data", preset="plates", seed=seed, parallel_map=map)
    tables = read_tables(root / "data")
    train(tables, root / "weights/HUVEC/model.safetensors", seed=seed)
    asked, _ = whole_sites(tables.root, tables.sites[tables.sites["dataset"] == "test"])
    scores = score_experiments(tables.root, asked, ScoringOptions(root / "weights", settings=BRODT), out=root / "scores")
    found = {}
    for kind, table in scores.items():
        facts = read_json(root / "scores" / kind / "metadata.json")["details"]
        right = accuracy(table.idxmax(axis=1), tables.solution, tables.wells)["accuracy"]
        found[kind] = {"accuracy": right, "images": facts["images"], "seconds": facts["seconds"]}
        print(f"seed {seed} {kind:8} accuracy {right:.4f}  images {facts['images']:6,}  {facts['seconds']:6.2f} s")
    return found


@pytest.mark.slow
def test_adapted_is_as_good_as_97_batch_sizes_for_a_thirtieth_of_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "plates", PLATES)
    torch.set_num_threads(1)
    runs = [compare(tmp_path / str(seed), seed=seed) for seed in range(3)]
    mean = {kind: {key: float(np.mean([run[kind][key] for run in runs])) for key in runs[0][kind]} for kind in runs[0]}
    ratios = {key: mean["batch"][key] / mean["adapted"][key] for key in ("images", "seconds")}
    print(mean, ratios)
    assert mean["adapted"]["accuracy"] >= mean["batch"]["accuracy"] - 0.005
    assert mean["adapted"]["accuracy"] > mean["running"]["accuracy"] + 0.05
    assert ratios["images"] >= 30 and ratios["seconds"] >= 15
