"""Similar perturbations: nearest neighbours, and whether the nearest treatment has the same mechanism of action."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from cellsignal.errors import InputError
from cellsignal.profiles.correct import group_sums
from cellsignal.profiles.table import BATCH, COMPOUND, MECHANISM, PERTURBATION, Profiles


class Means(NamedTuple):
    """The mean profile of each treatment, of length 1 so that products are cosines."""

    wells: pd.DataFrame  # the first well of each treatment
    features: np.ndarray  # float64[treatments, features]


def means(profiles: Profiles) -> Means:
    """Mean profiles of the treatments of known perturbation, by name; those of 0 length stay 0."""
    wells = profiles.wells[profiles.treated]
    names, numbers = np.unique(wells[PERTURBATION].to_numpy(str), return_inverse=True)
    if not len(names):
        raise InputError("no well with a known treatment", where=profiles.where, cure="fill Metadata_Perturbation where Metadata_Control_Type is treatment")
    features = group_sums(profiles.features[profiles.treated], numbers)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return Means(wells.drop_duplicates(PERTURBATION).set_index(PERTURBATION).loc[names].reset_index(), features / np.maximum(lengths, 1e-30))


def neighbours(profiles: Profiles, count: int = 5) -> pd.DataFrame:
    """The `count` most similar treatments of each: perturbation, rank from 1, neighbour, similarity (cosine of means)."""
    found = means(profiles)
    similarity = found.features @ found.features.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, : min(count, len(similarity) - 1)]
    names = found.wells[PERTURBATION].to_numpy()
    return pd.DataFrame({
        "perturbation": np.repeat(names, nearest.shape[1]),
        "rank": np.tile(np.arange(1, nearest.shape[1] + 1), len(names)),
        "neighbour": names[nearest].ravel(),
        "similarity": np.take_along_axis(similarity, nearest, axis=1).ravel(),
    })  # fmt: skip


def has_mechanisms(profiles: Profiles) -> bool:
    """Whether a table names compounds and mechanisms."""
    return {COMPOUND, MECHANISM} <= set(profiles.wells.columns) and bool((profiles.treated & profiles.wells[MECHANISM].notna().to_numpy()).any())


def mechanism_accuracy(profiles: Profiles) -> pd.DataFrame:
    """How often the nearest treatment has the same mechanism: not of the same compound (NSC), nor of the same batch (NSCB).

    Ljosa et al. 2013 (NSC) and Ando et al. 2017 (NSCB) so define them. Counted are treatments for which some other one that may be
    chosen has the same mechanism. Columns: measure, treatments, accuracy (NaN for none). A treatment in several batches shares a
    batch with all that share one of these. InputError for a table without these columns.
    """
    if not has_mechanisms(profiles):
        raise InputError(f"no {COMPOUND} or no {MECHANISM}", where=profiles.where, cure="add both columns, a value for each treatment")
    found = means(profiles)
    known = found.wells[MECHANISM].notna().to_numpy()
    treatments, features = found.wells[known], found.features[known]
    compounds, mechanisms = treatments[COMPOUND].to_numpy(), treatments[MECHANISM].to_numpy()
    batches = profiles.wells[profiles.treated].groupby(PERTURBATION)[BATCH].agg(frozenset).loc[treatments[PERTURBATION]]
    indicator = pd.get_dummies(batches.explode()).groupby(level=0).max().loc[treatments[PERTURBATION]].to_numpy(int)
    same_compound, same_mechanism = compounds[:, None] == compounds, mechanisms[:, None] == mechanisms
    rows = []
    for measure, left_out in (("NSC", same_compound), ("NSCB", same_compound | (indicator @ indicator.T > 0))):
        possible = (same_mechanism & ~left_out).any(axis=1)
        nearest = np.where(left_out, -np.inf, features @ features.T).argmax(axis=1)
        right = (mechanisms[nearest] == mechanisms)[possible]
        rows.append({"measure": measure, "treatments": int(possible.sum()), "accuracy": right.mean() if len(right) else np.nan})
    return pd.DataFrame(rows)
