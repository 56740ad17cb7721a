"""RxRx1-WILDS: its tables and splits read strictly, its colour images plane by plane, and a whole folder checked and packed."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from wilds_plates import write_metadata

from cellsignal.data.check import check_dataset
from cellsignal.data.control_separation import control_lines
from cellsignal.data.images.reader import read_channel, read_colour, read_site, read_sites, whole_sites
from cellsignal.data.packing import pack
from cellsignal.data.tables.labelled_sites import task_of
from cellsignal.data.tables.wells import read_benchmark_sites, read_tables
from cellsignal.errors import InputError
from cellsignal.run import mounts
from cellsignal.tasks import RXRX1, RXRX1_WILDS

EXPERIMENTS = {"HUVEC-01": "train", "RPE-01": "train", "HUVEC-02": "val", "RPE-02": "test"}
SUFFIXES = RXRX1_WILDS.suffixes
SITE = "images/HUVEC-01/Plate1/B03_s2"


def metadata() -> pd.DataFrame:
    """Two plates of three wells of two sites in each experiment; the last well is a control."""
    rows = [
        {"cell_type": experiment[:-3], "dataset": dataset, "experiment": experiment, "plate": plate, "well": f"B{number + 2:02}", "site": site,
         "well_type": "negative_control" if number == 2 else "treatment", "sirna": "s", "sirna_id": 1138 if number == 2 else 2 * plate + number}
        for experiment, dataset in EXPERIMENTS.items() for plate in (1, 2) for number in range(3) for site in (1, 2)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    wells = table["experiment"] + "_" + table["plate"].astype(str) + "_" + table["well"]
    return table.assign(well_id=wells, site_id=wells + "_" + table["site"].astype(str))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The benchmark's folder, its images of 4 × 4 pixels."""
    rng = np.random.default_rng(0)
    for path in write_metadata(tmp_path / "wilds", metadata()):
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 256, (4, 4, 3), np.uint8))
    return tmp_path / "wilds"


def test_the_second_sites_of_training_experiments_are_a_split_of_their_own(folder: Path) -> None:
    sites = read_benchmark_sites(folder)
    expected = {(e, s): "id_test" if d == "train" and s == 2 else d for e, d in EXPERIMENTS.items() for s in (1, 2)}
    assert {(row.experiment, row.site): row.split for row in sites.itertuples()} == expected
    assert sites["id_code"].tolist() == pd.read_csv(folder / "metadata.csv")["site_id"].tolist()  # in the order of the file
    control = sites[sites["well"] == "B04"]
    assert set(control["well_type"]) == {"negative_control"} and set(control["sirna"]) == {1138}
    assert all((folder / f"{stem}.png").is_file() for stem in sites["stem"])


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"dataset": "validation"}, r"metadata.csv:2:dataset: 'validation' is not a data set; write train or test .if this is RxRx1-WILDS, read it"),
        ({"site": "0"}, "metadata.csv:2:site: '0' is not a site"),
        ({"sirna_id": "1139"}, "metadata.csv:2:sirna_id: '1139' is not a class"),
        ({"cell_type": "U2OS"}, "metadata.csv:2:cell_type: 'U2OS' disagrees with the experiment's name"),
        ({"well_type": "positive_control"}, "metadata.csv:2:well_type: 'positive_control' disagrees with the row's class number"),
        ({"well_type": "poscon"}, "metadata.csv:2:well_type: 'poscon' is not a well type"),
        ({"experiment": "../x-1"}, "metadata.csv:2:experiment: "),
    ],
)
def test_a_fault_of_the_table_is_named_by_line(folder: Path, change: dict[str, str], fault: str) -> None:
    table = pd.read_csv(folder / "metadata.csv", dtype=str)
    table.loc[0, list(change)] = list(change.values())
    table.to_csv(folder / "metadata.csv", index=False)
    with pytest.raises(InputError, match=fault):
        read_benchmark_sites(folder)


def test_a_site_that_stands_twice_and_an_experiment_of_two_splits_are_named(folder: Path) -> None:
    table = pd.read_csv(folder / "metadata.csv", dtype=str)
    pd.concat([table, table.iloc[:1]]).to_csv(folder / "metadata.csv", index=False)
    with pytest.raises(InputError, match=f"metadata.csv:{len(table) + 2}:site_id: .* stands in an earlier row"):
        read_benchmark_sites(folder)
    row = table.index[table["dataset"] == "val"][-1]
    table.loc[row, "dataset"] = "test"
    table.to_csv(folder / "metadata.csv", index=False)
    with pytest.raises(InputError, match="experiment: 'HUVEC-02' is in two data sets"):
        read_benchmark_sites(folder)
    with pytest.raises(InputError, match="metadata.csv is not there; name the folder"):
        read_benchmark_sites(folder / "images")


def test_its_folder_is_told_from_the_public_release_by_the_validation_experiments(folder: Path) -> None:
    assert task_of(folder) is RXRX1_WILDS and mounts.has_task_tables(folder, RXRX1_WILDS)
    with pytest.raises(InputError, match="'val' is not a data set .*if this is RxRx1-WILDS, read it with task: rxrx1-wilds"):
        read_tables(folder)
    table = metadata()
    table.assign(dataset=table["dataset"].replace("val", "train")).to_csv(folder / "metadata.csv", index=False)
    assert task_of(folder) is RXRX1 and not mounts.has_task_tables(folder, RXRX1_WILDS)


def test_planes_are_red_green_and_blue_in_this_order(folder: Path) -> None:
    image = np.zeros((4, 4, 3), np.uint8) + np.uint8([10, 20, 30])  # as OpenCV has it: blue, green, red
    cv2.imwrite(str(folder / f"{SITE}.png"), image)
    assert read_site(folder, SITE, channels=SUFFIXES)[:, 0, 0].tolist() == [30, 20, 10]
    assert read_site(folder, SITE, channels=SUFFIXES[2:0:-1])[:, 0, 0].tolist() == [10, 20]
    assert read_site(folder, SITE, channels=SUFFIXES, size=2).shape == (3, 2, 2)


@pytest.mark.parametrize(
    ("image", "fault"),
    [
        (np.zeros((4, 4), np.uint8), "is grey, not colour; save it as an 8-bit RGB PNG"),
        (np.zeros((4, 4, 4), np.uint8), "is colour with transparency, not colour; save it as an 8-bit RGB PNG"),
        (np.zeros((4, 4, 3), np.uint16), "has 16 bits per channel, not 8; save it as an 8-bit RGB PNG"),
    ],
)
def test_an_image_of_another_kind_is_refused(tmp_path: Path, image: np.ndarray, fault: str) -> None:
    cv2.imwrite(str(tmp_path / "image.png"), image)
    with pytest.raises(InputError, match=fault):
        read_colour(tmp_path / "image.png")
    cv2.imwrite(str(tmp_path / "image.png"), np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(InputError, match="is colour, not grey; save it as an 8-bit grey PNG"):
        read_channel(tmp_path / "image.png")


def test_check_has_a_verdict_on_every_image(folder: Path) -> None:
    assert check_dataset(folder, progress=False).empty
    assert control_lines(folder) == ["controls by channel means: too few wells to judge the plates of HUVEC (plates: 4, experiments: 2), RPE (plates: 4, experiments: 2)"]
    plate = folder / "images/HUVEC-01/Plate1"
    (plate / "B02_s1.png").unlink()
    (plate / "B02_s2.png").write_bytes((plate / "B02_s2.png").read_bytes()[:-3])
    cv2.imwrite(str(plate / "B03_s1.png"), np.zeros((4, 4), np.uint8))
    (plate / "B04_s2.png").write_bytes((plate / "B04_s1.png").read_bytes())
    (plate / "B09_s1.png").write_bytes((plate / "B04_s1.png").read_bytes())
    problems = check_dataset(folder, progress=False)
    found = {Path(file).name: problem for file, problem in zip(problems["file"], problems["problem"])}
    assert found == {
        "B02_s1.png": "no such file", "B02_s2.png": "is cut short or damaged", "B03_s1.png": "is grey, not colour",
        "B04_s2.png": f"is the same image as {plate}/B04_s1.png", "B09_s1.png": "no row of the tables names it",
    }  # fmt: skip
    with pytest.raises(InputError, match=r"B02_s1\.png: no such file, and the well has no other whole site"):
        whole_sites(folder, read_benchmark_sites(folder), channels=SUFFIXES)  # as an id is of one site alone


def test_a_store_holds_the_same_planes(folder: Path, tmp_path: Path) -> None:
    store, sites = tmp_path / "store", read_benchmark_sites(folder)
    pack.pack(pack.plan_pack(folder), store, progress=False)
    assert (read_sites(store, sites, channels=SUFFIXES) == read_sites(folder, sites, channels=SUFFIXES)).all()
    assert check_dataset(store, progress=False).empty and task_of(store) is RXRX1_WILDS


def test_plates_without_controls_are_named_and_the_column_of_their_types_may_lack(folder: Path) -> None:
    table = pd.read_csv(folder / "metadata.csv").drop(columns="well_type")
    table[(table["well"] != "B04") | (table["experiment"] != "RPE-02")].to_csv(folder / "metadata.csv", index=False)
    assert control_lines(folder)[0] == "no controls on 2 of 8 plates: RPE-02 plate 1, RPE-02 plate 2"


def test_a_header_alone_is_named(folder: Path) -> None:
    (folder / "metadata.csv").write_text((folder / "metadata.csv").read_text().partition("\n")[0] + "\n")
    problems = check_dataset(folder, progress=False)
    assert problems["problem"].tolist() == ["no row below the header"]
