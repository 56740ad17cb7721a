"""The ladder: one trick a rung, and what each is worth."""

import pandas as pd

from cellsignal.decide.assign import assign
from cellsignal.decide.metrics import accuracy


def climb(scores: dict[str, pd.DataFrame], wells: pd.DataFrame, truth: pd.Series, *,
          groups: list[list[int]], statistics: str, split: str) -> list[dict]:
    """Accuracy of every rung on the wells of `truth`.

    `scores`: by kind of statistics, in the order of the rungs. The raw rungs take the most likely
    siRNA under each; the assigned ones add plate knowledge to the scores of `statistics`: each
    siRNA once per experiment ("exact"), plate groups ("groups"), both. Each row: {"rung", "kind":
    "raw" | "assigned", "split", "accuracy", "wells", "by_cell_type", "by_experiment"}.
    """
    rungs = [(name, "raw", assign(table, wells, method="raw")) for name, table in scores.items()]
    chosen = scores[statistics]
    rungs.append(("exact", "assigned", assign(chosen, wells, method="exact")))
    if groups:
        rungs.append(("groups", "assigned", assign(chosen, wells, method="raw", groups=groups)))
        rungs.append(("groups+exact", "assigned", assign(chosen, wells, method="exact", groups=groups)))
    return [
        {"rung": name, "kind": kind, "split": split, **accuracy(predictions, truth, wells)}
        for name, kind, predictions in rungs
    ]


def as_table(ladder: list[dict]) -> pd.DataFrame:
    """The ladder to look at: one row a rung, raw and assigned accuracy in columns of their own."""
    rows = [{"split": row["split"], "rung": row["rung"], row["kind"]: row["accuracy"]} for row in ladder]
    return pd.DataFrame(rows, columns=["split", "rung", "raw", "assigned"]).set_index(["split", "rung"])
