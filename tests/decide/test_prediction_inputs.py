"""What a network is told beside the images reaches it in prediction: covariates, moments, controls of the plate."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from building import make_network
from cellsignal.data.images.reader import read_sites
from cellsignal.decide.predict.inference import ControlSites, PlateInference, log_probabilities
from cellsignal.decide.predict.inference import InferenceOptions, predict_experiment, well_scores
from cellsignal.decide.predict.predict import ScoringOptions, score_experiments
from cellsignal.decide.predict.site_scores import score_sites
from cellsignal.decide.settings import PredictionSettings
from cellsignal.errors import InputError
from cellsignal.files import read_json
from cellsignal.learn.networks.batchnorm import batch_statistics
from cellsignal.learn.networks.covariates import encode_covariates
from cellsignal.learn.networks.classifier import ModelConfig, Classifier, save_weights
from cellsignal.learn.networks.standardise import channel_stats
from cellsignal.tasks import RXRX1

KINDS = ["treatment"] * 5 + ["positive_control"] * 3 + ["negative_control"]
RUNNING = PredictionSettings(statistics="running")
RICH = {"levels": {"cell_type": ["HUVEC", "RPE"], "plate": ["1", "2"]}, "heads": "both", "standardise": "plate", "control_features": True}
Plates = tuple[Path, pd.DataFrame]


@pytest.fixture
def plates(tmp_path: Path) -> Plates:
    """An experiment of two plates, five treatment and four control sites each."""
    rng, rows = np.random.default_rng(0), []
    for plate in (1, 2):
        for number, kind in enumerate(KINDS):
            stem = f"test/HUVEC-03/Plate{plate}/B{number:02d}_s1"
            rows.append({"id_code": f"HUVEC-03_{plate}_B{number:02d}", "experiment": "HUVEC-03", "cell_type": "HUVEC", "plate": plate,
                         "well": f"B{number:02d}", "site": 1, "stem": stem, "well_type": kind})
            (tmp_path / stem).parent.mkdir(parents=True, exist_ok=True)
            for channel in range(1, 7):
                cv2.imwrite(str(tmp_path / f"{stem}_w{channel}.png"), rng.integers(0, 60 * plate, (32, 32), np.uint8))
    return tmp_path, pd.DataFrame(rows)


def network(**options: object) -> tuple[Classifier, ModelConfig]:
    model = make_network("densenet-small", channels=6, classes=4, seed=1, **options)
    return model, ModelConfig.from_model(model, class_numbers=[0, 1, 2, 3], well_types=["treatment"])


@torch.inference_mode()
def by_hand(model: Classifier, root: Path, sites: pd.DataFrame) -> pd.DataFrame:
    """Scores of the treatments, each plate a batch, its controls another."""
    parts = []
    for _, plate in sites.groupby("plate"):
        asked, controls = plate[plate["well_type"] == "treatment"], plate[plate["well_type"] != "treatment"]
        def images(part: pd.DataFrame) -> torch.Tensor:
            return model.prepare(torch.from_numpy(read_sites(root, part)), channel_stats(root, part, "plate", 6))
        with batch_statistics(model):
            known, positive = model.embed(images(controls)), torch.tensor((controls["well_type"] == "positive_control").tolist())
            references = known[positive].mean(0), known[~positive].mean(0)
            logits = model.classify(model.embed(images(asked)), encode_covariates(asked, model.covariates), references)
        parts.append(well_scores(logits.numpy(), asked["id_code"], class_numbers=[0, 1, 2, 3]))
    return pd.concat(parts)


@pytest.mark.parametrize("scope", ["plate", "experiment"])
def test_a_network_is_told_all_that_it_was_built_for(plates: Plates, scope: str) -> None:
    root, sites = plates
    model, card = network(**RICH)
    answers = predict_experiment(model, card, root, sites, kinds=("running", "batch", "adapted"), options=InferenceOptions(scope=scope))
    assert all(list(scores.index) == list(sites["id_code"][sites["well_type"] == "treatment"]) for scores, _ in answers.values())
    if scope == "plate":
        scores, facts = answers["adapted"]
        np.testing.assert_allclose(scores, by_hand(model, root, sites), atol=1e-4)
        assert facts["sites"] == 10 and facts["images"] == 18, "controls go through the network too"


def test_controls_are_seen_beside_the_plate_and_not_in_its_statistics(plates: Plates) -> None:
    root, sites = plates
    (model, card), (plain, simple) = network(control_features=True), network()
    def scores(model: Classifier, card: ModelConfig) -> pd.DataFrame:
        return predict_experiment(model, card, root, sites, kinds=("adapted",))["adapted"][0]
    before, alone = scores(model, card), scores(plain, simple)
    for channel in range(1, 7):
        cv2.imwrite(str(root / f"{sites['stem'].iloc[6]}_w{channel}.png"), np.full((32, 32), 200, np.uint8))
    changed = (scores(model, card) - before).abs().max(axis=1)
    assert (changed.iloc[:5] > 1e-4).all() and (changed.iloc[5:] == 0).all(), "those of its own plate only"
    pd.testing.assert_frame_equal(scores(plain, simple), alone)


def test_a_plate_without_one_kind_of_controls_is_told_nothing_of_it(plates: Plates) -> None:
    root, sites = plates
    model, card = network(control_features=True)
    some = sites[sites["well_type"] != "negative_control"]
    scores, _ = predict_experiment(model, card, root, some, kinds=("adapted",))["adapted"]
    assert np.isfinite(scores.to_numpy()).all()
    with pytest.raises(InputError, match="HUVEC-03: 0 control sites, and this network has control features"):
        predict_experiment(model, card, root, sites[sites["well_type"] == "treatment"])


def test_references_follow_the_statistics_that_normalise(plates: Plates) -> None:
    root, sites = plates
    model, _ = network(control_features=True)
    mine = sites[sites["plate"] == 1]
    asked, known = (read_sites(root, mine[where]) for where in (mine["well_type"] == "treatment", mine["well_type"] != "treatment"))
    controls = ControlSites(known, None, torch.tensor([True] * 3 + [False]), torch.ones(4), torch.ones(5))
    inference = PlateInference(model, asked, controls=controls)
    answers = [log_probabilities(inference, kind)[0] for kind in ("running", "adapted", "running")]
    np.testing.assert_array_equal(answers[0], answers[2])
    with torch.inference_mode():
        features = model.eval().embed(model.prepare(torch.from_numpy(known)))
        logits = model(torch.from_numpy(asked), references=(features[:3].mean(0), features[3]))
    np.testing.assert_allclose(answers[0], logits.log_softmax(1), atol=1e-5)
    assert not np.allclose(answers[0], answers[1], atol=1e-3)


@pytest.mark.parametrize("standardise", ["plate", "none"])
def test_scores_are_made_again_when_the_statistics_of_plates_change(plates: Plates, tmp_path: Path, standardise: str) -> None:
    root, sites = plates
    model, card = network(standardise=standardise)
    save_weights(tmp_path / "weights/HUVEC/model.safetensors", model.state_dict(), card)
    stated = pd.DataFrame([(f"HUVEC-03_{plate}_B02", "HUVEC-03", plate, "B02", site, channel, 10.0 + 10 * site, 9.0)
                           for plate in (1, 2) for site in (1, 2) for channel in range(1, 7)],
                          columns=["id_code", "experiment", "plate", "well", "site", "channel", "mean", "std"])
    scores = []
    for add in (0.0, 15.0):
        stated.assign(mean=stated["mean"] + add).to_csv(root / "pixel_stats.csv", index=False)
        scores.append(score_experiments(root, sites, ScoringOptions(tmp_path / "weights", settings=RUNNING, all_statistics=False), out=tmp_path / "out")["running"])
    assert scores[0].equals(scores[1]) == (standardise == "none")


def test_scores_are_made_again_when_a_control_is_gone(plates: Plates, tmp_path: Path) -> None:
    root, sites = plates
    model, card = network(control_features=True)
    save_weights(tmp_path / "weights/HUVEC/model.safetensors", model.state_dict(), card)
    def identity(part: pd.DataFrame) -> str:
        score_experiments(root, part, ScoringOptions(tmp_path / "weights", all_statistics=False), out=tmp_path / "out")
        return read_json(tmp_path / "out/adapted/metadata.json")["identity"]["HUVEC-03"]
    assert identity(sites) == identity(sites) != identity(sites.drop(index=6))


def test_scores_are_made_again_when_any_image_is_another(plates: Plates, tmp_path: Path) -> None:
    root, sites = plates
    model, card = network()
    save_weights(tmp_path / "weights/HUVEC/model.safetensors", model.state_dict(), card)
    scoring = ScoringOptions(tmp_path / "weights", settings=RUNNING, all_statistics=False)
    before = score_experiments(root, sites, scoring, out=tmp_path / "out")["running"]
    image = root / "test/HUVEC-03/Plate2/B03_s1_w4.png"
    cv2.imwrite(str(image), cv2.imread(str(image), cv2.IMREAD_UNCHANGED)[::-1] // 3)
    after = score_experiments(root, sites, scoring, out=tmp_path / "out")["running"]
    changed = (before != after).any(axis=1)
    assert list(changed[changed].index) == ["HUVEC-03_2_B03"]


def test_scores_of_sites_are_made_again_when_an_image_or_the_channels_are_others(plates: Plates, tmp_path: Path) -> None:
    root, sites = plates
    model, card = network()
    save_weights(tmp_path / "model.safetensors", model.state_dict(), card)
    def scored(channels: Sequence[str] = RXRX1.suffixes) -> pd.DataFrame:
        return score_sites(root, sites, RUNNING, weights=tmp_path / "model.safetensors", channels=channels, out=tmp_path / "out")["running"]
    before = scored()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")}
    assert scored().equals(before) and times == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")} != {}
    image = root / "test/HUVEC-03/Plate2/B03_s1_w4.png"
    cv2.imwrite(str(image), cv2.imread(str(image), cv2.IMREAD_UNCHANGED)[::-1] // 3)
    after = scored()
    assert list(after.index[(before != after).any(axis=1)]) == ["HUVEC-03_2_B03"]
    assert (scored(RXRX1.suffixes[::-1]) != after).any(axis=1).all()
