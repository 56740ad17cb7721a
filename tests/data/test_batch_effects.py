"""The effects of the preset hard do what they say, no gain and offset undo them, and plates without them are as they were."""

from dataclasses import astuple, fields, replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from cellsignal.data.microscope import batch_effects, optics, rendering
from cellsignal.data.microscope.batch_effects import Effects, bleed_through, edge_closeness, staining, well_effects
from cellsignal.data.microscope.cell_types import CELL_TYPES, TRAITS, UNTREATED, traits
from cellsignal.data.microscope.cells import draw
from cellsignal.data.microscope.simulate import PLATES, simulate
from cellsignal.data.simulated import identity

HARD = PLATES["hard"].effects
# Of experiments RPE-01 and RPE-03 of `tiny`, seed 0, by channel, as they were before there were effects.
MEANS_OF_TINY = (6.777, 10.3556, 16.7944, 10.5588, 4.5081, 14.5225)
DEVIATIONS_OF_TINY = (4.2562, 6.5594, 7.0769, 5.7331, 2.805, 5.7635)
WELL = {"experiment": "U2OS-01", "plate": 1, "well": "H12"}


def picture(folder: Path, effects: Effects, *, sirna: int = 7, experiment: str = "U2OS-01", well: str = "B02") -> np.ndarray:
    """One site float[6, 64, 64] of a well under effects and the ordinary batch effects."""
    plate = rendering.Plate(
        seed=0, experiment=experiment, plate=1, wells=((well, sirna),), image_size=64, pixel_size=3.0, phenotype=2.0, batch=1.0,
        effects=effects,
    )
    rendering.render_plate(plate, folder)
    return np.stack([cv2.imread(str(folder / f"{well}_s1_w{channel}.png"), cv2.IMREAD_UNCHANGED) for channel in range(1, 7)]).astype(float)


def sharpness(image: np.ndarray) -> float:
    """Energy of the finest detail."""
    return float(np.square(image - cv2.GaussianBlur(image, (0, 0), 1)).mean())


def test_presets_without_effects_draw_what_they_drew_before_there_were_any(tmp_path: Path) -> None:
    assert [name for name, preset in PLATES.items() if preset.effects != Effects()] == ["hard"]
    simulate(tmp_path / "tiny", preset="tiny", experiments=("RPE-01", "RPE-03"))
    stats = pd.read_csv(tmp_path / "tiny" / "pixel_stats.csv").groupby("channel")
    np.testing.assert_allclose(stats["mean"].mean(), MEANS_OF_TINY, rtol=1e-3)
    np.testing.assert_allclose(stats["std"].mean(), DEVIATIONS_OF_TINY, rtol=1e-3)
    assert set(identity(tmp_path / "tiny")["parameters"]) == {field.name for field in fields(PLATES["tiny"])} - {"effects"}


def test_no_effect_is_exactly_none() -> None:
    none = well_effects(Effects(), 0, **WELL)
    assert none.cells == none.phenotype == 1.0 and set(none.traits.values()) == {1.0}
    assert not bleed_through(Effects(), 0, "U2OS-01").any()
    light = np.random.default_rng(0).random((6, 32, 32), dtype=np.float32) * 50
    camera = optics.experiment_optics(np.random.default_rng(1), np.zeros(6), gain_spread=np.ones(6), strength=1.0)
    exposed = [
        optics.expose(np.random.default_rng(2), light, optics=camera, background=np.ones(6), pixel_size=3.0, well=well)
        for well in (None, none)
    ]
    np.testing.assert_array_equal(*exposed)


@pytest.mark.parametrize("effect", [field.name for field in fields(Effects) if field.name != "crowding"])
def test_no_gain_and_offset_undoes_an_effect(effect: str, tmp_path: Path) -> None:
    """The best gain and offset for each channel leave a residue; they leave none of a change of gain."""
    alone = replace(Effects(), **{effect: getattr(HARD, effect)})
    explained = []
    for experiment in ("U2OS-01", "U2OS-02", "U2OS-03"):
        plain, changed = (picture(tmp_path / str(effects == alone), effects, experiment=experiment) for effects in (Effects(), alone))
        explained.append([np.corrcoef(one.ravel(), other.ravel())[0, 1] ** 2 for one, other in zip(plain, changed, strict=True)])
    assert np.min(explained) < 0.98
    assert np.corrcoef(plain[0].ravel(), np.rint(0.7 * plain[0] + 3).ravel())[0, 1] ** 2 > 0.99


def test_bleed_through_differs_by_experiment_and_falls_with_the_distance_of_the_dyes(tmp_path: Path) -> None:
    bleed = np.stack([bleed_through(HARD, 0, f"U2OS-{number:02d}") for number in range(1, 200)])
    distance = np.abs(batch_effects.SPECTRUM[:, None] - batch_effects.SPECTRUM)
    by_distance = [bleed[:, distance == step].mean() for step in range(6)]
    assert by_distance[0] == 0 and by_distance[1] == pytest.approx(HARD.bleed, rel=0.1)
    assert all(near > far for near, far in zip(by_distance[1:], by_distance[2:]))
    assert np.abs(bleed[0] - bleed[1]).max() > HARD.bleed
    mixed = []
    for number in (1, 2):
        plain, changed = (picture(tmp_path / f"{number}-{strength}", Effects(bleed=strength), experiment=f"U2OS-{number:02d}") for strength in (0.0, 0.4))
        mixed.append(np.corrcoef(changed.reshape(6, -1)) - np.corrcoef(plain.reshape(6, -1)))
    assert np.abs(mixed[0]).max() > 0.1 and np.abs(mixed[0] - mixed[1]).max() > 0.1


def test_a_tilted_field_is_sharp_on_one_side_and_blurred_on_the_other() -> None:
    light = np.random.default_rng(0).random((6, 64, 64), dtype=np.float32) * 100
    camera = optics.experiment_optics(np.random.default_rng(1), np.zeros(6), gain_spread=np.ones(6), strength=0.0)
    well = replace(well_effects(Effects(), 0, **WELL), defocus=np.full(6, 4.0), tilt=np.array([0.0, 4.0]))
    exposed = optics.expose(np.random.default_rng(2), light, optics=camera, background=np.zeros(6), pixel_size=3.0, well=well)
    for channel in exposed.astype(np.float32):
        assert sharpness(channel[:, :20]) > 3 * sharpness(channel[:, 44:])
        assert sharpness(channel[:20]) == pytest.approx(sharpness(channel[44:]), rel=0.3)
    errors = np.stack([well_effects(HARD, 0, experiment=f"U2OS-{number:02d}", plate=1, well="H12").tilt for number in range(1, 500)])
    np.testing.assert_allclose(errors.std(axis=0), HARD.tilt, rtol=0.15)


def test_uneven_blur_is_the_even_one_where_its_width_is_everywhere_the_same() -> None:
    image = np.random.default_rng(0).random((32, 32), dtype=np.float32)
    even = cv2.GaussianBlur(image, (0, 0), 1.5, borderType=cv2.BORDER_REFLECT)
    np.testing.assert_allclose(batch_effects.blurred_unevenly(image, np.full((32, 32), 1.5, np.float32)), even, atol=1e-3)


def test_crowded_cells_are_smaller_and_cover_the_same_area() -> None:
    wells = [well_effects(HARD, 0, experiment=f"U2OS-{number:02d}", plate=1, well="H12") for number in range(1, 500)]
    assert np.log([well.cells for well in wells]).std() == pytest.approx(HARD.density, rel=0.15)
    covered = [well.cells * well.traits["nuclear_size"] ** 2 for well in wells]
    np.testing.assert_allclose(covered, 1.0)
    crowded = max(wells, key=lambda well: well.cells)
    assert all(factor < 1 for factor in crowded.traits.values())


@pytest.mark.parametrize("seed", range(8))
def test_a_small_field_of_a_sparse_well_is_drawn(seed: int) -> None:
    light = draw(np.random.default_rng(seed), 16, pixel_size=3.0, cell_type=CELL_TYPES["U2OS"], traits=traits(np.zeros(len(TRAITS))), density=0.05)
    assert light.shape == (6, 16, 16) and np.isfinite(light).all()


def test_staining_is_uneven_within_a_well_and_between_its_sites_half_of_it_alike_for_all_channels() -> None:
    fields_of_wells = np.stack([
        [staining(HARD, 0, experiment="U2OS-01", plate=1, well=f"H{column:02d}", site=site, size=64, pixel_size=3.0) for site in (1, 2)]
        for column in range(2, 200)
    ])
    logs = np.log(fields_of_wells)
    assert logs.std() == pytest.approx(HARD.staining, rel=0.15) and abs(logs.mean()) < HARD.staining / 5
    assert np.abs(logs[:, 0] - logs[:, 1]).mean() > HARD.staining / 2
    assert np.corrcoef(logs[:, 0, :, ::16, ::16].transpose(1, 0, 2, 3).reshape(6, -1))[np.triu_indices(6, 1)].mean() == pytest.approx(0.5, abs=0.1)
    assert logs.std(axis=(-1, -2)).mean() > HARD.staining / 4


def test_wells_on_the_border_lose_cells_and_focus() -> None:
    assert edge_closeness("B02") == edge_closeness("O23") == edge_closeness("H02") == 1.0 > edge_closeness("C03") > edge_closeness("H12")
    only = Effects(edge=HARD.edge, crowding=HARD.crowding)
    border, inner = ([well_effects(only, 0, experiment=f"U2OS-{number:02d}", plate=1, well=well) for number in range(1, 30)] for well in ("B12", "H12"))
    for outer, middle in zip(border, inner, strict=True):
        assert outer.cells < middle.cells < 1.001 and (outer.defocus > middle.defocus).all()
        assert outer.traits["nuclear_size"] > middle.traits["nuclear_size"]


def test_the_strength_of_phenotypes_drifts_slowly() -> None:
    only, numbers = Effects(drift=0.2), range(1, 41)
    strengths = np.log([well_effects(only, 0, experiment=f"U2OS-{number:02d}", plate=1, well="H12").phenotype for number in numbers])
    assert strengths.std() == pytest.approx(0.2, rel=0.15)
    assert np.corrcoef(strengths[:-1], strengths[1:])[0, 1] > 0.6
    along = [np.log(well_effects(only, 0, experiment="U2OS-01", plate=1, well=f"H{column:02d}").phenotype) for column in range(2, 24)]
    assert np.ptp(np.diff(along)) < 1e-9 < abs(along[-1] - along[0])


def test_untreated_cells_have_no_phenotype_to_drift(tmp_path: Path) -> None:
    one, other = (picture(tmp_path / str(drift), Effects(drift=drift), sirna=UNTREATED) for drift in (0.0, 1.0))
    np.testing.assert_array_equal(one, other)


def test_the_effects_of_hard_are_all_there() -> None:
    assert all(strength > 0 for strength in astuple(HARD))
    assert set(batch_effects.CROWDED) <= set(rendering.TRAITS) and set(PLATES["hard"].cell_types) <= set(CELL_TYPES)
