"""A training that goes on with the labels it gave: controls and temperature among them, killed and resumed bit for bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from building import make_network, make_phase, train_phase
from cellsignal.decide.pseudo_labels import PseudoLabels
from cellsignal.decide.settings import AssignmentSettings
from cellsignal.learn.settings import TrainingSettings
from cellsignal.files import sha256
from cellsignal.learn.batches.dataset import SiteImages
from cellsignal.budget import Budget, TimeSpent
from trainings import Epochs

NUMBERS = [*range(8), 1138]
GROUPS = [[0, 1, 2, 3], [4, 5, 6, 7]]
DESIGN = {"groups": GROUPS, "rotations": {"HUVEC-01": [0, 1], "HUVEC-02": [1, 0]}, "settings": AssignmentSettings(min_group_posterior=0.0)}


def plates() -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Three experiments of 2 plates with 4 treatments and 2 controls each, 2 sites a well; and their pictures by stem."""
    rng, rows, pictures = np.random.default_rng(0), [], {}
    for number, order in ((1, (0, 1)), (2, (1, 0)), (3, (1, 0))):
        for plate, group in enumerate(order, 1):
            gain = rng.uniform(0.3, 1.0, (6, 1, 1))
            for place, sirna in enumerate([*rng.permutation(GROUPS[group]), 1138, 1138]):
                for site in (1, 2):
                    place_name = f"HUVEC-0{number}_{plate}_B0{place + 2}"
                    image = rng.uniform(0, 80, (6, 32, 32))
                    image[sirna % 4, :: 2 + sirna // 4 % 2] += 150.0 * (sirna < 8)  # a striped channel, narrow or wide
                    pictures[f"{place_name}_s{site}"] = (image * gain).astype(np.uint8)
                    rows.append((place_name, f"HUVEC-0{number}", plate, f"B0{place + 2}", site, f"{place_name}_s{site}", sirna))
    table = pd.DataFrame(rows, columns=["id_code", "experiment", "plate", "well", "site", "stem", "sirna"])
    table["well_type"] = np.where(table["sirna"] == 1138, "negative_control", "treatment")
    return table.assign(cell_type="HUVEC", sirna=table["sirna"].astype("Int64")), pictures


SITES, PICTURES = plates()


def images(sites: pd.DataFrame) -> SiteImages:
    """Sites with their pictures in memory."""
    data = SiteImages(Path(), sites, class_numbers=NUMBERS)
    data.cached = [PICTURES[stem] for stem in data.stems]
    return data


def given(**knobs: Any) -> dict[str, Any]:
    """What `fit` is given of an experiment whose siRNAs nobody knows."""
    test = SITES[SITES["experiment"] == "HUVEC-03"].assign(sirna=pd.NA)
    treatment, control = (images(test[test["well_type"] == kind]) for kind in ("treatment", "negative_control"))
    wells = SITES.assign(sirna=SITES["sirna"].mask(SITES["experiment"] == "HUVEC-03")).drop_duplicates("id_code")
    return {"unlabelled": treatment, "relabel": PseudoLabels(treatment, wells, DESIGN, TrainingSettings(**{"epochs": 5, "pseudo_label_epochs": 3, "pseudo_label_share": 0.5, "pseudo_label_increment": 0.25} | knobs), controls=control)}


def train(weights: Path, *, pseudo_label_epochs: int = 3, epochs: int = 5, budget: Budget | None = None, **more: Any) -> list[dict]:
    phase = make_phase("whole", epochs, 12, 3e-3, pseudo_label_epochs=pseudo_label_epochs, ema_decay=0.5, keep="last", loss="cross-entropy")
    model = make_network("densenet-small", channels=6, classes=len(NUMBERS), seed=0)
    return train_phase(model, images(SITES[SITES["experiment"] != "HUVEC-03"]), phase=phase, weights=weights, device="cpu", budget=budget, **more)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_interrupted_twice_it_ends_with_the_same_weights(tmp_path: Path) -> None:
    rows = train(tmp_path / "whole.safetensors", **given())
    assert [row.get("pseudo_labels") for row in rows] == [None, None, 8, 12, 16], "two sites a well, of half the wells and more"
    for epochs in (3, 1):
        with pytest.raises(TimeSpent):
            train(tmp_path / "parts.safetensors", budget=Epochs(epochs), **given())
    parts = train(tmp_path / "parts.safetensors", budget=Epochs(9), **given())
    assert sha256(tmp_path / "whole.safetensors") == sha256(tmp_path / "parts.safetensors")
    assert [row["loss"] for row in parts] == [row["loss"] for row in rows]
    train(tmp_path / "none.safetensors", pseudo_label_epochs=0)
    assert sha256(tmp_path / "whole.safetensors") != sha256(tmp_path / "none.safetensors")


def test_what_it_learns_from_is_mostly_right_and_never_a_control(tmp_path: Path) -> None:
    asked: list[np.ndarray] = []
    teach = given()
    labels = teach["relabel"]
    train(tmp_path / "model.safetensors", **{**teach, "relabel": lambda *state: asked.append(labels(*state)) or asked[-1]})
    truth = SITES.set_index("stem")["sirna"].loc[teach["unlabelled"].stems].to_numpy(int)
    last = asked[-1]
    assert len(asked) == 3 and (last >= 0).all() and (last < 8).all()
    assert (np.array(NUMBERS)[last] == truth).mean() > 0.6


def test_other_shares_or_another_design_are_another_training(tmp_path: Path) -> None:
    """A finished phase is not repeated while its labels would be the same, and is when they would not."""
    facts = given()["relabel"].facts
    assert facts == given()["relabel"].facts
    assert facts != given(pseudo_label_share=0.25)["relabel"].facts
    assert facts != replace(given()["relabel"], design={**DESIGN, "groups": []}).facts
    first = train(tmp_path / "model.safetensors", pseudo_label_epochs=1, epochs=1, **given())
    assert train(tmp_path / "model.safetensors", pseudo_label_epochs=1, epochs=1, **given()) == first
    assert train(tmp_path / "model.safetensors", pseudo_label_epochs=1, epochs=1, **given(pseudo_label_share=1.0, epochs=1, pseudo_label_epochs=1))[0]["pseudo_labels"] == 16
