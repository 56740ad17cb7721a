"""Maps of wells: embeddings on two principal components and the nearest neighbours, before and after a correction."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from cellsignal.errors import InputError
from cellsignal.profiles.correct import center
from cellsignal.profiles.table import Profiles

COMPONENTS = 50  # on which neighbours are sought
NEIGHBOURS = 5
BLOCK = 512  # wells whose distances to all others are in memory at once
HEIGHT = 0.7  # of a map, by its width
REQUIRED = ("Metadata_Plate", "Metadata_Well", "Metadata_Batch", "Metadata_Perturbation", "Metadata_Control_Type", "Metadata_CellType")


@dataclass
class WellMap:
    """One map: rows are wells, those without an embedding are NaN and -1."""

    name: str
    positions: np.ndarray  # float[wells, 2], each network's from -1 to 1 across and -HEIGHT to HEIGHT up, on one scale
    shares: dict[str, list[float]]  # by network: the share of the variance on each of the two components
    neighbours: np.ndarray  # int[wells, NEIGHBOURS]: rows of the most similar wells of the same network, -1 for none


def read_embeddings(path: Path) -> tuple[pd.DataFrame, str]:
    """The table of embeddings of a run with a column `id_code`, and ""; without rows, and why, where there is none."""
    try:
        table = pd.read_parquet(path)
    except FileNotFoundError:
        return pd.DataFrame(), f"There is no map of wells and no neighbours: this run has no {path.name}."
    except (ValueError, OSError):
        return pd.DataFrame(), f"There is no map of wells and no neighbours: {path.name} is damaged."
    features = feature_columns(table)
    numeric = table[features].select_dtypes("number").shape[1] == len(features) > 0
    if not set(REQUIRED) <= set(table.columns) or not numeric or not np.isfinite(table[features].to_numpy(float)).all():
        return pd.DataFrame(), f"There is no map of wells and no neighbours: {path.name} is not as this version writes it."
    id_codes = table["Metadata_Plate"].astype(str) + "_" + table["Metadata_Well"].astype(str)
    return table.assign(id_code=id_codes).drop_duplicates("id_code"), ""


def feature_columns(table: pd.DataFrame) -> list[str]:
    """The names of the columns that are features."""
    return [name for name in table.columns if name.startswith("embedding_")]


def networks(table: pd.DataFrame) -> pd.Series:
    """The network of each well of a table of embeddings; features of different networks have nothing in common."""
    return table["Metadata_Network" if "Metadata_Network" in table else "Metadata_CellType"].astype(str)


def well_maps(table: pd.DataFrame, wells: pd.DataFrame, *, prefix: str = "") -> tuple[list[WellMap], str]:
    """A map of `wells` (id_code) for each correction that their embeddings allow, and why one is left out, else "".

    Names of maps begin with `prefix`.
    """
    table = table.set_index("id_code").reindex(wells["id_code"]).reset_index(drop=True)
    present = table["Metadata_Plate"].notna().to_numpy()
    names = networks(table)
    rows_of = {network: np.flatnonzero(present & (names == network).to_numpy()) for network in sorted(set(names[present]))}
    maps: list[WellMap] = []
    for name, correct in CORRECTIONS.items():
        try:
            corrected = {network: correct(_profiles(table.iloc[rows])).features.astype(np.float64) for network, rows in rows_of.items()}
        except InputError as error:
            return maps, f"There is no map of {name}: {error.what}."
        maps.append(_well_map(prefix + name, corrected, rows_of, count=len(wells), before=maps[0] if maps else None))
    return maps, ""


def _well_map(name: str, features: dict[str, np.ndarray], rows_of: dict[str, np.ndarray], *, count: int, before: WellMap | None) -> WellMap:
    """The map of some features, of the wells `rows_of` each network among `count` wells; turned like the map `before`."""
    positions, shares = np.full((count, 2), np.nan), {}
    neighbours = np.full((count, NEIGHBOURS), -1)
    for network, rows in rows_of.items():
        scores, variances = principal_components(features[network], COMPONENTS)
        flat = np.pad(scores, [(0, 0), (0, 2)])[:, :2]
        if before:  # the sign of a component is arbitrary, and points should move as little as they can
            flat = flat * np.where((flat * before.positions[rows]).sum(axis=0) < 0, -1, 1)
        low, high = flat.min(axis=0), flat.max(axis=0)
        positions[rows] = (flat - (low + high) / 2) / max(1e-12, *(high - low) / 2 / (1, HEIGHT))
        shares[network] = [float(share) for share in (*variances, 0.0, 0.0)[:2]]
        near = nearest(scores)
        neighbours[rows, : near.shape[1]] = rows[near]
    return WellMap(name, positions, shares, neighbours)


def _profiles(table: pd.DataFrame) -> Profiles:
    names = feature_columns(table)
    return Profiles(table.drop(columns=names).reset_index(drop=True), table[names].to_numpy(np.float32), names, where="embeddings")


CORRECTIONS: dict[str, Callable[[Profiles], Profiles]] = {
    "before correction": lambda profiles: profiles,
    "plates centred on their controls": partial(center, on="controls", controls="all"),  # as `cellsignal profile` does it
}


def principal_components(features: np.ndarray, count: int) -> tuple[np.ndarray, list[float]]:
    """The first components of each row, float[N, count or fewer], and the share of the variance of each; signs are the same everywhere."""
    centred = features - features.mean(axis=0)
    variances, directions = np.linalg.eigh(centred.T @ centred)
    directions = directions[:, ::-1][:, :count]
    directions = directions * np.where(directions[np.abs(directions).argmax(axis=0), range(directions.shape[1])] < 0, -1, 1)
    return centred @ directions, list(np.maximum(variances[::-1][:count], 0) / max(variances.sum(), 1e-12))


def nearest(scores: np.ndarray, count: int = NEIGHBOURS) -> np.ndarray:
    """The rows with the largest cosine similarity to each row but itself, the most similar first, int[N, count or fewer]."""
    unit = (scores / np.maximum(np.linalg.norm(scores, axis=1, keepdims=True), 1e-12)).astype(np.float32)
    count = min(count, len(unit) - 1)
    found = np.empty((len(unit), count), int)
    for start in range(0, len(unit), BLOCK):
        similarity = unit[start : start + BLOCK] @ unit.T
        rows = np.arange(len(similarity))
        similarity[rows, rows + start] = -np.inf
        best = np.argpartition(similarity, -count, axis=1)[:, len(unit) - count :] if count else np.empty((len(rows), 0), int)
        order = np.argsort(-np.take_along_axis(similarity, best, axis=1), axis=1, kind="stable")
        found[start : start + BLOCK] = np.take_along_axis(best, order, axis=1)
    return found
