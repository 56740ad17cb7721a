"""Held-out experiments and wells: the promises of a split, for any seed."""

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from cellsignal.data.settings import WellSettings
from cellsignal.data.tables.plate_design import duplicate_layouts
from cellsignal.data.tables.splits import split_by_experiment, split_random, split_sites
from cellsignal.data.tables.wells import Tables, read_tables
from cellsignal.errors import InputError


seeds = some.integers(min_value=0, max_value=2**31)
quick = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def tables(data_set: Path) -> Tables:
    return read_tables(data_set)


@pytest.fixture
def wells(tables: Tables) -> pd.DataFrame:
    return tables.wells


@pytest.fixture
def with_copy(wells: pd.DataFrame) -> pd.DataFrame:
    """RPE-01 repeats the layout of HUVEC-01, two plates on."""
    copy = wells[wells["experiment"] == "HUVEC-01"].assign(experiment="RPE-01", cell_type="RPE")
    copy["plate"] = (copy["plate"] + 1) % 4 + 1
    return pd.concat([wells[wells["experiment"] != "RPE-01"], copy], ignore_index=True)


def held_out(wells: pd.DataFrame, split: pd.Series) -> list[str]:
    return sorted(wells.loc[split == "held_out", "experiment"].unique())


@quick
@given(seed=seeds, count=some.integers(0, 5))
def test_whole_experiments_of_each_cell_type(wells: pd.DataFrame, seed: int, count: int) -> None:
    split = split_by_experiment(wells, held_out=count, seed=seed)
    assert split.index.equals(wells.index)
    assert (split == "test").equals(wells["dataset"] == "test")
    assert split.groupby(wells["experiment"]).nunique().max() == 1
    chosen = [name.partition("-")[0] for name in held_out(wells, split)]
    assert chosen.count("HUVEC") == min(count, 2) and chosen.count("RPE") == min(count, 1)


@quick
@given(seed=seeds, count=some.integers(1, 3))
def test_one_layout_moves_together(with_copy: pd.DataFrame, seed: int, count: int) -> None:
    pairs = [pair["experiments"] for pair in duplicate_layouts(with_copy)]
    assert ["HUVEC-01", "RPE-01"] in pairs
    split = split_by_experiment(with_copy, held_out=count, seed=seed)
    chosen = held_out(with_copy, split)
    assert ("HUVEC-01" in chosen) == ("RPE-01" in chosen)


@quick
@given(seed=seeds, fraction=some.floats(0.02, 0.98))
def test_a_fraction_of_each_layout(wells: pd.DataFrame, seed: int, fraction: float) -> None:
    split = split_random(wells, fraction=fraction, seed=seed)
    assert (split == "test").equals(wells["dataset"] == "test")
    counts = (split == "held_out").groupby(wells["experiment"]).sum()
    assert set(counts[counts.index.isin(wells.loc[split != "test", "experiment"])]) == {
        round(52 * fraction)
    }


@quick
@given(seed=seeds)
def test_the_same_place_of_one_layout_is_on_one_side(with_copy: pd.DataFrame, seed: int) -> None:
    split = split_random(with_copy, fraction=0.3, seed=seed)
    place = with_copy["plate"].where(
        with_copy["experiment"] != "RPE-01", (with_copy["plate"] + 1) % 4 + 1
    )
    pair = with_copy["experiment"].isin(["HUVEC-01", "RPE-01"])
    sides = split[pair].groupby([place[pair], with_copy.loc[pair, "well"]])
    assert (sides.size() == 2).all() and (sides.nunique() == 1).all()


@quick
@given(seed=seeds, how=some.sampled_from(["experiment", "random"]))
def test_sites_get_the_split_of_their_well(tables: Tables, seed: int, how: str) -> None:
    split = {"experiment": split_by_experiment, "random": split_random}[how](tables.wells, seed=seed)
    by_well = dict(zip(tables.wells["id_code"], split))
    part = tables.sites[tables.sites["cell_type"] == "RPE"]
    sites = split_sites(tables.wells, part, settings=WellSettings(split=how), seed=seed)
    assert sites.tolist() == [by_well[id_code] for id_code in part["id_code"]]


def test_the_same_seed_the_same_split_whatever_the_order_of_rows(wells: pd.DataFrame) -> None:
    shuffled = wells.sample(frac=1, random_state=0)
    for split in (split_by_experiment, split_random):
        assert split(shuffled, seed=5).sort_index().equals(split(wells, seed=5))
        assert not split(wells, seed=5).equals(split(wells, seed=6))


def test_a_cell_type_with_one_experiment_holds_out_none(wells: pd.DataFrame) -> None:
    part = wells[wells["experiment"].isin(["RPE-01", "RPE-03"])]
    assert set(split_by_experiment(part)) == {"train", "test"}


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 2, float("nan")])
def test_a_fraction_is_between_0_and_1(wells: pd.DataFrame, fraction: float) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        split_random(wells, fraction=fraction)


def test_faults_of_the_caller(tables: Tables) -> None:
    with pytest.raises(InputError, match="held_out is -1"):
        split_by_experiment(tables.wells, held_out=-1)


def test_the_real_split(shared: Path) -> None:
    wells = read_tables(shared / "rxrx1").wells
    for seed in range(5):
        chosen = held_out(wells, split_by_experiment(wells, seed=seed))
        assert [name.partition("-")[0] for name in chosen] == ["HEPG2", "HUVEC", "RPE", "U2OS"]
        assert ("RPE-03" in chosen) == ("HUVEC-07" in chosen)
    counts = split_random(wells).value_counts()
    share = counts["held_out"] / (counts["held_out"] + counts["train"])
    assert share == pytest.approx(0.05, abs=1e-3)
