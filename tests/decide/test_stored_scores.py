"""Scores read back: only those that metadata.json vouches for, and of every well that is asked for."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cellsignal.decide.scores.cache import ScoreCache
from cellsignal.decide.predict.predict import ScoringOptions, score_experiments
from cellsignal.decide.settings import PredictionSettings
from cellsignal.decide.scores.cache import read_stored_scores
from cellsignal.errors import InputError

EXPERIMENTS = ["RPE-02", "HUVEC-01"]


@pytest.fixture
def sites() -> pd.DataFrame:
    """Two sites of three wells in each of two experiments; one well is a control."""
    rows = [(name, f"{name}_1_B0{column}", "treatment" if column else "negative_control") for name in EXPERIMENTS for column in range(3)]
    table = pd.DataFrame(rows * 2, columns=["experiment", "id_code", "well_type"])
    return table.assign(cell_type=table["experiment"].str.split("-").str[0], stem="nowhere", plate=1)


@pytest.fixture
def folder(tmp_path: Path, sites: pd.DataFrame) -> Path:
    """Scores of both, as a prediction leaves them."""
    kept = ScoreCache(tmp_path / "adapted", dict.fromkeys(EXPERIMENTS, "made by others"), statistics="adapted")
    for number, name in enumerate(EXPERIMENTS):
        wells = sites.loc[(sites["experiment"] == name) & (sites["well_type"] == "treatment"), "id_code"].unique()
        values = np.log(np.full((2, 4), 0.25, np.float32)) - number
        table = pd.DataFrame(values, index=pd.Index(wells, name="id_code"), columns=range(4))
        kept.add(name, table, {"gathered": {}, "sites": 4, "images": 4, "seconds": 0.5})
    return tmp_path


def test_they_are_read_without_weights_and_images(folder: Path, sites: pd.DataFrame) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    found = score_experiments(folder, sites, ScoringOptions(folder / "none", all_statistics=False), out=folder, stored=True)["adapted"]
    assert list(found.index) == ["HUVEC-01_1_B01", "HUVEC-01_1_B02", "RPE-02_1_B01", "RPE-02_1_B02"]
    assert found.loc["RPE-02_1_B01", 3] == pytest.approx(np.log(0.25)) and found.loc["HUVEC-01_1_B02", 0] == pytest.approx(np.log(0.25) - 1)
    assert found.dtypes.eq(np.float32).all()
    assert before == {path: path.read_bytes() for path in folder.rglob("*.*")}


def test_only_the_answered_experiments_need_scores_of_many_batches(folder: Path, sites: pd.DataFrame) -> None:
    found = score_experiments(folder, sites, ScoringOptions(folder, settings=PredictionSettings(statistics="batch"), all_statistics=False, batch_experiments=[]), out=folder, stored=True)
    assert found["batch"].empty
    with pytest.raises(InputError, match="batch/RPE-02.parquet: no such scores; start --from weights"):
        score_experiments(folder, sites, ScoringOptions(folder, settings=PredictionSettings(statistics="batch"), all_statistics=False, batch_experiments=["RPE-02"]), out=folder, stored=True)


def test_what_nobody_vouches_for_is_refused(folder: Path, sites: pd.DataFrame) -> None:
    more = pd.concat([sites, sites.iloc[[1]].assign(id_code="RPE-02_1_C05")])
    with pytest.raises(InputError, match="RPE-02.parquet: no scores of 1 wells, such as RPE-02_1_C05"):
        read_stored_scores(folder / "adapted", more)
    (folder / "adapted/HUVEC-01.parquet").write_bytes((folder / "adapted/RPE-02.parquet").read_bytes())
    with pytest.raises(InputError, match="HUVEC-01.parquet: not the scores that metadata.json beside them names"):
        read_stored_scores(folder / "adapted", sites)
