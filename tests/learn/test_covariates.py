"""What a network is told beside images, and what is said of rotations that no training experiment shows."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from cellsignal.data.tables.plate_design import plate_groups, rotations
from cellsignal.data.tables.wells import read_tables
from cellsignal.errors import InputError
from cellsignal.learn.networks.covariates import encode_covariates, mask_covariates, covariate_levels, plate_warning, unseen_rotations


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


SITES = pd.DataFrame({"cell_type": ["RPE", "HUVEC", "RPE"], "experiment": ["RPE-01", "HUVEC-01", "RPE-02"], "plate": [2, 10, 1],
                      "well": ["B03", "C04", "B03"], "site": [1, 2, 1]})


def test_levels_are_those_of_the_sites_in_their_order() -> None:
    assert covariate_levels(SITES, ["plate", "cell_type"]) == {"plate": ["1", "2", "10"], "cell_type": ["HUVEC", "RPE"]}
    assert covariate_levels(SITES, []) == {}
    for name in ("siRNA", "sirna"):
        with pytest.raises(InputError, match=f"unknown covariate '{name}'; use some of: cell_type, experiment"):
            covariate_levels(SITES.assign(sirna=3), [name])
    with pytest.raises(InputError, match="unknown covariate 'plate'; use some of: cell_type, experiment, well, site"):
        covariate_levels(SITES.drop(columns="plate"), ["plate"])


def test_an_unseen_level_is_all_zeros() -> None:
    known = covariate_levels(SITES.iloc[:2], ["experiment", "site"])
    told = encode_covariates(SITES, known)
    assert told.dtype == torch.float32 and told.tolist() == [[0, 1, 1, 0], [1, 0, 0, 1], [0, 0, 1, 0]]
    assert encode_covariates(SITES, {}).shape == (3, 0)


def test_training_hides_experiments_and_wells_for_a_share_of_the_sites() -> None:
    known = {"site": ["1", "2"], "experiment": ["RPE-01", "HUVEC-01", "RPE-02"], "well": ["B03", "C04"]}
    told = encode_covariates(pd.concat([SITES] * 400), known)
    seen = mask_covariates(told, known, key=(0, 1, 2))
    assert torch.equal(seen, mask_covariates(told, known, key=(0, 1, 2))) and not torch.equal(seen, mask_covariates(told, known, key=(0, 1, 3)))
    assert torch.equal(seen[:, :2], told[:, :2]) and told[:, 2:].sum() == 2400
    for block in (slice(2, 5), slice(5, 7)):
        gone = seen[:, block].sum(1) == 0
        assert 0.16 < gone.float().mean() < 0.24 and torch.equal(seen[~gone][:, block], told[~gone][:, block])
    plain = encode_covariates(SITES, {"plate": ["1", "2"]})
    assert mask_covariates(plain, {"plate": ["1", "2"]}, key=(0,)) is plain
