"""A network trained from a store is, bit by bit, the one trained from the images."""

from pathlib import Path

import pandas as pd
import pytest
import trainings

from cellsignal.data.packing import pack
from cellsignal.files import sha256
from cellsignal.learn.networks.standardise import channel_stats


def write_tables(root: Path, sites: pd.DataFrame) -> None:
    """The tables of these sites, all of them for training."""
    sites[["id_code", "experiment", "plate", "well", "sirna"]].to_csv(root / "train.csv", index=False)
    for name in ("train_controls", "test", "test_controls"):
        columns = ["id_code", "experiment", "plate", "well"] + ["sirna", "well_type"] * ("controls" in name)
        pd.DataFrame(columns=columns).to_csv(root / f"{name}.csv", index=False)


@pytest.mark.parametrize("cache", [True, False])
def test_a_store_trains_the_same_network(tmp_path: Path, cache: bool) -> None:
    root, sites = trainings.write_patches(tmp_path / "plates")
    write_tables(root, sites)
    pack.pack(pack.plan_pack(root), tmp_path / "store", progress=False)
    ends = []
    for place in (root, tmp_path / "store"):
        weights = tmp_path / f"{place.name}.safetensors"
        trainings.small((place, sites), weights, cache=cache, augment="d4", epochs=2)
        ends.append((sha256(weights), channel_stats(place, sites, "plate", 6).tolist()))
    assert ends[0] == ends[1]
