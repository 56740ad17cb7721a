"""BBBC021: real wells with known mechanisms of action; see ../shared/bbbc021/README.md."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bbbc021 import read_bbbc021

from cellsignal.errors import InputError
from cellsignal.profiles.correct import steps
from cellsignal.profiles.mechanisms import mechanism_accuracy, mechanism_matches, neighbours
from cellsignal.profiles.settings import ProfileSettings
from cellsignal.profiles.table import Profiles, from_frame

GRID = [dict(components=components, regularisation=share) for components in (0, 16, 32, 64, 128) for share in (0.01, 0.1, 1.0)]
SPLITS = 10


@pytest.fixture(scope="module")
def bbbc021(shared: Path) -> Profiles:
    if not (shared / "bbbc021").is_dir():
        pytest.skip("no ../shared/bbbc021")
    return from_frame(read_bbbc021(shared / "bbbc021"))


def accuracies(profiles: Profiles) -> dict[str, float]:
    return mechanism_accuracy(profiles).set_index("measure")["accuracy"].to_dict()


def test_the_default_correction_gives_the_published_accuracy(bbbc021: Profiles) -> None:
    before, *_, after = (accuracies(profiles) for _, profiles in steps(bbbc021, ProfileSettings()))
    assert np.isclose(before["NSC"], 0.864, atol=1e-3) and np.isclose(before["NSCB"], 0.696, atol=1e-3)
    assert after["NSC"] >= 0.93 and after["NSCB"] >= 0.77
    assert mechanism_accuracy(bbbc021)["treatments"].tolist() == [103, 92]


def test_centring_on_all_wells_is_refused_where_a_plate_holds_one_treatment(bbbc021: Profiles) -> None:
    with pytest.raises(InputError, match="plate Week6_31641 of Week6 has a single treatment"):
        list(steps(bbbc021, ProfileSettings(center="plate")))


def test_neighbours_have_the_same_mechanism(bbbc021: Profiles) -> None:
    *_, (_, after) = steps(bbbc021, ProfileSettings())
    near = neighbours(after, 3).query("perturbation == 'taxol@1.0'")
    mechanisms = bbbc021.wells.drop_duplicates("Metadata_Perturbation").set_index("Metadata_Perturbation")["Metadata_Mechanism"]
    assert len(near) == 3 and (mechanisms[near["neighbour"]] == "Microtubule stabilizers").all() and near["similarity"].is_monotonic_decreasing


def first_half(profiles: Profiles, seed: int) -> set[str]:
    """One half of each mechanism's compounds; of an odd number the larger part in every other mechanism."""
    random, chosen = np.random.default_rng(seed), []
    for number, names in enumerate(profiles.wells[profiles.treated].groupby("Metadata_Mechanism")["Metadata_Compound"].unique()):
        chosen += [*random.permutation(np.sort(names.astype(str)))[: (len(names) + number % 2) // 2]]
    return set(chosen)


def accuracy_of(matches: pd.DataFrame, compounds: set[str], *, inside: bool) -> np.ndarray:
    """NSC and NSCB of the treatments whose compound is among some, or is not."""
    return matches[matches["compound"].isin(compounds) == inside].groupby("measure")["right"].mean()[["NSC", "NSCB"]].to_numpy()


@pytest.mark.slow
def test_a_setting_chosen_on_half_of_the_compounds_holds_for_the_other_half(bbbc021: Profiles) -> None:
    """Among GRID, by the mean of NSC and NSCB of one half: looked up among all treatments, or strictly among those of its half alone.

    The other half is tested among all treatments, beside uncorrected profiles and the documented setting.
    """
    made = [list(steps(bbbc021, ProfileSettings(**chosen)))[-1][1] for chosen in GRID]
    matches = [mechanism_matches(profiles) for profiles in made]
    plain, documented = mechanism_matches(next(steps(bbbc021, ProfileSettings()))[1]), matches[GRID.index({"components": 32, "regularisation": 0.1})]
    rows = []
    for seed in range(SPLITS):
        compounds = first_half(bbbc021, seed)
        inside = bbbc021.wells["Metadata_Compound"].isin(compounds).to_numpy()
        alone = [replace(profiles, wells=profiles.wells[inside], features=profiles.features[inside]) for profiles in made]
        best = int(np.argmax([accuracy_of(each, compounds, inside=True).mean() for each in matches]))
        strict = int(np.argmax([mechanism_accuracy(profiles)["accuracy"].mean() for profiles in alone]))
        rows.append([accuracy_of(each, compounds, inside=False) for each in (matches[best], matches[strict], documented, plain)])
        print(seed, len(compounds), GRID[best], GRID[strict], np.round(rows[-1], 3).tolist())
    mean, deviation = np.mean(rows, axis=0), np.std(rows, axis=0, ddof=1)
    for name, *values in zip(("chosen", "chosen strictly", "documented", "uncorrected"), mean.round(3), deviation.round(3)):
        print(f"{name}: NSC, NSCB of the other half", *values)
    assert (mean[0] > mean[3]).all() and mean[0][0] > 0.88
