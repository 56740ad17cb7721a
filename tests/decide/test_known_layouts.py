"""Test experiments that repeat a training layout: found, shifted rightly, and left alone where nothing is clear."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from simulated_scores import real_layout, votes

from cellsignal.data.microscope.layout import draw_design
from cellsignal.data.tables.plate_design import duplicate_layouts
from cellsignal.decide.assign.known_layouts import known_layouts

COPY = "HUVEC-03"  # the test experiment that repeats RPE-01


def laid_out() -> pd.DataFrame:
    """All wells of a simulated screen; the controls differ by plate, which tells the shift of the copied layout."""
    return draw_design(3, ("HUVEC", "RPE"), classes=48, train=2, test=1, missing=4, repeats=((COPY, "RPE-01"),))


@pytest.fixture(scope="module")
def screen() -> tuple[pd.DataFrame, pd.Series]:
    """Wells of a simulated screen without its test answers, and these."""
    wells = laid_out()
    # All plates of the pair have the same controls in the same places, as in RPE-03 and HUVEC-18: the shift stays open.
    alike = wells["experiment"].isin([COPY, "RPE-01"]) & (wells["well_type"] != "treatment")
    first = wells[(wells["experiment"] == "RPE-01") & (wells["plate"] == 1)].set_index("well")["sirna"]
    wells.loc[alike, "sirna"] = wells.loc[alike, "well"].map(first)
    asked = (wells["dataset"] == "test") & (wells["well_type"] == "treatment")
    truth = wells[asked].set_index("id_code")["sirna"].astype(int)
    return wells.assign(sirna=wells["sirna"].astype("Int64").mask(asked)), truth


def scores(truth: pd.Series, *, signal: float) -> pd.DataFrame:
    values = np.random.default_rng(0).normal(size=(len(truth), 48)).astype(np.float32)
    values[np.arange(len(truth)), truth] += signal
    return pd.DataFrame(values, index=truth.index, columns=range(48))


def test_the_shift_of_the_plates_is_the_one_that_the_scores_like(screen: tuple[pd.DataFrame, pd.Series]) -> None:
    wells, truth = screen
    found = known_layouts(wells, scores(truth, signal=2.0))
    assert list(found) == [COPY]
    sirnas = found[COPY].sirnas
    assert sirnas.equals(truth[sirnas.index]) and len(sirnas) >= 40 and found[COPY].confidence > 0.999


def test_nothing_is_known_where_the_scores_are_silent_or_absent(screen: tuple[pd.DataFrame, pd.Series]) -> None:
    wells, truth = screen
    silent = known_layouts(wells, scores(truth, signal=0.0))[COPY]
    assert silent.sirnas.empty and silent.note.endswith("do not determine its shift of plates: layout not copied")
    others = truth[~truth.index.str.startswith(COPY)]
    assert known_layouts(wells, scores(others, signal=2.0)) == {}
    one = truth[truth.index.str.startswith(COPY)].iloc[:1]
    assert known_layouts(wells, scores(one, signal=9.0))[COPY].sirnas.empty


def test_the_scores_confirm_a_layout_whose_shift_the_controls_tell(screen: tuple[pd.DataFrame, pd.Series]) -> None:
    """Strong scores of another layout contradict it, even if they are those of another shift; silent ones say nothing for it."""
    wells, truth = screen
    drawn = laid_out()
    wells = wells.assign(sirna=wells["sirna"].where(wells["well_type"] == "treatment", drawn["sirna"].astype("Int64")))
    [pair] = [pair for pair in duplicate_layouts(wells) if COPY in pair["experiments"]]
    assert pair["plate_shift"] is not None
    found = known_layouts(wells, scores(truth, signal=2.0))[COPY]
    assert found.sirnas.equals(truth[found.sirnas.index]) and found.confidence > 0.999 and found.note == ""
    weak = known_layouts(wells, scores(truth, signal=0.8))[COPY]
    assert weak.sirnas.equals(found.sirnas) and 0.97 < weak.confidence < found.confidence
    mine = truth.index.str.startswith(COPY)
    other, turned = (pd.Series(np.where(mine, moved, truth), truth.index) for moved in (
        truth.sample(frac=1, random_state=0).to_numpy(), np.roll(truth, 12)))
    for values in (scores(other, signal=4.0), scores(turned, signal=4.0), scores(truth, signal=0.0)):
        left = known_layouts(wells, values)[COPY]
        assert left.sirnas.empty
        assert left.note == "controls repeat those of RPE-01, but the scores do not confirm it: layout not copied"


@pytest.mark.slow
@pytest.mark.ci
def test_real_networks_agree_on_the_layout_of_huvec_18(shared: Path) -> None:
    """Its controls repeat RPE-03's and leave the shift open; the first place's code has plate (p - 2) % 4 + 1."""
    wells, _, _, _ = real_layout(shared / "rxrx1")
    path = shared / "rxrx1/real_predictions.csv.gz"
    layouts = [known_layouts(wells, votes(path, [f"model_{k:02d}"]))["HUVEC-18"].sirnas for k in range(1, 13)]
    assert all(layout.equals(layouts[0]) for layout in layouts) and len(layouts[0]) >= 1100
    reference = wells[wells["experiment"] == "RPE-03"].set_index(["plate", "well"])["sirna"]
    for id_code, sirna in layouts[0].sample(50, random_state=0).items():
        _, plate, well = id_code.split("_")
        assert reference[(int(plate) - 2) % 4 + 1, well] == sirna
