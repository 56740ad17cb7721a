"""The rungs of a run as one table, whatever they are measured by."""

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from cellsignal.decide.evaluate.ladder import ladder_table
from cellsignal.decide.labels.ladder import label_ladder_table

# By the metric that a metrics.json names; without one it is accuracy.
LADDER_TABLES: dict[str, Callable[..., pd.DataFrame]] = {
    "accuracy": lambda metrics, theirs: ladder_table(metrics.get("ladder", []), theirs=theirs),
    "macro_f1": lambda metrics, theirs: label_ladder_table(metrics.get("rungs", [])),
}


def rungs_table(metrics: Mapping[str, Any], *, theirs: bool = False) -> pd.DataFrame:
    """A row a rung, from the content of a metrics.json; empty when no answers were known. `theirs`: see `ladder.as_table`."""
    return LADDER_TABLES[metrics.get("metric", "accuracy")](metrics, theirs)
