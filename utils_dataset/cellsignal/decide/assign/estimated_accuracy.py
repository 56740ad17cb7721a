"""Accuracy without labels, from the plate groups: a right answer lies in the group of its plate, a wrong one only by chance.

With the share s of answers that lie in the groups of their plates, and the chance b that a wrong answer does, the accuracy is
(s - b) / (1 - b). Networks that favour some siRNAs favour their groups, so b comes from how often each group is answered on other plates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cellsignal.decide.assign.groups import GroupChoice

PRIOR_ANSWERS = 10  # wrong answers, evenly over the groups, added to those from which the chance is estimated
MAX_CHANCE = 0.99  # of a wrong answer to lie in its plate's group; with one group alone it is 1, and tells nothing
MIN_OUTSIDE = 0.01  # least share of answers outside their plates' groups; below it the groups tell nothing more about the answers
CONTRADICTION_ERRORS = 3.0  # standard errors by which an estimate may exceed the share of distinct siRNAs
MIN_KNOWN = 0.95  # least share of wells with a known siRNA for the true accuracy to stand beside the estimate
LEVELS = ("all", "cell_type", "experiment")


def chance_in_group(counts: np.ndarray, wells: np.ndarray, plate_posterior: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Probability [groups] that a wrong answer on a plate of the group lies in it, from the answers on plates that have another group.

    `counts`: answers by plate and group; `wells`: by plate, also those whose answer is in no group; `plate_posterior`: probability of each
    group on each plate; `sizes`: number of siRNAs in each group, of which one is the right answer to a well and no wrong one. Groups with no
    other plate get the mean of the others.
    """
    groups = counts.shape[1]
    elsewhere, wrong = wells @ (1 - plate_posterior), ((1 - plate_posterior) * counts).sum(0)
    popularity = np.divide(wrong, elsewhere, out=np.full(groups, np.nan), where=elsewhere > 1e-9)
    popularity = np.where(np.isnan(popularity), np.nanmean(popularity) if (elsewhere > 1e-9).any() else 1.0, popularity)
    no_group = wells.sum() - counts.sum()
    total = popularity.sum() + no_group / wells.sum()
    share = popularity / total if total > 0 else popularity
    num_wrong = wrong.sum() + no_group
    elsewhere_share = (share * num_wrong + PRIOR_ANSWERS / groups) / (num_wrong + PRIOR_ANSWERS)
    right = elsewhere_share / np.maximum(sizes, 1)
    return (elsewhere_share - right) / np.maximum(1 - right, 1e-9)


@dataclass(frozen=True)
class GroupEvidence:
    """What the plate groups tell about the answers to some wells."""

    wells: int
    group_share: float  # of the answers that lie in their plate's group
    chance: float  # the same of wrong answers
    accuracy: float  # estimated
    variance: float  # of the estimate
    distinct: int  # the most answers that can be right: the number of different ones where a siRNA has one well

    @property
    def obstacle(self) -> str:
        """Why the accuracy cannot be measured; "" if it can."""
        share = f"{self.group_share:.3f} of the answers lie in their plates' groups"
        if self.accuracy - CONTRADICTION_ERRORS * np.sqrt(self.variance) > self.distinct / self.wells:
            return f"not measurable: {share}, but only {self.distinct / self.wells:.3f} of them can be right, one for each siRNA: the groups were used"
        return f"not measurable: {share}: the groups were used, or hardly an answer is wrong" if self.group_share > 1 - MIN_OUTSIDE else ""


def group_evidence(answers: np.ndarray, groups: np.ndarray, plates: np.ndarray, choice: GroupChoice, *, sizes: np.ndarray) -> GroupEvidence:
    """The estimate for one experiment, with its permutations of groups weighted by their posterior.

    `answers`: siRNA of each well; `groups`: group of each answer, -1 for none; `plates`: index of each well's plate in `choice`; `sizes`: number of
    siRNAs in each group. The likeliest permutation alone would overestimate answers near chance, because it is the one that fits noise best.

    Variance, by the delta method: s (1 - s) / (n (1 - b)^2) for n wells, times the overdispersion of wrong answers over plates (at least
    1), because a siRNA that is answered for many wells is not answered independently; plus the variance between permutations. It is that of
    the accuracy on wells like these; how many of these very wells are right differs from the estimate by about three quarters of it.
    """
    posterior, num_wells = choice.plate_posterior, np.bincount(plates, minlength=len(choice.group_on_plate))
    in_group = groups >= 0
    counts = np.zeros(posterior.shape)
    np.add.at(counts, (plates[in_group], groups[in_group]), 1)
    wrong_share = chance_in_group(counts, num_wells, posterior, sizes)
    share, chance = (counts * posterior).sum() / len(answers), min(float(num_wells @ (posterior @ wrong_share)) / len(answers), MAX_CHANCE)
    every_plate = np.arange(len(num_wells))
    shares = counts[every_plate, choice.permutations].sum(1) / len(answers)
    chances = np.minimum(wrong_share[choice.permutations] @ num_wells / len(answers), MAX_CHANCE)
    accuracy = float((share - chance) / (1 - chance))
    between = float(choice.posterior @ ((shares - chances) / (1 - chances) - accuracy) ** 2)
    smoothed = (share * len(answers) + 1) / (len(answers) + 2)
    within = smoothed * (1 - smoothed) / len(answers) / (1 - chance) ** 2 * _overdispersion(answers, groups, plates, choice)
    one_well_each = (num_wells <= sizes[list(choice.group_on_plate)]).all()  # else there are replicates, and a siRNA may be right in several
    return GroupEvidence(len(answers), float(share), chance, accuracy, within + between, len(np.unique(answers)) if one_well_each else len(answers))


def _overdispersion(answers: np.ndarray, groups: np.ndarray, plates: np.ndarray, choice: GroupChoice) -> float:
    """Pearson's statistic over its expectation, of the plates of answers that are wrong under the likeliest permutation; at least 1."""
    wrong = (groups >= 0) & (np.array(choice.group_on_plate)[plates] != groups)
    _, numbers = np.unique(answers[wrong], return_inverse=True)
    if not len(numbers):
        return 1.0
    counts = np.zeros((numbers.max() + 1, len(choice.group_on_plate)))
    np.add.at(counts, (numbers, plates[wrong]), 1)
    group = np.zeros(len(counts), int)
    group[numbers] = groups[wrong]
    allowed = (np.array(choice.group_on_plate) != group[:, None]) * np.bincount(plates, minlength=counts.shape[1])
    share = allowed / allowed.sum(1, keepdims=True)
    expected = counts.sum(1, keepdims=True) * share
    variance = (expected * (1 - share)).sum()
    return max(1.0, float(((counts - expected) ** 2).sum() / variance)) if variance > 0 else 1.0


def estimate_accuracy(
    answers: Mapping[str, pd.Series], wells: pd.DataFrame, *, groups: Sequence[Sequence[int]], choices: Mapping[str, GroupChoice],
    truth: pd.Series | None = None,
) -> pd.DataFrame:
    """Accuracy of raw answers without labels, with standard errors: one row per rung, and in all, by cell type and by experiment.

    `answers`: by rung, siRNA by id_code, chosen without the groups; `wells`: has experiment, cell type and plate of each id_code;
    `groups`: class numbers that share a plate; `choices`: by experiment, from `Decision.choices`; `truth`: siRNA by id_code, where known.

    Columns: rung; level ("all" | "cell_type" | "experiment"); name; wells; group_share (of the answers in the groups of their plates);
    chance (the same of wrong answers); estimated_accuracy and standard_error (NaN if not measurable); accuracy (NaN unless MIN_KNOWN of the
    wells are in `truth`); note
    (why it is not measurable; what is not in all is not in its parts). Wells of experiments without a choice do not count. Estimates may be slightly below zero: cut off, they
    would be too high on average.
    """
    group_of = {sirna: number for number, group in enumerate(groups) for sirna in group}
    design = wells.drop_duplicates("id_code").set_index("id_code")[["experiment", "cell_type", "plate"]]
    sizes = np.array([len(group) for group in groups])
    rows = [row for rung, chosen in answers.items() for row in _rung_rows(rung, chosen, design, group_of, choices, truth, sizes)]
    return pd.DataFrame(rows, columns=["rung", "level", "name", "wells", "group_share", "chance", "estimated_accuracy", "standard_error", "accuracy", "note"])


def _rung_rows(rung: str, chosen: pd.Series, design: pd.DataFrame, group_of: Mapping[int, int], choices: Mapping[str, GroupChoice],
               truth: pd.Series | None, sizes: np.ndarray) -> list[dict]:
    table = design.reindex(chosen.index).assign(sirna=chosen, group=chosen.map(group_of).fillna(-1).astype(int), all="all")
    table = table[table["experiment"].isin(list(choices))]
    known = pd.Series(np.nan, table.index) if truth is None else truth.reindex(table.index)
    right = table["sirna"].eq(known).astype(float).where(known.notna())
    evidence = {}
    for name, part in table.groupby("experiment"):
        plates = pd.Index(choices[name].plate_numbers).get_indexer(part["plate"])
        evidence[name] = group_evidence(part["sirna"].to_numpy(), part["group"].to_numpy(), plates, choices[name], sizes=sizes)
    rows, used = [], pool_evidence(list(evidence.values())).obstacle if evidence else ""  # what has used the groups in all has used them everywhere
    for level in LEVELS:
        for name, part in table.groupby(level):
            pooled = pool_evidence([evidence[experiment] for experiment in part["experiment"].unique()])
            obstacle = used or pooled.obstacle
            rows.append({"rung": rung, "level": level, "name": name, "wells": pooled.wells, "group_share": pooled.group_share, "chance": pooled.chance,
                         "estimated_accuracy": pooled.accuracy if not obstacle else np.nan,
                         "standard_error": np.sqrt(pooled.variance) if not obstacle else np.nan,
                         "accuracy": right[part.index].mean() if right[part.index].notna().mean() >= MIN_KNOWN else np.nan, "note": obstacle})
    return rows


def pool_evidence(parts: Sequence[GroupEvidence]) -> GroupEvidence:
    """Several experiments as one, weighted by wells."""
    weights = np.array([part.wells for part in parts]) / sum(part.wells for part in parts)
    means = {name: float(weights @ [getattr(part, name) for part in parts]) for name in ("group_share", "chance", "accuracy")}
    return GroupEvidence(sum(part.wells for part in parts), **means, variance=float(weights**2 @ [part.variance for part in parts]),
                         distinct=sum(part.distinct for part in parts))
