"""One siRNA per well: optimal, one-to-one, within the plate's group, whatever is missing."""

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellsignal.decide.assign import assign, choose_groups, group_likelihood
from cellsignal.errors import InputError

GROUPS = [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]


def experiment(*, seed: int = 0, signal: float = 3.0, rotation: tuple[int, ...] = (2, 3, 0, 1)):
    """Scores, wells and truth of one experiment: 4 plates of 3 wells, 12 classes."""
    rng = np.random.default_rng(seed)
    truth = [sirna for group in rotation for sirna in rng.permutation(GROUPS[group])]
    plates = np.repeat([1, 2, 3, 4], 3)
    ids = [f"HUVEC-01_{plate}_B{2 + i % 3:02d}" for i, plate in enumerate(plates)]
    logits = rng.normal(size=(12, 12))
    logits[np.arange(12), truth] += signal
    scores = pd.DataFrame(logits - np.logaddexp.reduce(logits, 1, keepdims=True), index=ids, columns=range(12))
    wells = pd.DataFrame({"id_code": ids, "experiment": "HUVEC-01", "plate": plates})
    return scores, wells, pd.Series(truth, index=ids)


def test_raw_takes_the_most_likely_class() -> None:
    scores, wells, _ = experiment()
    assert assign(scores, wells, method="raw").tolist() == scores.idxmax(axis=1).tolist()


def test_exact_is_the_best_of_all_one_to_one_assignments() -> None:
    scores, wells, _ = experiment(signal=0.5)
    chosen = assign(scores, wells, method="exact", groups=GROUPS)
    picked = choose_groups(scores, wells["plate"].set_axis(scores.index), groups=GROUPS)
    for plate, block in scores.groupby(wells["plate"].to_numpy()):
        totals = [sum(block.loc[id_code, sirna] for id_code, sirna in zip(block.index, order))
                  for order in permutations(GROUPS[picked[plate]])]
        assert sum(block.loc[i, chosen[i]] for i in block.index) == pytest.approx(max(totals))


def test_groups_are_the_best_of_all_24_permutations() -> None:
    scores, wells, _ = experiment(signal=1.0, rotation=(3, 1, 0, 2))
    plates = wells["plate"].set_axis(scores.index)
    likelihood = group_likelihood(scores, plates, groups=GROUPS).to_numpy()
    best = max(permutations(range(4)), key=lambda order: likelihood[range(4), order].sum())
    assert tuple(choose_groups(scores, plates, groups=GROUPS).values()) == best


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), missing=st.integers(0, 6))
def test_nothing_is_assigned_twice_and_order_does_not_matter(seed: int, missing: int) -> None:
    scores, wells, _ = experiment(seed=seed, signal=1.0)
    kept = np.random.default_rng(seed).permutation(12)[missing:]
    chosen = assign(scores.iloc[kept], wells, method="exact", groups=GROUPS)
    assert chosen.is_unique and chosen.index.equals(scores.index[kept])
    again = assign(scores.iloc[sorted(kept)], wells, method="exact", groups=GROUPS)
    assert again.reindex(chosen.index).equals(chosen)


def test_without_groups_a_siRNA_stands_once_in_the_whole_experiment() -> None:
    scores, wells, _ = experiment(signal=0.3)
    assert assign(scores, wells, method="exact").is_unique


def test_minus_infinity_is_chosen_only_when_nothing_else_is_left() -> None:
    scores, wells, truth = experiment()
    scores.iloc[0, scores.columns != truth.iloc[0]] = -np.inf
    chosen = assign(scores, wells, method="exact", groups=GROUPS)
    assert chosen.iloc[0] == truth.iloc[0] and chosen.is_unique


def test_faults_are_named() -> None:
    scores, wells, _ = experiment()
    with pytest.raises(InputError, match="unknown method 'best'.*raw, exact"):
        assign(scores, wells, method="best")
    with pytest.raises(InputError, match="well HUVEC-01_1_B02 is not in the data set"):
        assign(scores, wells.iloc[1:])
    with pytest.raises(InputError, match="12 wells share 3 scored siRNAs"):
        assign(scores[[0, 1, 2]], wells, method="exact")
    with pytest.raises(InputError, match="4 plates but 2 plate groups"):
        assign(scores, wells, groups=GROUPS[:2])
