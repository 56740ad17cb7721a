"""Pseudo-labels: the surest answers of the exact assignment, more of them each epoch, as a function of weights and epoch."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from small_experiment import GROUPS, ROTATIONS, experiment

from building import make_network
from cellsignal.decide.assign.assign import decide
from cellsignal.decide.pseudo_labels import PseudoLabels
from cellsignal.decide.settings import AssignmentSettings
from cellsignal.learn.settings import TrainingSettings
from cellsignal.learn.batches.dataset import SiteImages
from cellsignal.learn.networks.classifier import ModelConfig

NUMBERS = [1138, *range(12)]  # class index is not class number
CARD = ModelConfig("densenet-small", 6, NUMBERS, ["treatment"])
DESIGN = {"groups": GROUPS, "rotations": ROTATIONS, "settings": AssignmentSettings(min_group_posterior=0.5)}


def settings(*, share: float = 0.4, step: float = 0.015, since: int = 0, scope: str = "plate") -> TrainingSettings:
    """Pseudo-labels from epoch `since` on."""
    shares = {"pseudo_label_share": share, "pseudo_label_increment": step}
    return TrainingSettings(epochs=since + 30, pseudo_label_epochs=30, batch_scope=scope, **shares)


def teacher(tmp_path: Path, *, seed: int = 0, signal: float = 3.0, labelled: Any = None, **knobs: Any) -> tuple[PseudoLabels, pd.DataFrame, pd.Series]:
    """Pseudo-labels from given scores, two sites a well; the scores; and the truth."""
    scores, wells, truth = experiment(seed=seed, signal=signal)
    sites = wells.loc[wells.index.repeat(2)].assign(well_type="treatment", sirna=pd.NA, site=[1, 2] * len(wells))
    sites["stem"] = sites["id_code"] + "_s" + sites["site"].astype(str)
    data = SiteImages(tmp_path, sites, class_numbers=NUMBERS)

    def predict(model: Any, card: ModelConfig, asked: SiteImages, controls: Any, **_: Any) -> pd.DataFrame:
        return scores

    return PseudoLabels(data, wells.assign(well_type="treatment"), DESIGN, training=settings(**knobs), predict=predict), scores, truth


def test_the_surest_share_is_used_and_grows_from_epoch_to_epoch(tmp_path: Path) -> None:
    labels, scores, truth = teacher(tmp_path, signal=2.0, share=0.25, step=0.25, since=5)
    decision = decide(scores, labels.wells, **DESIGN)
    order = decision.confidence.sort_values(ascending=False, kind="stable").index
    for epoch, count in ((5, 3), (6, 6), (7, 9), (8, 12), (20, 12)):
        index = labels(None, CARD, epoch)
        used = labels.data.sites["id_code"][index >= 0].unique()
        assert index.dtype == np.int64 and sorted(used) == sorted(order[:count])
        numbers = np.array(NUMBERS)[index[index >= 0]]
        assert (numbers == decision.predictions.loc[labels.data.sites["id_code"][index >= 0]].to_numpy()).all()
        assert (index[::2] == index[1::2]).all(), "both sites of a well"


def test_the_surest_are_right_more_often_than_the_rest(tmp_path: Path) -> None:
    sure, rest = [], []
    for seed in range(30):
        labels, _, truth = teacher(tmp_path, seed=seed, signal=1.0, share=0.34)
        answers, confidence = labels.predict_wells(None, CARD)
        right = answers.eq(truth.reindex(answers.index))
        used = labels.data.sites["id_code"][labels(None, CARD, 0) >= 0].unique()
        sure.append(right[used].mean())
        rest.append(right.drop(used).mean())
    assert np.mean(sure) > np.mean(rest) + 0.1


def test_no_sirna_is_given_twice_in_an_experiment(tmp_path: Path) -> None:
    labels, _, _ = teacher(tmp_path, signal=0.5, share=1.0)
    index = labels(None, CARD, 0)
    assert (np.bincount(index[index >= 0]) <= 2).all() and (index >= 0).all()


@pytest.mark.parametrize(("scope", "whole"), [("plate", True), ("plate", False), ("mixed", True), ("mixed", False)])
def test_held_out_wells_measure_the_temperature(tmp_path: Path, scope: str, whole: bool) -> None:
    """Scores that are twice too sure on held-out wells are doubted on the test wells; not where they are a few of each plate."""
    labels, scores, _ = teacher(tmp_path)
    rng = np.random.default_rng(0)
    ids = [f"HUVEC-77_{1 + k % 4}_W{k:03d}" for k in range(400)]
    truth = rng.integers(0, 12, 400)
    held = pd.DataFrame({"id_code": ids, "experiment": "HUVEC-77", "cell_type": "HUVEC", "plate": [1 + k % 4 for k in range(400)],
                         "well_type": "treatment", "sirna": truth, "stem": ids})
    logits = rng.normal(size=(400, 12))
    logits[np.arange(400), truth] += 1.0
    table = pd.DataFrame(4 * logits, index=ids, columns=range(12))
    watch = SiteImages(tmp_path, held, class_numbers=NUMBERS)

    def predict(model: Any, card: ModelConfig, asked: SiteImages, controls: Any, **_: Any) -> pd.DataFrame:
        return table if asked is watch else scores

    others = [held.assign(id_code=held["id_code"] + f"_{copy}") for copy in range(0 if whole else 18)]
    taught = pd.concat([held, *others])
    warmed = PseudoLabels(labels.data, pd.concat([labels.wells, taught]), DESIGN, predict=predict, held_out=watch, training=settings(scope=scope))
    alone, found = labels.predict_wells(None, CARD)[1], warmed.predict_wells(None, CARD)[1]
    assert found.mean() < alone.mean() - 0.02 if whole else found.equals(alone)


def test_a_network_labels_pictures_and_leaves_no_trace(tmp_path: Path) -> None:
    """The same labels again, random numbers and running statistics untouched."""
    labels, _, _ = teacher(tmp_path)
    rng = np.random.default_rng(0)
    labels.data.cached = list(rng.integers(0, 255, (len(labels.data), 6, 32, 32), dtype=np.uint8))
    real = PseudoLabels(labels.data, labels.wells, {**DESIGN, "settings": AssignmentSettings(min_group_posterior=0.0)})
    model = make_network("densenet-small", channels=6, classes=len(NUMBERS), seed=3).eval()
    before, state = {name: tensor.clone() for name, tensor in model.state_dict().items()}, torch.get_rng_state()
    first, second = real(model, CARD, 0), real(model, CARD, 0)
    np.testing.assert_array_equal(first, second)
    assert (first >= 0).sum() == 2 * round(0.4 * 12) and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items()) and not model.training
