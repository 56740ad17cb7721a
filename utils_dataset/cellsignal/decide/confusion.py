"""Which siRNAs are taken for which, and whether plate groups keep them apart."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

MOST = 50  # pairs that are listed


def confusions(truth: pd.Series, given: pd.Series, groups: Sequence[Sequence[int]] = ()) -> dict[str, Any]:
    """The wrong answers, by pair of siRNAs and by plate group.

    `truth` and `given`: siRNAs, one a well (several runs may be stacked); a well without an answer does not count.
    Returns {"wells", "wrong", "pairs": the MOST pairs most often taken for one another, each {"sirnas", "wells": of both,
    "wrong": taken for the other, "same_group": bool or None}, "between": wrong answers [group of the truth, group of the
    answer], "over_chance": how many times as often as by chance a wrong answer is of the right group}.
    """
    known = truth.notna() & given.notna()
    true, said = truth[known].to_numpy(int), given[known].to_numpy(int)
    wrong = true != said
    group_of = {sirna: number for number, group in enumerate(groups) for sirna in group}
    return {
        "wells": int(known.sum()),
        "wrong": int(wrong.sum()),
        "pairs": _pairs(true, said, group_of),
        "between": _between(true[wrong], said[wrong], group_of, len(groups)).tolist(),
        "over_chance": _over_chance(true[wrong], said[wrong], group_of, groups),
    }


def matrix(truth: pd.Series, given: pd.Series, sirnas: Sequence[int], *, bins: int = 120) -> np.ndarray:
    """Wrong answers, counts [true siRNA, answered siRNA], in the order of `sirnas`; neighbours are pooled to at most `bins`."""
    place = pd.Series(np.arange(len(sirnas)) * min(bins, len(sirnas)) // max(len(sirnas), 1), index=sirnas)
    rows, columns = (values.map(place) for values in (truth, given))
    wrong = truth.ne(given).fillna(False) & rows.notna() & columns.notna()
    counts = np.zeros((min(bins, len(sirnas)),) * 2, dtype=int)
    np.add.at(counts, (rows[wrong].to_numpy(int), columns[wrong].to_numpy(int)), 1)
    return counts


def in_groups(sirnas: Sequence[int], groups: Sequence[Sequence[int]]) -> list[int]:
    """siRNAs ordered by plate group, and by number within each; those of no group last."""
    group_of = {sirna: number for number, group in enumerate(groups) for sirna in group}
    return sorted(sirnas, key=lambda sirna: (group_of.get(sirna, len(groups)), sirna))


def _pairs(true: np.ndarray, said: np.ndarray, group_of: dict[int, int]) -> list[dict[str, Any]]:
    wrong = true != said
    ends = pd.DataFrame({"low": np.minimum(true, said)[wrong], "high": np.maximum(true, said)[wrong]})
    counts = ends.value_counts().rename("wrong").reset_index().sort_values(["wrong", "low", "high"], ascending=[False, True, True])
    wells = pd.Series(true).value_counts()
    return [
        {"sirnas": [int(low), int(high)], "wells": int(wells.get(low, 0) + wells.get(high, 0)), "wrong": int(count),
         "same_group": group_of[low] == group_of[high] if {low, high} <= group_of.keys() else None}
        for low, high, count in counts.head(MOST).itertuples(index=False)
    ]


def _between(true: np.ndarray, said: np.ndarray, group_of: dict[int, int], groups: int) -> np.ndarray:
    counts = np.zeros((groups, groups), dtype=int)
    for one, other in zip(true.tolist(), said.tolist()):
        if one in group_of and other in group_of:
            counts[group_of[one], group_of[other]] += 1
    return counts


def _over_chance(true: np.ndarray, said: np.ndarray, group_of: dict[int, int], groups: Sequence[Sequence[int]]) -> float | None:
    """How many times as often as by chance a wrong answer is of the right group; None without groups or errors."""
    grouped = [(group_of[one], group_of[other]) for one, other in zip(true.tolist(), said.tolist()) if {one, other} <= group_of.keys()]
    others = len(group_of) - 1
    chance = np.mean([(len(groups[one]) - 1) / others for one, _ in grouped]) if grouped and others else 0.0
    return float(np.mean([one == other for one, other in grouped]) / chance) if chance else None
