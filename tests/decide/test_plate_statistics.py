"""Statistics of unequal plates: those of the controls, and the choice of `auto` by plate."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from building import make_network

from cellsignal.data.images.reader import read_sites, whole_sites
from cellsignal.data.tables.wells import read_tables
from cellsignal.decide.predict.inference import PlateInference, log_probabilities
from cellsignal.decide.predict.plate_statistics import statistics_of_plate
from cellsignal.decide.predict.predict import ScoringOptions, auto_note, score_experiments
from cellsignal.decide.settings import PredictionSettings
from cellsignal.errors import InputError
from cellsignal.learn.networks.classifier import ModelConfig, save_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained networks: of the 8 siRNAs of the plates, and of 80 siRNAs, for which their plates of two wells are far from full."""
    folder = tmp_path_factory.mktemp("weights")
    for name, classes in (("full", 8), ("unequal", 80)):
        model = make_network("densenet-small", channels=6, classes=classes, seed=1)
        save_weights(folder / f"HUVEC/{name}.safetensors", model.state_dict(), ModelConfig("densenet-small", 6, list(range(classes)), ["treatment"]))
    return folder


@pytest.fixture(scope="module")
def sites(tiny_plates: Path) -> pd.DataFrame:
    """The complete sites of one test experiment."""
    tables = read_tables(tiny_plates)
    return whole_sites(tables.root, tables.sites[tables.sites["experiment"] == "HUVEC-03"])[0]


def score(root: Path, sites: pd.DataFrame, weights: Path, out: Path, *, name: str, statistics: str, **options: bool) -> pd.DataFrame:
    """Scores under one kind of statistics, whose files lie in `out/statistics`."""
    scoring = ScoringOptions(weights, settings=PredictionSettings(statistics=statistics, **options), all_statistics=False)
    return score_experiments(root, sites, scoring, out=out, name=name)[statistics]


@pytest.mark.parametrize(("wells", "controls", "expected", "statistics"), [
    (277, 31, 277, "adapted"), (12, 31, 12, "adapted"), (200, 0, 277, "adapted"), (1, 31, 2, "adapted"),
    (77, 31, 277, "plate_with_controls"), (8, 8, 277, "plate_with_controls"), (1, 31, 277, "plate_with_controls"), (277, 31, 32, "plate_with_controls"), (140, 31, 277, "plate_with_controls"),
    (77, 7, 277, "adapted"), (8, 0, 277, "adapted"), (7, 7, 277, "running"), (1, 0, 277, "running"),
])
def test_the_tables_choose_the_statistics_of_a_plate(wells: int, controls: int, expected: float, statistics: str) -> None:
    choice, reason = statistics_of_plate(wells, controls, expected)
    assert choice == statistics and str(wells) in reason


def test_auto_is_adapted_on_full_plates_byte_for_byte(tiny_plates: Path, sites: pd.DataFrame, weights: Path, tmp_path: Path) -> None:
    for statistics in ("adapted", "auto"):
        score(tiny_plates, sites, weights, tmp_path / statistics, name="full", statistics=statistics, tta_views=2)
    for kind, other in (("adapted", "auto"), ("views", "views")):
        files = [tmp_path / "adapted" / kind / "HUVEC-03.parquet", tmp_path / "auto" / other / "HUVEC-03.parquet"]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert auto_note(tmp_path / "auto").startswith("statistics: auto took adapted for 4 plates, such as HUVEC-03 plate 1, a full plate")
    assert auto_note(tmp_path / "adapted") == ""


def test_auto_takes_the_whole_plate_with_controls_and_running_without(
    tiny_plates: Path, sites: pd.DataFrame, weights: Path, tmp_path: Path
) -> None:
    treatments = sites[sites["well_type"] == "treatment"]
    some = pd.concat([treatments, sites[(sites["well_type"] != "treatment") & (sites["plate"] == 2)]])
    auto = score(tiny_plates, some, weights, tmp_path / "auto", name="unequal", statistics="auto")
    whole = score(tiny_plates, sites, weights, tmp_path / "whole", name="unequal", statistics="plate_with_controls")
    running = score(tiny_plates, sites, weights, tmp_path / "running", name="unequal", statistics="running")
    on_plate_2 = auto.index.str.split("_").str[1] == "2"
    np.testing.assert_array_equal(auto[on_plate_2], whole.loc[auto.index[on_plate_2]])
    np.testing.assert_array_equal(auto[~on_plate_2], running.loc[auto.index[~on_plate_2]])
    note = auto_note(tmp_path / "auto")
    assert "auto took running for 3 plates" in note and "auto took plate_with_controls for 1 plates, such as HUVEC-03 plate 2, 2 wells" in note


def test_statistics_of_controls_need_controls(tiny_plates: Path, sites: pd.DataFrame, weights: Path, tmp_path: Path) -> None:
    without = sites[(sites["well_type"] == "treatment") | (sites["plate"] != 3)]
    for statistics in ("controls", "plate_with_controls"):
        with pytest.raises(InputError, match="HUVEC-03, plate 3: 0 control sites.*statistics: auto") as error:
            score(tiny_plates, without, weights, tmp_path, name="full", statistics=statistics)
        assert "\n" not in str(error.value)


def test_under_the_statistics_of_controls_a_well_does_not_depend_on_the_others(
    tiny_plates: Path, sites: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_network("densenet-small", channels=6, classes=8, seed=1)
    images = read_sites(tiny_plates, sites[sites["plate"] == 1].iloc[:30].reset_index(drop=True))
    controls = np.arange(10, 30)

    def ask(count: int, statistics: str = "controls", **options: int) -> tuple[np.ndarray, str]:
        inference = PlateInference(model, np.concatenate([images[:count], images[10:]]), count=count, control_rows=controls - 10 + count)
        return log_probabilities(inference, statistics, **options)

    exact, how = ask(10)
    assert how == "exact" and exact.shape == (10, 8)
    np.testing.assert_allclose(ask(3)[0], exact[:3], atol=1e-4)
    np.testing.assert_allclose(ask(1)[0], exact[:1], atol=1e-4)
    alone = log_probabilities(PlateInference(model, images[10:]), "adapted")[0]
    both = log_probabilities(PlateInference(model, images), "adapted")[0]
    np.testing.assert_allclose(ask(10, "plate_with_controls")[0], both[:10], atol=1e-4)
    own = log_probabilities(PlateInference(model, np.concatenate([images[10:], images[10:]]), count=20, control_rows=np.arange(20, 40)), "controls")[0]
    np.testing.assert_allclose(own, alone, atol=1e-4)  # controls under their own statistics
    monkeypatch.setattr("cellsignal.decide.predict.inference.max_batch_pixels", lambda device: 32 * 32 * 11)
    chunked, how = ask(10, refinements=100)
    assert how == "layer by layer"
    np.testing.assert_allclose(chunked, exact, atol=1e-3)
