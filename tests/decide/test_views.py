"""Views and embeddings: each plate seen from all sides, features beside the scores, and what a training kernel makes of them."""

import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from building import make_network
from cellsignal.data.images.reader import read_sites, whole_sites
from cellsignal.data.tables.wells import Tables, read_tables
from cellsignal.decide.predict.inference import PlateInference, apply_view, InferenceOptions, infer_statistics, log_probabilities, predict_experiment, score_images
from cellsignal.decide.settings import PredictionSettings
from cellsignal.decide.predict.predict import ScoringOptions, embed_experiments, scope_note, score_experiments
from cellsignal.errors import InputError
from cellsignal.files import read_json
from cellsignal.learn.batches.dataset import SiteImages
from cellsignal.learn.networks.classifier import Classifier, ModelConfig, save_weights

NUMBERS = [*range(8), 1108, 1138]  # a network that knows controls, too
CARD = ModelConfig("densenet-small", 6, NUMBERS, ["treatment"])


@pytest.fixture(scope="module")
def tables(tiny_plates: Path, tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """Tiny plates, and one untrained network for both cell types."""
    root = tmp_path_factory.mktemp("plates")
    shutil.copytree(tiny_plates, root, dirs_exist_ok=True)
    save_weights(root / "weights/all/model.safetensors", network().state_dict(), CARD)
    return read_tables(root)


@pytest.fixture(scope="module")
def sites(tables: Tables) -> pd.DataFrame:
    return whole_sites(tables.root, tables.sites)[0]


def network() -> Classifier:
    return make_network("densenet-small", channels=6, classes=len(NUMBERS), seed=1)


def plate(tables: Tables, sites: pd.DataFrame) -> np.ndarray:
    mine = sites[(sites["experiment"] == "RPE-01") & (sites["plate"] == 1)]
    return read_sites(tables.root, mine.iloc[:12].reset_index(drop=True))


def seen(images: np.ndarray, kind: str, views: int, basis: str = "adapted", **knobs: Any) -> tuple[np.ndarray, int]:
    """The answer of one kind, and how many images were sent for it."""
    inference = PlateInference(network(), images)
    [(_, answer, _)] = infer_statistics(inference, [kind], InferenceOptions(basis=basis, views=views, **knobs), classes=len(NUMBERS))
    return answer, inference.images_sent


@pytest.mark.parametrize("views", [2, 4, 8])
def test_the_views_are_a_group(tables: Tables, sites: pd.DataFrame, views: int) -> None:
    """However the plate lay under the microscope, the mean over the views is the same; with one view it is not."""
    images = plate(tables, sites)
    answer, sent = seen(images, "views", views)
    assert sent == views * len(images)
    for view in range(views):
        other = apply_view(torch.from_numpy(images), view).contiguous().numpy()
        np.testing.assert_allclose(seen(other, "views", views)[0], answer, atol=1e-4)
    single = [seen(apply_view(torch.from_numpy(images), view).contiguous().numpy(), "adapted", 1)[0] for view in (0, views - 1)]
    assert not np.allclose(*single, atol=1e-3)


def test_all_kinds_together_cost_no_pass_twice_and_say_the_same(tables: Tables, sites: pd.DataFrame) -> None:
    images = plate(tables, sites)
    inference = PlateInference(network(), images)
    found = {kind: answer for kind, answer, _ in infer_statistics(inference, ["running", "adapted", "views", "embeddings"], InferenceOptions(views=2), classes=len(NUMBERS))}
    assert inference.images_sent == (1 + 2) * len(images) and list(found) == ["running", "adapted", "embeddings", "views"]
    np.testing.assert_array_equal(found["adapted"], log_probabilities(PlateInference(network(), images), "adapted")[0])
    np.testing.assert_array_equal(found["views"], seen(images, "views", 2)[0])
    model = network()
    logits = model.head(torch.from_numpy(found["embeddings"]))
    np.testing.assert_allclose(logits.log_softmax(1).detach(), found["adapted"], atol=1e-5)


def test_embeddings_of_a_plate_in_parts_are_those_of_the_last_refinement(
    tables: Tables, sites: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = plate(tables, sites)
    exact = seen(images, "embeddings", 1)[0]
    monkeypatch.setattr("cellsignal.decide.predict.inference.max_batch_pixels", lambda device: 32 * 32 * 5)
    parts, sent = seen(images, "embeddings", 1, refinements=100)
    assert sent > 12 * len(images)
    np.testing.assert_allclose(parts, exact, atol=1e-3)


def score(tables: Tables, sites: pd.DataFrame, out: Path, views: int = 1, **knobs: Any) -> dict[str, pd.DataFrame]:
    asked = sites[sites["dataset"] == "test"]
    return score_experiments(tables.root, asked, ScoringOptions(tables.root / "weights", settings=PredictionSettings(tta_views=views), **knobs), out=out)


def test_a_joint_network_scores_all_cell_types_and_embeds_what_it_was_taught(tables: Tables, sites: pd.DataFrame, tmp_path: Path) -> None:
    found = score(tables, sites, tmp_path, views=2, embedded_sites=sites)
    assert list(found) == ["running", "batch", "adapted", "views", "embeddings"]
    for kind in ("running", "batch", "adapted", "views"):
        assert sorted(found[kind].index) == sorted(tables.sample) and found[kind].columns.tolist() == list(range(8))
        assert np.allclose(np.exp(found[kind]).sum(axis=1), 1, atol=1e-5), "controls are no answers"
    treatment = tables.wells[tables.wells["well_type"] == "treatment"]
    assert sorted(found["embeddings"].index) == sorted(treatment["id_code"]) and found["embeddings"].shape[1] == network().features
    facts = read_json(tmp_path / "views/metadata.json")["details"]
    assert (facts["basis"], facts["views"], sorted(facts["experiments"])) == ("adapted", 2, ["HUVEC-03", "RPE-03"])
    assert facts["images"] == read_json(tmp_path / "adapted/metadata.json")["details"]["images"]
    assert read_json(tmp_path / "embeddings/metadata.json")["details"]["values"].startswith("features")


def test_embeddings_under_each_kind_of_statistics_lie_apart_from_the_scores(tables: Tables, sites: pd.DataFrame, tmp_path: Path) -> None:
    asked = sites[sites["experiment"] == "RPE-03"]
    found = embed_experiments(tables.root, asked, ScoringOptions(tables.root / "weights"), out=tmp_path)
    assert list(found) == ["running", "adapted"]
    model = network()
    for kind, table in found.items():
        expected = score_experiments(tables.root, asked, ScoringOptions(tables.root / "weights", settings=PredictionSettings(statistics=kind), all_statistics=False), out=tmp_path / "scores")[kind]
        logits = model.head(torch.from_numpy(table.to_numpy(copy=True)))[:, :8]
        assert table.index.equals(expected.index) and (tmp_path / kind / "embeddings/RPE-03.parquet").is_file()
        assert np.abs(logits.log_softmax(1).detach().numpy() - expected.to_numpy()).mean() < 0.05, "of a well of two sites about the same"
    assert not np.allclose(found["running"], found["adapted"], atol=1e-2)


def test_networks_of_another_run_in_the_folder_do_not_answer_for_the_joint_one(tables: Tables, sites: pd.DataFrame, tmp_path: Path) -> None:
    for name, scope in {"all": "plate", "HUVEC": "mixed"}.items():
        save_weights(tmp_path / f"{name}/model.safetensors", network().state_dict(), replace(CARD, scope=scope))
    asked = sites[(sites["experiment"] == "HUVEC-03") & (sites["plate"] == 1)]
    for joint, scope in ((True, "plate"), (False, "mixed")):
        assert bool(scope_note(tmp_path, ["HUVEC"], "model", "experiment", joint=joint)) == joint
        with warnings.catch_warnings(action="ignore"):
            score_experiments(tables.root, asked, ScoringOptions(tmp_path, joint, PredictionSettings(statistics="running"), all_statistics=False), out=tmp_path / "out")
        assert read_json(tmp_path / "out/running/metadata.json")["details"]["training_scope"] == {"HUVEC": scope}


def test_scores_embeddings_and_views_are_kept_and_give_way_each_by_its_own_knobs(
    tables: Tables, sites: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[list[str]] = []
    really = predict_experiment

    def counted(*arguments: Any, **options: Any) -> dict:
        told.append(options["kinds"])
        return really(*arguments, **options)

    monkeypatch.setattr("cellsignal.decide.predict.predict.predict_experiment", counted)
    first = score(tables, sites, tmp_path, views=2, embedded_sites=sites)
    assert told[0] == ["running", "batch", "adapted", "views", "embeddings"] and told[-1] == ["embeddings"]
    told.clear()
    again = score(tables, sites, tmp_path, views=2, embedded_sites=sites)
    assert told == [] and all(again[kind].equals(first[kind]) for kind in first)
    more = score(tables, sites, tmp_path, views=4, embedded_sites=sites)
    assert told == [["views"]] * 2 and not np.allclose(more["views"], first["views"], atol=1e-4)
    (tmp_path / "embeddings/RPE-01.parquet").write_bytes(b"PAR1")
    told.clear()
    assert score(tables, sites, tmp_path, views=4, embedded_sites=sites)["embeddings"].equals(first["embeddings"]) and told == [["embeddings"]]
    score(tables, sites, tmp_path)
    assert sorted(path.parent.name for path in tmp_path.rglob("metadata.json")) == ["adapted", "batch", "running"]


@pytest.mark.parametrize("views", [0, 3, 16])
def test_other_numbers_of_views_are_refused(tables: Tables, sites: pd.DataFrame, tmp_path: Path, views: int) -> None:
    with pytest.raises(InputError, match=f"tta_views is {views}"):
        score(tables, sites, tmp_path, views=views)


def test_images_in_memory_get_the_same_scores_as_on_disk(tables: Tables, sites: pd.DataFrame) -> None:
    test = sites[sites["dataset"] == "test"]
    card = ModelConfig("densenet-small", 6, NUMBERS, ["negative_control", "positive_control", "treatment"])
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kinds = [test[test["well_type"] == "treatment"], test[test["well_type"] != "treatment"]]
    scores = {cache: score_images(model, card, *(SiteImages(tables.root, some, class_numbers=NUMBERS, cache=cache) for some in kinds))
              for cache in (True, False)}
    on_disk = [predict_experiment(model, card, tables.root, mine.reset_index(drop=True), kinds=("adapted",))["adapted"][0]
               for _, mine in test.groupby("experiment")]
    for some in scores.values():
        np.testing.assert_allclose(some, pd.concat(on_disk).loc[some.index], atol=1e-4)
    assert sorted(scores[True].index) == sorted(tables.sample)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
