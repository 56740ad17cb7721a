"""What the published solutions train with learns, and goes on bit for bit when it was interrupted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trainings import CLASSES, Epochs, pseudo, small

from building import history_of, make_network, make_phase, train_phase
from cellsignal.budget import TimeSpent
from cellsignal.errors import InputError
from cellsignal.files import read_json, sha256
from cellsignal.learn.batches.dataset import SiteImages
from cellsignal.learn.networks.classifier import Classifier, load_weights


def network(**options: Any) -> Classifier:
    return make_network("densenet-small", channels=6, classes=4, **options)


def controls(patches: tuple) -> dict[str, Any]:
    """Every second site is a positive control, of which the rest are negative."""
    root, sites = patches
    kinds = np.where(np.arange(len(sites)) % 2, "negative_control", "positive_control")
    return {"controls": SiteImages(root, sites.assign(well_type=kinds), class_numbers=CLASSES, cache=True)}


PLACE = {"cell_type": ["HUVEC"], "experiment": ["HUVEC-01"], "well": [f"B{n:02d}" for n in range(2, 10)]}
# Name: what the network is built with, the phase's knobs, and what else the training is given.
RECIPES: dict[str, tuple[dict, dict, Callable[[tuple], dict]]] = {
    "surin": ({"dropout": 0.5}, {"optimizer": "sgd", "weight_decay": 5e-4, "warmup_epochs": 1, "decay_epochs": [1], "mixup_alpha": 0.2,
                                 "label_smoothing": 0.1, "learning_rate": 0.01}, lambda patches: {}),
    "moreau": ({"levels": PLACE}, {"optimizer": "adamw", "progressive_sizes": [32, 48], "schedule": "cyclic", "cycles": 2}, lambda patches: {}),
    "sypetkowski": ({"cosine_head": "auxiliary", "standardise": "image"},
                    {"loss": "0.8 cross-entropy + 0.1 arcface", "mixup_alpha": 0.4, "cutmix_alpha": 1.0, "channel_scale": 0.1, "channel_shift": 0.1,
                     "optimizer": "radam", "schedule": "cosine", "pseudo_label_epochs": 2, "ema_decay": 0.9}, pseudo),
    "not better": ({"control_features": True, "standardise": "plate"}, {"mixup_alpha": 0.4, "ema_decay": 0.5, "keep": "last"}, controls),
    "head": ({}, {"trainable": "head", "ema_decay": 0.9, "loss": "focal", "learning_rate": 3e-2}, lambda patches: {}),
}


def train(patches: tuple, weights: Path, recipe: str, *, budget: Epochs | None = None, **changes: Any) -> list[dict]:
    built, knobs, given = RECIPES[recipe]
    sites = patches[1].assign(cell_type="HUVEC")
    return small((patches[0], sites), weights, model=network(**built), augment="d4", options={**given(patches), "budget": budget},
                 **{"epochs": 2} | knobs | changes)


def test_controls_that_leave_running_statistics_alone_are_computed_again_too(patches: tuple, tmp_path: Path) -> None:
    for name, again in {"plain": False, "again": True}.items():
        train(patches, tmp_path / f"{name}/model.safetensors", "not better", epochs=1, gradient_checkpointing=again)
    assert sha256(tmp_path / "plain/model.safetensors") == sha256(tmp_path / "again/model.safetensors")


@pytest.mark.parametrize("recipe", RECIPES)
def test_interrupted_after_an_epoch_it_ends_with_the_same_weights(patches: tuple, tmp_path: Path, recipe: str) -> None:
    whole = train(patches, tmp_path / "whole/model.safetensors", recipe)
    with pytest.raises(TimeSpent):
        train(patches, tmp_path / "parts/model.safetensors", recipe, budget=Epochs(1))
    parts = train(patches, tmp_path / "parts/model.safetensors", recipe)
    assert sha256(tmp_path / "whole/model.safetensors") == sha256(tmp_path / "parts/model.safetensors")
    untimed = [[{name: value for name, value in row.items() if "seconds" not in name} for row in rows] for rows in (whole, parts)]
    assert untimed[0] == untimed[1] and len({row["loss"] for row in whole}) == 2
    model, card = load_weights(tmp_path / "parts/model.safetensors")
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values()) and card.task == "rxrx1"


def test_sites_without_labels_train_under_those_of_the_average(patches: tuple, tmp_path: Path) -> None:
    given = pseudo(patches)
    rows = small(patches, tmp_path / "model.safetensors", epochs=3, ema_decay=0.9, pseudo_label_epochs=2, options=given)
    assert given["relabel"].asked == [1, 2] and [row.get("pseudo_labels") for row in rows] == [None, 8, 8]
    none = small(patches, tmp_path / "none.safetensors", epochs=2, ema_decay=0.9, options={})
    assert none[0]["loss"] == rows[0]["loss"] and none[1]["loss"] != rows[1]["loss"]


def test_labels_for_nobody_or_for_a_site_alone_on_its_plate_change_nothing(patches: tuple, tmp_path: Path) -> None:
    plain = small(patches, tmp_path / "plain.safetensors", epochs=2)
    for name, labels in {"none": [-1] * 16, "alone": [2] + [-1] * 15}.items():
        given = {**pseudo(patches), "relabel": lambda model, card, epoch, labels=labels: np.array(labels)}
        rows = small(patches, tmp_path / f"{name}.safetensors", epochs=2, pseudo_label_epochs=1, options=given)
        assert [row["loss"] for row in rows] == [row["loss"] for row in plain] and "pseudo_labels" not in rows[-1]


def test_what_is_kept_is_what_was_scored(patches: tuple, tmp_path: Path) -> None:
    """The average's accuracy is that of the weights on disk, and they are not those that the steps went through."""
    model = network()
    rows = small(patches, tmp_path / "model.safetensors", model=model, ema_decay=0.95, keep="last", epochs=2)
    other = small(patches, tmp_path / "plain.safetensors", keep="last", epochs=2)
    assert [row["loss"] for row in rows] == [row["loss"] for row in other], "the average follows and does not lead"
    assert sha256(tmp_path / "model.safetensors") != sha256(tmp_path / "plain.safetensors")
    root, sites = patches
    found = train_phase(load_weights(tmp_path / "model.safetensors")[0], SiteImages(root, sites.iloc[:16], class_numbers=CLASSES), phase=make_phase("still", 1, 8, 1e-30, optimizer="sgd"), weights=tmp_path / "again.safetensors", device="cpu", held_out=SiteImages(root, sites.iloc[16:], class_numbers=CLASSES))
    assert found[0]["held_out_accuracy"] == rows[-1]["held_out_accuracy"]


def test_sites_of_several_labels_are_measured_by_macro_f1(patches: tuple, tmp_path: Path) -> None:
    root, sites = patches
    several = sites.drop(columns=["sirna", "well_type", "experiment", "plate"])
    several["labels"] = [(0,) if sirna < 20 else (0, 1, sirna // 10) for sirna in sites["sirna"]]
    train_on, watch = (SiteImages(root, part, class_numbers=range(4), cache=True) for part in (several[::2], several[1::2]))
    phase = make_phase("fold", 3, 8, 3e-3, loss="0.5 focal + 0.5 lovasz", batch_scope="mixed", mixup_alpha=0.2, label_smoothing=0.05)
    rows = train_phase(network(), train_on, phase=phase, weights=tmp_path / "fold.safetensors", held_out=watch, task="protein-atlas", device="cpu")
    assert rows == history_of(tmp_path / "fold.safetensors") and "accuracy" not in rows[0]
    assert all(0 <= row["macro_f1"] <= 1 and 0 <= row["held_out_macro_f1"] <= 1 for row in rows)
    facts = read_json(tmp_path / "fold.json")["details"]
    assert (facts["task"], facts["class_numbers"], facts["well_types"]) == ("protein-atlas", [0, 1, 2, 3], [])


@pytest.mark.parametrize(("built", "knobs", "words"), [
    ({}, {"loss": "bce + arcface"}, "phase train: the loss 'bce . arcface' needs cosines"),
    ({}, {"pseudo_label_epochs": 1}, "phase train: nothing assigns pseudo-labels"),
    ({"control_features": True}, {}, "phase train: control features need the controls of each plate"),
])
def test_what_does_not_go_together_is_refused_before_it_starts(patches: tuple, tmp_path: Path, built: dict, knobs: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        small(patches, tmp_path / "model.safetensors", model=network(**built), **knobs)
    assert not list(tmp_path.iterdir())
