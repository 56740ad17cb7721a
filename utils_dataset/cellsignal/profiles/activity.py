"""Which perturbations do anything: their distance to untreated wells, with p-values."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from cellsignal.errors import InputError
from cellsignal.profiles.correct import control_wells, group_sums, inverse_root
from cellsignal.profiles.retrieval import benjamini_hochberg
from cellsignal.profiles.settings import ProfileSettings
from cellsignal.profiles.table import PERTURBATION, Profiles

MIN_UNTREATED = 8  # wells: half of them give the variation, the other half the null distribution
MAX_DRAWN = 1000  # wells of that other half
BLOCK = 10_000  # means that are drawn at once


class Activity(NamedTuple):
    """How far perturbations lie from untreated wells."""

    perturbations: pd.DataFrame  # a row each: wells, distance, p_value, corrected_p_value
    null: np.ndarray  # distances of as many untreated wells as most treatments have, drawn at random
    active: float  # share of the perturbations whose corrected p-value is at most `significance`


def activity(profiles: Profiles, settings: ProfileSettings = ProfileSettings()) -> Activity:
    """Mahalanobis distances of the mean of each treatment to the mean of untreated wells, against means of as many untreated wells.

    One half of the untreated wells, drawn at random, gives mean and covariance (regularised as in sphering). The other half, whose
    wells are as new to these as treated wells are, gives the null distribution: differences between the mean of as many wells as
    the treatment has and the mean of as many as that first half, both drawn with replacement. Where plates were centred on
    controls, an untreated well took part in the centre of its plate and a treated one did not; its deviation is enlarged to that of
    a treated well, and the null distribution is as wide as the treatment's wells make it by sharing plates. Otherwise wells are taken
    as independent: where a treatment's replicates share a plate or an experiment whose effect remains, as on plates that are not
    centred, too many treatments seem active. Give profiles that are not yet sphered, as sphering has seen all untreated wells.
    InputError for fewer than MIN_UNTREATED untreated wells, or plates that are centred on a single one.
    """
    untreated = np.flatnonzero(profiles.negative_controls)
    if len(untreated) < MIN_UNTREATED:
        raise InputError(
            f"{len(untreated)} untreated wells (Metadata_Control_Type negcon), and activity needs {MIN_UNTREATED}", where=profiles.where,
            cure="add plates, or leave activity out")  # fmt: skip
    controls = profiles.features[untreated].astype(np.float64)
    controls = controls.mean(axis=0) + _enlargement(profiles, settings, untreated) * (controls - controls.mean(axis=0))
    random = np.random.default_rng(settings.seed)
    order = random.permutation(len(untreated))
    reference, drawn = controls[order[::2]], controls[order[1::2]][:MAX_DRAWN]
    centre = reference.mean(axis=0)
    covariance = np.cov(reference, rowvar=False).reshape(controls.shape[1], -1)
    if not covariance.any():
        raise InputError("all untreated wells are the same", where=profiles.where, cure="centre on more controls (controls: all), or on all wells (center: plate)")
    whitening = inverse_root(covariance, settings.regularisation, degrees=len(reference) - 1, where=profiles.where)

    names, numbers = np.unique(profiles.wells[PERTURBATION].to_numpy()[profiles.treated].astype(str), return_inverse=True)
    if not len(names):
        raise InputError("no well with a known treatment", where=profiles.where, cure="fill Metadata_Perturbation where Metadata_Control_Type is treatment")
    sizes = np.bincount(numbers)
    means = group_sums(profiles.features[profiles.treated], numbers) / sizes[:, None]
    distances = np.linalg.norm((means - centre) @ whitening, axis=1)
    white = (drawn - drawn.mean(axis=0)) @ whitening * np.sqrt(len(drawn) / (len(drawn) - 1))
    centres = _random_means(white, len(reference), settings.permutations, random)
    designs, of_treatment, counts = np.unique(np.stack([sizes, _widening(profiles, settings, numbers)], axis=1), axis=0, return_inverse=True, return_counts=True)
    nulls = np.empty((len(designs), settings.permutations))
    for size in np.unique(sizes):
        untreated_means = _random_means(white, size, settings.permutations, random)
        for design in np.flatnonzero(designs[:, 0] == size):
            nulls[design] = np.linalg.norm(designs[design, 1] * untreated_means - centres, axis=1)
    p_values = np.array([(1 + np.count_nonzero(nulls[design] >= distance)) / (1 + settings.permutations) for design, distance in zip(of_treatment.ravel(), distances)])
    corrected = benjamini_hochberg(p_values)
    found = pd.DataFrame({"perturbation": names, "wells": sizes, "distance": distances, "p_value": p_values, "corrected_p_value": corrected})
    return Activity(found, nulls[counts.argmax()], float((corrected <= settings.significance).mean()))


def _enlargement(profiles: Profiles, settings: ProfileSettings, untreated: np.ndarray) -> np.ndarray | float:
    """The factor, float[wells, 1], that gives each untreated well the spread of a treated one on a plate that is centred on m controls.

    The mean of the m has 1/m of a well's variance; it adds to a treated well, and of an untreated one it has taken away 1/m.
    """
    if settings.center != "controls":
        return 1.0
    counts = np.bincount(profiles.plates[control_wells(profiles, settings.controls)])[profiles.plates[untreated]]
    if (counts == 1).any():
        name = profiles.plate_name(int(profiles.plates[untreated][counts == 1][0]))
        raise InputError(
            f"{name} is centred on a single untreated well, so that nothing of it is left", where=profiles.where,
            cure="centre on all controls (controls: all) or on all wells (center: plate)")  # fmt: skip
    return np.sqrt((counts[:, None] + 1) / (counts[:, None] - 1))


def _widening(profiles: Profiles, settings: ProfileSettings, numbers: np.ndarray) -> np.ndarray:
    """The deviation of each treatment's mean as a multiple of that of as many wells on plates of their own, float[treatments].

    numbers: int[treated wells], that of their treatment. Wells of a plate that is centred on m controls share the error of its centre:
    the mean of n of them has the variance (1 + n/m) / n of a well, and that of n wells on different plates (1 + 1/m) / n.
    """
    if settings.center != "controls":
        return np.ones(numbers.max() + 1)
    controls = np.bincount(profiles.plates[control_wells(profiles, settings.controls)])
    (treatments, plates), wells = np.unique(np.stack([numbers, profiles.plates[profiles.treated]]), axis=1, return_counts=True)
    shared, apart = (np.bincount(treatments, weights / controls[plates]) / np.bincount(numbers) for weights in (wells**2, wells))
    return np.sqrt((1 + shared) / (1 + apart)).round(6)


def _random_means(wells: np.ndarray, size: int, count: int, random: np.random.Generator) -> np.ndarray:
    """Means of `size` wells each, drawn with replacement, float64[count, features]; in blocks, as counts of 1,000 wells a million times are 8 GB."""
    blocks = [min(BLOCK, count - start) for start in range(0, count, BLOCK)]
    return np.concatenate([random.multinomial(size, np.full(len(wells), 1 / len(wells)), size=block) @ wells / size for block in blocks])
