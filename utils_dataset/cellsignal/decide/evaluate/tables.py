"""The ladder of a run as a table, for any metric."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from cellsignal.decide.evaluate.ladder import ladder_table


def rungs_table(metrics: Mapping[str, Any], *, with_brodt: bool = False) -> pd.DataFrame:
    """One row per rung, from the content of metrics.json; empty without known answers. `with_brodt`: see `ladder.ladder_table`."""
    if metrics.get("metric", "accuracy") == "accuracy":
        return ladder_table(metrics.get("ladder", []), with_brodt=with_brodt)
    if metrics["metric"] == "split_accuracy":
        from cellsignal.decide.evaluate.split_accuracy import split_table

        return split_table(metrics.get("splits", [])).round(1)
    from cellsignal.decide.labels.ladder import label_ladder_table

    return label_ladder_table(metrics.get("rungs", []))
