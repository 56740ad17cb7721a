"""Tables: the same rows from every source, select, and the real competition's counts."""

import time
from pathlib import Path

import pandas as pd
import pytest

from cellsignal.data.tables import schema
from cellsignal.data.check import check_dataset
from cellsignal.data.tables.plate_design import layout
from cellsignal.data.tables.wells import COLUMNS, Tables, read_solution, read_tables, select
from cellsignal.errors import InputError


def as_release(root: Path, target: Path) -> Path:
    """The same wells as the public release writes them: metadata.csv, one row per site."""
    tables = read_tables(root)
    truth = read_solution(root / "solution.csv")
    sites = tables.sites.copy()
    sites["sirna_id"] = sites["sirna"].fillna(sites["id_code"].map(truth)).astype(int)
    sites["site_id"] = sites["id_code"] + "_" + sites["site"].astype(str)
    sites = sites.assign(sirna="s20001", well_id=sites["id_code"]).sample(frac=1, random_state=0)
    columns = ["site_id", "well_id", "cell_type", "dataset", "experiment", "plate", "well", "site"]
    target.mkdir()
    sites[[*columns, "well_type", "sirna", "sirna_id"]].to_csv(target / "metadata.csv", index=False)
    return target


def test_one_row_per_well(data_set: Path) -> None:
    wells = read_tables(data_set).wells
    assert wells.columns.tolist() == COLUMNS
    assert wells["id_code"].is_unique and len(wells) == 7 * 4 * 13
    assert wells["sirna"].dtype == "Int64" and wells["plate"].dtype == "int64"
    assert set(wells["cell_type"]) == {"HUVEC", "RPE"}


def test_test_treatments_have_no_class(data_set: Path) -> None:
    wells = read_tables(data_set).wells
    hidden = (wells["dataset"] == "test") & (wells["well_type"] == "treatment")
    assert wells["sirna"].isna().equals(hidden)


def test_two_sites_per_well_in_the_competition_tree(data_set: Path) -> None:
    sites = read_tables(data_set).sites
    assert sites.columns.tolist() == [*COLUMNS, "site", "stem"]
    assert sites["stem"].iloc[:2].tolist() == [f"train/HUVEC-01/Plate1/B02_s{s}" for s in (1, 2)]
    assert len(sites) == 2 * 7 * 4 * 13 and sites["stem"].is_unique


@pytest.mark.parametrize(
    ("folder", "stem"),
    [
        ("train/RPE-01", "train/HUVEC-01/Plate1/B02_s1"),
        ("images/train/RPE-01", "images/train/HUVEC-01/Plate1/B02_s1"),
        ("images/RPE-01", "images/HUVEC-01/Plate1/B02_s1"),
    ],
)
def test_the_image_tree_that_is_there_is_used(data_set: Path, folder: str, stem: str) -> None:
    (data_set / folder).mkdir(parents=True)
    assert read_tables(data_set).sites["stem"].iloc[0] == stem


def test_sample_keeps_its_order(data_set: Path) -> None:
    tables = read_tables(data_set)
    assert tables.sample == pd.read_csv(data_set / "sample_submission.csv")["id_code"].tolist()
    (data_set / "sample_submission.csv").unlink()
    assert read_tables(data_set).sample == sorted(tables.sample)


def test_solution_is_apart(data_set: Path) -> None:
    solution = read_tables(data_set).solution
    assert solution is not None and len(solution) == 32 and solution.between(0, 15).all()
    (data_set / "solution.csv").unlink()
    assert read_tables(data_set).solution is None


def test_the_public_release_gives_the_same_tables(data_set: Path, tmp_path: Path) -> None:
    kaggle, release = read_tables(data_set), read_tables(as_release(data_set, tmp_path / "release"))
    pd.testing.assert_frame_equal(kaggle.wells, release.wells)
    common = [*COLUMNS, "site"]
    pd.testing.assert_frame_equal(kaggle.sites[common], release.sites[common])
    assert (kaggle.source, release.source) == ("kaggle", "rxrx.ai")
    assert release.sites["stem"].iloc[0] == "images/HUVEC-01/Plate1/B02_s1"
    assert kaggle.solution is not None and release.solution is not None
    assert kaggle.solution.to_dict() == release.solution.to_dict()
    assert release.solution.index.tolist() == release.sample


def test_a_release_well_with_one_site_keeps_it(data_set: Path, tmp_path: Path) -> None:
    folder = as_release(data_set, tmp_path / "release")
    rows = pd.read_csv(folder / "metadata.csv", dtype=str)
    rows[rows["site_id"] != "HUVEC-01_1_B02_1"].to_csv(folder / "metadata.csv", index=False)
    tables = read_tables(folder)
    assert tables.sites["stem"].iloc[0] == "images/HUVEC-01/Plate1/B02_s2"
    assert len(tables.sites) == 2 * len(tables.wells) - 1


def test_order_of_rows_byte_order_mark_line_ends_and_further_columns_do_not_matter(
    data_set: Path,
) -> None:
    before = read_tables(data_set).wells
    rows = pd.read_csv(data_set / "train.csv", dtype=str).sample(frac=1, random_state=1)
    text = rows.assign(note="x, y").to_csv(index=False, lineterminator="\r\n")
    (data_set / "train.csv").write_bytes(text.encode("utf-8-sig") + b"\r\n\r\n")
    pd.testing.assert_frame_equal(before, read_tables(data_set).wells)


def header_alone(path: Path) -> None:
    path.write_text(path.read_text().split("\n", 1)[0] + "\n")


def test_plates_without_controls(data_set: Path) -> None:
    for name in ("train", "test"):
        header_alone(data_set / f"{name}_controls.csv")
    wells = read_tables(data_set).wells
    assert set(wells["well_type"]) == {"treatment"} and len(wells) == 7 * 16
    found = layout(wells)
    assert len(found["groups"]) == 4 and found["duplicates"] == []
    assert not check_dataset(data_set, progress=False).empty  # it looks on, at images that are not there


def test_plates_without_test_wells(data_set: Path) -> None:
    for name in ("test", "test_controls", "solution", "sample_submission"):
        header_alone(data_set / f"{name}.csv")
    tables = read_tables(data_set)
    assert tables.sample == [] and tables.solution is None
    assert set(tables.wells["dataset"]) == {"train"}


def test_a_part_without_test_wells_has_no_solution(data_set: Path) -> None:
    assert select(read_tables(data_set), experiments=["RPE-01"]).solution is None


def test_select(data_set: Path) -> None:
    part = select(read_tables(data_set), cell_types=["RPE"], experiments=["RPE-01", "RPE-03"])
    assert set(part.wells["experiment"]) == {"RPE-01", "RPE-03"} == set(part.sites["experiment"])
    assert part.wells.index.tolist() == list(range(2 * 52))
    assert len(part.sample) == 16 and set(part.sample) == set(part.solution.index)


def test_select_nothing_is_all(data_set: Path) -> None:
    tables = read_tables(data_set)
    pd.testing.assert_frame_equal(select(tables).sites, tables.sites)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"cell_types": ["U2OS"]}, "no cell_type 'U2OS'; choose from HUVEC, RPE"),
        ({"experiments": ["RPE-09"]}, "no experiment 'RPE-09'; choose from HUVEC-01, "),
        ({"cell_types": ["RPE"], "experiments": ["HUVEC-01"]}, "no experiment of HUVEC-01 is RPE"),
    ],
)
def test_select_names_the_valid_ones(data_set: Path, names: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        select(read_tables(data_set), **names)


@pytest.fixture(scope="module")
def real(shared: Path) -> Tables:
    start = time.process_time()
    tables = read_tables(shared / "rxrx1")
    assert time.process_time() - start < 5
    return tables


def test_the_real_wells(real: Tables) -> None:
    counts = real.wells.groupby(["dataset", real.wells["well_type"] == "treatment"]).size()
    assert counts.to_dict() == {
        ("train", True): 36_515,
        ("test", True): 19_897,
        ("train", False): 4_097,
        ("test", False): 2_246,
    }
    experiments = real.wells.groupby("dataset")["experiment"].nunique()
    assert experiments.to_dict() == {"train": 33, "test": 18}


def test_the_real_sites_and_sample(real: Tables, shared: Path) -> None:
    assert len(real.sites) == 2 * 62_755
    assert real.sites["stem"].iloc[0] == "images/train/HEPG2-01/Plate1/B02_s1"
    sample = pd.read_csv(shared / "rxrx1" / "sample_submission.csv")
    assert real.sample == sample["id_code"].tolist()


@pytest.mark.parametrize("line", ["", "\n", 'HUVEC-01_1_B09,HUVEC-01,1,"B09"\n', "HUVEC-01_1_B09,HUVEC-01,1,B09\r\n", "HUVEC-01_1_B09,HUVEC-01,1\n"])
def test_the_fast_way_through_a_table_is_the_careful_one(data_set: Path, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, row in ((data_set / "test.csv", schema.TestRow), (data_set / "train_controls.csv", schema.ControlRow)):
        path.write_bytes(path.read_bytes() + line.encode())
        fast, problems = schema.read_rows(path, row)
        with monkeypatch.context() as careful:
            careful.setattr(schema, "_plain_cells", lambda *_: None)
            slow, others = schema.read_rows(path, row)
        pd.testing.assert_frame_equal(fast, slow)
        assert problems == others
