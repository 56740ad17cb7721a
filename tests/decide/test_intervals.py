"""Intervals and tests against libraries, and against what is known by hand."""

import numpy as np
import pytest
from scipy.stats import binomtest

from cellsignal.decide.evaluate.statistics import bootstrap, holm, mcnemar, wilson


@pytest.mark.parametrize(("right", "wells"), [(0, 7), (3, 7), (7, 7), (411, 1108)])
def test_wilson_is_scipys(right: int, wells: int) -> None:
    theirs = binomtest(right, wells).proportion_ci(method="wilson")
    assert wilson(right / wells, wells) == pytest.approx(tuple(theirs), abs=1e-12)


def test_holm_is_that_of_statsmodels() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    values = np.random.default_rng(0).random(40) ** 4
    assert holm(values) == pytest.approx(multitest.multipletests(values, method="holm")[1])
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06]) and holm([]) == []


def test_mcnemar_is_that_of_statsmodels() -> None:
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    rng = np.random.default_rng(1)
    first, second = rng.random(200) < 0.6, rng.random(200) < 0.7
    only_first, only_second, p = mcnemar(first, second)
    table = [[(first & second).sum(), only_first], [only_second, (~first & ~second).sum()]]
    assert p == pytest.approx(tables.mcnemar(table, exact=True).pvalue)
    assert mcnemar(first, first) == (0, 0, 1.0)
    assert mcnemar(np.ones(5, bool), np.zeros(5, bool)) == (5, 0, pytest.approx(2 / 32))


def test_wells_alone_give_the_interval_of_independent_wells() -> None:
    values = (np.arange(400) % 4 == 0).astype(float)
    low, high = bootstrap(values, np.repeat(["A", "B"], 200), resample_experiments=False, draws=4000)
    error = np.sqrt(0.25 * 0.75 / 400)
    assert (low, high) == pytest.approx((0.25 - 1.96 * error, 0.25 + 1.96 * error), abs=0.006)


def test_the_interval_for_experiments_covers_new_ones_and_the_one_for_wells_does_not() -> None:
    """Experiments better and worse by 0.1: of 100 studies of 8 experiments, how many intervals hold the true accuracy."""
    rng, names = np.random.default_rng(2), np.repeat(np.arange(8), 100)
    held = {True: 0, False: 0}
    for _ in range(100):
        right = rng.random(800) < 0.5 + rng.normal(0, 0.1, 8)[names]
        for whole in held:
            low, high = bootstrap(right, names, resample_experiments=whole, draws=300)
            held[whole] += low <= 0.5 <= high
    assert held[True] >= 85 and held[False] <= 75


def test_the_same_seed_draws_the_same_and_one_experiment_is_its_wells() -> None:
    values, one = np.random.default_rng(3).integers(-1, 2, 90), ["A"] * 90
    assert bootstrap(values, one, draws=200) == bootstrap(values, one, draws=200)
    assert bootstrap(values, one, draws=4000) == pytest.approx(bootstrap(values, one, resample_experiments=False, draws=4000), abs=0.03)
    assert bootstrap(np.zeros(9), list("AABBBCCCC"), draws=50) == (0.0, 0.0)
