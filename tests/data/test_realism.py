"""The virtual microscope beside the real one: cells, phenotypes and batch effects as they should be."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import realism

from cellsignal.data.microscope import optics, cell_types, rendering
from cellsignal.data.tables.wells import read_pixel_stats
from cellsignal.data.microscope.simulate import simulate
from cellsignal.data.tables.wells import read_tables
from cellsignal.decide.evaluate.baseline import linear_baseline


def test_untreated_cells_have_no_phenotype_and_cell_types_share_half_of_one() -> None:
    assert not cell_types.phenotype(0, cell_types.UNTREATED, cell_type="RPE").any()
    assert set(cell_types.traits(np.zeros(len(cell_types.TRAITS))).values()) == {1.0}
    one, other = (
        np.concatenate([cell_types.phenotype(0, sirna, cell_type=kind) for sirna in range(300)])
        for kind in ("RPE", "U2OS")
    )
    assert one.std() == pytest.approx(cell_types.RESPONSE["RPE"], rel=0.05)
    assert np.corrcoef(one, other)[0, 1] == pytest.approx(0.5, abs=0.05)


def test_streams_depend_on_the_whole_key() -> None:
    keys = [(0, "a", 1), (0, "a", 2), (1, "a", 1), (0, "b", 1), (0, "a1"), (0, "a", "1")]
    assert len({cell_types.stream(*key).integers(1 << 62) for key in keys}) == len(keys)


def test_brightness_of_experiments_covers_the_normal_distribution() -> None:
    drawn = [
        np.array([optics.brightness(cell_types.stream(seed, "x"), number) for number in range(1, 9)])
        for seed in range(100)
    ]
    assert np.mean([values.std(axis=0) for values in drawn]) == pytest.approx(0.95, abs=0.1)


def untreated(folder: Path, experiment: str, *, size: int, seed: int = 0) -> np.ndarray:
    """One untreated well under the full batch effects: uint8[6, size, size]."""
    plate = rendering.Plate(
        seed=seed, experiment=experiment, plate=1, wells=(("B02", cell_types.UNTREATED),), image_size=size,
        pixel_size=512 / size, phenotype=1.0, batch=1.0,
    )
    rendering.render_plate(plate, folder / experiment)
    paths = [folder / experiment / f"B02_s1_w{channel}.png" for channel in range(1, 7)]
    return np.stack([cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in paths])


@pytest.mark.slow
@pytest.mark.parametrize("cell_type", realism.REAL)
def test_untreated_wells_look_like_real_ones(cell_type: str, tmp_path: Path) -> None:
    images = [untreated(tmp_path, f"{cell_type}-{number:02d}", size=512) for number in range(1, 17)]
    nuclei, medians, slopes, correlations = realism.mean_measure(images)
    count, (dim, bright), real_slopes, real_correlations = realism.REAL[cell_type]
    assert nuclei == pytest.approx(count, rel=0.3)
    assert (medians > np.array(dim) / 2).all() and (medians < np.array(bright) * 2).all()
    np.testing.assert_allclose(slopes, real_slopes, atol=0.5)
    assert np.abs(correlations - real_correlations).mean() < 0.2


def test_the_measures_agree_with_the_real_wells(shared: Path) -> None:
    for cell_type, (count, _, slopes, correlations) in realism.REAL.items():
        folder = shared / "rxrx1/images/train" / f"{cell_type}-01" / "Plate1"
        paths = [folder / f"B02_s1_w{channel}.png" for channel in range(1, 7)]
        found = realism.measure(np.stack([cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in paths]))
        assert found[0] == pytest.approx(count, rel=0.3)
        np.testing.assert_allclose(found[2], slopes, atol=0.6)
        assert np.abs(found[3] - correlations).mean() < 0.1


def test_experiments_differ_in_brightness_as_the_real_ones_do(shared: Path, tmp_path: Path) -> None:
    real = pd.read_csv(shared / "rxrx1" / "experiment_pixel_stats.csv").set_index("experiment").iloc[:, :6]
    ratios = []
    for cell_type, part in real.groupby(real.index.str.rpartition("-").get_level_values(0)):
        means = [untreated(tmp_path, name, size=128).mean(axis=(1, 2)) for name in part.index]
        ratios.append(np.std(means, axis=0) / np.mean(means, axis=0) / (part.std() / part.mean()))
    assert np.median(np.abs(np.log2(ratios))) < 0.5
    assert (np.abs(np.log2(ratios)) < 1.3).all()


@pytest.mark.slow
def test_brightness_does_not_tell_the_phenotypes(tmp_path: Path) -> None:
    """A linear model on channel means and standard deviations, standardised by plate, must stay poor."""
    simulate(tmp_path / "huvec", experiments=[f"HUVEC-{number:02d}" for number in range(1, 9)])
    tables = read_tables(tmp_path / "huvec")
    stats, train = read_pixel_stats(tables.root), tables.wells["dataset"] == "train"
    assert linear_baseline(stats, tables.wells, tables.solution, train=train)["accuracy"] < 0.30
