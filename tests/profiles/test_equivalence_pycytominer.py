"""Sphering and centring against pycytominer, where it is installed: `pip install pycytominer`."""

import numpy as np
import pandas as pd
import pytest
from tables import make_table

from cellsignal.profiles.correct import center, sphere
from cellsignal.profiles.table import from_frame

pytest.importorskip("pycytominer")


def test_sphering_on_untreated_wells_is_spherize_on_1000_random_tables() -> None:
    from pycytominer.operations.transform import Spherize

    for seed in range(1000):
        features = 2 + seed % 9
        profiles = from_frame(make_table(treatments=3, untreated=4, features=features, seed=seed))
        theirs = Spherize(method="ZCA", epsilon=0, return_numpy=True).fit(pd.DataFrame(profiles.features[profiles.negative_controls].astype(float)))
        ours = sphere(profiles, controls="negative", regularisation=0.0).features
        expected = theirs.transform(pd.DataFrame(profiles.features.astype(float)))
        np.testing.assert_allclose(ours, expected, atol=1e-6 * max(1, np.abs(expected).max()))


def test_centring_on_untreated_wells_is_normalize_plate_by_plate() -> None:
    from pycytominer import normalize

    table = make_table()
    profiles = from_frame(table)
    ours = center(profiles, on="controls", controls="negative").features
    for plate in np.unique(profiles.plates):
        rows = profiles.plates == plate
        expected = normalize(
            profiles.frame()[rows], features=profiles.names, meta_features=list(profiles.wells), samples="Metadata_Control_Type == 'negcon'",
            method="standardize")  # fmt: skip
        scale = profiles.features[rows & profiles.negative_controls].std(axis=0)
        np.testing.assert_allclose(ours[rows], expected[profiles.names].to_numpy() * scale, atol=1e-5)
