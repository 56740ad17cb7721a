"""Replicate retrieval against its definition, written out; p-values against chance."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import make_table

from cellsignal.errors import InputError
from cellsignal.profiles import retrieval
from cellsignal.profiles.correct import steps
from cellsignal.profiles.retrieval import average_precision, benjamini_hochberg, mean_p_value, null_distribution, retrieve
from cellsignal.profiles.settings import ProfileSettings
from cellsignal.profiles.table import from_frame


def by_definition(features: np.ndarray, labels: np.ndarray, group: np.ndarray | None, row: int) -> tuple[float, int, int, bool]:
    """Average precision from a list that is sorted by similarity, positives first among equal ones."""
    similarity = features @ features[row]
    eligible = [other for other in range(len(labels)) if other != row and (group is None or group[other] != group[row])]
    ranked = sorted(eligible, key=lambda other: (-similarity[other], labels[other] != labels[row]))
    hits = [labels[other] == labels[row] for other in ranked]
    precision = [sum(hits[: rank + 1]) / (rank + 1) for rank, hit in enumerate(hits) if hit]
    return (np.mean(precision), sum(hits), len(hits), hits[0]) if any(hits) else (np.nan, 0, len(hits), False)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 30), st.integers(2, 5), st.booleans())
def test_average_precision_is_that_of_a_sorted_list(seed: int, rows: int, kinds: int, ties: bool) -> None:
    random = np.random.default_rng(seed)
    features = random.choice([[1, 0], [0, 1], [-1, 0]], rows).astype(np.float32) if ties else random.normal(size=(rows, 4)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    labels, group = random.integers(0, kinds, rows), random.integers(0, 3, rows)
    for name, table in average_precision(features, labels, {"none": None, "group": group}).items():
        for row in range(rows):
            expected = by_definition(features, labels, None if name == "none" else group, row)
            assert tuple(table.iloc[row])[1:] == expected[1:]
            assert np.isclose(table.iloc[row, 0], expected[0], equal_nan=True, atol=1e-6)


def test_many_replicates_and_small_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    features, labels, group = random.normal(size=(400, 3)).astype(np.float32), random.integers(0, 2, 400), random.integers(0, 4, 400)
    tables = average_precision(features, labels, {"group": group})  # 200 replicates: above are counted by sorting
    monkeypatch.setattr(retrieval, "BLOCK_ROWS", 7)
    assert average_precision(features, labels, {"group": group})["group"].equals(tables["group"])
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    assert np.isclose(tables["group"].iloc[0, 0], by_definition(unit, labels, group, 0)[0], atol=1e-4)


def test_correction_lets_replicates_be_found_across_batches() -> None:
    profiles = from_frame(make_table(batches=4, plate_effect=8.0, effect=2.0, treatments=12, features=16))
    chosen = ProfileSettings(components=0, permutations=499)
    made = dict(steps(profiles, chosen))
    before, after = (retrieve(made[name], chosen, progress=False).summary.set_index("restriction") for name in ("uncorrected", "sphered"))
    assert list(after.index) == list(retrieval.RESTRICTIONS)
    assert (after["mean_average_precision"] > before["mean_average_precision"] + 0.3).all() and (after["recall_at_1"] > 0.9).all()
    assert (after["fraction_retrieved"] == 1).all() and np.isclose(after.loc["none", "chance_at_1"], 7 / 95)


def test_nothing_is_found_where_treatments_do_nothing() -> None:
    p_values = []
    for seed in range(5):
        profiles = from_frame(make_table(batches=5, plates=1, treatments=30, effect=0.0, plate_effect=0.0, seed=seed))
        p_values.append(retrieve(profiles, ProfileSettings(permutations=499), progress=False).perturbations.query("restriction == 'none'")["p_value"])
    p_values = np.concatenate(p_values)
    assert (p_values < 0.05).mean() < 0.1 and 0.3 < (p_values < 0.5).mean() < 0.7


@pytest.mark.parametrize("positives, eligible", [(1, 10), (3, 12), (12, 12), (5, 4000)])
def test_a_null_distribution_is_that_of_shuffled_rankings(positives: int, eligible: int) -> None:
    random = np.random.default_rng(1)
    ranks = np.sort(random.permuted(np.tile(np.arange(1, eligible + 1), (2000, 1)), axis=1)[:, :positives], axis=1)
    shuffled = (np.arange(1, positives + 1) / ranks).mean(axis=1)
    ours = null_distribution(positives, eligible, 4000, 0)
    assert np.isclose(ours.mean(), shuffled.mean(), rtol=0.12) and np.isclose(np.quantile(ours, 0.9), np.quantile(shuffled, 0.9), rtol=0.15)
    assert (ours == null_distribution.__wrapped__(positives, eligible, 4000, 0)).all()


def test_equal_random_values_count_in_a_p_value() -> None:
    """One positive among ten ranks first by chance in a tenth of all rankings."""
    assert 0.08 < mean_p_value(1.0, [(1, 10)], np.array([4]), permutations=4000, seed=0) < 0.12


def test_benjamini_hochberg() -> None:
    assert np.allclose(benjamini_hochberg(np.array([0.01, 0.04, 0.03, 0.005])), [0.02, 0.04, 0.04, 0.02])


@pytest.mark.parametrize("treatments", [0, 1])
def test_retrieval_needs_two_treatments(treatments: int) -> None:
    with pytest.raises(InputError, match=f"{treatments} treatments of known perturbation; retrieval needs two"):
        retrieve(from_frame(make_table(treatments=treatments)), progress=False)
    with pytest.raises(InputError, match="no treatment is in two wells"):
        retrieve(from_frame(make_table(batches=1, plates=1)), progress=False)


def test_one_feature_finds_nothing() -> None:
    """Half of all wells have the same cosine similarity, 1, and among equal ones replicates come first."""
    with pytest.raises(InputError, match="a single feature, so that every cosine similarity is 1 or -1; give or keep two"):
        retrieve(from_frame(make_table(features=1)), progress=False)


@pytest.mark.parametrize("unit", [1e30, 1e-30])
def test_very_large_and_very_small_features_rank_alike(unit: float) -> None:
    """Their squares are no numbers of float32."""
    random = np.random.default_rng(0)
    features, labels = random.normal(size=(20, 5)).astype(np.float32), np.arange(20) % 4
    exact = np.float32(2.0 ** round(np.log2(unit)))
    assert average_precision(features * exact, labels)["none"].equals(average_precision(features, labels)["none"])
