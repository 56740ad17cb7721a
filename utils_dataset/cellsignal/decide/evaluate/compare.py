"""Several runs beside one another: accuracies with their intervals, differences well by well, confusions, cost."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from cellsignal.decide.evaluate.answers import ANSWER_KINDS, WELL_COLUMNS, rung_and_kind
from cellsignal.decide.evaluate.statistics import bootstrap, holm, mcnemar, wilson

# Which siRNAs are taken for which, and whether plate groups keep them apart.


MAX_PAIRS = 50  # pairs that are listed


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
        "pairs": _confused_pairs(true, said, group_of),
        "between": _confusions_by_group(true[wrong], said[wrong], group_of, len(groups)).tolist(),
        "over_chance": _group_excess(true[wrong], said[wrong], group_of, groups),
    }


def confusion_matrix(truth: pd.Series, given: pd.Series, sirnas: Sequence[int], *, bins: int = 120) -> np.ndarray:
    """Wrong answers, counts [true siRNA, answered siRNA], in the order of `sirnas`; neighbours are pooled to at most `bins`."""
    place = pd.Series(np.arange(len(sirnas)) * min(bins, len(sirnas)) // max(len(sirnas), 1), index=sirnas)
    rows, columns = (values.map(place) for values in (truth, given))
    wrong = truth.ne(given).fillna(False) & rows.notna() & columns.notna()
    counts = np.zeros((min(bins, len(sirnas)),) * 2, dtype=int)
    np.add.at(counts, (rows[wrong].to_numpy(int), columns[wrong].to_numpy(int)), 1)
    return counts


def order_by_group(sirnas: Sequence[int], groups: Sequence[Sequence[int]]) -> list[int]:
    """siRNAs ordered by plate group, and by number within each; those of no group last."""
    group_of = {sirna: number for number, group in enumerate(groups) for sirna in group}
    return sorted(sirnas, key=lambda sirna: (group_of.get(sirna, len(groups)), sirna))


def _confused_pairs(true: np.ndarray, said: np.ndarray, group_of: dict[int, int]) -> list[dict[str, Any]]:
    wrong = true != said
    ends = pd.DataFrame({"low": np.minimum(true, said)[wrong], "high": np.maximum(true, said)[wrong]})
    counts = ends.value_counts().rename("wrong").reset_index().sort_values(["wrong", "low", "high"], ascending=[False, True, True])
    wells = pd.Series(true).value_counts()
    return [
        {"sirnas": [int(low), int(high)], "wells": int(wells.get(low, 0) + wells.get(high, 0)), "wrong": int(count),
         "same_group": group_of[low] == group_of[high] if {low, high} <= group_of.keys() else None}
        for low, high, count in counts.head(MAX_PAIRS).itertuples(index=False)
    ]


def _confusions_by_group(true: np.ndarray, said: np.ndarray, group_of: dict[int, int], groups: int) -> np.ndarray:
    counts = np.zeros((groups, groups), dtype=int)
    for one, other in zip(true.tolist(), said.tolist()):
        if one in group_of and other in group_of:
            counts[group_of[one], group_of[other]] += 1
    return counts


def _group_excess(true: np.ndarray, said: np.ndarray, group_of: dict[int, int], groups: Sequence[Sequence[int]]) -> float | None:
    """How many times as often as by chance a wrong answer is of the right group; None without groups or errors."""
    grouped = [(group_of[one], group_of[other]) for one, other in zip(true.tolist(), said.tolist()) if {one, other} <= group_of.keys()]
    others = len(group_of) - 1
    chance = np.mean([(len(groups[one]) - 1) / others for one, _ in grouped]) if grouped and others else 0.0
    return float(np.mean([one == other for one, other in grouped]) / chance) if chance else None


SPLITS = ("test", "held_out")
ACCURACY_PARTS = ("", "cell_type", "experiment")  # of which accuracies are told: all wells, and these
Row = dict[str, Any]


@dataclass(frozen=True)
class RunResult:
    """What a run folder tells: its answers, and what they cost."""

    name: str
    recipe: str  # the name that runs share which differ in nothing but their seed
    seed: int
    answers: pd.DataFrame  # as answers.read_known gives them
    groups: list[list[int]]  # plate groups, where they are known
    cost: dict[str, Any]  # "weights", "training_seconds", "prediction_seconds", "seconds", "processes", "device"


@dataclass(frozen=True)
class SplitAnswers:
    """The answers of one kind for one split, by the last rung of each run."""

    split: str
    kind: str
    wells: pd.DataFrame  # by id_code: cell_type, experiment, sirna
    given: pd.DataFrame  # Int64 [wells, runs]
    rungs: dict[str, str]  # by run
    has: pd.DataFrame  # bool [wells, runs]: whether the well is one of the run's; held-out ones may differ by seed

    def right(self, runs: Sequence[str]) -> pd.DataFrame:
        """1.0 or 0.0 for each well and run, NaN where it is not the run's; a missing answer is wrong."""
        said = self.given[list(runs)]
        right = said.eq(self.wells["sirna"], axis=0).fillna(False).astype(float)
        return right.where(self.has[list(runs)])


def compare(results: Sequence[RunResult], *, draws: int = 2000, seed: int = 0) -> dict[str, Any]:
    """All that can be said about the runs, as JSON holds it.

    Returns {"runs": one row each with its cost, "accuracies": by split, kind, recipe and part (all wells, a cell type, an
    experiment) with the standard deviation over seeds and both intervals, "rungs": accuracy by rung, "differences": of each recipe from the first,
    paired by seed, "pairs": of runs with McNemar's test, corrected among those of one split and kind, "confusions": by recipe}.
    `draws` and `seed` are of the bootstrap. Raw and assigned answers are never compared with each other.
    """
    tables = list(split_answers(results))
    return {
        "runs": [{"name": each.name, "recipe": each.recipe, "seed": each.seed, **each.cost} for each in results],
        "accuracies": [row for table in tables for row in _accuracies(table, results, draws=draws, seed=seed)],
        "rungs": [row for table in tables for row in _rungs(table, results)],
        "differences": [row for table in tables for row in _differences(table, results, draws=draws, seed=seed)],
        "pairs": [row for table in tables for row in _run_pairs(table, draws=draws, seed=seed)],
        "confusions": [row for table in tables for row in _confusions(table, results)],
    }


def split_answers(results: Sequence[RunResult]) -> Iterator[SplitAnswers]:
    """The answers by split and kind, where every run has some."""
    for split in SPLITS:
        mine = {each.name: each.answers[each.answers["split"] == split].set_index("id_code") for each in results}
        wells = pd.concat([table[[name for name in WELL_COLUMNS if name in table]] for table in mine.values()])
        wells = wells[~wells.index.duplicated()].sort_index()
        for kind in ANSWER_KINDS:
            rungs = {name: last_rung(table, kind) for name, table in mine.items()}
            if len(wells) and all(rungs.values()):
                given = {name: table[f"{rungs[name]} {kind}"].reindex(wells.index) for name, table in mine.items()}
                has = {name: wells.index.isin(table.index) for name, table in mine.items()}
                yield SplitAnswers(split, kind, wells, pd.DataFrame(given), rungs, pd.DataFrame(has, index=wells.index))


def last_rung(answers: pd.DataFrame, kind: str) -> str:
    """The last rung of this kind that answered any of these wells; "" when none did."""
    told = [rung_and_kind(name)[0] for name in answers.columns if rung_and_kind(name)[1] == kind and answers[name].notna().any()]
    return told[-1] if told else ""


def runs_by_recipe(results: Sequence[RunResult]) -> dict[str, list[RunResult]]:
    """The runs of each recipe, in the order in which recipes first come."""
    names = dict.fromkeys(each.recipe for each in results)
    return {name: [each for each in results if each.recipe == name] for name in names}


def _accuracies(table: SplitAnswers, results: Sequence[RunResult], *, draws: int, seed: int) -> Iterator[Row]:
    for recipe, runs in runs_by_recipe(results).items():
        right = table.right([each.name for each in runs]).dropna(how="all")
        rung = ", ".join(dict.fromkeys(table.rungs[each.name] for each in runs))
        head = {"split": table.split, "kind": table.kind, "recipe": recipe, "rung": rung}
        for by in ACCURACY_PARTS:
            key = table.wells[by] if by else pd.Series("", index=table.wells.index)
            for part, rows in right.groupby(key.reindex(right.index), sort=True):
                experiments = table.wells.loc[rows.index, "experiment"]
                yield {**head, "by": by, "part": part, **_accuracy(rows, experiments, draws=draws, seed=seed)}


def _accuracy(right: pd.DataFrame, experiments: pd.Series, *, draws: int, seed: int) -> Row:
    """Mean over runs, its spread, and intervals of the wells' means over runs."""
    by_run = right.mean().dropna()
    wells = right.mean(axis=1)
    mean = float(by_run.mean())
    return {
        "accuracy": mean, "std": float(by_run.std(ddof=1)) if len(by_run) > 1 else None, "runs": by_run.to_dict(),
        "wells": len(right), "experiments": int(experiments.nunique()), "wilson": wilson(mean, round(right.count().mean())),
        "interval": bootstrap(wells, experiments, draws=draws, seed=seed),
    }


def _rungs(table: SplitAnswers, results: Sequence[RunResult]) -> Iterator[Row]:
    """Mean accuracy of each recipe on every rung of this kind, in the order of the ladder."""
    for recipe, runs in runs_by_recipe(results).items():
        mine = [each.answers[each.answers["split"] == table.split] for each in runs]
        for column in dict.fromkeys(name for answers in mine for name in answers if rung_and_kind(name)[1] == table.kind):
            shares = [answers[column].eq(answers["sirna"]).fillna(False).mean() for answers in mine
                      if column in answers and answers[column].notna().any()]
            if shares:
                yield {"split": table.split, "kind": table.kind, "recipe": recipe, "rung": rung_and_kind(column)[0], "accuracy": float(np.mean(shares))}


def _run_pairs(table: SplitAnswers, *, draws: int, seed: int) -> list[Row]:
    """Every two runs on the wells that both have."""
    rows = []
    for first, second in combinations(table.given.columns, 2):
        right = table.right([first, second]).dropna()
        if len(right):
            only_first, only_second, p = mcnemar(*(right[name].to_numpy(bool) for name in (first, second)))
            rows.append({"split": table.split, "kind": table.kind, "first": first, "second": second, "wells": len(right),
                         "only_first": only_first, "only_second": only_second, "p": p,
                         **_difference(right[second] - right[first], table.wells, draws=draws, seed=seed)})
    return [{**row, "p_holm": p} for row, p in zip(rows, holm([row["p"] for row in rows]))]


def _difference(values: pd.Series, wells: pd.DataFrame, *, draws: int, seed: int) -> Row:
    experiments = wells.loc[values.index, "experiment"]
    how = {"draws": draws, "seed": seed}
    return {"difference": float(values.mean()), "of_wells": bootstrap(values, experiments, whole=False, **how),
            "of_experiments": bootstrap(values, experiments, **how)}


def _differences(table: SplitAnswers, results: Sequence[RunResult], *, draws: int, seed: int) -> Iterator[Row]:
    """Each recipe less the first one, on the same wells with the same seed."""
    (first, theirs), *others = runs_by_recipe(results).items()
    for recipe, ours in others:
        pairs = [(one.name, other.name) for one in theirs for other in ours if one.seed == other.seed]
        by_seed = [(right[second] - right[first]).dropna() for first, second in pairs for right in [table.right([first, second])]]
        by_seed = [values for values in by_seed if len(values)]
        if by_seed:
            means = [float(values.mean()) for values in by_seed]
            error = float(np.std(means, ddof=1) / np.sqrt(len(means))) if len(means) > 1 else None
            wells = pd.concat(by_seed, axis=1).mean(axis=1)
            yield {"split": table.split, "kind": table.kind, "recipe": recipe, "from": first, "seeds": len(means),
                   "by_seed": means, "standard_error": error, **_difference(wells, table.wells, draws=draws, seed=seed),
                   "mean": float(np.mean(means))}


def _confusions(table: SplitAnswers, results: Sequence[RunResult]) -> Iterator[Row]:
    """The wrong answers of each recipe, its runs together."""
    for recipe, runs in runs_by_recipe(results).items():
        names = [each.name for each in runs]
        given = pd.concat([table.given.loc[table.has[name], name] for name in names])
        truth = table.wells["sirna"].reindex(given.index)
        groups = next((each.groups for each in results if each.groups), [])
        sirnas = order_by_group(sorted(set(truth.dropna().tolist())), groups)
        yield {"split": table.split, "kind": table.kind, "recipe": recipe, **confusions(truth, given, groups),
               "group_sizes": [sum(sirna in set(group) for sirna in sirnas) for group in groups],
               "matrix": confusion_matrix(truth, given, sirnas).tolist()}
