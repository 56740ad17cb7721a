"""Plates judged by their controls: those whose controls do not differ as on other plates, or are too few for a verdict."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cellsignal.cli import main
from cellsignal.data.control_separation import channel_means, control_lines, control_separation, doubtful_plates, separation_lines
from cellsignal.data.images.reader import read_site
from cellsignal.data.tables.wells import read_tables

NEGATIVE, POSITIVE = "negative_control", "positive_control"


def screen(*, untreated: int = 1, positive: int = 30, alike: bool = False, experiments: int = 4, effect: float = 2.0, broken: tuple = (),
           seed: int = 0, features: int = 12) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Features and wells of plates with offsets and gains of their own; `alike`: all positive wells hold one siRNA; on `broken` plates all are untreated."""
    rng = np.random.default_rng(seed)
    phenotypes = {1138: np.zeros(features), **{sirna: effect * rng.standard_normal(features) for sirna in range(1108, 1138)}}
    wells, values = [], []
    for experiment in (f"HUVEC-{number:02d}" for number in range(1, experiments + 1)):
        for plate in (1, 2, 3, 4):
            offset = 10 * rng.standard_normal(features)
            sirnas = [1138] * untreated + ([1108] * positive if alike else list(range(1108, 1108 + positive)))
            for number, sirna in enumerate(sirnas):
                kind = NEGATIVE if sirna == 1138 else POSITIVE
                wells.append([f"{experiment}_{plate}_{number}", experiment, "HUVEC", plate, kind, sirna])
                values.append(offset + phenotypes[1138 if (experiment, plate) in broken else sirna] + rng.standard_normal(features))
    table = pd.DataFrame(wells, columns=["id_code", "experiment", "cell_type", "plate", "well_type", "sirna"])
    return pd.DataFrame(values, index=table["id_code"]), table


def test_broken_plates_are_named_and_no_other() -> None:
    broken = (("HUVEC-02", 3), ("HUVEC-04", 1))
    separation = control_separation(*screen(broken=broken))
    is_broken = separation.set_index(["experiment", "plate"]).index.isin(broken)
    assert len(separation) == 16 and doubtful_plates(separation).to_numpy().tolist() == is_broken.tolist()
    assert separation["agreement"][~is_broken].min() > 0.7 and separation["agreement"][is_broken].abs().max() < 0.25
    [line] = separation_lines(separation, "embeddings")
    assert "look wrong on 2 of 16 plates" in line and "HUVEC-02 plate 3 (" in line and "HUVEC-04 plate 1 (" in line and "\n" not in line
    assert separation_lines(control_separation(*screen()), "embeddings") == ["controls by embeddings: no plate below the limits"]


def test_one_untreated_well_tells_no_effect_size() -> None:
    """Where all wells are alike, chance alone gives what `chance` says, above the limit of 0.5, so that it is not judged."""
    separation = control_separation(*screen(effect=0.0, experiments=15, features=40))
    assert separation["chance"].unique() == pytest.approx([0.6745 * (1 + 1 / 30) ** 0.5])
    assert separation["effect_size"].mean() == pytest.approx(separation["chance"].iloc[0], rel=0.1)
    assert not doubtful_plates(separation).any()
    line = f"controls by channel means: no plate can be judged where the median agreement is below 0.5: HUVEC (plates: 60, experiments: 15, median agreement: {separation['agreement'].median():.2f})"
    assert separation_lines(separation, "channel means") == [line]


def test_cell_types_of_which_no_plate_is_judged_share_a_line() -> None:
    alike, visible = control_separation(*screen(effect=0.0)), control_separation(*screen(experiments=2)).assign(cell_type="RPE")
    [line, other] = separation_lines(pd.concat([alike, alike.assign(cell_type="U2OS"), visible]), "x")
    assert line.startswith("controls by x: no plate can be judged where the median agreement is below 0.5: HUVEC (plates: 16, experiments: 4, median agreement: ") and ", U2OS (" in line
    assert other == "controls by x: no plate below the limits"


def test_alike_positive_controls_have_an_effect_size() -> None:
    whole = control_separation(*screen(untreated=16, positive=16, alike=True))
    assert whole["effect_size"].min() > 0.8 and whole["agreement"].isna().all() and not doubtful_plates(whole).any()
    broken = control_separation(*screen(untreated=16, positive=16, alike=True, broken=(("HUVEC-01", 2),)))
    assert doubtful_plates(broken).to_numpy().nonzero()[0].tolist() == [1]


def test_the_effect_size_is_cohens_d() -> None:
    features, wells = screen(untreated=5, positive=7)
    plate = wells[(wells["experiment"] == "HUVEC-01") & (wells["plate"] == 1)]
    one, other = (features.loc[plate.loc[plate["well_type"] == kind, "id_code"]].to_numpy() for kind in (NEGATIVE, POSITIVE))
    pooled = np.sqrt((4 * one.var(axis=0, ddof=1) + 6 * other.var(axis=0, ddof=1)) / 10)
    expected = np.median(np.abs(one.mean(axis=0) - other.mean(axis=0)) / pooled)
    assert control_separation(features, wells)["effect_size"].iloc[0] == pytest.approx(expected)


@pytest.mark.filterwarnings("error")
def test_few_controls_and_constant_features_are_no_verdict() -> None:
    features, wells = screen()
    constant = control_separation(features.assign(constant=1.0), wells)
    pd.testing.assert_frame_equal(constant, control_separation(features, wells), check_exact=False)
    for rows in (wells["well_type"] == NEGATIVE, wells["well_type"] == POSITIVE, wells["sirna"].isin([1138, 1108]), wells["plate"] == 0):
        some = control_separation(features, wells[rows])
        assert not doubtful_plates(some).any() and len(separation_lines(some, "x")) == min(len(some), 1)
    alone = control_separation(features, wells[(wells["experiment"] == "HUVEC-01") & (wells["plate"] == 1)])
    assert alone["agreement"].isna().all() and separation_lines(alone, "x") == ["controls by x: too few wells to judge the plates of HUVEC (plates: 1, experiments: 1)"]


@pytest.mark.slow
@pytest.mark.ci
def test_channel_means_are_the_same_from_table_and_images(tiny_plates: Path, tmp_path: Path) -> None:
    tables = read_tables(tiny_plates)
    sites = tables.sites[(tables.sites["experiment"] == "RPE-02") & (tables.sites["well_type"] != "treatment")]
    (tmp_path / "train").symlink_to(tiny_plates / "train")
    from_images, from_table = channel_means(tmp_path, sites), channel_means(tiny_plates, sites)
    pd.testing.assert_frame_equal(from_images, from_table.loc[from_images.index], check_names=False, rtol=1e-5)
    first = sites[sites["id_code"] == sites["id_code"].iloc[0]]["stem"]
    grey = np.mean([read_site(tiny_plates, stem)[2].mean() for stem in first])
    assert np.expm1(from_table.loc[sites["id_code"].iloc[0], 3]) == pytest.approx(grey, rel=1e-5)


def test_check_says_what_the_controls_tell(tiny_plates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    [line] = control_lines(tiny_plates)
    assert "no plate can be judged" in line and "HUVEC (plates: 12, experiments: 3" in line and "RPE (plates: 12, experiments: 3" in line
    assert "HUVEC" not in control_lines(tiny_plates, cell_types=["RPE"])[0] and control_lines(tmp_path) == []
    for name in ("train_controls.csv", "test_controls.csv"):
        (tmp_path / name).write_text((tiny_plates / name).read_text().partition("\n")[0] + "\n")
    for name in ("train.csv", "test.csv", "sample_submission.csv"):
        shutil.copy(tiny_plates / name, tmp_path)
    assert control_lines(tmp_path) == ["no plate has controls"]
    controls = (tiny_plates / "train_controls.csv").read_text().splitlines(keepends=True)
    (tmp_path / "train_controls.csv").write_text("".join(line for line in controls if "HUVEC-01_2_" not in line))
    shutil.copy(tiny_plates / "test_controls.csv", tmp_path)
    shutil.copy(tiny_plates / "pixel_stats.csv", tmp_path)
    assert control_lines(tmp_path)[0] == "no controls on 1 of 24 plates: HUVEC-01 plate 2"
    monkeypatch.setattr("cellsignal.data.check.check_dataset", lambda *values, **options: [])
    main.check(tiny_plates)
    assert capsys.readouterr().out.splitlines()[:-1] == control_lines(tiny_plates)
