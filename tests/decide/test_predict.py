"""Scores per well: sites averaged, batches irrelevant under adapted statistics, files that say how."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from building import make_network
from cellsignal.decide.settings import AssignmentSettings, PredictionSettings
from cellsignal.data.images.reader import read_sites, whole_sites
from cellsignal.data.tables.wells import read_tables
from cellsignal.decide.commands import assign_files, score_files
from cellsignal.decide.predict.inference import InferenceOptions, PlateInference, log_probabilities, shuffled_batches, well_scores
from cellsignal.decide.predict.predict import ScoringOptions, remove_other_networks, scope_note, score_experiments
from cellsignal.decide.scores.files import read_all_scores
from cellsignal.errors import InputError
from cellsignal.files import read_json, write_text
from cellsignal.learn.networks.classifier import ModelConfig, save_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

CLASSES = list(range(8))


@pytest.fixture(scope="module")
def run(tiny_plates: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with tiny plates, untrained weights and their scores."""
    run = tmp_path_factory.mktemp("run")
    shutil.copytree(tiny_plates, run / "data", dirs_exist_ok=True)
    for cell_type in ("HUVEC", "RPE"):
        model = make_network("densenet-small", channels=6, classes=8, seed=1)
        save_weights(run / "weights" / cell_type / "model.safetensors", model.state_dict(),
                     ModelConfig("densenet-small", 6, CLASSES, ["treatment"]))
    predict(run, run / "scores", min_batch_size=2, max_batch_size=40, num_batch_sizes=3)
    return run


def predict(run: Path, out: Path, **knobs: Any) -> dict[str, pd.DataFrame]:
    """Score the test wells of a run."""
    tables = read_tables(run / "data")
    asked, _ = whole_sites(tables.root, tables.sites[tables.sites["dataset"] == "test"])
    settings = PredictionSettings(**{key: knobs.pop(key) for key in list(knobs) if key in PredictionSettings.model_fields})
    scoring = ScoringOptions(settings=settings, **{"weights": run / "weights", **{key: knobs.pop(key) for key in list(knobs) if key in ScoringOptions.__dataclass_fields__}})
    return score_experiments(tables.root, asked, scoring, out=out, **knobs)


def test_the_sites_of_a_well_are_averaged() -> None:
    logits = np.array([[2.0, 0, 1], [0, 2, 1], [1, 1, 5]])
    scores = well_scores(logits, pd.Series(["a", "a", "b"]), class_numbers=[3, 5, 7])
    mean = log_softmax(logits[:2], axis=1).mean(0)
    np.testing.assert_allclose(scores.loc["a"], log_softmax(mean), rtol=1e-6)
    assert np.allclose(np.exp(scores).sum(axis=1), 1) and scores.columns.tolist() == [3, 5, 7]


class Plate:
    """Images and network, and what it says of them."""

    def __init__(self, images: np.ndarray, model: torch.nn.Module) -> None:
        self.images, self.model = images, model

    def ask(self, statistics: str, rows: Sequence[int] | slice = slice(None), **knobs: Any) -> tuple[np.ndarray, str, int]:
        """Log-probabilities of some images, how they came about, and how many images were sent."""
        inference = PlateInference(self.model, self.images[rows])
        answer, how = log_probabilities(inference, statistics, **knobs)
        return answer, how, inference.images_sent


@pytest.fixture(scope="module")
def plate(run: Path) -> Plate:
    """One plate of RPE-01, controls left out, and an untrained network."""
    sites = read_tables(run / "data").sites
    sites = sites[(sites["experiment"] == "RPE-01") & (sites["plate"] == 1)].iloc[:30].reset_index(drop=True)
    images = read_sites(run / "data", sites)
    return Plate(images, make_network("densenet-small", channels=6, classes=8, seed=1))


@settings(deadline=None, max_examples=6)
@given(order=st.permutations(range(30)))
def test_the_order_of_images_changes_nothing_but_batch_scores(plate: Plate, order: list[int]) -> None:
    for statistics in ("running", "adapted"):
        np.testing.assert_allclose(plate.ask(statistics, order)[0], plate.ask(statistics)[0][order], atol=1e-3)


def test_batch_sizes_change_batch_scores_only(plate: Plate) -> None:
    for statistics in ("running", "batch", "adapted"):
        few, many = (plate.ask(statistics, batch_sizes=sizes)[0] for sizes in ((7,), (12, 20)))
        assert np.allclose(few, many, atol=1e-5) == (statistics != "batch")


@settings(deadline=None, max_examples=200)
@given(count=st.integers(2, 400), size=st.integers(2, 130), key=st.integers(0, 96))
def test_there_is_never_a_batch_of_one_image(count: int, size: int, key: int) -> None:
    batches = shuffled_batches(count, size, key=key)
    assert sorted(np.concatenate(batches)) == list(range(count))
    lengths = {len(batch) for batch in batches}
    assert min(lengths) >= 2 and max(lengths) <= max(size, 3) and max(lengths) - min(lengths) <= 1


def test_batch_scores_average_log_probabilities_over_sizes(plate: Plate) -> None:
    alone = [plate.ask("batch", batch_sizes=(size,))[0] for size in (9, 30, 128)]
    np.testing.assert_array_equal(alone[1], alone[2])  # both are the whole plate
    together, how, sent = plate.ask("batch", batch_sizes=(9, 30, 128))
    np.testing.assert_allclose(together, np.mean(alone, axis=0), atol=1e-5)
    assert how == "batch" and sent == 2 * 30
    assert not np.allclose(*(plate.ask("batch", batch_sizes=sizes)[0] for sizes in ((9,), (9, 9))), atol=1e-3), "not shuffled anew"


def test_adapted_scores_are_one_pass_with_the_statistics_of_the_whole_plate(plate: Plate) -> None:
    answer, how, sent = plate.ask("adapted")
    assert (how, sent) == ("exact", 30)
    np.testing.assert_allclose(answer, plate.ask("batch", batch_sizes=(30,))[0], atol=1e-4)


def test_a_plate_too_large_for_one_batch_comes_to_the_same_scores(plate: Plate, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = plate.ask("adapted")[0]
    monkeypatch.setattr("cellsignal.decide.predict.inference.max_batch_pixels", lambda device: 32 * 32 * 11)
    answer, how, sent = plate.ask("adapted")
    assert (how, sent) == ("accumulated, refined 5 times", 30 * 6)
    answer, how, _ = plate.ask("adapted", refinements=100)
    assert how == "layer by layer"
    np.testing.assert_allclose(answer, exact, atol=1e-3)


def test_without_memory_for_a_whole_plate_batches_are_halved(plate: Plate, monkeypatch: pytest.MonkeyPatch) -> None:
    exact, forward, tried = plate.ask("adapted")[0], plate.model.forward, []

    def small(images: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        tried.append(len(images))
        if len(images) > 8:
            raise torch.OutOfMemoryError
        return forward(images, *more)

    monkeypatch.setattr(plate.model, "forward", small)
    answer, how, sent = plate.ask("adapted", refinements=15)
    assert tried[:3] == [30, 15, 6] and (how, sent) == ("accumulated, refined 15 times", 16 * 30)
    np.testing.assert_allclose(answer, exact, atol=1e-3)
    monkeypatch.setattr(plate.model, "forward", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError))
    with pytest.raises(torch.OutOfMemoryError):
        plate.ask("adapted")


def test_one_site_alone_gets_the_running_statistics_and_two_their_own(plate: Plate) -> None:
    for statistics in ("batch", "adapted"):
        answer, how, sent = plate.ask(statistics, [3])
        assert how.startswith("running") and sent == 1
        np.testing.assert_array_equal(answer, plate.ask("running", [3])[0])
        assert not np.allclose(plate.ask(statistics, [3, 5])[0], plate.ask("running", [3, 5])[0], atol=1e-3)


def test_what_needs_no_statistics_costs_one_pass() -> None:
    """Else a session with little time would stop before 97 passes of which it makes one."""
    options = InferenceOptions(batch_sizes=tuple(range(32, 129)), views=8)
    assert options.num_passes(["running", "batch", "adapted", "views"]) == 1 + 97 + 6 + 7 * 6
    assert options.num_passes(["running", "batch", "adapted", "views"], adapts=False) == 3 + 7


def test_scores_cover_every_test_well_once_and_say_how_they_were_made(run: Path) -> None:
    for statistics in ("running", "batch", "adapted"):
        scores = read_all_scores([run / "scores" / statistics])
        assert sorted(scores.index) == sorted(read_tables(run / "data").sample)
        assert scores.dtypes.eq(np.float32).all() and np.allclose(np.exp(scores).sum(axis=1), 1, atol=1e-5)
    facts = read_json(run / "scores/adapted/metadata.json")["details"]
    mine = facts["experiments"]["HUVEC-03"]
    assert mine["gathered"] == {"exact": 4} and mine["images"] == mine["sites"] and mine["seconds"] > 0
    assert facts["images"] == sum(one["images"] for one in facts["experiments"].values())
    assert (facts["statistics"], facts["scope"], facts["note"]) == ("adapted", "plate", "")
    assert facts["training_scope"] == {"HUVEC": "plate", "RPE": "plate"}
    assert read_json(run / "scores/batch/metadata.json")["details"]["batch_sizes"] == [2, 21, 40]


def test_statistics_over_another_scope_than_in_training_are_warned_of_once(run: Path, tmp_path: Path) -> None:
    """The plates of an experiment share statistics then, and the metadata repeat the warning."""
    with pytest.warns(UserWarning, match="by experiment, but HUVEC, RPE learned from plate batches.*statistics_scope: plate") as told:
        scores = predict(run, tmp_path, all_statistics=False, statistics_scope="experiment")
    assert len(told) == 1 and list(scores) == ["adapted"] and [path.name for path in tmp_path.iterdir()] == ["adapted"]
    facts = read_json(tmp_path / "adapted/metadata.json")["details"]
    assert facts["note"] == str(told[0].message) == scope_note(run / "weights", ["HUVEC", "RPE"], "model", "experiment")
    assert facts["experiments"]["RPE-03"]["gathered"] == {"exact": 1}
    before = read_all_scores([run / "scores/adapted"]).loc[scores["adapted"].index]
    assert not np.allclose(np.exp(scores["adapted"]), np.exp(before), atol=1e-3)


def test_a_network_that_knows_the_plate_is_told_it(run: Path, tmp_path: Path) -> None:
    told = {"plate": ["1", "2", "3", "4"]}
    model = make_network("densenet-small", channels=6, classes=8, levels=told, seed=1)
    with torch.no_grad():
        model.head.weight[:, -4:] = torch.eye(8)[:, :4] * 1000  # the answer is the plate
    for cell_type in ("HUVEC", "RPE"):
        card = ModelConfig("densenet-small", 6, CLASSES, ["treatment"], covariates=told)
        save_weights(tmp_path / cell_type / "told.safetensors", model.state_dict(), card)
    answers = predict(run, tmp_path / "out", weights=tmp_path, name="told")
    for scores in answers.values():
        plates = scores.index.str.split("_").str[1].astype(int)
        assert (scores.idxmax(axis=1) == plates - 1).all()


@pytest.mark.parametrize(("trained", "scope", "warned"), [
    ("mixed", "experiment", False), ("experiment", "experiment", False), ("mixed", "plate", True),
])
def test_mixed_batches_want_the_statistics_of_the_experiment(
    run: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder, trained: str, scope: str, warned: bool
) -> None:
    for cell_type in ("HUVEC", "RPE"):
        model = make_network("densenet-small", channels=6, classes=8, seed=1)
        save_weights(tmp_path / cell_type / "model.safetensors", model.state_dict(),
                     ModelConfig("densenet-small", 6, CLASSES, ["treatment"], scope=trained))
    predict(run, tmp_path / "out", weights=tmp_path, statistics="running", all_statistics=False, statistics_scope=scope)
    told = [str(one.message) for one in recwarn if "batches" in str(one.message)]
    assert bool(told) == warned and all("predict with statistics_scope: experiment" in one for one in told)


def test_the_note_about_scopes_can_be_had_without_prediction(run: Path) -> None:
    weights = run / "weights"
    assert scope_note(weights, ["RPE", "HUVEC"], "model", "plate") == scope_note(weights, [], "model", "experiment") == ""
    note = scope_note(weights, ["RPE"], "model", "experiment")
    assert note.startswith("statistics are gathered by experiment, but RPE learned from plate batches")
    with pytest.raises(InputError, match="absent.safetensors: no such weights; run 3-train-cell-type, which writes them"):
        scope_note(weights, ["RPE"], "absent", "plate")


def test_only_the_scores_of_the_networks_asked_for_are_kept(tmp_path: Path) -> None:
    for name in ("model/adapted/RPE-03.parquet", "plain/adapted/RPE-03.parquet", "final/running/metadata.json", "notes.txt"):
        write_text(tmp_path / name, "x")
    remove_other_networks(tmp_path, ["model", "more"])
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")) == ["model/adapted/RPE-03.parquet", "notes.txt"]
    remove_other_networks(tmp_path / "absent", ["model"])


@pytest.mark.parametrize(("knobs", "message"), [
    ({"name": "absent"}, "absent"),
])
def test_bad_knobs_are_refused_before_any_score_is_lost(run: Path, knobs: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        predict(run, run / "scores", **knobs)
    assert (run / "scores/adapted/metadata.json").exists() and (run / "scores/running/RPE-03.parquet").exists()


def test_assign_and_score_from_files(run: Path, tmp_path: Path) -> None:
    assign_files([run / "scores/adapted"], data=run / "data", out=tmp_path / "submission.csv")
    result = score_files(tmp_path / "submission.csv", run / "data/solution.csv")
    assert 0 <= result["accuracy"] <= 1 and sorted(result["by_cell_type"]) == ["HUVEC", "RPE"]
    assert score_files(run / "data/solution.csv", run / "data/solution.csv")["accuracy"] == 1


BAD_SCORES = {
    "half the wells": (lambda table: table.iloc[::2], "is missing"),
    "NaN": (lambda table: table.assign(**{"3": np.nan}), "the score is NaN"),
    "no id_code": (lambda table: table.drop(columns="id_code"), "no column id_code"),
    "foreign wells": (lambda table: table.assign(id_code="A549-01_" + table["id_code"]), "no test well"),
    "controls only": (lambda table: table[["id_code"]].assign(**{"1138": 0.0}), "no treatment siRNA is scored"),
    "a column of text": (lambda table: table.assign(**{"3": "x"}), "column 3 holds text"),
}


@pytest.mark.parametrize("fault", BAD_SCORES)
def test_bad_scores_make_no_submission(run: Path, tmp_path: Path, fault: str, refused: Callable[..., str]) -> None:
    change, message = BAD_SCORES[fault]
    for path in (run / "scores/adapted").glob("*.parquet"):
        change(pd.read_parquet(path)).to_parquet(tmp_path / path.name, index=False)
    line = refused("assign", tmp_path, "--data", run / "data", "--out", tmp_path / "submission.csv")
    assert message in line and not (tmp_path / "submission.csv").exists()


def test_scores_of_controls_are_left_out(run: Path, tmp_path: Path) -> None:
    for path in (run / "scores/adapted").glob("*.parquet"):
        pd.read_parquet(path).assign(**{"1138": 0.0}).to_parquet(tmp_path / path.name, index=False)
    for name, scores in (("with", tmp_path), ("without", run / "scores/adapted")):
        assign_files([scores], settings=AssignmentSettings(method="raw", plate_groups=False), data=run / "data", out=tmp_path / f"{name}.csv")
    assert (tmp_path / "with.csv").read_text() == (tmp_path / "without.csv").read_text()


BAD_SUBMISSIONS = {
    "empty": "",
    "no header": "HUVEC-03_1_B02,4\n",
    "other columns": "id,label\nHUVEC-03_1_B02,4\n",
    "one column": "id_code\nHUVEC-03_1_B02\n",
    "siRNA is text": "id_code,sirna\nHUVEC-03_1_B02,actin\n",
    "siRNA is a fraction": "id_code,sirna\nHUVEC-03_1_B02,1.5\n",
    "siRNA is missing": "id_code,sirna\nHUVEC-03_1_B02,\n",
    "siRNA is negative": "id_code,sirna\nHUVEC-03_1_B02,-1\n",
    "a well twice": "id_code,sirna\nHUVEC-03_1_B02,1\nHUVEC-03_1_B02,1\n",
    "semicolons": "id_code;sirna\nHUVEC-03_1_B02;1\n",
    "one well only": "id_code,sirna\nHUVEC-03_1_B02,1\n",
}


@pytest.mark.parametrize("fault", BAD_SUBMISSIONS)
def test_a_bad_submission_is_refused_in_one_line_with_file_and_cure(
    run: Path, tmp_path: Path, fault: str, refused: Callable[..., str]
) -> None:
    write_text(tmp_path / "bad.csv", BAD_SUBMISSIONS[fault])
    assert "bad.csv" in refused("score", tmp_path / "bad.csv", run / "data/solution.csv")
