"""The ladder of multi-label tasks: macro F1 of trivial baselines, and of a network with each kind of thresholds."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellsignal.data.tables.labelled_sites import Labels
from cellsignal.decide.labels.multilabel import apply_thresholds, f1_by_class, label_baselines, macro_f1
from cellsignal.decide.labels.thresholds import THRESHOLD_METHODS, cross_fitted_answers

if TYPE_CHECKING:  # PyTorch is not needed for a table
    from cellsignal.decide.labels.predict import LabelScores

SPLIT_NAMES = {"test": "test", "held_out": "held out"}
RUNG_NAMES = {"half": "thresholds 0.5", "fitted": "thresholds fitted on held-out folds", "shares": "thresholds by class shares"}


def evaluate_label_ladder(scores: "LabelScores", truth: np.ndarray, *, train_labels: Sequence[Labels], test: np.ndarray | None = None,
                          known: np.ndarray | slice = slice(None)) -> list[dict]:
    """Macro F1 of the baselines and of every kind of thresholds, on test sites (if their truth is known) and on held-out sites.

    `truth`: bool[N, K] of the labelled sites; `test`: bool[M, K] of the `known` ones among the test sites; `train_labels`: from which label frequencies are counted. The
    thresholds for held-out sites are fitted on the other folds. Returns rows {"rung", "kind": "floor" | "network", "split",
    "macro_f1", "sites", "by_class": F1 by class number}, in which "method" names the thresholds.
    """
    predictions: dict[str, tuple[np.ndarray, dict[str, np.ndarray]]] = {}
    if test is not None:
        thresholds = {method: fit(scores.held_out, truth, scores.test) for method, fit in THRESHOLD_METHODS.items()}
        predictions["test"] = test, {method: apply_thresholds(scores.test, values)[known] for method, values in thresholds.items()}
    predictions["held_out"] = truth, {method: cross_fitted_answers(scores.held_out, truth, scores.folds, method=method) for method in THRESHOLD_METHODS}
    rows = []
    for split, (true, by_method) in predictions.items():
        rows += [{"rung": name, "kind": "floor", "split": split, "macro_f1": value, "sites": len(true)} for name, value in label_baselines(true, train_labels).items()]
        rows += [_network_row(method, split, true, by_method[method]) for method in RUNG_NAMES]
    return rows


def _network_row(method: str, split: str, true: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    by_class = f1_by_class(true, predicted)
    facts = {"rung": RUNG_NAMES[method], "kind": "network", "split": split, "macro_f1": macro_f1(true, predicted), "sites": len(true)}
    return {**facts, "method": method, "by_class": by_class.tolist()}


def label_ladder_table(rungs: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per rung, one column per split; empty without rungs."""
    table = pd.DataFrame([{"rung": row["rung"], "split": SPLIT_NAMES[row["split"]], "macro F1": row["macro_f1"]} for row in rungs])
    if table.empty:
        return table
    order = list(dict.fromkeys(table["rung"]))
    wide = table.pivot(index="rung", columns="split", values="macro F1").reindex(order)
    return wide[[name for name in SPLIT_NAMES.values() if name in wide]].add_prefix("macro F1, ").rename_axis(columns=None)
