"""One adapted pass against Brodt's 97 over as many batch sizes, and the statistics of unequal plates, on the same weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from building import make_network, make_phase, train_phase
from cellsignal.learn.settings import AugmentationSettings
from cellsignal.data.images.reader import whole_sites
from cellsignal.data.microscope.layout import CONTROL_WELLS, UNTREATED_WELL, WELLS
from cellsignal.data.microscope.rendering import Plate, render_plate
from cellsignal.data.microscope.simulate import PRESETS, simulate
from cellsignal.data.tables.wells import Tables, read_tables
from cellsignal.decide.evaluate.ladder import accuracy
from cellsignal.decide.predict.predict import ScoringOptions, score_experiments
from cellsignal.decide.settings import PredictionSettings
from cellsignal.files import read_json
from cellsignal.learn.batches.augment import build_augmentation
from cellsignal.learn.batches.dataset import make_train_held_out

BRODT = PredictionSettings(min_batch_size=32, max_batch_size=128, num_batch_sizes=97)
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


# Plates that are no full designs: few wells, few siRNAs, or half of the wells with one siRNA.

SCREEN = replace(PLATES, classes=96, train=6, test=1, phenotype=6.0)
FREE = [well for well in WELLS if well not in (UNTREATED_WELL, *CONTROL_WELLS)]
COMPOSITIONS = {"8 wells": [1] * 8, "16 wells": [1] * 16, "32 wells": [1] * 32, "77 wells": [1] * 77, "16 wells, 4 siRNAs": [4] * 4,
                "76 wells, 4 siRNAs": [19] * 4, "16 wells, half of one siRNA": [8, *[1] * 8], "77 wells, half of one siRNA": [39, *[1] * 38]}
KINDS = ("running", "adapted", "plate_with_controls", "controls", "auto")


def draw_unequal_plates(root: Path, *, seed: int) -> pd.DataFrame:
    """The sites of two new experiments of three plates: 77 siRNAs, 39 wells of the first and 19 of the next three, and 31 controls."""
    rows = []
    for experiment in ("HUVEC-21", "HUVEC-22"):
        for plate in (1, 2, 3):
            rng = np.random.default_rng([seed, int(experiment[-2:]), plate])
            numbers = np.repeat(rng.permutation(SCREEN.classes)[:77], [39, *[19] * 3, *[1] * 73])
            wells = [*zip(rng.permutation(FREE).tolist(), numbers.tolist()), *zip([UNTREATED_WELL, *CONTROL_WELLS], [1138, *range(1108, 1138)])]
            folder = Path("test", experiment, f"Plate{plate}")
            render_plate(Plate(seed, experiment, plate, tuple(wells), SCREEN.image_size, SCREEN.pixel_size, SCREEN.phenotype, SCREEN.batch), root / folder)
            rows += [{"experiment": experiment, "cell_type": "HUVEC", "plate": plate, "well": well, "sirna": sirna, "id_code": f"{experiment}_{plate}_{well}",
                      "well_type": "treatment" if sirna < 1108 else "negative_control" if sirna == 1138 else "positive_control",
                      "site": site, "stem": f"{folder}/{well}_s{site}"} for well, sirna in wells for site in (1, 2)]
    return pd.DataFrame(rows)


def with_wells(sites: pd.DataFrame, counts: list[int]) -> pd.DataFrame:
    """The sites of so many wells of each of the first siRNAs of a plate, and of its controls."""
    chosen = [sites[sites["well_type"] != "treatment"]]
    for _, plate in sites[sites["well_type"] == "treatment"].groupby(["experiment", "plate"]):
        for number, count in zip(plate["sirna"].drop_duplicates(), counts):
            chosen.append(plate[plate["well"].isin(plate.loc[plate["sirna"] == number, "well"].unique()[:count])])
    return pd.concat(chosen)


def measure_unequal_plates(root: Path, weights: Path, sites: pd.DataFrame, *, out: Path) -> pd.DataFrame:
    """Accuracy by composition and kind of statistics."""
    truth, accuracies = sites.drop_duplicates("id_code").set_index("id_code")["sirna"], {}
    for name, counts in COMPOSITIONS.items():
        for kind in KINDS:
            scoring = ScoringOptions(weights, settings=PredictionSettings(statistics=kind), all_statistics=False)
            scores = score_experiments(root, with_wells(sites, counts), scoring, out=out / name)[kind]
            accuracies[name, kind] = scores.idxmax(axis=1).eq(truth[scores.index]).mean()
    return pd.Series(accuracies).unstack(sort=False)


@pytest.mark.slow
def test_with_controls_in_the_statistics_unequal_plates_are_read_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "plates", SCREEN)
    torch.set_num_threads(1)
    tables = []
    for seed in range(3):
        root = tmp_path / str(seed)
        simulate(root / "data", preset="plates", seed=seed, processes=1)
        train(read_tables(root / "data"), root / "weights/HUVEC/model.safetensors", seed=seed)
        sites = draw_unequal_plates(root / "data", seed=seed)
        tables.append(measure_unequal_plates(root / "data", root / "weights", sites, out=root / "scores"))
        print(f"seed {seed}", tables[-1].round(3).to_string(), sep="\n")
    mean = sum(tables) / len(tables)
    print("mean", mean.round(3).to_string(), sep="\n")
    gain = mean["plate_with_controls"] - mean["adapted"]
    assert gain["77 wells"] > -0.04, "controls cost little where a plate has many siRNAs"
    assert gain[[name for name in mean.index if "siRNA" in name]].min() > 0.02
    assert (mean["auto"] - mean["adapted"]).min() > -0.04
    assert (mean["controls"] - mean["adapted"])[["76 wells, 4 siRNAs", "77 wells, half of one siRNA"]].min() > 0.06
