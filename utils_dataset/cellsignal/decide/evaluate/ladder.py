"""The ladder: the accuracy after each trick, one rung per trick."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from cellsignal.decide.assign.assign import assign
from cellsignal.decide.settings import PLATE_STATISTICS, AssignmentSettings

# Accuracy overall, by cell type and by experiment.


def accuracy(predictions: pd.Series, truth: pd.Series, wells: pd.DataFrame) -> dict:
    """Share of wells with the right siRNA, the metric of the competition.

    `predictions` and `truth`: siRNA by id_code; every well of `truth` counts, and a missing prediction is wrong. `wells`: has cell
    type and experiment. Returns {"accuracy", "wells", "by_cell_type", "by_experiment"}.
    """
    rows = wells.set_index("id_code").reindex(truth.index)
    correct = predictions.reindex(truth.index).eq(truth).fillna(False).astype(bool)
    return {
        "accuracy": float(correct.mean()),
        "wells": len(correct),
        "by_cell_type": _accuracy_by(correct, rows["cell_type"]),
        "by_experiment": _accuracy_by(correct, rows["experiment"]),
    }


def _accuracy_by(correct: pd.Series, key: pd.Series) -> dict[str, float]:
    return {str(name): float(share) for name, share in correct.groupby(key).mean().items()}


# Brodt's accuracies on the public and the private leaderboard, each trick on top of the previous ones. His assignment
# was greedy; his last two rungs include the plate groups.
BRODT = {
    "batch": (0.54, 0.75),
    "virtual batch": (0.72, 0.86),
    "exact": (0.76, 0.89),
    "groups+exact": (0.86, 0.94),
    "mixup": (0.88, 0.95),
}
BRODT_COLUMNS = ["Brodt, public", "Brodt, private"]
ASSIGNED_RUNGS = [("exact", "exact", False), ("groups", "raw", True), ("groups+exact", "exact", True), ("groups+expected", "expected", True)]

Rung = tuple[str, str, pd.Series]  # name, "raw" or "assigned", siRNA by id_code


def evaluate_ladder(
    scores: Mapping[str, pd.DataFrame], wells: pd.DataFrame, truth: pd.Series, *, statistics: str, split: str, design: Mapping[str, Any],
    refined: Mapping[str, pd.DataFrame] = {}, final: Mapping[str, pd.DataFrame] = {},
) -> list[dict]:
    """Accuracy of every rung on the wells of `truth`.

    Only wells with this `split` (a column of `wells`) take part: training wells would give the others away by elimination.
    `scores`: by kind of statistics (other kinds are ignored); `statistics`: the kind that the further rungs rest on, which
    therefore comes last of these. `refined`: further scores by rung, in order: "virtual batch", if `scores` are of a network
    trained without one; "views", "prototypes", "ensemble". The assigned rungs use the best scores so far: each siRNA once per
    experiment ("exact"), plate groups ("groups"), both, and both with the largest expected number of right wells
    ("groups+expected"). `final`: by rung, "mixup", scores of the network trained further on all labelled wells, for one raw and
    one assigned rung. One-to-one rungs are left out if there are more wells than siRNAs, as with replicates. `design`: further
    arguments of `assign`, such as groups, rotations and temperatures.

    Returns rows {"rung", "kind": "raw" | "assigned", "split", "accuracy", "wells", "by_cell_type", "by_experiment", "answers":
    siRNA by id_code}.
    """
    wells = wells[wells["split"] == split]
    kinds = sorted((name for name in scores if name in PLATE_STATISTICS), key=statistics.__eq__)  # a stable sort: the chosen kind comes last
    raw_scores = {name: scores[name] for name in kinds} | dict(refined)
    raw_scores, final = ({name: table[table.index.isin(wells["id_code"])] for name, table in tables.items()} for tables in (raw_scores, final))
    rungs = [_raw_rung(name, table, wells) for name, table in raw_scores.items()]
    best = list(raw_scores.values())[-1]
    rungs += [(name, "assigned", assign(best, wells, **arguments)) for name, arguments in _assigned_rungs(best, wells, design)]
    for name, table in final.items():
        rungs.append(_raw_rung(name, table, wells))
        rungs += [(name, "assigned", assign(table, wells, **arguments)) for _, arguments in _assigned_rungs(table, wells, design)[-1:]]
    return [{"rung": name, "kind": kind, "split": split, **accuracy(predictions, truth, wells), "answers": predictions}
            for name, kind, predictions in rungs]


def _raw_rung(name: str, scores: pd.DataFrame, wells: pd.DataFrame) -> Rung:
    return name, "raw", assign(scores, wells, AssignmentSettings(method="raw"))


def _assigned_rungs(scores: pd.DataFrame, wells: pd.DataFrame, design: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The names of the assigned rungs that the layout allows, with the arguments of `assign`."""
    rungs = []
    for name, method, grouped in ASSIGNED_RUNGS:
        groups = design.get("groups", []) if grouped else []
        if (groups or not grouped) and (method == "raw" or _allows_one_to_one(scores, wells, groups=groups)):
            settings = design.get("settings", AssignmentSettings()).model_copy(update={"method": method})
            rungs.append((name, {**design, "settings": settings, "groups": groups}))
    return rungs


def _allows_one_to_one(scores: pd.DataFrame, wells: pd.DataFrame, *, groups: list[list[int]]) -> bool:
    """Whether there are enough siRNAs for the wells of an experiment, or with groups of a plate."""
    scored = wells[wells["id_code"].isin(scores.index)]
    most_wells = scored.groupby(["experiment", "plate"] if groups else ["experiment"]).size().max()
    return most_wells <= min([scores.columns.isin(group).sum() for group in groups], default=scores.shape[1])


def ladder_table(ladder: list[dict], *, with_brodt: bool = False) -> pd.DataFrame:
    """The ladder as a table: one row per rung, with columns of raw and assigned accuracy.

    `with_brodt`: add columns of Brodt's leaderboard accuracies for the test wells.
    """
    rows = pd.DataFrame([{name: row[name] for name in ("split", "rung", "kind", "accuracy")} for row in ladder],
                        columns=["split", "rung", "kind", "accuracy"])
    table = rows.pivot_table(index=["split", "rung"], columns="kind", values="accuracy", sort=False)
    table = table.reindex(columns=["raw", "assigned"]).rename_axis(columns=None)
    # A pivot drops rungs without a value and changes the order; the last rung has both kinds in one row.
    table = table.reindex(pd.MultiIndex.from_frame(rows[["split", "rung"]]).drop_duplicates())
    if with_brodt and len(table):  # an empty list has no two columns
        accuracies = {("test", rung): pair for rung, pair in BRODT.items()}
        table[BRODT_COLUMNS] = [accuracies.get(rung, (None, None)) for rung in table.index]
    return table
