"""Figures of the batch effect: channel means by experiment, and variance shares of wells' statistics."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from cellsignal.data.images.reader import missing_channels, read_site
from cellsignal.data.tables.wells import PIXEL_STATS_FILE, read_pixel_stats
from cellsignal.progress_bars import progress_bar
from cellsignal.show.style import blank_figure, cell_type_colour, new_figure, styled
from cellsignal.tasks import RXRX1

HALO = [withStroke(linewidth=2.5, foreground="white")]
PARTS = ("experiment", "siRNA", "rest")


@styled
def channel_means(stats: pd.DataFrame) -> Figure:
    """Mean of each channel by experiment: a dot for the mean well, a bar over nine wells in ten.

    `stats`: id_code, experiment, channel (from 1), mean; any number of sites of each well. One panel a channel.
    """
    if stats.empty:
        return blank_figure("No pixel statistics to show.")
    experiments = sorted(stats["experiment"].unique())
    wells = stats.groupby(["experiment", "id_code", "channel"], as_index=False)["mean"].mean()
    figure = new_figure(14, 1.3 + 0.17 * max(8, len(experiments)))
    grid = figure.subplots(1, len(RXRX1.channels), sharey=True, squeeze=False)[0]
    for channel, (axes, name) in enumerate(zip(grid, RXRX1.channels), 1):
        subset = wells[wells["channel"] == channel].groupby("experiment")["mean"]
        _dots(axes, subset.agg(["mean", _fifth_percentile, _ninety_fifth_percentile]).reindex(experiments))
        axes.set_title(name, fontsize=9.5)
        axes.set_xlim(left=0)
    grid[0].set_yticks(range(len(experiments)), experiments, fontsize=8)
    grid[0].set_ylim(len(experiments) - 0.4, -0.6)
    figure.supxlabel("mean grey value of a well (0-255)", fontsize=10)
    return figure


def _fifth_percentile(values: pd.Series) -> float:
    return values.quantile(0.05)


def _ninety_fifth_percentile(values: pd.Series) -> float:
    return values.quantile(0.95)


def _dots(axes: Axes, rows: pd.DataFrame) -> None:
    for y, (experiment, row) in enumerate(rows.iterrows()):
        colour = cell_type_colour(experiment.rsplit("-", 1)[0])
        axes.plot((row["_fifth_percentile"], row["_ninety_fifth_percentile"]), (y, y), color=colour, alpha=0.4, lw=3)
        axes.plot(row["mean"], y, "o", color=colour, ms=4.5)
    axes.tick_params(axis="y", length=0)


def variance_shares(features: pd.DataFrame, wells: pd.DataFrame) -> pd.DataFrame:
    """What share of the variance of control wells lies between experiments, between siRNAs, in neither.

    `features` float[wells,k] by id_code; `wells`: id_code, experiment, cell_type, sirna, well_type.
    One row per cell type in which both are identifiable. Sums of squares, experiments first, averaged over the features.
    """
    subset = {name: part for name, part in _controls(features, wells).groupby("cell_type") if _is_identifiable(part)}
    shares = {name: _shares(features.loc[part.index], part) for name, part in subset.items()}
    return pd.DataFrame.from_dict(shares, orient="index", columns=PARTS, dtype=float)


def _is_identifiable(wells: pd.DataFrame) -> bool:
    """Whether there are several experiments and siRNAs, and more wells than parameters."""
    experiments, sirnas = wells["experiment"].nunique(), wells["sirna"].nunique()
    return min(experiments, sirnas) > 1 and len(wells) > experiments + sirnas


def _controls(features: pd.DataFrame, wells: pd.DataFrame) -> pd.DataFrame:
    """The control wells with features, by id_code, of cell types that have at least three."""
    controls = wells[wells["well_type"] != "treatment"].set_index("id_code")
    controls = controls.loc[controls.index.intersection(features.index)]
    return controls[controls.groupby("cell_type")["plate"].transform("size") > 2]


def _shares(features: pd.DataFrame, wells: pd.DataFrame) -> dict[str, float]:
    centred = features - features.mean()
    by_experiment = centred.groupby(wells["experiment"]).transform("mean")
    residual = centred - by_experiment
    by_sirna = residual.groupby(wells["sirna"]).transform("mean")
    total = (centred**2).sum()
    parts = [(part**2).sum() / total for part in (by_experiment, by_sirna, residual - by_sirna)]
    return {name: float(part.mean()) for name, part in zip(PARTS, parts)}


@styled
def batch_effect(features: pd.DataFrame, wells: pd.DataFrame) -> Figure:
    """Control wells of each cell type on their first two principal components, coloured twice.

    Above by experiment, below by siRNA: what forms the islands is the batch, not the biology.
    `features` float[wells,k] by id_code, such as log channel means and standard deviations.
    `wells`: id_code, experiment, cell_type, sirna, well_type.
    """
    groups = [subset for _, subset in _controls(features, wells).groupby("cell_type")]
    if not groups:
        return blank_figure("Too few control wells for principal components.")
    figure = new_figure(3.4 * max(2, len(groups)), 6.4)
    grid = figure.subplots(2, len(groups), squeeze=False)
    for column, subset in zip(grid.T, groups):
        points = _components(features.loc[subset.index])
        _by_experiment(column[0], points, subset)
        _by_sirna(column[1], points, subset)
    grid[1, 0].legend(loc="best", fontsize=8, handletextpad=0)
    return figure


def _components(features: pd.DataFrame) -> np.ndarray:
    """The first two principal components of standardised features, float[wells,2]."""
    from sklearn.decomposition import PCA

    deviation = features.std().replace(0, 1)
    standardised = (features - features.mean()) / deviation
    return PCA(2, svd_solver="full").fit_transform(standardised.to_numpy())


def _by_experiment(axes: Axes, points: np.ndarray, wells: pd.DataFrame) -> None:
    """Each experiment in a colour of its own, labelled with its number."""
    names = sorted(wells["experiment"].unique())
    colours = matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, len(names)))
    for name, colour in zip(names, colours):
        subset = points[(wells["experiment"] == name).to_numpy()]
        axes.scatter(*subset.T, s=7, color=colour, alpha=0.6, lw=0)
        number = dict(ha="center", va="center", fontweight="bold", fontsize=9, path_effects=HALO)
        axes.text(*np.median(subset, axis=0), name.rsplit("-", 1)[1], **number)
    cell_type = wells["cell_type"].iloc[0]
    axes.set_title(f"{cell_type}: by experiment", color=cell_type_colour(cell_type))
    axes.set(xticks=[], yticks=[])


def _by_sirna(axes: Axes, points: np.ndarray, wells: pd.DataFrame) -> None:
    """The same points, a colour for each siRNA; untreated wells in black."""
    codes = wells["sirna"].astype("category").cat.codes
    axes.scatter(*points.T, s=7, c=codes, cmap="turbo", alpha=0.6, lw=0)
    untreated = (wells["well_type"] == "negative_control").to_numpy()
    axes.scatter(*points[untreated].T, s=12, color="black", lw=0, label="untreated")
    axes.set_title("the same wells by siRNA")
    axes.set(xticks=[], yticks=[])


# Pixel statistics computed from images, for data sets without pixel_stats.csv.


COLUMNS = ["id_code", "experiment", "plate", "well", "site"]
FEATURES = {"mean": np.mean, "std": np.std, "median": np.median, "min": np.min, "max": np.max}


def channels_there(root: Path, sites: pd.DataFrame) -> pd.Series:
    """The number of channel files of each site: int for each row."""
    channels = len(RXRX1.suffixes)
    missing = missing_channels(Path(root), sites["stem"], channels=RXRX1.suffixes)
    present = [channels - len(numbers.split(", ")) if numbers else channels for numbers in missing]
    return pd.Series(present, index=sites.index, name="channels", dtype=int)


def load_pixel_stats(root: Path, wells: pd.DataFrame, sites: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Statistics of the pixels of `wells`, from the competition's file where it is there, else from images of some `sites`; and from which."""
    stats = read_pixel_stats(root)
    return (pixel_stats(root, sites), "images") if stats is None else (stats[stats["id_code"].isin(wells["id_code"])], PIXEL_STATS_FILE)


def pixel_stats(root: Path, sites: pd.DataFrame, *, max_sites: int = 600) -> pd.DataFrame:
    """The columns of the competition's pixel_stats.csv, for at most `max_sites` sites spread evenly.

    One row per site and channel (from 1). Raises InputError when an image is missing or damaged.
    """
    selected = sites.iloc[:: max(1, -(-len(sites) // max_sites))]
    rows = [
        {**{name: site[name] for name in COLUMNS}, "channel": channel, **_features(pixels)}
        for site in progress_bar(selected.to_dict("records"), desc="pixel statistics", unit="site")
        for channel, pixels in enumerate(read_site(root, site["stem"]), 1)
    ]
    return pd.DataFrame(rows, columns=[*COLUMNS, "channel", *FEATURES])


def _features(pixels: np.ndarray) -> dict[str, float]:
    return {name: float(measure(pixels)) for name, measure in FEATURES.items()}
