"""The ladder of a run as a table, for any metric."""

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from cellsignal.decide.evaluate.ladder import ladder_table
from cellsignal.decide.labels.ladder import label_ladder_table

# By the metric in metrics.json; without one it is accuracy.
LADDER_TABLES: dict[str, Callable[..., pd.DataFrame]] = {
    "accuracy": lambda metrics, with_brodt: ladder_table(metrics.get("ladder", []), with_brodt=with_brodt),
    "macro_f1": lambda metrics, with_brodt: label_ladder_table(metrics.get("rungs", [])),
}


def rungs_table(metrics: Mapping[str, Any], *, with_brodt: bool = False) -> pd.DataFrame:
    """One row per rung, from the content of metrics.json; empty without known answers. `with_brodt`: see `ladder.ladder_table`."""
    return LADDER_TABLES[metrics.get("metric", "accuracy")](metrics, with_brodt)
