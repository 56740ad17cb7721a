"""Correction of profiles, step by step: scale, centre each plate, principal components, sphering on controls.

Inductive steps are fitted once and can be applied to a further plate; others must be refitted, or every plate changes. Sphering
on controls after centring is typical variation normalisation (Ando, McLean, Berndl 2017, doi:10.1101/161422).
"""

from collections.abc import Iterator

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from cellsignal.errors import InputError
from cellsignal.profiles.settings import ProfileSettings
from cellsignal.profiles.table import CONTROL_TYPE, PERTURBATION, WELL, Profiles, constant_features

UNCORRECTED = "uncorrected"


def steps(profiles: Profiles, settings: ProfileSettings) -> Iterator[tuple[str, Profiles]]:
    """The profiles after each step, by its name; the first is `uncorrected` (scaled, as units are no batch effect), the last the result.

    InputError when a step is impossible on this table.
    """
    if settings.scale == "table":
        profiles = scale(profiles)
    yield UNCORRECTED, profiles
    if settings.center != "none":
        profiles = center(profiles, on=settings.center, controls=settings.controls)
        yield "centred", profiles
    if settings.components:
        profiles = project(profiles, settings.components)
        yield "components", profiles
    if settings.sphering == "controls":
        profiles = sphere(profiles, controls=settings.controls, regularisation=settings.regularisation)
        yield "sphered", profiles


def scale(profiles: Profiles) -> Profiles:
    """Each feature minus its mean, by its standard deviation, over all wells; InputError for a constant feature.

    Inductive: mean and deviation of the first plates do for further ones.
    """
    if constant := constant_features(profiles):
        what = f"{len(constant)} features are constant, such as {constant[0]}" if len(constant) > 1 else f"the feature {constant[0]} is constant"
        raise InputError(what, where=profiles.where, cure="drop what is constant, or leave scaling out (scale: none)")
    features = profiles.features.astype(np.float64)
    return profiles.with_features(((features - features.mean(axis=0)) / features.std(axis=0)).astype(np.float32))


def control_wells(profiles: Profiles, controls: str) -> np.ndarray:
    """Which wells are controls, bool[wells]: `negative`, or `all` of known perturbation; InputError where a table has none."""
    negative = profiles.negative_controls
    chosen = negative | ((profiles.wells[CONTROL_TYPE] == "poscon").to_numpy() & (profiles.perturbations >= 0) & (controls == "all"))
    if not chosen.any():
        raise InputError(
            "no controls: no well has Metadata_Control_Type negcon" + (" or poscon" if controls == "all" else ""), where=profiles.where,
            cure="mark the untreated wells, or leave out what needs them (center: plate or none, sphering: none)")  # fmt: skip
    return chosen


def deviations(profiles: Profiles, wells: np.ndarray) -> np.ndarray:
    """The features of some wells (a mask) minus the mean of their perturbation over these wells, float64; untreated wells are one perturbation."""
    features, groups = profiles.features[wells].astype(np.float64), _groups(profiles)[wells]
    numbers = np.unique(groups, return_inverse=True)[1]
    return features - (group_sums(features, numbers) / np.bincount(numbers)[:, None])[numbers]


def _groups(profiles: Profiles) -> np.ndarray:
    """The number of each well's perturbation, -1 for all untreated wells."""
    return np.where(profiles.negative_controls, -1, profiles.perturbations)


def center(profiles: Profiles, *, on: str, controls: str) -> Profiles:
    """Subtract from each plate the mean of all its wells (`plate`), or its offset on its controls (`controls`).

    The offsets are those of a model in which a control well is the sum of its plate and its perturbation (least squares), so
    plates may hold different controls; untreated wells then have the mean 0. With untreated wells as the only controls this
    subtracts from each plate the mean of its untreated wells. Inductive on untreated wells alone and on all wells, where a plate
    needs no other; with several controls the model must be fitted again when a plate comes, and others change a little.
    InputError for a plate without controls, for plates whose controls connect them with no other's, and for `plate` where a plate has a single well or a single treatment.
    """
    features, plates = profiles.features.astype(np.float64), profiles.plates
    if on == "plate":
        _check_many_treatments(profiles)
        means = group_sums(features, plates) / np.bincount(plates)[:, None]
        return profiles.with_features((features - means[plates]).astype(np.float32))
    chosen = control_wells(profiles, controls)
    without = np.setdiff1d(plates, plates[chosen])
    if len(without):
        what = f"no controls on {profiles.plate_name(without[0])}" + (f" and {len(without) - 1} more plates" if len(without) > 1 else "")
        raise InputError(what, where=profiles.where, cure="leave out these plates, or centre on all wells (center: plate)")
    _check_connected(profiles, chosen)
    centred = features - _plate_offsets(features[chosen], plates[chosen], _groups(profiles)[chosen])[plates]
    origin = centred[profiles.negative_controls if profiles.negative_controls.any() else chosen].mean(axis=0)
    return profiles.with_features((centred - origin).astype(np.float32))


def _check_connected(profiles: Profiles, chosen: np.ndarray) -> None:
    """InputError where plates are not connected by controls they share: their offsets could not be told from the controls' own effects."""
    plates, controls = profiles.plates[chosen], np.unique(_groups(profiles)[chosen], return_inverse=True)[1]
    count = plates.max() + 1
    edges = csr_array((np.ones(len(plates)), (plates, count + controls)), shape=(count + controls.max() + 1,) * 2)
    components = connected_components(edges, directed=False)[1][:count]
    if len(apart := np.flatnonzero(components != components[0])):
        what = f"{profiles.plate_name(0)} and {profiles.plate_name(int(apart[0]))} share no control, not even by way of other plates"
        raise InputError(what, where=profiles.where, cure="put the same controls, such as untreated wells, on all plates, or centre on all wells (center: plate)")


def _plate_offsets(features: np.ndarray, plates: np.ndarray, controls: np.ndarray) -> np.ndarray:
    """The least-squares plate effects of features = plate + control + noise, float64[plates, features], up to a constant."""
    controls = np.unique(controls, return_inverse=True)[1]
    counts = np.zeros((plates.max() + 1, controls.max() + 1))
    np.add.at(counts, (plates, controls), 1)
    shares = counts / counts.sum(axis=0)
    of_plates, of_controls = group_sums(features, plates), group_sums(features, controls)
    return np.linalg.lstsq(np.diag(counts.sum(axis=1)) - shares @ counts.T, of_plates - shares @ of_controls, rcond=1e-9)[0]


def group_sums(features: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Sums of rows by number of their group, float64[groups, features]."""
    indicator = csr_array((np.ones(len(groups)), (groups, range(len(groups)))), shape=(groups.max() + 1, len(groups)))
    return indicator @ features.astype(np.float64, copy=False)


def _check_many_treatments(profiles: Profiles) -> None:
    cure = "centre on controls (center: controls), or leave it out (center: none)"
    sizes = np.bincount(profiles.plates)
    if sizes.min() == 1:
        raise InputError(f"{profiles.plate_name(int(sizes.argmin()))} has a single well, which would become 0", where=profiles.where, cure=cure)
    treatments = profiles.wells[profiles.wells[CONTROL_TYPE] == "treatment"]
    kinds = treatments[PERTURBATION].fillna(treatments[WELL]).groupby(profiles.plates[treatments.index]).nunique()  # unknown ones may all differ
    if (kinds == 1).any():
        name = profiles.plate_name(int(kinds.index[kinds == 1][0]))
        raise InputError(f"{name} has a single treatment, which its mean would take away", where=profiles.where, cure=cure)


def project(profiles: Profiles, components: int) -> Profiles:
    """The first principal components over all wells, the origin left where it is; all of them if there are fewer.

    Inductive, though the components of more plates are better ones.
    """
    features = profiles.features.astype(np.float64)
    directions = np.linalg.eigh(np.cov(features, rowvar=False).reshape(features.shape[1], -1))[1][:, ::-1]
    directions = directions[:, : min(components, len(features) - 1, features.shape[1])]
    directions *= np.where(directions[np.abs(directions).argmax(axis=0), range(directions.shape[1])] < 0, -1, 1)  # the same signs everywhere
    return profiles.with_features((features @ directions).astype(np.float32), [f"component_{number}" for number in range(directions.shape[1])])


def sphere(profiles: Profiles, *, controls: str, regularisation: float) -> Profiles:
    """Make the variation between wells of the same control alike in all directions (ZCA), float32.

    The covariance is that of the deviations of control wells from the mean of their perturbation; with untreated wells alone and
    `regularisation` 0 this is pycytominer's Spherize with epsilon 0. Inductive: fitted on the controls of the first plates, it does
    for further ones. InputError if there are no controls that repeat, or the covariance is singular and not regularised.
    """
    chosen = control_wells(profiles, controls)
    spread = deviations(profiles, chosen)
    degrees = len(spread) - len(np.unique(_groups(profiles)[chosen]))
    mean = profiles.features[profiles.negative_controls if profiles.negative_controls.any() else chosen].astype(np.float64).mean(axis=0)
    if degrees < 1 or np.abs(spread).max() < 1e-5 * max(np.abs(profiles.features).max(), 1e-30):
        raise InputError(
            "the controls show no variation: none is there twice, or each plate was centred on its only one", where=profiles.where,
            cure="use all controls (controls: all), centre on all wells (center: plate), or leave sphering out (sphering: none)")  # fmt: skip
    whitening = inverse_root(spread.T @ spread / degrees, regularisation, degrees=degrees, where=profiles.where)
    return profiles.with_features(((profiles.features - mean) @ whitening).astype(np.float32))


def inverse_root(covariance: np.ndarray, regularisation: float, *, degrees: int, where: str) -> np.ndarray:
    """The inverse square root of a covariance plus `regularisation` times its mean variance; InputError if it is singular."""
    variances, directions = np.linalg.eigh(covariance)
    if regularisation == 0 and (degrees < len(variances) or variances.min() <= 1e-12 * variances.max()):
        what = f"{degrees} independent control wells do not give the variation of {len(variances)} features, or one of these is constant"
        raise InputError(what, where=where, cure="set regularisation above 0, or keep fewer components")
    variances = np.maximum(variances, 0) + regularisation * variances.mean()
    return (directions / np.sqrt(variances)) @ directions.T
