"""Scores per well: sites averaged, batches irrelevant under adapted statistics, files that say how."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import log_softmax

from cellsignal.data.images import read_sites
from cellsignal.data.simulate import simulate
from cellsignal.data.wells import read_tables
from cellsignal.decide.commands import assign_files, score_files
from cellsignal.decide.predict import predict_experiment, score_experiments, well_scores
from cellsignal.decide.scores import read_all_scores
from cellsignal.files import read_json, write_text
from cellsignal.learn.models import Card, Classifier, save_weights

CLASSES = list(range(8))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with tiny plates, untrained weights and their scores."""
    run = tmp_path_factory.mktemp("run")
    simulate(run / "data", preset="tiny", seed=0)
    for cell_type in ("HUVEC", "RPE"):
        model = Classifier("densenet-small", channels=6, classes=8, seed=1)
        save_weights(run / "weights" / cell_type / "model.safetensors", model.state_dict(),
                     Card("densenet-small", 6, CLASSES, ["treatment"]))
    tables = read_tables(run / "data")
    whole = tables.sites["stem"].map(lambda stem: (run / "data" / f"{stem}_w6.png").exists())
    asked = tables.sites[whole & (tables.sites["dataset"] == "test")]
    score_experiments(tables.root, asked, weights=run / "weights", out=run / "scores")
    return run


def test_the_sites_of_a_well_are_averaged() -> None:
    logits = np.array([[2.0, 0, 1], [0, 2, 1], [1, 1, 5]])
    scores = well_scores(logits, pd.Series(["a", "a", "b"]), class_numbers=[3, 5, 7])
    mean = log_softmax(logits[:2], axis=1).mean(0)
    np.testing.assert_allclose(scores.loc["a"], log_softmax(mean), rtol=1e-6)
    assert np.allclose(np.exp(scores).sum(axis=1), 1) and scores.columns.tolist() == [3, 5, 7]


def test_adapted_scores_do_not_depend_on_batches_and_batch_scores_do(run: Path) -> None:
    tables = read_tables(run / "data")
    sites = tables.sites[(tables.sites["experiment"] == "RPE-01") & (tables.sites["plate"] < 3)].reset_index(drop=True)
    images, model = read_sites(tables.root, sites), Classifier("densenet-small", channels=6, classes=8, seed=1)
    def scores(statistics: str, batch_size: int) -> np.ndarray:
        return predict_experiment(model, images, sites, class_numbers=CLASSES, statistics=statistics, batch_size=batch_size)[0]
    for statistics, steady in (("adapted", True), ("running", True), ("batch", False)):
        assert np.allclose(scores(statistics, 7), scores(statistics, 40), atol=1e-4) == steady, statistics


def test_scores_cover_every_test_well_once_and_say_how_they_were_made(run: Path) -> None:
    for statistics in ("running", "batch", "adapted"):
        scores = read_all_scores([run / "scores" / statistics])
        assert sorted(scores.index) == sorted(read_tables(run / "data").sample)
        assert scores.dtypes.eq(np.float32).all() and np.allclose(np.exp(scores).sum(axis=1), 1, atol=1e-5)
    facts = read_json(run / "scores/adapted/metadata.json")
    assert facts["statistics"] == "adapted" and facts["gathered"]["HUVEC-03"] == {"exact": 4}


def test_assign_and_score_from_files(run: Path, tmp_path: Path) -> None:
    out = assign_files([run / "scores/adapted"], data=run / "data", out=tmp_path / "submission.csv")
    result = score_files(out, run / "data/solution.csv")
    assert 0 <= result["accuracy"] <= 1 and sorted(result["by_cell_type"]) == ["HUVEC", "RPE"]
    assert score_files(run / "data/solution.csv", run / "data/solution.csv")["accuracy"] == 1


BAD_SCORES = {
    "half the wells": (lambda table: table.iloc[::2], "is missing"),
    "NaN": (lambda table: table.assign(**{"3": np.nan}), "the score is NaN"),
    "no id_code": (lambda table: table.drop(columns="id_code"), "no column id_code"),
    "foreign wells": (lambda table: table.assign(id_code="A549-01_" + table["id_code"]), "no test well"),
    "controls only": (lambda table: table[["id_code"]].assign(**{"1138": 0.0}), "no treatment siRNA is scored"),
    "a column of text": (lambda table: table.assign(**{"3": "x"}), "column 3 holds text"),
    "too few siRNAs": (lambda table: table[["id_code", "0"]], "siRNAs"),
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
        assign_files([scores], data=run / "data", out=tmp_path / f"{name}.csv", method="raw", groups=False)
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
