"""Comparison of runs: accuracies with intervals, paired differences, confusions, and cost."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from cellsignal.decide.evaluate.answers import ANSWER_KINDS, WELL_COLUMNS, rung_and_kind
from cellsignal.decide.evaluate.statistics import bootstrap, holm, mcnemar, wilson

# Confusions between siRNAs, and whether plate groups separate them.


MAX_PAIRS = 50  # pairs that are listed


def confusions(truth: pd.Series, predictions: pd.Series, groups: Sequence[Sequence[int]] = ()) -> dict[str, Any]:
    """The wrong predictions, by pair of siRNAs and by plate group.

    `truth` and `predictions`: siRNAs, one per well (several runs may be stacked); wells without a prediction are ignored. Returns
    {"wells", "wrong", "pairs": the MAX_PAIRS most frequently confused pairs, each {"sirnas", "wells": of both, "wrong": number of
    confusions, "same_group": bool or None}, "between": wrong predictions [group of the truth, group of the prediction],
    "over_chance": how many times as often as by chance a wrong prediction is in the right group}.
    """
    predicted_wells = truth.notna() & predictions.notna()
    true, predicted = truth[predicted_wells].to_numpy(int), predictions[predicted_wells].to_numpy(int)
    wrong = true != predicted
    group_of = {sirna: number for number, group in enumerate(groups) for sirna in group}
    return {
        "wells": int(predicted_wells.sum()),
        "wrong": int(wrong.sum()),
        "pairs": _confused_pairs(true, predicted, group_of),
        "between": _confusions_by_group(true[wrong], predicted[wrong], group_of, len(groups)).tolist(),
        "over_chance": _group_excess(true[wrong], predicted[wrong], group_of, groups),
    }


def confusion_matrix(truth: pd.Series, predictions: pd.Series, sirnas: Sequence[int], *, bins: int = 120) -> np.ndarray:
    """Counts of wrong predictions [true siRNA, predicted siRNA], in the order of `sirnas`; neighbours are pooled to at most `bins`."""
    bin_of = pd.Series(np.arange(len(sirnas)) * min(bins, len(sirnas)) // max(len(sirnas), 1), index=sirnas)
    rows, columns = (values.map(bin_of) for values in (truth, predictions))
    wrong = truth.ne(predictions).fillna(False) & rows.notna() & columns.notna()
    counts = np.zeros((min(bins, len(sirnas)),) * 2, dtype=int)
    np.add.at(counts, (rows[wrong].to_numpy(int), columns[wrong].to_numpy(int)), 1)
    return counts


def order_by_group(sirnas: Sequence[int], groups: Sequence[Sequence[int]]) -> list[int]:
    """siRNAs sorted by plate group and then by number; those in no group come last."""
    group_of = {sirna: number for number, group in enumerate(groups) for sirna in group}
    return sorted(sirnas, key=lambda sirna: (group_of.get(sirna, len(groups)), sirna))


def _confused_pairs(true: np.ndarray, predicted: np.ndarray, group_of: dict[int, int]) -> list[dict[str, Any]]:
    wrong = true != predicted
    pairs = pd.DataFrame({"low": np.minimum(true, predicted)[wrong], "high": np.maximum(true, predicted)[wrong]})
    counts = pairs.value_counts().rename("wrong").reset_index().sort_values(["wrong", "low", "high"], ascending=[False, True, True])
    wells = pd.Series(true).value_counts()
    return [
        {"sirnas": [int(low), int(high)], "wells": int(wells.get(low, 0) + wells.get(high, 0)), "wrong": int(count),
         "same_group": group_of[low] == group_of[high] if {low, high} <= group_of.keys() else None}
        for low, high, count in counts.head(MAX_PAIRS).itertuples(index=False)
    ]


def _confusions_by_group(true: np.ndarray, predicted: np.ndarray, group_of: dict[int, int], groups: int) -> np.ndarray:
    counts = np.zeros((groups, groups), dtype=int)
    for first, second in zip(true.tolist(), predicted.tolist(), strict=True):
        if first in group_of and second in group_of:
            counts[group_of[first], group_of[second]] += 1
    return counts


def _group_excess(true: np.ndarray, predicted: np.ndarray, group_of: dict[int, int], groups: Sequence[Sequence[int]]) -> float | None:
    """How many times as often as by chance a wrong prediction is in the right group; None without groups or errors."""
    grouped = [(group_of[first], group_of[second]) for first, second in zip(true.tolist(), predicted.tolist(), strict=True) if {first, second} <= group_of.keys()]
    num_others = len(group_of) - 1
    chance = np.mean([(len(groups[group]) - 1) / num_others for group, _ in grouped]) if grouped and num_others else 0.0
    return float(np.mean([first == second for first, second in grouped]) / chance) if chance else None


SPLITS = ("test", "held_out")
ACCURACY_PARTS = ("", "cell_type", "experiment")  # of the wells, with accuracies of their own: all wells, and these
Row = dict[str, Any]


@dataclass(frozen=True)
class RunResult:
    """The predictions of a run, and their cost."""

    name: str
    recipe: str  # the name shared by runs that differ in their seed only
    seed: int
    answers: pd.DataFrame  # of answers.read_known_answers
    groups: list[list[int]]  # plate groups, empty if unknown
    cost: dict[str, Any]  # "weights", "training_seconds", "prediction_seconds", "seconds", "processes", "device"


@dataclass(frozen=True)
class SplitAnswers:
    """The predictions of one kind for one split, from the last rung of each run."""

    split: str
    kind: str
    wells: pd.DataFrame  # by id_code: cell_type, experiment, sirna
    predictions: pd.DataFrame  # Int64 [wells, runs]
    rungs: dict[str, str]  # by run
    in_run: pd.DataFrame  # bool [wells, runs]: whether the run has the well; held-out wells may differ by seed

    def correct(self, runs: Sequence[str]) -> pd.DataFrame:
        """1.0 for right and 0.0 for wrong or missing predictions of each well and run, NaN for wells that a run does not have."""
        predictions = self.predictions[list(runs)]
        correct = predictions.eq(self.wells["sirna"], axis=0).fillna(False).astype(float)
        return correct.where(self.in_run[list(runs)])


def compare(results: Sequence[RunResult], *, draws: int = 2000, seed: int = 0) -> dict[str, Any]:
    """The comparison of runs, as values for JSON.

    Returns {"runs": one row each with its cost, "accuracies": by split, kind, recipe and part (all wells, a cell type, an
    experiment), with the standard deviation over seeds and both intervals, "rungs": accuracy by rung, "differences": of each
    recipe from the first, paired by seed, "pairs": of runs, with McNemar's test, corrected within a split and kind, "confusions":
    by recipe}. `draws` and `seed`: of the bootstrap. Raw and assigned predictions are never compared with each other.
    """
    tables = list(split_answers(results))
    return {
        "runs": [{"name": run.name, "recipe": run.recipe, "seed": run.seed, **run.cost} for run in results],
        "accuracies": [row for table in tables for row in _accuracies(table, results, draws=draws, seed=seed)],
        "rungs": [row for table in tables for row in _rungs(table, results)],
        "differences": [row for table in tables for row in _differences(table, results, draws=draws, seed=seed)],
        "pairs": [row for table in tables for row in _run_pairs(table, draws=draws, seed=seed)],
        "confusions": [row for table in tables for row in _confusions(table, results)],
    }


def split_answers(results: Sequence[RunResult]) -> Iterator[SplitAnswers]:
    """Yield the predictions by split and kind, if every run has some."""
    for split in SPLITS:
        tables = {run.name: run.answers[run.answers["split"] == split].set_index("id_code") for run in results}
        wells = pd.concat([table[[name for name in WELL_COLUMNS if name in table]] for table in tables.values()])
        wells = wells[~wells.index.duplicated()].sort_index()
        for kind in ANSWER_KINDS:
            rungs = {name: last_rung(table, kind) for name, table in tables.items()}
            if len(wells) and all(rungs.values()):
                predictions = {name: table[f"{rungs[name]} {kind}"].reindex(wells.index) for name, table in tables.items()}
                in_run = {name: wells.index.isin(table.index) for name, table in tables.items()}
                yield SplitAnswers(split, kind, wells, pd.DataFrame(predictions), rungs, pd.DataFrame(in_run, index=wells.index))


def last_rung(answers: pd.DataFrame, kind: str) -> str:
    """The last rung of this kind with a prediction for any of these wells; "" without one."""
    rungs = [rung_and_kind(name)[0] for name in answers.columns if rung_and_kind(name)[1] == kind and answers[name].notna().any()]
    return rungs[-1] if rungs else ""


def runs_by_recipe(results: Sequence[RunResult]) -> dict[str, list[RunResult]]:
    """The runs of each recipe, in the order of their first occurrence."""
    names = dict.fromkeys(run.recipe for run in results)
    return {name: [run for run in results if run.recipe == name] for name in names}


def _accuracies(table: SplitAnswers, results: Sequence[RunResult], *, draws: int, seed: int) -> Iterator[Row]:
    for recipe, runs in runs_by_recipe(results).items():
        correct = table.correct([run.name for run in runs]).dropna(how="all")
        rung = ", ".join(dict.fromkeys(table.rungs[run.name] for run in runs))
        head = {"split": table.split, "kind": table.kind, "recipe": recipe, "rung": rung}
        for by in ACCURACY_PARTS:
            key = table.wells[by] if by else pd.Series("", index=table.wells.index)
            for part, rows in correct.groupby(key.reindex(correct.index), sort=True):
                experiments = table.wells.loc[rows.index, "experiment"]
                yield {**head, "by": by, "part": part, **_accuracy(rows, experiments, draws=draws, seed=seed)}


def _accuracy(correct: pd.DataFrame, experiments: pd.Series, *, draws: int, seed: int) -> Row:
    """Mean and standard deviation over runs, and intervals of the wells' means over runs."""
    by_run, counts = correct.mean().dropna(), correct.count()
    wells = correct.mean(axis=1)
    mean = float(by_run.mean())
    return {
        "accuracy": mean, "std": float(by_run.std(ddof=1)) if len(by_run) > 1 else None, "runs": by_run.to_dict(),
        "wells": len(correct), "experiments": int(experiments.nunique()), "wilson": wilson(mean, round(counts[counts > 0].mean())),
        "interval": bootstrap(wells, experiments, draws=draws, seed=seed),
    }


def _rungs(table: SplitAnswers, results: Sequence[RunResult]) -> Iterator[Row]:
    """Mean accuracy of each recipe on every rung of this kind, in the order of the ladder."""
    for recipe, runs in runs_by_recipe(results).items():
        tables = [run.answers[run.answers["split"] == table.split] for run in runs]
        for column in dict.fromkeys(name for answers in tables for name in answers if rung_and_kind(name)[1] == table.kind):
            shares = [answers[column].eq(answers["sirna"]).fillna(False).mean() for answers in tables
                      if column in answers and answers[column].notna().any()]
            if shares:
                yield {"split": table.split, "kind": table.kind, "recipe": recipe, "rung": rung_and_kind(column)[0], "accuracy": float(np.mean(shares))}


def _run_pairs(table: SplitAnswers, *, draws: int, seed: int) -> list[Row]:
    """Each pair of runs, on the wells that both have."""
    rows = []
    for first, second in combinations(table.predictions.columns, 2):
        correct = table.correct([first, second]).dropna()
        if len(correct):
            only_first, only_second, p = mcnemar(*(correct[name].to_numpy(bool) for name in (first, second)))
            rows.append({"split": table.split, "kind": table.kind, "first": first, "second": second, "wells": len(correct),
                         "only_first": only_first, "only_second": only_second, "p": p,
                         **_difference(correct[second] - correct[first], table.wells, draws=draws, seed=seed)})
    return [{**row, "p_holm": p} for row, p in zip(rows, holm([row["p"] for row in rows]))]


def _difference(values: pd.Series, wells: pd.DataFrame, *, draws: int, seed: int) -> Row:
    experiments = wells.loc[values.index, "experiment"]
    options = {"draws": draws, "seed": seed}
    return {"difference": float(values.mean()), "of_wells": bootstrap(values, experiments, resample_experiments=False, **options),
            "of_experiments": bootstrap(values, experiments, **options)}


def _differences(table: SplitAnswers, results: Sequence[RunResult], *, draws: int, seed: int) -> Iterator[Row]:
    """The difference of each recipe from the first one, on the same wells with the same seed."""
    (reference, reference_runs), *others = runs_by_recipe(results).items()
    for recipe, runs in others:
        pairs = [(first.name, second.name) for first in reference_runs for second in runs if first.seed == second.seed]
        by_seed = [(correct[second] - correct[first]).dropna() for first, second in pairs for correct in [table.correct([first, second])]]
        by_seed = [values for values in by_seed if len(values)]
        if by_seed:
            means = [float(values.mean()) for values in by_seed]
            error = float(np.std(means, ddof=1) / np.sqrt(len(means))) if len(means) > 1 else None
            wells = pd.concat(by_seed, axis=1).mean(axis=1)
            yield {"split": table.split, "kind": table.kind, "recipe": recipe, "from": reference, "seeds": len(means),
                   "by_seed": means, "standard_error": error, **_difference(wells, table.wells, draws=draws, seed=seed),
                   "mean": float(np.mean(means))}


def _confusions(table: SplitAnswers, results: Sequence[RunResult]) -> Iterator[Row]:
    """The wrong predictions of each recipe, over all of its runs."""
    for recipe, runs in runs_by_recipe(results).items():
        names = [run.name for run in runs]
        predictions = pd.concat([table.predictions.loc[table.in_run[name], name] for name in names])
        truth = table.wells["sirna"].reindex(predictions.index)
        groups = next((run.groups for run in results if run.groups), [])
        sirnas = order_by_group(sorted(set(truth.dropna().tolist())), groups)
        yield {"split": table.split, "kind": table.kind, "recipe": recipe, **confusions(truth, predictions, groups),
               "group_sizes": [sum(sirna in set(group) for sirna in sirnas) for group in groups],
               "matrix": confusion_matrix(truth, predictions, sirnas).tolist()}
