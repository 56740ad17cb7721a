"""Statistics of accuracies: intervals, a paired test, and the correction for multiple tests."""

from collections.abc import Sequence
from math import sqrt

import numpy as np
import pandas as pd
from scipy.stats import binomtest, norm

LEVEL = 0.95
Interval = tuple[float, float]


def wilson(share: float, wells: int) -> Interval:
    """Confidence interval of a share of independent wells (Wilson, JASA 22:209, 1927); `share` may be a mean over runs."""
    z = float(norm.ppf((1 + LEVEL) / 2))
    middle, half = share + z * z / (2 * wells), z * sqrt(share * (1 - share) / wells + z * z / (4 * wells * wells))
    low, high = ((middle + sign * half) / (1 + z * z / wells) for sign in (-1, 1))
    return max(0.0, min(low, share)), min(1.0, max(high, share))  # rounding may exceed a share of 0 or 1


def bootstrap(
    values: np.ndarray, experiments: Sequence[str] | pd.Series, *, resample_experiments: bool = True, draws: int = 2000, seed: int = 0,
    level: float = LEVEL,
) -> Interval:
    """Bootstrap percentile interval of the mean of `values` [wells], such as paired differences of two runs.

    With `resample_experiments`, experiments are drawn with replacement and then wells within each: an interval for new
    experiments, slightly too wide rather than too narrow (Davison and Hinkley, Bootstrap Methods, 1997, section 3.8). Without,
    only wells are drawn: an interval for new wells of the same experiments. Experiments of all cell types are drawn together,
    because one or two experiments of a cell type have no spread of their own.
    """
    levels, code = np.unique(np.asarray(values, dtype=float), return_inverse=True)
    batch, names = pd.factorize(np.asarray(experiments))
    counts = np.zeros((len(names), len(levels)))
    np.add.at(counts, (batch, code), 1)
    wells = counts.sum(axis=1).astype(int)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(names), size=(draws, len(names))) if resample_experiments else np.tile(np.arange(len(names)), (draws, 1))
    # Drawing wells with replacement and counting their values is a draw from a multinomial distribution.
    sampled = rng.multinomial(wells[drawn], (counts / wells[:, None])[drawn])
    means = (sampled @ levels).sum(axis=1) / wells[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mcnemar(first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    """The numbers of wells that only the first and only the second run has right, and the p-value of McNemar's test.

    `first`, `second`: whether the prediction is right, bool [wells]. The exact, binomial, two-sided form (McNemar, Psychometrika
    12:153, 1947); it assumes independent wells.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    both = only_first + only_second
    return only_first, only_second, float(binomtest(only_first, both, 0.5).pvalue) if both else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for multiple tests by Holm's step-down method (Scand. J. Stat. 6:65, 1979), in their order."""
    values = np.asarray(p_values, dtype=float)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected.tolist()
