"""Moments of plates and experiments, by which images may be standardised before a network sees them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cellsignal.data.images.reader import missing_channels, read_site, stems_in
from cellsignal.data.tables.pixel_stats import FILE as STATED
from cellsignal.data.tables.pixel_stats import read_pixel_stats
from cellsignal.errors import InputError
from cellsignal.files import sha256
from cellsignal.progress_bars import progress_bar
from cellsignal.tasks import RXRX1

STANDARDISE = ("none", "image", "plate", "experiment")
BY_PLACE = ("plate", "experiment")
Sums = np.ndarray  # [C, 3]: number of sites, sum of their means, sum of their mean squares
Place = tuple[str, int]  # experiment and plate
# By root, folder and channels: a plate is large, and every epoch and kind of scores asks for it.
_measured: dict[tuple[Path, str, int], Sums] = {}


def channel_stats(root: Path, sites: pd.DataFrame, by: str, channels: int) -> torch.Tensor:
    """For each site the mean and standard deviation of its plate or experiment (`by`), float32[N, C, 2], in 8-bit units.

    They are over all sites of a plate, controls included, whichever are asked for: from the data set's pixel_stats.csv,
    or, for plates that it does not know, from the images in the plate's folder. (Brodt's list of what was not better;
    the sixth and seventh place standardised by experiment.) Raises InputError for sites without plates, and for a file
    that lacks a column.
    """
    if not {"experiment", "plate"} <= set(sites.columns):
        raise InputError("these sites lie on no plates", where="standardise", cure="use standardise: image, or none")
    root, places = Path(root), list(zip(sites["experiment"], sites["plate"].astype(int)))
    known = dict(_from_file(root / STATED, channels))
    folders = dict(zip(places, sites["stem"].str.rpartition("/")[0]))
    unknown = {place: (root.resolve(), folders[place], channels) for place in sorted(set(folders) - set(known))}
    new = sorted(set(unknown.values()) - _measured.keys())
    for folder in progress_bar(new, desc="measure plates", unit="plate", disable=not new):
        _measured[folder] = _from_images(*folder)
    known |= {place: _measured[folder] for place, folder in unknown.items()}
    if by == "plate":
        table = {place: _mean_and_deviation([known[place]]) for place in folders}
    else:
        mine = {name: [sums for place, sums in known.items() if place[0] == name] for name, _ in folders}
        table = {place: _mean_and_deviation(mine[place[0]]) for place in folders}
    return torch.from_numpy(np.stack([table[place] for place in places]))


def stats_source(root: Path, by: str) -> dict[str, str]:
    """What the moments `by` which a network standardises are read from, for identities: {"pixel_stats": SHA-256}.

    "" where there is no such file, and they are measured on the images; empty for a network that wants no moments.
    """
    if by not in BY_PLACE:
        return {}
    path = Path(root) / STATED
    return {"pixel_stats": _digest(path, path.stat().st_mtime_ns) if path.is_file() else ""}


@lru_cache(maxsize=2)
def _digest(path: Path, changed: int) -> str:
    return sha256(path)


def _mean_and_deviation(parts: Sequence[Sums]) -> np.ndarray:
    """Mean and standard deviation of each channel, float32[C, 2]."""
    count, total, squares = np.sum(parts, axis=0).T
    mean = total / count
    return np.stack([mean, np.sqrt(np.maximum(squares / count - mean**2, 0))], axis=1).astype(np.float32)


def _from_file(path: Path, channels: int) -> dict[Place, Sums]:
    """The plates of which a pixel_stats.csv knows every channel."""
    return _read(path, path.stat().st_mtime_ns, channels) if path.is_file() else {}


@lru_cache(maxsize=2)
def _read(path: Path, changed: int, channels: int) -> dict[Place, Sums]:
    table = read_pixel_stats(path.parent)
    table = table.assign(squares=table["mean"] ** 2 + table["std"] ** 2)
    sums = table.groupby(["experiment", "plate", "channel"])[["mean", "squares"]].agg(["count", "sum"])
    sums.columns = ["count", "mean", "count again", "squares"]
    plates = sums[["count", "mean", "squares"]].groupby(level=["experiment", "plate"])
    numbers = list(range(1, channels + 1))
    return {(name, int(plate)): part.droplevel([0, 1]).loc[numbers].to_numpy(np.float64)
            for (name, plate), part in plates if set(numbers) <= set(part.index.get_level_values("channel"))}


def _from_images(root: Path, folder: str, channels: int) -> Sums:
    """Measured on every whole site of a plate's folder."""
    stems = pd.Series(stems_in(root, folder), dtype=object)
    ends = RXRX1.suffixes[:channels]
    stems = stems[missing_channels(root, stems, channels=ends) == ""]
    with ThreadPoolExecutor() as pool:
        return np.sum(list(pool.map(lambda stem: _sums(read_site(root, stem, channels=ends)), stems)), axis=0)


def _sums(image: np.ndarray) -> Sums:
    mean, spread = image.mean((1, 2)), image.std((1, 2))
    return np.stack([np.ones(len(image)), mean, mean**2 + spread**2], axis=1)
