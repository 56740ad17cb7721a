"""Plates as OME-Zarr are what biologists' tools expect, and data to train on all the same."""

import sys
from pathlib import Path

import numpy as np
import pytest

from cellsignal.data.images import packed_store
from cellsignal.data import check
from cellsignal.data.packing import pack as packing
from cellsignal.data.images.reader import read_site
from cellsignal.errors import InputError
from cellsignal.tasks import RXRX1

PLATE = "train/HUVEC-01/Plate1"
STEMS = [f"{PLATE}/{name}" for name in ("B02_s1", "B02_s2", "D08_s2")]


@pytest.fixture
def plates(data_set: Path, draw) -> Path:
    for stem in STEMS:
        draw(data_set, stem)
    return data_set


def pack(root: Path, out: Path, **asked) -> packed_store.Store:
    packing.pack(packing.plan_pack(root, format="ome-zarr", **asked), out, progress=False)
    return packed_store.open_store(out)


@pytest.mark.parametrize("codec", ["raw", "lz4", "zstd"])
def test_a_plate_is_valid_and_read_back(plates: Path, tmp_path: Path, codec: str) -> None:
    zarr, hcs = pytest.importorskip("zarr"), pytest.importorskip("ome_zarr_models.v05.hcs")
    made = pack(plates, tmp_path / "store", codec=codec, sizes=(8, 4))
    group = zarr.open_group(made.root / PLATE / "plate.ome.zarr", mode="r")
    plate = hcs.HCS.from_zarr(group)
    assert [well.path for well in plate.ome_attributes.plate.wells] == ["B/02", "D/08"]
    assert [image.path for well in plate.well_groups for image in well.ome_attributes.well.images] == ["1", "2", "2"]
    image = group["B/02/2"]
    assert [channel["label"] for channel in image.attrs["ome"]["omero"]["channels"]] == list(RXRX1.channels)
    for size, level in ((8, "0"), (4, "1")):
        expected = read_site(plates, STEMS[1], size=size)
        assert np.array_equal(image[level][...], expected) and np.array_equal(made.read(STEMS[1], size=size), expected)
    assert check.verify(made.root, progress=False) == 6
    assert packing.pack(packing.plan_pack(plates, format="ome-zarr", codec=codec, sizes=(8, 4)), made.root, progress=False) == []


def test_a_lost_chunk_is_named(plates: Path, tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    made = pack(plates, tmp_path / "store", codec="raw")
    path = made.root / f"{PLATE}/plate.ome.zarr/D/08/2/0/c/0/0/0"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="c/0/0/0: is cut short"):
        made.read(STEMS[2])
    path.unlink()
    with pytest.raises(InputError, match=r"c/0/0/0: No such file.*; pack the data set again"):
        made.read(STEMS[2])
    assert len(packing.pack(packing.plan_pack(plates, format="ome-zarr", codec="raw"), made.root, progress=False)) == 1
    assert np.array_equal(packed_store.open_store(made.root).read(STEMS[2]), read_site(plates, STEMS[2]))


def test_without_zarr_it_says_how_to_get_it(plates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(InputError, match="writing OME-Zarr needs zarr; pip install zarr"):
        packing.plan_pack(plates, format="ome-zarr")


def test_a_codec_without_its_library_says_how_to_get_it(plates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cellsignal.data.images.packed_store import codec

    codec.cache_clear()
    monkeypatch.setitem(sys.modules, "blosc2", None)
    with pytest.raises(InputError, match="the codec lz4 needs blosc2; pip install blosc2, or pack with --codec raw"):
        packing.plan_pack(plates, codec="lz4")
    with pytest.raises(InputError, match="no codec 'jpeg'; choose one of raw, lz4, zstd"):
        packing.plan_pack(plates, codec="jpeg")
