"""Accuracy overall, by cell type and by experiment."""

import pandas as pd


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
        "by_cell_type": _share(right, places["cell_type"]),
        "by_experiment": _share(right, places["experiment"]),
    }


def _share(right: pd.Series, key: pd.Series) -> dict[str, float]:
    return {str(name): float(share) for name, share in right.groupby(key).mean().items()}
