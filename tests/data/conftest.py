"""A small data set of known content, written as the competition's files."""

from collections.abc import Callable, Iterator
from pathlib import Path
from zlib import crc32

import cv2
import numpy as np
import pandas as pd
import pytest
from file_server import CONTENT, Shelf

from cellsignal.data.download import http

TRAIN = ["HUVEC-01", "HUVEC-02", "HUVEC-03", "RPE-01", "RPE-02"]
TEST = ["HUVEC-04", "RPE-03"]
ROTATION = {"HUVEC-02": 1, "RPE-02": 2}
COPIES = {"RPE-03": ("HUVEC-01", 1)}  # RPE-03 repeats HUVEC-01, one plate on
PLACES = [f"{row}{column:02d}" for row in "BCDE" for column in range(3, 9)]


def experiment(name: str, *, group_size: int = 4, controls: int = 8) -> pd.DataFrame:
    """Four plates of treatments and controls at random places, one untreated well each."""
    origin, shift = COPIES.get(name, (name, 0))
    random = np.random.default_rng(crc32(origin.encode()))
    plates = []
    for plate in range(4):
        group = (plate + ROTATION.get(origin, 0)) % 4
        sirna = [*range(group * group_size, (group + 1) * group_size)]
        sirna += [*random.choice(np.arange(1108, 1138), controls, replace=False)]
        wells = random.choice(PLACES, len(sirna), replace=False)
        rows = pd.DataFrame({"well": ["B02", *wells], "sirna": [1138, *sirna]})
        plates.append(rows.assign(plate=(plate + shift) % 4 + 1))
    table = pd.concat(plates).assign(experiment=name)
    ids = table["experiment"] + "_" + table["plate"].astype(str) + "_" + table["well"]
    return table.assign(id_code=ids).sort_values(["plate", "well"])


def write_tables(root: Path) -> Path:
    """train, test, controls, sample submission and solution."""
    place = ["id_code", "experiment", "plate", "well"]
    for dataset, names in {"train": TRAIN, "test": TEST}.items():
        table = pd.concat([experiment(name) for name in names])
        control = table["sirna"] >= 1108
        kind = np.where(table["sirna"] == 1138, "negative_control", "positive_control")
        columns = [*place, "sirna", "well_type"]
        table[control].assign(well_type=kind[control])[columns].to_csv(
            root / f"{dataset}_controls.csv", index=False
        )
        treatments = table[~control]
        shown = [*place, "sirna"] if dataset == "train" else place
        treatments[shown].to_csv(root / f"{dataset}.csv", index=False)
    treatments[["id_code", "sirna"]].to_csv(root / "solution.csv", index=False)
    sample = treatments[["id_code"]].assign(sirna=0).iloc[::-1]
    sample.to_csv(root / "sample_submission.csv", index=False)
    return root


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    """A folder with whole tables and no images."""
    folder = tmp_path / "plates"
    folder.mkdir()
    return write_tables(folder)


@pytest.fixture
def draw() -> Callable[..., None]:
    """draw(root, stem, size=(8, 8), channels=6) writes a site of noise."""

    def site(root: Path, stem: str, *, size: tuple[int, int] = (8, 8), channels: int = 6) -> None:
        random = np.random.default_rng(crc32(stem.encode()))
        for channel in range(1, channels + 1):
            path = root / f"{stem}_w{channel}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), random.integers(0, 256, size, np.uint8))

    return site


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    """A server of one file, which is not waited for."""
    monkeypatch.setattr(http, "FIRST_PAUSE", 0.0)
    with Shelf({"plates.zip": CONTENT}) as server:
        yield server
