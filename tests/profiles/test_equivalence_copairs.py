"""Retrieval against copairs, where it is installed: `pip install copairs`."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cellsignal.profiles.retrieval import average_precision, benjamini_hochberg, mean_null, mean_p_value, null_distribution

copairs = pytest.importorskip("copairs")
TABLES, PERMUTATIONS = 1000, 200


def test_1000_random_tables_have_the_same_precision_means_and_p_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Null distributions are random, and copairs' depend on what it has stored: both get ours."""
    from copairs import compute
    from copairs import map as copairs_map

    def same_null(designs: np.ndarray, null_size: int, **_: object) -> np.ndarray:
        return np.stack([null_distribution(int(positives), int(eligible), null_size, 0) for positives, eligible in designs])

    monkeypatch.setattr(compute, "get_null_dists", same_null)
    compared = without_ties = 0
    for seed in range(TABLES):
        random = np.random.default_rng(seed)
        count = int(random.integers(8, 40))
        wells = pd.DataFrame({"perturbation": random.integers(0, random.integers(2, 6), count), "batch": random.integers(0, 3, count)})
        features = random.normal(size=(count, int(random.integers(2, 20)))).astype(np.float32)
        ours = average_precision(features, wells["perturbation"].to_numpy(), {"none": None, "batch": wells["batch"].to_numpy()})
        for name, differ in (("none", []), ("batch", ["batch"])):
            mine = ours[name]
            if not ((mine["positives"] > 0) & (mine["eligible"] > mine["positives"])).any():
                continue
            theirs = copairs_map.average_precision(wells, features, ["perturbation"], differ, [], ["perturbation", *differ], progress_bar=False)
            known = mine["positives"].to_numpy() > 0
            assert (mine.loc[known, ["positives", "eligible"]].to_numpy() == theirs.loc[known, ["n_pos_pairs", "n_total_pairs"]].to_numpy()).all()
            np.testing.assert_allclose(mine.loc[known, "average_precision"], theirs.loc[known, "average_precision"], atol=1e-6)
            means = copairs_map.mean_average_precision(theirs, ["perturbation"], PERMUTATIONS, 0.05, 0, progress_bar=False, cache_dir=tmp_path)
            for row in means.itertuples():
                chosen = mine[known & (wells["perturbation"] == row.perturbation)]
                designs = chosen.groupby(["positives", "eligible"]).size()
                options = {"permutations": PERMUTATIONS, "seed": 0}
                assert abs(chosen["average_precision"].mean() - row.mean_average_precision) < 1e-6
                p_value = mean_p_value(row.mean_average_precision, list(designs.index), designs.to_numpy(), **options)
                equal = np.abs(mean_null(list(designs.index), designs.to_numpy(), **options) - row.mean_average_precision) < 2e-6
                assert -1e-6 <= p_value - row.p_value <= equal.sum() / (PERMUTATIONS + 1) + 1e-6, "copairs leaves out random values that are equal"
                without_ties += not equal.any()
            np.testing.assert_allclose(benjamini_hochberg(means["p_value"].to_numpy()), means["corrected_p_value"], atol=1e-6)
            compared += 1
    assert compared > 1.9 * TABLES and without_ties > 1000


def test_null_distributions_are_alike() -> None:
    from copairs.compute import random_ap

    for positives, eligible in ((1, 10), (5, 30), (20, 25), (3, 2000)):
        nulls = null_distribution(positives, eligible, 20_000, 0), random_ap(20_000, positives, eligible, 1)
        ours, theirs = (np.quantile(null, np.linspace(0.05, 0.95, 10)) for null in nulls)
        np.testing.assert_allclose(ours, theirs, rtol=0.05, atol=0.01)
