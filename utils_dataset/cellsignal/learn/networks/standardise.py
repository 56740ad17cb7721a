"""Means and standard deviations of plates and experiments, by which images can be standardised."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cellsignal.data.images.reader import missing_channels, read_site, stems_in
from cellsignal.data.tables.wells import PIXEL_STATS_FILE, read_pixel_stats
from cellsignal.errors import InputError
from cellsignal.files import sha256
from cellsignal.progress_bars import progress_bar
from cellsignal.tasks import RXRX1

CHANNEL_STATISTICS_SCOPES = ("plate", "experiment")
Sums = np.ndarray  # [C, 3]: number of sites, sum of their means, sum of their mean squares
PlateKey = tuple[str, int]  # experiment and plate
# By root, folder and channels: a plate is large, and every epoch and every kind of scores needs its sums.
_measured_plates: dict[tuple[Path, str, int], Sums] = {}


def channel_stats(root: Path, sites: pd.DataFrame, scope: str, channels: int) -> torch.Tensor:
    """Mean and standard deviation of the plate or experiment (`scope`) of each site, float32[N, C, 2], in 8-bit units.

    They cover all sites of a plate, controls included, even if `sites` has only some: from the data set's pixel_stats.csv, or,
    for plates that it lacks, from the images in the plate's folder. (Brodt's list of what was not better; the sixth and seventh
    place standardised by experiment.) Raises InputError for sites without plates, and for a file that lacks a column.
    """
    if not {"experiment", "plate"} <= set(sites.columns):
        raise InputError("these sites lie on no plates", where="standardise", cure="use standardise: image, or none")
    root, plates = Path(root), list(zip(sites["experiment"], sites["plate"].astype(int)))
    plate_sums = dict(_stats_from_file(root / PIXEL_STATS_FILE, channels))
    folders = dict(zip(plates, sites["stem"].str.rpartition("/")[0]))
    unlisted = {plate: (root.resolve(), folders[plate], channels) for plate in sorted(set(folders) - set(plate_sums))}
    unmeasured = sorted(set(unlisted.values()) - _measured_plates.keys())
    for folder in progress_bar(unmeasured, desc="measure plates", unit="plate", disable=not unmeasured):
        _measured_plates[folder] = _stats_from_images(*folder)
    plate_sums |= {plate: _measured_plates[folder] for plate, folder in unlisted.items()}
    if scope == "plate":
        stats = {plate: _mean_and_deviation([plate_sums[plate]]) for plate in folders}
    else:
        by_experiment = {name: [sums for plate, sums in plate_sums.items() if plate[0] == name] for name, _ in folders}
        stats = {plate: _mean_and_deviation(by_experiment[plate[0]]) for plate in folders}
    return torch.from_numpy(np.stack([stats[plate] for plate in plates]))


def stats_source(root: Path, scope: str) -> dict[str, str]:
    """The source of the channel statistics for standardisation by `scope`, for identities: {"pixel_stats": SHA-256 of the file}.

    The SHA-256 is "" if there is no such file and the images are measured; the dict is empty if no channel statistics are needed.
    """
    if scope not in CHANNEL_STATISTICS_SCOPES:
        return {}
    path = Path(root) / PIXEL_STATS_FILE
    return {"pixel_stats": _file_sha256(path, path.stat().st_mtime_ns) if path.is_file() else ""}


@lru_cache(maxsize=2)
def _file_sha256(path: Path, modified: int) -> str:
    return sha256(path)


def _mean_and_deviation(parts: Sequence[Sums]) -> np.ndarray:
    """Mean and standard deviation of each channel, float32[C, 2], over several plates."""
    count, total, squares = np.sum(parts, axis=0).T
    mean = total / count
    return np.stack([mean, np.sqrt(np.maximum(squares / count - mean**2, 0))], axis=1).astype(np.float32)


def _stats_from_file(path: Path, channels: int) -> dict[PlateKey, Sums]:
    """The plates of a pixel_stats.csv that has all their channels."""
    return _read_stats(path, path.stat().st_mtime_ns, channels) if path.is_file() else {}


@lru_cache(maxsize=2)
def _read_stats(path: Path, modified: int, channels: int) -> dict[PlateKey, Sums]:
    table = read_pixel_stats(path.parent)
    table = table.assign(squares=table["mean"] ** 2 + table["std"] ** 2)
    sums = table.groupby(["experiment", "plate", "channel"])[["mean", "squares"]].agg(["count", "sum"])
    sums.columns = ["count", "mean", "second count", "squares"]
    plates = sums[["count", "mean", "squares"]].groupby(level=["experiment", "plate"])
    numbers = list(range(1, channels + 1))
    return {(name, int(plate)): part.droplevel([0, 1]).loc[numbers].to_numpy(np.float64)
            for (name, plate), part in plates if set(numbers) <= set(part.index.get_level_values("channel"))}


def _stats_from_images(root: Path, folder: str, channels: int) -> Sums:
    """The sums over every complete site in a plate's folder."""
    stems = pd.Series(stems_in(root, folder), dtype=object)
    suffixes = RXRX1.suffixes[:channels]
    stems = stems[missing_channels(root, stems, channels=suffixes) == ""]
    with ThreadPoolExecutor() as pool:
        return np.sum(list(pool.map(lambda stem: _image_sums(read_site(root, stem, channels=suffixes)), stems)), axis=0)


def _image_sums(image: np.ndarray) -> Sums:
    mean, deviation = image.mean((1, 2)), image.std((1, 2))
    return np.stack([np.ones(len(image)), mean, mean**2 + deviation**2], axis=1)
