"""What is said of rotations that no training experiment shows."""

from pathlib import Path

import pytest

from cellsignal.data.plates import plate_groups, rotations
from cellsignal.data.wells import read_tables
from cellsignal.learn.covariates import plate_warning, unseen_rotations


def test_the_shifts_that_nobody_has_are_named() -> None:
    seen = {"A": [0, 1, 2, 3], "B": [2, 3, 0, 1], "C": [1, 2, 3, -1]}
    assert unseen_rotations(seen) == [[1, 2, 3, 0], [3, 0, 1, 2]]
    text = plate_warning(seen)
    assert "none of the 3 training experiments has the plate groups 2 3 4 1; 4 1 2 3 on plates 1 2 3 4" in text


def test_nothing_is_said_when_nothing_is_missing() -> None:
    every = {name: [(k + i) % 4 for i in range(4)] for k, name in enumerate("ABCD")}
    assert plate_warning(every) == plate_warning(every | {"E": [0, -1, 2, 3]}) == ""


@pytest.mark.parametrize("seen", [{}, {"A": [0, -1]}, {"A": [-1, -1], "B": [-1, 0]}])
def test_what_is_not_known_is_not_called_safe(seen: dict[str, list[int]]) -> None:
    assert plate_warning(seen).startswith("warning: the rotations are not known")


def test_plates_without_groups_give_no_rotations(shared: Path) -> None:
    wells = read_tables(shared / "rxrx1").wells.query("experiment == 'RPE-01'")
    assert plate_warning(rotations(wells, [])).startswith("warning: the rotations are not known")


def test_the_fourth_rotation_of_the_real_data_is_unseen(shared: Path) -> None:
    wells = read_tables(shared / "rxrx1").wells
    seen = rotations(wells, plate_groups(wells))
    assert len(seen) == 33 and len(unseen_rotations(seen)) == 1
    assert plate_warning(seen).startswith("warning: none of the 33 training experiments has the plate groups ")
