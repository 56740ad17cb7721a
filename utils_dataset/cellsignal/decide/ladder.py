"""The ladder: one trick a rung, and what each is worth."""

import pandas as pd

from cellsignal.decide.assign import assign
from cellsignal.decide.metrics import accuracy


def climb(scores: dict[str, pd.DataFrame], wells: pd.DataFrame, truth: pd.Series, *,
          groups: list[list[int]], statistics: str, split: str) -> list[dict]:
    """Accuracy of every rung on the wells of `truth`.

    Only wells whose `split` (a column of `wells`) is the one named take part: wells that a network
    was trained on would give the others away by elimination. `scores`: by kind of statistics, in
    the order of the rungs. The raw rungs take the most likely siRNA under each; the assigned ones
    add plate knowledge to the scores of `statistics`: each siRNA once per experiment ("exact"),
    plate groups ("groups"), both. Where there are more wells than siRNAs, as with replicates, a
    one-to-one rung is left out.

    Returns rows {"rung", "kind": "raw" | "assigned", "split", "accuracy", "wells", "by_cell_type",
    "by_experiment"}.
    """
    wells = wells[wells["split"] == split]
    scores = {name: table[table.index.isin(wells["id_code"])] for name, table in scores.items()}
    rungs = [(name, "raw", assign(table, wells, method="raw")) for name, table in scores.items()]
    for name, method, known in (("exact", "exact", []), ("groups", "raw", groups), ("groups+exact", "exact", groups)):
        if (known or name == "exact") and (method == "raw" or _one_to_one(scores[statistics], wells, groups=known)):
            rungs.append((name, "assigned", assign(scores[statistics], wells, method=method, groups=known)))
    return [
        {"rung": name, "kind": kind, "split": split, **accuracy(predictions, truth, wells)}
        for name, kind, predictions in rungs
    ]


def _one_to_one(scores: pd.DataFrame, wells: pd.DataFrame, *, groups: list[list[int]]) -> bool:
    """Whether there is a siRNA for every well of an experiment, or of a plate where groups are known."""
    scored = wells[wells["id_code"].isin(scores.index)]
    crowd = scored.groupby(["experiment", "plate"] if groups else ["experiment"]).size().max()
    return crowd <= min([scores.columns.isin(group).sum() for group in groups], default=scores.shape[1])


def as_table(ladder: list[dict]) -> pd.DataFrame:
    """The ladder to look at: one row a rung, raw and assigned accuracy in columns of their own."""
    rows = [{"split": row["split"], "rung": row["rung"], row["kind"]: row["accuracy"]} for row in ladder]
    return pd.DataFrame(rows, columns=["split", "rung", "raw", "assigned"]).set_index(["split", "rung"])
