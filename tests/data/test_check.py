"""A look through a whole data set finds each fault once and invents none."""

from collections.abc import Callable
from pathlib import Path
from shutil import copy, rmtree

import cv2
import numpy as np
import pytest

from cellsignal.data.check import check_dataset
from cellsignal.data.wells import read_tables
from cellsignal.errors import InputError

SITE = "train/HUVEC-01/Plate1/B02_s1"


@pytest.fixture
def whole(data_set: Path, draw: Callable[..., None]) -> Path:
    """Tables and every image, of 4 × 4 pixels."""
    for stem in read_tables(data_set).sites["stem"]:
        draw(data_set, stem, size=(4, 4))
    for name in ("simulate.json", "contact_sheet.png"):
        (data_set / name).touch()
    return data_set


def found(root: Path) -> dict[str, str]:
    """Problems by file, relative to the data set."""
    table = check_dataset(root, progress=False)
    assert table.columns.tolist() == ["file", "problem", "cure"]
    assert (table["cure"] != "").all() and table["file"].is_unique
    files = [str(Path(file).relative_to(root)) for file in table["file"]]
    return dict(zip(files, table["problem"]))


def test_nothing_is_wrong_with_whole_data(whole: Path) -> None:
    assert found(whole) == {}


def test_every_fault_of_the_images_at_once(whole: Path) -> None:
    (whole / f"{SITE}_w1.png").unlink()
    (whole / f"{SITE}_w2.png").write_bytes(b"")
    cv2.imwrite(str(whole / f"{SITE}_w3.png"), np.zeros((4, 5), np.uint8))
    cv2.imwrite(str(whole / f"{SITE}_w4.png"), np.zeros((4, 4), np.uint16))
    copy(whole / f"{SITE}_w6.png", whole / f"{SITE}_w5.png")
    (whole / "train/HUVEC-01/Plate1/notes.txt").touch()
    rmtree(whole / "train/HUVEC-01/Plate2")
    rmtree(whole / "test/RPE-03")
    (whole / "test/RPE-09/Plate1").mkdir(parents=True)
    copy(whole / f"{SITE}_w6.png", whole / "test/RPE-09/Plate1/B02_s1_w1.png")
    assert found(whole) == {
        f"{SITE}_w1.png": "no such file",
        f"{SITE}_w2.png": "the file is empty",
        f"{SITE}_w3.png": "is 4x5 pixels, most images are 4x4",
        f"{SITE}_w4.png": "has 16 bits per pixel, not 8",
        f"{SITE}_w6.png": f"is the same picture as {whole}/{SITE}_w5.png",
        "train/HUVEC-01/Plate1/notes.txt": "no row of the tables names it",
        "train/HUVEC-01/Plate2": "no such folder, it holds 156 images",
        "test/RPE-03": "no such folder, it holds 624 images",
        "test/RPE-09/Plate1": "no row of the tables names it",
    }


def test_every_fault_of_the_tables_at_once(data_set: Path) -> None:
    for name in ("train.csv", "test_controls.csv"):
        lines = (data_set / name).read_text().splitlines()
        lines[3] = lines[3].replace("_1_", "_9_")
        lines[4] = lines[4].replace("_1_", "_7_")
        (data_set / name).write_text("\n".join(lines))
    problems = found(data_set)
    assert list(problems) == [
        f"{name}:{line}:id_code" for name in ("train.csv", "test_controls.csv") for line in (4, 5)
    ]


def test_no_data_set_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither train.csv nor metadata.csv"):
        check_dataset(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        check_dataset(tmp_path / "nowhere")
