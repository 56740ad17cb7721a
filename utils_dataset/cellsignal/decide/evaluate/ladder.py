"""The ladder: one trick a rung, and what each is worth."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from cellsignal.decide.assign.assign import assign
from cellsignal.decide.settings import AssignmentSettings
from cellsignal.learn.networks.batchnorm import STATISTICS

# Accuracy overall, by cell type and by experiment.


def accuracy(predictions: pd.Series, truth: pd.Series, wells: pd.DataFrame) -> dict:
    """Share of wells whose siRNA is named rightly, as the competition scores it (the competition's own measure).

    `predictions` and `truth`: siRNA by id_code; every well of `truth` counts, a missing prediction
    as wrong. `wells` tells cell type and experiment. Returns {"accuracy", "wells", "by_cell_type",
    "by_experiment"}.
    """
    places = wells.set_index("id_code").reindex(truth.index)
    right = predictions.reindex(truth.index).eq(truth).fillna(False).astype(bool)
    return {
        "accuracy": float(right.mean()),
        "wells": len(right),
        "by_cell_type": _accuracy_by(right, places["cell_type"]),
        "by_experiment": _accuracy_by(right, places["experiment"]),
    }


def _accuracy_by(right: pd.Series, key: pd.Series) -> dict[str, float]:
    return {str(name): float(share) for name, share in right.groupby(key).mean().items()}


# Brodt's accuracies on the competition's public and private leaderboard, each trick on top of those before
# (seed 004). His assignment was greedy; his last two rungs have the plate groups in them.
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
    better: Mapping[str, pd.DataFrame] = {}, final: Mapping[str, pd.DataFrame] = {},
) -> list[dict]:
    """Accuracy of every rung on the wells of `truth`.

    Only wells whose `split` (a column of `wells`) is the one named take part: wells that a network
    was trained on would give the others away by elimination. `scores`: by kind of statistics, and what else a prediction gave, which is no rung; the rungs above
    rest on `statistics`, which therefore comes last of these. `better`: by rung, in their order, scores that are
    better still: "virtual batch", where `scores` are of a network trained without one; "views", "prototypes", "ensemble". The assigned rungs add plate knowledge to the
    best scores so far: each siRNA once per experiment ("exact"), plate groups ("groups"), both, and
    both with the largest expected number of right wells ("groups+expected"). `final`: by its rung, "mixup", scores of the
    network trained on, on all labelled wells; the rung has a raw accuracy and one with all knowledge. Where there are more wells than siRNAs, as with replicates, a one-to-one rung is left out.
    `design`: further arguments of `assign`, such as groups, rotations and temperatures.

    Returns rows {"rung", "kind": "raw" | "assigned", "split", "accuracy", "wells", "by_cell_type",
    "by_experiment", "answers": siRNA by id_code}.
    """
    wells = wells[wells["split"] == split]
    kinds = sorted((name for name in scores if name in STATISTICS), key=statistics.__eq__)  # a stable sort: the chosen one last
    steps = {name: scores[name] for name in kinds} | dict(better)
    steps, ends = ({name: table[table.index.isin(wells["id_code"])] for name, table in tables.items()} for tables in (steps, final))
    rungs = [_raw_rung(name, table, wells) for name, table in steps.items()]
    best = list(steps.values())[-1]
    rungs += [(name, "assigned", assign(best, wells, **way)) for name, way in _assigned_rungs(best, wells, design)]
    for last, table in ends.items():
        rungs.append(_raw_rung(last, table, wells))
        rungs += [(last, "assigned", assign(table, wells, **way)) for _, way in _assigned_rungs(table, wells, design)[-1:]]
    return [{"rung": name, "kind": kind, "split": split, **accuracy(predictions, truth, wells), "answers": predictions}
            for name, kind, predictions in rungs]


def _raw_rung(name: str, scores: pd.DataFrame, wells: pd.DataFrame) -> Rung:
    return name, "raw", assign(scores, wells, AssignmentSettings(method="raw"))


def _assigned_rungs(scores: pd.DataFrame, wells: pd.DataFrame, design: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The assigned rungs that the layout allows, by name, each with the arguments of `assign`."""
    ways = []
    for name, method, grouped in ASSIGNED_RUNGS:
        groups = design.get("groups", []) if grouped else []
        if (groups or not grouped) and (method == "raw" or _allows_one_to_one(scores, wells, groups=groups)):
            settings = design.get("settings", AssignmentSettings()).model_copy(update={"method": method})
            ways.append((name, {**design, "settings": settings, "groups": groups}))
    return ways


def _allows_one_to_one(scores: pd.DataFrame, wells: pd.DataFrame, *, groups: list[list[int]]) -> bool:
    """Whether there is a siRNA for every well of an experiment, or of a plate where groups are known."""
    scored = wells[wells["id_code"].isin(scores.index)]
    crowd = scored.groupby(["experiment", "plate"] if groups else ["experiment"]).size().max()
    return crowd <= min([scores.columns.isin(group).sum() for group in groups], default=scores.shape[1])


def ladder_table(ladder: list[dict], *, theirs: bool = False) -> pd.DataFrame:
    """The ladder to look at: one row a rung, raw and assigned accuracy in columns of their own.

    `theirs` puts Brodt's leaderboard accuracies beside the test wells, in columns that carry his name.
    """
    rows = pd.DataFrame([{name: row[name] for name in ("split", "rung", "kind", "accuracy")} for row in ladder],
                        columns=["split", "rung", "kind", "accuracy"])
    table = rows.pivot_table(index=["split", "rung"], columns="kind", values="accuracy", sort=False)
    table = table.reindex(columns=["raw", "assigned"]).rename_axis(columns=None)
    # A pivot drops rungs without a value and forgets the order; the last rung has both kinds in one row.
    table = table.reindex(pd.MultiIndex.from_frame(rows[["split", "rung"]]).drop_duplicates())
    if theirs and len(table):  # an empty list has no two columns
        figures = {("test", rung): pair for rung, pair in BRODT.items()}
        table[BRODT_COLUMNS] = [figures.get(place, (None, None)) for place in table.index]
    return table
