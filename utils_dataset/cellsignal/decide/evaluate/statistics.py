"""How sure a difference between two accuracies is: intervals, a test, and its correction for many pairs."""

from collections.abc import Sequence
from math import sqrt

import numpy as np
import pandas as pd
from scipy.stats import binomtest, norm

LEVEL = 0.95
Interval = tuple[float, float]


def wilson(share: float, wells: int) -> Interval:
    """Interval of a share of independent wells (Wilson, JASA 22:209, 1927); `share` may be a mean over runs."""
    z = float(norm.ppf((1 + LEVEL) / 2))
    middle, half = share + z * z / (2 * wells), z * sqrt(share * (1 - share) / wells + z * z / (4 * wells * wells))
    low, high = ((middle + sign * half) / (1 + z * z / wells) for sign in (-1, 1))
    return max(0.0, min(low, share)), min(1.0, max(high, share))  # rounding may put an end beyond a share of 0 or 1


def bootstrap(
    values: np.ndarray, experiments: Sequence[str] | pd.Series, *, whole: bool = True, draws: int = 2000, seed: int = 0,
    level: float = LEVEL,
) -> Interval:
    """Percentile interval of the mean of `values` [wells], such as differences of two runs well by well.

    With `whole`, experiments are drawn with replacement and then wells within each: what to expect of new experiments,
    a little too wide rather than too narrow (Davison and Hinkley, Bootstrap Methods, 1997, section 3.8). Without, only
    wells: what to expect of new wells of these very experiments. Experiments of all cell types are drawn from one urn,
    because a cell type with one or two of them shows no spread of its own.
    """
    levels, code = np.unique(np.asarray(values, dtype=float), return_inverse=True)
    batch, names = pd.factorize(np.asarray(experiments))
    counts = np.zeros((len(names), len(levels)))
    np.add.at(counts, (batch, code), 1)
    wells = counts.sum(axis=1).astype(int)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(names), size=(draws, len(names))) if whole else np.tile(np.arange(len(names)), (draws, 1))
    # Drawing wells with replacement and counting their values is one draw from a multinomial.
    found = rng.multinomial(wells[drawn], (counts / wells[:, None])[drawn])
    means = (found @ levels).sum(axis=1) / wells[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mcnemar(first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    """Wells that only the first and only the second run has right, and the probability of so uneven a split.

    `first`, `second`: right or not, bool [wells]. The exact, binomial, two-sided form (McNemar, Psychometrika 12:153, 1947).
    It takes wells for independent.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    both = only_first + only_second
    return only_first, only_second, float(binomtest(only_first, both, 0.5).pvalue) if both else 1.0


def holm(probabilities: Sequence[float]) -> list[float]:
    """Probabilities corrected for being many, by Holm's step-down (Scand. J. Stat. 6:65, 1979), in their order."""
    values = np.asarray(probabilities, dtype=float)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected.tolist()
