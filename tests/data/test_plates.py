"""The design is found again: groups, rotations, and experiments that share a layout."""

import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cellsignal.data.tables.plate_design import duplicate_layouts, layout, plate_groups, rotations, shifts
from cellsignal.data.tables.wells import read_tables


@pytest.fixture
def wells(data_set: Path) -> pd.DataFrame:
    return read_tables(data_set).wells


def test_groups_and_rotations(wells: pd.DataFrame) -> None:
    groups = plate_groups(wells)
    assert groups == [list(range(first, first + 4)) for first in (0, 4, 8, 12)]
    turned = rotations(wells, groups)
    assert turned["HUVEC-01"] == [0, 1, 2, 3] == turned["RPE-01"]
    assert turned["HUVEC-02"] == [1, 2, 3, 0] and turned["RPE-02"] == [2, 3, 0, 1]
    assert set(turned) == {"HUVEC-01", "HUVEC-02", "HUVEC-03", "RPE-01", "RPE-02"}


def test_missing_wells_do_not_hide_the_groups(wells: pd.DataFrame) -> None:
    thinned = wells.sample(frac=0.8, random_state=0)
    assert plate_groups(thinned) == plate_groups(wells)


def test_a_missing_plate_is_minus_one(wells: pd.DataFrame) -> None:
    part = wells[(wells["experiment"] != "HUVEC-02") | (wells["plate"] != 3)]
    assert rotations(part, plate_groups(part))["HUVEC-02"] == [1, 2, -1, 0]


def test_another_plate_of_a_test_experiment_leaves_the_layouts_complete(wells: pd.DataFrame) -> None:
    more = wells[wells["dataset"] == "test"].head(1).assign(plate=5, id_code="HUVEC-04_5_B02")
    turned = rotations(pd.concat([wells, more]), plate_groups(wells))
    assert turned == rotations(wells, plate_groups(wells)) and len(shifts(turned)) == 4


def test_no_groups_where_treatments_change_their_neighbours(wells: pd.DataFrame) -> None:
    mixed = wells.copy()
    rows = (mixed["experiment"] == "RPE-01") & (mixed["well_type"] == "treatment")
    mixed.loc[rows, "sirna"] = np.random.default_rng(0).permutation(mixed.loc[rows, "sirna"])
    assert plate_groups(mixed) == []
    assert layout(mixed)["rotations"] == {}


def test_one_layout_alone_proves_no_groups(wells: pd.DataFrame) -> None:
    alone = wells[(wells["experiment"] == "RPE-01") | (wells["dataset"] == "test")]
    assert plate_groups(alone) == []
    assert plate_groups(copied(alone, "RPE-01", "RPE-09", 2)) == []
    two = wells[wells["experiment"].isin(["RPE-01", "RPE-02"])]
    assert plate_groups(two) == plate_groups(wells)


def test_no_groups_without_labels(wells: pd.DataFrame) -> None:
    assert plate_groups(wells[wells["dataset"] == "test"]) == []


def test_a_test_experiment_that_repeats_a_layout(wells: pd.DataFrame) -> None:
    expected = [{"experiments": ["HUVEC-01", "RPE-03"], "plate_shift": 1}]
    assert duplicate_layouts(wells) == expected
    assert duplicate_layouts(wells.sample(frac=0.85, random_state=3)) == expected


def copied(wells: pd.DataFrame, source: str, name: str, shift: int) -> pd.DataFrame:
    """The wells and one more training experiment, laid out as `source`."""
    copy = wells[wells["experiment"] == source].assign(experiment=name, dataset="train")
    copy["plate"] = (copy["plate"] - 1 + shift) % 4 + 1
    copy["id_code"] = name + "_" + copy["plate"].astype(str) + "_" + copy["well"]
    return pd.concat([wells, copy], ignore_index=True)


@pytest.mark.parametrize("shift", range(4))
def test_a_training_pair_and_its_shift(wells: pd.DataFrame, shift: int) -> None:
    found = duplicate_layouts(copied(wells, "RPE-01", "RPE-09", shift))
    assert {"experiments": ["RPE-01", "RPE-09"], "plate_shift": shift} in found


def test_the_reference_is_the_experiment_with_the_most_treatments(wells: pd.DataFrame) -> None:
    more = copied(wells, "RPE-01", "RPE-09", 1)
    more = more.drop(more[(more["experiment"] == "RPE-01") & (more["sirna"] == 3)].index)
    assert {"experiments": ["RPE-09", "RPE-01"], "plate_shift": 3} in duplicate_layouts(more)


def test_controls_in_fixed_places_prove_nothing(wells: pd.DataFrame) -> None:
    fixed = wells[wells["well_type"] == "treatment"]
    controls = wells[(wells["experiment"] == "RPE-01") & (wells["well_type"] != "treatment")]
    laid = [
        controls.assign(experiment=name, dataset=part["dataset"].iloc[0])
        for name, part in fixed.groupby("experiment")
    ]
    assert duplicate_layouts(pd.concat([fixed, *laid], ignore_index=True)) == []


def test_controls_alike_on_all_plates_do_not_tell_the_shift(wells: pd.DataFrame) -> None:
    same = wells[(wells["well_type"] == "treatment") | (wells["plate"] == 1)]
    controls = same[same["well_type"] != "treatment"]
    four = pd.concat([same, *(controls.assign(plate=plate) for plate in (2, 3, 4))])
    four = four[four["experiment"] != "RPE-03"]
    copy = four[four["experiment"] == "HUVEC-01"].assign(experiment="RPE-03", dataset="test")
    copy["sirna"] = copy["sirna"].where(copy["well_type"] != "treatment")
    found = duplicate_layouts(pd.concat([four, copy], ignore_index=True))
    assert found == [{"experiments": ["HUVEC-01", "RPE-03"], "plate_shift": None}]


def test_the_real_layout(shared: Path) -> None:
    start = time.process_time()
    found = layout(read_tables(shared / "rxrx1").wells)
    assert time.process_time() - start < 5
    assert [len(group) for group in found["groups"]] == [277] * 4
    assert sorted(sum(found["groups"], [])) == list(range(1108))
    used = Counter(map(tuple, found["rotations"].values()))
    assert sorted(used.values()) == [4, 7, 22] and len(found["rotations"]) == 33
    # Each plate of a real experiment has its controls in the same places: for a test experiment
    # the shift stays unknown.
    assert found["duplicates"] == [
        {"experiments": ["RPE-03", "HUVEC-07"], "plate_shift": 3},
        {"experiments": ["RPE-03", "HUVEC-18"], "plate_shift": None},
    ]
    assert json.loads(json.dumps(found)) == found
