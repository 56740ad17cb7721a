"""What each step of the correction does to profiles whose plate effects are known."""

import numpy as np
import pandas as pd
import pytest
from tables import make_table

from cellsignal.errors import InputError
from cellsignal.profiles.correct import center, project, sphere, steps
from cellsignal.profiles.settings import ProfileSettings
from cellsignal.profiles.table import Profiles, from_frame


def plate_spread(profiles: Profiles) -> float:
    """The variance of the plates' means over perturbations that all of them have."""
    means = pd.DataFrame(profiles.features[profiles.treated]).groupby(profiles.plates[profiles.treated]).mean()
    return float(means.var().mean())


@pytest.mark.parametrize("on, controls", [("controls", "negative"), ("controls", "all"), ("plate", "all")])
def test_centring_removes_plate_effects(on: str, controls: str) -> None:
    profiles = from_frame(make_table(plate_effect=20.0, positive=6, untreated=3))
    assert plate_spread(profiles) > 100 > 1 > plate_spread(center(profiles, on=on, controls=controls))


def test_untreated_wells_have_the_mean_0_after_centring_on_any_controls() -> None:
    profiles = from_frame(make_table(positive=5, untreated=1))
    for controls in ("negative", "all"):
        centred = center(profiles, on="controls", controls=controls)
        np.testing.assert_allclose(centred.features[profiles.negative_controls].mean(axis=0), 0, atol=1e-5)
    alone = center(profiles, on="controls", controls="negative").features[profiles.negative_controls]
    np.testing.assert_allclose(alone, 0, atol=1e-5)  # one well a plate: nothing of it is left, and `all` is there for that


def test_plates_may_hold_different_positive_controls() -> None:
    """A control that a single plate has tells nothing of that plate's offset, and must not dilute what the others tell."""
    table = make_table(plate_effect=20.0, positive=6, untreated=2, seed=3)
    number = table["Metadata_Batch"].str[-1].astype(int) * 2 + table["Metadata_Plate"].astype(int)
    own = (table["Metadata_Control_Type"] != "poscon") | (table["Metadata_Perturbation"] == "p" + number.astype(str))
    profiles = from_frame(table[own])
    assert (profiles.wells["Metadata_Control_Type"] == "poscon").sum() == 6
    both = [center(profiles, on="controls", controls=controls).features for controls in ("negative", "all")]
    np.testing.assert_allclose(*both, atol=1e-3)


def test_plates_that_share_no_control_are_refused() -> None:
    table = make_table(plates=1, untreated=0, positive=2, plate_effect=20.0)
    own = table.assign(Metadata_Perturbation=table["Metadata_Perturbation"].where(table["Metadata_Control_Type"] != "poscon", table["Metadata_Perturbation"] + table["Metadata_Batch"]))
    with pytest.raises(InputError, match="plate 0 of batch-0 and plate 0 of batch-1 share no control, not even by .*; put the same controls, .*center: plate") as refused:
        center(from_frame(own), on="controls", controls="all")
    assert "\n" not in str(refused.value)
    own.loc[own["Metadata_Perturbation"].isin(["p0batch-0", "p0batch-1"]), "Metadata_Perturbation"] = "p0"
    own.loc[own["Metadata_Perturbation"].isin(["p1batch-1", "p1batch-2"]), "Metadata_Perturbation"] = "p1"
    assert np.isfinite(center(from_frame(own), on="controls", controls="all").features).all(), "the second plate connects the others"


def test_sphering_makes_the_variation_of_untreated_wells_alike_in_all_directions() -> None:
    profiles = center(from_frame(make_table(untreated=12, features=4)), on="controls", controls="negative")
    mixed = profiles.with_features((profiles.features @ np.diag([1, 5, 0.2, 30]) @ np.random.default_rng(0).normal(size=(4, 4))).astype(np.float32))
    sphered = sphere(mixed, controls="negative", regularisation=0.0).features[profiles.negative_controls]
    np.testing.assert_allclose(np.cov(sphered, rowvar=False), np.eye(4), atol=1e-3)


def test_sphering_on_all_controls_shrinks_variation_within_and_not_between_them() -> None:
    profiles = from_frame(make_table(positive=20, untreated=2, features=3, plate_effect=0))
    profiles = profiles.with_features(profiles.features * np.array([1, 1, 10], np.float32))
    sphered = sphere(profiles, controls="all", regularisation=0.0)
    chosen = (profiles.wells["Metadata_Control_Type"] == "poscon").to_numpy()
    within = pd.DataFrame(sphered.features[chosen]).groupby(profiles.perturbations[chosen]).var().mean()
    between = pd.DataFrame(sphered.features[chosen]).groupby(profiles.perturbations[chosen]).mean().var()
    assert within.between(0.8, 1.2).all() and (between > 4).all()


def test_unknown_treatments_are_many_treatments() -> None:
    table = make_table()
    table.loc[table["Metadata_Control_Type"] == "treatment", "Metadata_Perturbation"] = None
    assert np.isfinite(center(from_frame(table), on="plate", controls="all").features).all()


def test_projection_keeps_distances_and_the_origin() -> None:
    profiles = from_frame(make_table(features=5))
    all_of_them = project(profiles, 100)
    assert all_of_them.features.shape == profiles.features.shape and all_of_them.names[0] == "component_0"
    np.testing.assert_allclose(np.linalg.norm(all_of_them.features, axis=1), np.linalg.norm(profiles.features, axis=1), rtol=1e-4)
    assert (np.diff(all_of_them.features.var(axis=0)) <= 1e-4).all() and project(profiles, 2).features.shape[1] == 2


def test_every_step_may_be_left_out() -> None:
    profiles = from_frame(make_table())
    none = ProfileSettings(scale="none", center="none", components=0, sphering="none")
    [(name, same)] = steps(profiles, none)
    assert name == "uncorrected" and same is profiles
    assert [name for name, _ in steps(profiles, ProfileSettings())] == ["uncorrected", "centred", "components", "sphered"]
    assert [name for name, _ in steps(profiles, ProfileSettings(center="none", components=0))] == ["uncorrected", "sphered"]
