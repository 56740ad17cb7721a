"""Similar perturbations: nearest neighbours, and whether the nearest treatment has the same mechanism of action."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from cellsignal.errors import InputError
from cellsignal.profiles.correct import group_sums
from cellsignal.profiles.table import BATCH, COMPOUND, MECHANISM, PERTURBATION, Profiles

MEASURES = ("NSC", "NSCB")


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
    """Whether a table names compound and mechanism of any treatment."""
    return {COMPOUND, MECHANISM} <= set(profiles.wells.columns) and bool(_known(profiles.wells[profiles.treated].drop_duplicates(PERTURBATION)).any())


def _known(treatments: pd.DataFrame) -> np.ndarray:
    """Which treatments, by their first well, have both: without its compound a treatment would be a neighbour of itself."""
    return treatments[[COMPOUND, MECHANISM]].notna().all(axis=1).to_numpy()


def mechanism_accuracy(profiles: Profiles) -> pd.DataFrame:
    """How often the nearest treatment has the same mechanism, by `mechanism_matches`: measure, treatments, accuracy (NaN for none)."""
    groups = mechanism_matches(profiles).groupby("measure", sort=False)["right"]
    rows = [{"measure": measure, "treatments": groups.size().get(measure, 0), "accuracy": groups.mean().get(measure, np.nan)} for measure in MEASURES]
    return pd.DataFrame(rows)


def mechanism_matches(profiles: Profiles) -> pd.DataFrame:
    """The nearest treatment that is not of the same compound (NSC), and that is not of the same compound nor batch (NSCB).

    Ljosa et al. 2013 (NSC) and Ando et al. 2017 (NSCB) so define them. A row per measure and treatment for which some other one that
    may be chosen has the same mechanism: measure, perturbation, compound, mechanism, nearest, right (whether that one has the same
    mechanism). A treatment in several batches shares a batch with all that share one of these. InputError for a table without
    compounds and mechanisms.
    """
    if not has_mechanisms(profiles):
        raise InputError(f"no {COMPOUND} or no {MECHANISM}", where=profiles.where, cure="add both columns, a value for each treatment")
    found = means(profiles)
    known = _known(found.wells)
    treatments, features = found.wells[known], found.features[known]
    names, compounds, mechanisms = (treatments[name].to_numpy() for name in (PERTURBATION, COMPOUND, MECHANISM))
    batches = profiles.wells[profiles.treated].groupby(PERTURBATION)[BATCH].agg(frozenset).loc[names]
    indicator = pd.get_dummies(batches.explode()).groupby(level=0).max().loc[names].to_numpy(int)
    same_compound, same_mechanism = compounds[:, None] == compounds, mechanisms[:, None] == mechanisms
    tables = []
    for measure, left_out in zip(MEASURES, (same_compound, same_compound | (indicator @ indicator.T > 0))):
        nearest = np.where(left_out, -np.inf, features @ features.T).argmax(axis=1)
        rows = pd.DataFrame({
            "measure": measure, "perturbation": names, "compound": compounds, "mechanism": mechanisms, "nearest": names[nearest],
            "right": mechanisms[nearest] == mechanisms,
        })  # fmt: skip
        tables.append(rows[(same_mechanism & ~left_out).any(axis=1)])
    return pd.concat(tables, ignore_index=True)
