"""Images are read as OpenCV reads them, and no damage passes in silence."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from cellsignal.data.images.reader import channel_path, read_channel, read_site, read_sites, whole_sites
from cellsignal.data.tables.wells import Tables, read_tables
from cellsignal.errors import InputError

REAL = ["HEPG2-01", "HUVEC-01", "RPE-01", "U2OS-01", "HEPG2-08"]


def cv2_site(root: Path, stem: str) -> np.ndarray:
    files = [str(channel_path(root, stem, channel)) for channel in range(1, 7)]
    return np.stack([cv2.imread(file, cv2.IMREAD_UNCHANGED) for file in files])


@pytest.fixture
def sites(tmp_path: Path, draw: Callable[..., None]) -> pd.DataFrame:
    """Three wells of two sites, all drawn."""
    wells = ("B02", "B03", "B04")
    stems = [f"train/A-1/Plate1/{well}_s{site}" for well in wells for site in (1, 2)]
    for stem in stems:
        draw(tmp_path, stem)
    return pd.DataFrame({"id_code": [f"A-1_1_{stem[-6:-3]}" for stem in stems], "stem": stems})


def test_a_site_is_six_channels(tmp_path: Path, draw: Callable[..., None]) -> None:
    draw(tmp_path, "site", size=(5, 9))
    image = read_site(tmp_path, "site")
    assert image.shape == (6, 5, 9) and image.dtype == np.uint8
    assert np.array_equal(image, cv2_site(tmp_path, "site"))
    assert np.array_equal(read_site(tmp_path, "site", channels=("_w1.png", "_w2.png")), image[:2])


def test_sites_come_in_the_order_of_the_table(tmp_path: Path, sites: pd.DataFrame) -> None:
    turned = sites.iloc[::-1]
    images = read_sites(tmp_path, turned)
    assert images.shape == (6, 6, 8, 8)
    for image, stem in zip(images, turned["stem"]):
        assert np.array_equal(image, cv2_site(tmp_path, stem))


def test_no_sites_are_no_images(tmp_path: Path, sites: pd.DataFrame) -> None:
    assert len(read_sites(tmp_path, sites.iloc[:0])) == 0


def test_all_sites_have_one_size(
    tmp_path: Path, sites: pd.DataFrame, draw: Callable[..., None]
) -> None:
    draw(tmp_path, sites["stem"][4], size=(8, 7))
    with pytest.raises(InputError, match=r"B04_s1_w1\.png: is 8x7 pixels, .*B02_s1.* is 8x8"):
        read_sites(tmp_path, sites)


def test_the_first_damaged_site_is_named(tmp_path: Path, sites: pd.DataFrame) -> None:
    for place in (3, 2):
        channel_path(tmp_path, sites["stem"][place], 4).write_bytes(b"")
    with pytest.raises(InputError, match=r"B03_s1_w4\.png: the file is empty; copy"):
        read_sites(tmp_path, sites)


def test_a_missing_channel_leaves_the_other_site(tmp_path: Path, sites: pd.DataFrame) -> None:
    for channel in (5, 6):
        channel_path(tmp_path, sites["stem"][3], channel).unlink()
    whole, notes = whole_sites(tmp_path, sites)
    assert whole.index.tolist() == [0, 1, 2, 4, 5]
    expected = "train/A-1/Plate1/B03_s2: no channel 5, 6; its well is read without this site"
    assert notes == [expected]


def test_a_well_without_a_whole_site_is_refused(tmp_path: Path, sites: pd.DataFrame) -> None:
    for stem in sites["stem"][:2]:
        channel_path(tmp_path, stem, 1).unlink()
    with pytest.raises(InputError, match=r"B02_s1_w1\.png: .* no other whole site \(and 1 more\);"):
        whole_sites(tmp_path, sites)


@pytest.mark.parametrize("damage", ["cut", "zeros", "bit"])
def test_no_damage_passes_in_silence(tmp_path: Path, damage: str) -> None:
    random = np.random.default_rng(0)
    cells = cv2.GaussianBlur(random.integers(0, 256, (96, 96), np.uint8), (7, 7), 2)
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), cells)
    content = path.read_bytes()
    for place in random.integers(0, len(content), 300).tolist():
        path.write_bytes(damaged(content, place, damage=damage))
        with pytest.raises(InputError, match=r"image\.png: "):
            read_channel(path)


def damaged(content: bytes, place: int, *, damage: str) -> bytes:
    """The file cut at a place, with 256 zero bytes there, or with one bit turned."""
    if damage == "cut":
        return content[:place]
    changed = bytearray(content)
    if damage == "bit":
        changed[place] ^= 1 << place % 8
    else:
        start = min(place, len(content) - 256)
        changed[start : start + 256] = bytes(256)
    return bytes(changed)


@pytest.fixture(scope="module")
def real(shared: Path) -> Tables:
    return read_tables(shared / "rxrx1")


@pytest.fixture(scope="module")
def pictured(real: Tables) -> pd.DataFrame:
    """The sites of the real wells whose images are there."""
    wells = [f"{experiment}_1_B02" for experiment in REAL]
    return real.sites[real.sites["id_code"].isin(wells)]


def test_real_wells_are_read_from_their_whole_site(real: Tables, pictured: pd.DataFrame) -> None:
    whole, notes = whole_sites(real.root, pictured)
    assert whole["site"].tolist() == [1] * 5
    assert [note.partition(";")[0] for note in notes] == [
        f"images/{'test' if name == 'HEPG2-08' else 'train'}/{name}/Plate1/B02_s2: no channel 5, 6"
        for name in REAL
    ]


def test_real_sites_equal_opencv_bit_for_bit(real: Tables, pictured: pd.DataFrame) -> None:
    whole, _ = whole_sites(real.root, pictured)
    images = read_sites(real.root, whole)
    assert images.shape == (5, 6, 512, 512)
    for image, stem in zip(images, whole["stem"]):
        assert np.array_equal(image, cv2_site(real.root, stem))


def test_the_missing_channel_of_a_real_site_is_named(real: Tables, pictured: pd.DataFrame) -> None:
    for stem in pictured.loc[pictured["site"] == 2, "stem"]:
        with pytest.raises(InputError, match=rf"{stem}_w5\.png: no such file"):
            read_site(real.root, stem)


def test_no_sites_are_whole_sites(tmp_path: Path) -> None:
    none = pd.DataFrame({"id_code": [], "stem": []}, dtype=object)
    whole, notes = whole_sites(tmp_path, none)
    assert whole.empty and notes == []
