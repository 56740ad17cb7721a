"""Pixel statistics computed from images, for data sets that bring no pixel_stats.csv."""

from pathlib import Path

import numpy as np
import pandas as pd

from cellsignal.data.images import missing_channels, read_site
from cellsignal.progress_bars import progress_bar
from cellsignal.tasks import RXRX1

COLUMNS = ["id_code", "experiment", "plate", "well", "site"]
FEATURES = {"mean": np.mean, "std": np.std, "median": np.median, "min": np.min, "max": np.max}


def channels_there(root: Path, sites: pd.DataFrame) -> pd.Series:
    """How many of its channel files each site has: int for each row, all of the task when it is whole."""
    channels = len(RXRX1.suffixes)
    missing = missing_channels(Path(root), sites["stem"], channels=RXRX1.suffixes)
    there = [channels - len(numbers.split(", ")) if numbers else channels for numbers in missing]
    return pd.Series(there, index=sites.index, name="channels", dtype=int)


def pixel_stats(root: Path, sites: pd.DataFrame, *, most: int = 600) -> pd.DataFrame:
    """The columns of the competition's pixel_stats.csv, for at most `most` sites spread evenly.

    One row per site and channel (from 1). Raises InputError when an image is missing or damaged.
    """
    chosen = sites.iloc[:: max(1, -(-len(sites) // most))]
    rows = [
        {**{name: site[name] for name in COLUMNS}, "channel": channel, **_features(pixels)}
        for site in progress_bar(chosen.to_dict("records"), desc="pixel statistics", unit="site")
        for channel, pixels in enumerate(read_site(root, site["stem"]), 1)
    ]
    return pd.DataFrame(rows, columns=[*COLUMNS, "channel", *FEATURES])


def _features(pixels: np.ndarray) -> dict[str, float]:
    return {name: float(measure(pixels)) for name, measure in FEATURES.items()}
