"""From scores to one siRNA per well, using what the experimental design tells.

Each treatment siRNA stands in one well of an experiment, and the four plates of an experiment
carry four fixed groups of siRNAs (Brodt's solution: "in one experiment there is only one class", "classes
divided equally in 4 plates"). Both are solved exactly, as linear assignment problems.
"""

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from scipy.special import logsumexp

from cellsignal.errors import InputError

METHODS = ("raw", "exact")
IMPOSSIBLE = -1e6  # stands for -inf, which would make the assignment problem infeasible


def assign(scores: pd.DataFrame, wells: pd.DataFrame, *, method: str = "exact",
           groups: list[list[int]] | None = None) -> pd.Series:
    """Choose a siRNA for every well.

    `scores`: index id_code, columns class numbers, log-probabilities. `wells` tells the experiment
    and plate of each id_code. `method`: "raw" takes the most likely class of each well; "exact" the
    one-to-one assignment with the largest summed log-probability, per plate with `groups`, per
    experiment without. `groups`: the plate groups, lists of class numbers; None for none.

    Returns siRNA by id_code, in the order of `scores`. Raises InputError when a well is unknown or
    a plate has more wells than classes.
    """
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}", where="assignment", cure=f"use one of: {', '.join(METHODS)}")
    places = locate(scores, wells)
    chosen = [
        _assign_experiment(scores.loc[place.index], place["plate"], method=method, groups=groups or [])
        for _, place in places.groupby("experiment", sort=False)
    ]
    return pd.concat(chosen).reindex(scores.index).rename("sirna")


def locate(scores: pd.DataFrame, wells: pd.DataFrame) -> pd.DataFrame:
    """Experiment and plate of every scored well; InputError names one that `wells` does not have."""
    places = wells.set_index("id_code")[["experiment", "plate"]].reindex(scores.index)
    unknown = places.index[places["plate"].isna()]
    if len(unknown):
        raise InputError(f"well {unknown[0]} is not in the data set ({len(unknown)} such)", where="scores",
                         cure="give the data set that these scores belong to")
    return places.astype({"plate": int})


def _assign_experiment(scores: pd.DataFrame, plates: pd.Series, *, method: str, groups: list[list[int]]) -> pd.Series:
    if not groups:
        return _assign_block(scores, method)
    group_of_plate = choose_groups(scores, plates, groups=groups)
    blocks = []
    for plate, block in scores.groupby(plates.to_numpy()):
        allowed = [sirna for sirna in groups[group_of_plate[plate]] if sirna in block.columns]
        blocks.append(_assign_block(block[allowed], method))
    return pd.concat(blocks)


def choose_groups(scores: pd.DataFrame, plates: pd.Series, *, groups: list[list[int]]) -> dict[int, int]:
    """Which group lies on which plate of one experiment: the most likely of all permutations.

    The log-likelihood of a group on a plate is the sum over wells of the probability that the
    network gives to the group's classes together; the best permutation of groups is itself a
    small assignment problem, so none of the 24 need be tried.
    """
    likelihood = group_likelihood(scores, plates, groups=groups)
    rows, columns = linear_sum_assignment(likelihood.to_numpy(), maximize=True)
    return {int(likelihood.index[row]): int(column) for row, column in zip(rows, columns, strict=True)}


def group_likelihood(scores: pd.DataFrame, plates: pd.Series, *, groups: list[list[int]]) -> pd.DataFrame:
    """Log-likelihood of each group (column) on each plate (row) of one experiment."""
    # A column of IMPOSSIBLE stands in where no siRNA of a group is scored.
    padded = scores.assign(**{"": IMPOSSIBLE})
    per_well = np.column_stack([
        logsumexp(padded.loc[:, padded.columns.isin([*group, ""])], axis=1) for group in groups
    ])
    table = pd.DataFrame(np.maximum(per_well, IMPOSSIBLE), index=plates.to_numpy()).groupby(level=0).sum()
    if len(table) > len(groups):
        raise InputError(f"{len(table)} plates but {len(groups)} plate groups", where="experiment",
                         cure="assign without groups (--no-groups)")
    return table


def _assign_block(scores: pd.DataFrame, method: str) -> pd.Series:
    values = np.maximum(scores.to_numpy(np.float64), IMPOSSIBLE)
    if scores.shape[1] < (len(values) if method == "exact" else 1):
        raise InputError(f"{len(values)} wells share {scores.shape[1]} scored siRNAs", where=f"well {scores.index[0]}",
                         cure="score every siRNA of the plate, or use the method raw without groups")
    if method == "raw":
        return pd.Series(scores.columns[values.argmax(1)], index=scores.index)
    rows, columns = linear_sum_assignment(values, maximize=True)
    return pd.Series(scores.columns[columns], index=scores.index[rows])
