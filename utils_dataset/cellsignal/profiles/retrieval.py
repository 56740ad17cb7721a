"""Replicate retrieval: whether the wells of a perturbation find each other among the wells of all others.

Each well is a query. The other wells are ranked by their cosine similarity to it; those of the same perturbation are the
positives. Average precision, its mean over the wells of a perturbation and the p-values are defined as in copairs (Kalinin et al.
2025, doi:10.1038/s41467-025-60306-2): among equal similarities positives come first.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from cellsignal.errors import InputError
from cellsignal.profiles.settings import ProfileSettings
from cellsignal.profiles.table import BATCH, PERTURBATION, WELL, Profiles
from cellsignal.progress_bars import progress_bar
from cellsignal.provenance import cores

# What a query may not be compared with, by the column that would be the same: easy retrieval can be that of the plate.
RESTRICTIONS = {"none": None, "not the same batch": BATCH, "not the same well position": WELL}
TIE = 1e-6  # values that differ by less are equal
BLOCK_ROWS = 1024  # queries at once: 0.2 GB of similarities to 56,000 wells


class Retrieval(NamedTuple):
    """What retrieval found, by restriction in the column `restriction`."""

    summary: pd.DataFrame  # a row per restriction: wells, perturbations, mean_average_precision, recall_at_1, chance_at_1, fraction_retrieved
    perturbations: pd.DataFrame  # a row per perturbation: wells, mean_average_precision, recall_at_1, p_value, corrected_p_value


def retrieve(profiles: Profiles, settings: ProfileSettings = ProfileSettings(), *, progress: bool = True) -> Retrieval:
    """Retrieval between the treated wells of a table, under each restriction that leaves any replicates.

    InputError where no perturbation has two wells, or there is only one perturbation or one feature.
    """
    wells = profiles.wells[profiles.treated].reset_index(drop=True)
    labels = profiles.perturbations[profiles.treated]
    counts = np.unique(labels, return_counts=True)[1]
    if len(counts) < 2 or counts.max() < 2:
        what = "no treatment is in two wells" if len(counts) > 1 else f"{len(counts)} treatments of known perturbation"
        raise InputError(
            what, where=profiles.where, cure="retrieval needs two treatments, and replicates; mark them with Metadata_Control_Type treatment, and name them in Metadata_Perturbation")
    if profiles.features.shape[1] < 2:
        raise InputError("a single feature, so that every cosine similarity is 1 or -1", where=profiles.where, cure="give or keep two features or components")
    groups = {name: None if column is None else pd.factorize(wells[column])[0] for name, column in RESTRICTIONS.items()}
    precision = average_precision(profiles.features[profiles.treated], labels, groups, progress=progress)
    tables = [_by_perturbation(table, wells[PERTURBATION], settings).assign(restriction=name) for name, table in precision.items()]
    perturbations = pd.concat([table for table in tables if len(table)], ignore_index=True)
    summary = [_summary(table, perturbations[perturbations["restriction"] == name], settings, name) for name, table in precision.items()]
    return Retrieval(pd.DataFrame([row for row in summary if row["wells"]]), perturbations)


def average_precision(
    features: np.ndarray, labels: np.ndarray, groups: Mapping[str, np.ndarray | None] = {"none": None}, *, progress: bool = False
) -> dict[str, pd.DataFrame]:
    """Average precision of each row of features [N, F] by name of a restriction.

    labels: int[N], rows with the same one are positives. groups: int[N] by restriction, rows of the same group are left out of
    the ranking; None leaves out none. Columns: average_precision (NaN without positives), positives, eligible (positives and
    negatives), first (whether a positive ranks first).
    """
    features = np.asarray(features, np.float32)
    features = np.ldexp(features, -np.frexp(np.abs(features).max(axis=1, keepdims=True))[1])  # exact, and squares neither overflow nor vanish
    features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    replicates = _members(labels)
    excluded = {name: None if group is None else _members(group) for name, group in groups.items()}
    results = {name: np.full((len(features), 4), np.nan) for name in groups}

    def rank(row: int, similarity: np.ndarray) -> None:
        positives = replicates[labels[row]]
        positives = positives[positives != row]
        positives = positives[np.argsort(similarity[positives])]
        above = _count_above(similarity, similarity[positives])
        for name, group in groups.items():
            allowed = np.full(len(positives), True) if group is None else group[positives] != group[row]
            others = np.array([row]) if group is None else excluded[name][group[row]]
            results[name][row] = _precision(similarity, positives[allowed], above[allowed], others)

    def rank_share(start: int, similarities: np.ndarray, share: int) -> None:
        for number in range(share, len(similarities), workers):
            rank(start + number, similarities[number])

    workers = cores()
    similarities = np.empty((min(BLOCK_ROWS, len(features)), len(features)), np.float32)  # one for all blocks: new memory costs time
    bar = progress_bar(total=len(features), unit="well", desc="retrieval", disable=not progress)
    with bar, ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(features), BLOCK_ROWS):
            queries = features[start : start + BLOCK_ROWS]
            block = np.matmul(queries, features.T, out=similarities[: len(queries)])
            list(pool.map(partial(rank_share, start, block), range(workers)))
            bar.update(len(block))
    columns = ("average_precision", "positives", "eligible", "first")
    return {name: pd.DataFrame(values, columns=columns).astype({"positives": int, "eligible": int, "first": bool}) for name, values in results.items()}


def _members(groups: np.ndarray) -> list[np.ndarray]:
    """The rows of each group, by its number."""
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.cumsum(np.bincount(groups))[:-1])


def _count_above(similarity: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """How many values exceed each of some rising thresholds; comparisons with ever fewer values are faster than sorting."""
    if len(thresholds) > 100:
        return len(similarity) - np.searchsorted(np.sort(similarity), thresholds, side="right")
    counts = np.empty(len(thresholds), int)
    for number, threshold in enumerate(thresholds):
        larger = similarity > threshold
        counts[number] = np.count_nonzero(larger)
        if 4 * counts[number] < len(similarity):
            similarity = similarity[np.flatnonzero(larger)]
    return counts


def _precision(similarity: np.ndarray, positives: np.ndarray, above: np.ndarray, excluded: np.ndarray) -> tuple[float, int, int, bool]:
    """Average precision, numbers of positives and of eligible rows, and whether a positive is first, of one query.

    positives: rising by similarity. above: how many rows are more similar than each, among them positives and `excluded` ones.
    """
    eligible = len(similarity) - len(excluded)
    if not len(positives):
        return np.nan, 0, eligible, False
    thresholds, no_negatives = similarity[positives], np.sort(similarity[np.concatenate([excluded, positives])])
    above = above - (len(no_negatives) - np.searchsorted(no_negatives, thresholds, side="right"))
    ranks = np.arange(len(positives), 0, -1)
    return (ranks / (ranks + above)).mean(), len(positives), eligible, above[-1] == 0


def _by_perturbation(table: pd.DataFrame, names: pd.Series, settings: ProfileSettings) -> pd.DataFrame:
    """Mean average precision and p-values by perturbation, of those with positives."""
    table = table.assign(perturbation=names.to_numpy())[table["positives"] > 0]
    if not len(table):
        return pd.DataFrame()
    groups = table.groupby("perturbation", sort=True)
    found = groups.agg(wells=("positives", "size"), mean_average_precision=("average_precision", "mean"), recall_at_1=("first", "mean")).reset_index()
    designs = [group.groupby(["positives", "eligible"]).size() for _, group in groups]
    found["p_value"] = [
        mean_p_value(value, list(sizes.index), sizes.to_numpy(), permutations=settings.permutations, seed=settings.seed)
        for value, sizes in zip(found["mean_average_precision"], designs)
    ]
    found["corrected_p_value"] = benjamini_hochberg(found["p_value"].to_numpy())
    return found


def _summary(table: pd.DataFrame, perturbations: pd.DataFrame, settings: ProfileSettings, name: str) -> dict[str, object]:
    table = table[table["positives"] > 0]
    return {
        "restriction": name,
        "wells": len(table),
        "perturbations": len(perturbations),
        "mean_average_precision": perturbations["mean_average_precision"].mean(),
        "recall_at_1": table["first"].mean(),
        "chance_at_1": (table["positives"] / table["eligible"]).mean(),
        "fraction_retrieved": (perturbations["corrected_p_value"] <= settings.significance).mean(),
    }


# p-values: a null distribution depends only on how many positives are among how many rows, so wells, restrictions and tables share it.


def mean_p_value(value: float, designs: Sequence[tuple[int, int]], wells: np.ndarray, *, permutations: int, seed: int) -> float:
    """The p-value of a mean average precision of `wells` wells for each of some designs (positives, eligible).

    Wells of one design share their random rankings, as in copairs: the null distribution is then as wide as that of one well, which
    is right for replicates that rank alike, and cautious for others. Unlike in copairs, random values as large as `value` count:
    one positive among ten wells ranks first in a tenth of all rankings.
    """
    null = mean_null(designs, wells, permutations=permutations, seed=seed)
    return float((np.count_nonzero(null > value - TIE) + 1) / (permutations + 1))


def mean_null(designs: Sequence[tuple[int, int]], wells: np.ndarray, *, permutations: int, seed: int) -> np.ndarray:
    """The null distribution of such a mean, float64[permutations]."""
    return sum(count * null_distribution(*design, permutations, seed).astype(float) for design, count in zip(designs, wells)) / wells.sum()


@lru_cache(maxsize=2048)
def null_distribution(positives: int, eligible: int, permutations: int, seed: int) -> np.ndarray:
    """Average precision of `permutations` random rankings of `eligible` rows, float32; the same for the same arguments."""
    random = np.random.default_rng([seed, positives, eligible])
    ranks = np.empty((positives, permutations), np.int32)
    for number, last in enumerate(range(eligible - positives, eligible)):  # Floyd's sampling without replacement
        drawn = random.integers(0, last + 1, size=permutations, dtype=np.int32)
        ranks[number] = np.where((ranks[:number] == drawn).any(axis=0), last, drawn)
    return (np.arange(1, positives + 1)[:, None] / (np.sort(ranks, axis=0) + 1)).mean(axis=0).astype(np.float32)


def benjamini_hochberg(p_values: np.ndarray) -> np.ndarray:
    """p-values corrected for the false discovery rate (Benjamini and Hochberg 1995)."""
    order = np.argsort(p_values)[::-1]
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum.accumulate(p_values[order] * len(p_values) / np.arange(len(p_values), 0, -1))
    return np.minimum(corrected, 1)
