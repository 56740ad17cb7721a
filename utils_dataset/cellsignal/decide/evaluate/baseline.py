"""What brightness alone can tell: the floor under the ladder."""

import pandas as pd

from cellsignal.decide.evaluate.ladder import accuracy

PIXEL_STATISTICS = ["mean", "std"]


def linear_baseline(pixel_stats: pd.DataFrame, wells: pd.DataFrame, truth: pd.Series, *, train: pd.Series) -> dict | None:
    """Accuracy of a logistic regression on each well's channel means and standard deviations.

    One model per cell type. The features are standardised within each plate, so that the batch
    effect, which is mostly brightness, is taken away as far as two moments can. `train`: bool for
    each row of `wells`; only its treatment wells teach. A network that is not far above this floor
    has learnt brightness, not biology. Returns what `metrics.accuracy` returns, or None where
    wells without statistics or a single class leave nothing to compare.
    """
    features = well_features(pixel_stats[pixel_stats["id_code"].isin(wells["id_code"])])
    features = plate_standardised(features, wells)
    teachers = wells[wells["id_code"].isin(features.index) & train & wells["well_type"].eq("treatment")]
    if not truth.index.isin(features.index).all() or teachers.groupby("cell_type")["sirna"].nunique().lt(2).any():
        return None
    guesses = [
        _predict_sirnas(features, teachers[teachers["cell_type"] == cell_type], asked.index)
        for cell_type, asked in wells.set_index("id_code").loc[truth.index].groupby("cell_type")
    ]
    return accuracy(pd.concat(guesses), truth, wells)


def well_features(pixel_stats: pd.DataFrame) -> pd.DataFrame:
    """Mean over sites of each channel's mean and standard deviation: one row per well, two columns a channel."""
    return pixel_stats.pivot_table(index="id_code", columns="channel", values=PIXEL_STATISTICS, aggfunc="mean").dropna()


def plate_standardised(features: pd.DataFrame, wells: pd.DataFrame) -> pd.DataFrame:
    """Each feature with the mean 0 and the standard deviation 1 of its plate."""
    places = wells.set_index("id_code").loc[features.index]
    by_plate = features.groupby([places["experiment"], places["plate"]])
    return (features - by_plate.transform("mean")) / by_plate.transform("std").fillna(1).replace(0, 1)


def _predict_sirnas(features: pd.DataFrame, teachers: pd.DataFrame, asked: pd.Index) -> pd.Series:
    from sklearn.linear_model import LogisticRegression  # slow to import and only needed here

    model = LogisticRegression(max_iter=1000)
    model.fit(features.loc[teachers["id_code"]].to_numpy(), teachers["sirna"].to_numpy(int))
    return pd.Series(model.predict(features.loc[asked].to_numpy()), index=asked)
