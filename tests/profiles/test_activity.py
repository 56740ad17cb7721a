"""Distances to untreated wells: treatments that do something are told from those that do nothing."""

import numpy as np
import pytest
from tables import make_table

from cellsignal.errors import InputError
from cellsignal.profiles import activity as activity_module
from cellsignal.profiles.activity import _random_means, activity
from cellsignal.profiles.correct import steps
from cellsignal.profiles.settings import ProfileSettings
from cellsignal.profiles.table import Profiles, from_frame


def centred(settings: ProfileSettings, **design: float) -> Profiles:
    *_, (_, profiles) = steps(from_frame(make_table(**design)), settings)
    return profiles


@pytest.mark.parametrize("center, controls, untreated", [("controls", "negative", 3), ("controls", "all", 1), ("plate", "all", 2), ("none", "all", 2)])
def test_p_values_of_treatments_that_do_nothing_are_no_smaller_than_chance(center: str, controls: str, untreated: int) -> None:
    settings = ProfileSettings(center=center, controls=controls, components=0, sphering="none", permutations=999)
    p_values = np.concatenate([
        activity(centred(settings, batches=6, plates=3, treatments=30, untreated=untreated, positive=4, effect=0.0, features=8,
                         plate_effect=0.0 if center == "none" else 3.0, seed=seed), settings).perturbations["p_value"]
        for seed in range(8)
    ])  # fmt: skip
    assert (p_values < 0.05).mean() < 0.08 and (p_values < 0.5).mean() > 0.1


def test_nor_where_the_replicates_of_a_treatment_share_a_plate() -> None:
    """They share the error of the plate's centre: of these p-values 13 % were below 0.05 while the null distribution did not."""
    settings, p_values = ProfileSettings(components=0, sphering="none", permutations=999), []
    for seed in range(4):
        table = make_table(batches=24, plates=1, treatments=30, untreated=6, effect=0.0, features=8, seed=seed)
        treated = table["Metadata_Control_Type"] == "treatment"
        number = table["Metadata_Perturbation"].str[1:].where(treated, "0").astype(int) // 3
        table.loc[treated, "Metadata_Perturbation"] = (table["Metadata_Batch"] + "_" + number.astype(str))[treated]
        *_, (_, profiles) = steps(from_frame(table), settings)
        p_values.append(activity(profiles, settings).perturbations["p_value"])
    p_values = np.concatenate(p_values)
    assert len(p_values) == 4 * 240 and (p_values < 0.05).mean() < 0.08 and 0.4 < (p_values < 0.5).mean() < 0.6


def test_means_of_random_wells_are_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    wells = np.random.default_rng(0).normal(size=(20, 3))
    whole = _random_means(wells, 4, 100, np.random.default_rng(1))
    monkeypatch.setattr(activity_module, "BLOCK", 7)
    np.testing.assert_allclose(_random_means(wells, 4, 100, np.random.default_rng(1)), whole, atol=1e-12)


def test_what_does_something_is_found() -> None:
    settings = ProfileSettings(components=0, sphering="none", permutations=999)
    found = activity(centred(settings, batches=4, treatments=20, effect=3.0, features=8), settings)
    assert found.active > 0.9 and found.perturbations["distance"].median() > 3 * np.median(found.null)
    weak = activity(centred(settings, batches=4, treatments=20, effect=0.3, features=8), settings)
    assert weak.active < found.active and weak.perturbations["distance"].median() < found.perturbations["distance"].median()


def test_too_few_untreated_wells_end_in_one_line() -> None:
    settings = ProfileSettings(components=0, sphering="none", controls="negative")
    with pytest.raises(InputError, match="6 untreated wells .* activity needs 8; add plates"):
        activity(from_frame(make_table(untreated=1)), settings)
    with pytest.raises(InputError, match="plate 0 of batch-0 is centred on a single untreated well"):
        activity(centred(settings, untreated=1, batches=6), settings)
