"""A linear model on brightness: the baseline of the ladder."""

import pandas as pd

from cellsignal.decide.evaluate.ladder import accuracy

PIXEL_STATISTICS = ["mean", "std"]


def linear_baseline(pixel_stats: pd.DataFrame, wells: pd.DataFrame, truth: pd.Series, *, train: pd.Series) -> dict | None:
    """Accuracy of a logistic regression on the channel means and standard deviations of wells (see `ladder.accuracy`).

    One model per cell type. The features are standardised within each plate, which removes the batch effect as far as two
    moments can. `train`: bool for each row of `wells`; only its treatment wells are used for training. A network that is not far
    above this baseline has learnt brightness, not biology. Returns None if wells lack statistics, or a cell type has a single
    class.
    """
    features = well_features(pixel_stats[pixel_stats["id_code"].isin(wells["id_code"])])
    features = plate_standardised(features, wells)
    train_wells = wells[wells["id_code"].isin(features.index) & train & wells["well_type"].eq("treatment")]
    if not truth.index.isin(features.index).all() or train_wells.groupby("cell_type")["sirna"].nunique().lt(2).any():
        return None
    predictions = [
        _predict_sirnas(features, train_wells[train_wells["cell_type"] == cell_type], group.index)
        for cell_type, group in wells.set_index("id_code").loc[truth.index].groupby("cell_type")
    ]
    return accuracy(pd.concat(predictions), truth, wells)


def well_features(pixel_stats: pd.DataFrame) -> pd.DataFrame:
    """Mean over sites of each channel's mean and standard deviation: one row per well, two columns per channel."""
    return pixel_stats.pivot_table(index="id_code", columns="channel", values=PIXEL_STATISTICS, aggfunc="mean").dropna()


def plate_standardised(features: pd.DataFrame, wells: pd.DataFrame) -> pd.DataFrame:
    """Each feature standardised to mean 0 and standard deviation 1 within each plate."""
    rows = wells.set_index("id_code").loc[features.index]
    by_plate = features.groupby([rows["experiment"], rows["plate"]])
    return (features - by_plate.transform("mean")) / by_plate.transform("std").fillna(1).replace(0, 1)


def _predict_sirnas(features: pd.DataFrame, train_wells: pd.DataFrame, id_codes: pd.Index) -> pd.Series:
    from sklearn.linear_model import LogisticRegression  # slow to import, and only needed here

    model = LogisticRegression(max_iter=1000)
    model.fit(features.loc[train_wells["id_code"]].to_numpy(), train_wells["sirna"].to_numpy(int))
    return pd.Series(model.predict(features.loc[id_codes].to_numpy()), index=id_codes)
