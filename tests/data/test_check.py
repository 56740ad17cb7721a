"""A look through a whole data set finds each fault once and invents none."""

from collections.abc import Callable
from pathlib import Path
from shutil import copy, rmtree

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from cellsignal.cli.main import app
from cellsignal.data.download import rxrx1
from cellsignal.data.packing import pack
from cellsignal.data.tables.labelled_sites import read_site_tables
from cellsignal.data.check import check_dataset
from cellsignal.data.images.reader import missing_channels, read_sites, stems_in
from cellsignal.data.tables.wells import read_tables
from cellsignal.errors import InputError
from cellsignal.files import folder_fingerprint
from cellsignal.learn.networks.standardise import _measured_plates, channel_stats
from cellsignal.tasks import PROTEIN_ATLAS, RXRX1

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
        f"{SITE}_w6.png": f"is the same image as {whole}/{SITE}_w5.png",
        "train/HUVEC-01/Plate1/notes.txt": "no row of the tables names it",
        "train/HUVEC-01/Plate2": "no such folder, it holds 156 images",
        "test/RPE-03": "no such folder, it holds 624 images",
        "test/RPE-09": "no row of the tables names it",
    }


def moved_and_linked(place: Path, elsewhere: Path) -> None:
    """Another disk takes over, and a link leads there."""
    elsewhere.mkdir(exist_ok=True)
    target = elsewhere / "-".join(place.parts[-3:])
    place.rename(target)
    place.symlink_to(target)


def test_links_lead_check_and_reading_to_the_same_images(whole: Path, tmp_path: Path) -> None:
    before = read_sites(whole, read_tables(whole).sites)
    for place in (f"{SITE}_w1.png", "train/HUVEC-01/Plate2", "train/HUVEC-02", "test"):
        moved_and_linked(whole / place, tmp_path / "disk")
    (whole / "train/HUVEC-01/Plate1/round").symlink_to(whole / "train")  # leads back here, and nothing names it
    (whole / "train/home").symlink_to("/")
    assert found(whole) == {"train/HUVEC-01/Plate1/round": "no row of the tables names it", "train/home": "no row of the tables names it"}
    for name in ("train/HUVEC-01/Plate1/round", "train/home"):
        (whole / name).unlink()
    assert found(whole) == {}
    assert np.array_equal(read_sites(whole, read_tables(whole).sites), before)
    (whole / "train/HUVEC-02").unlink()
    (whole / "train/HUVEC-02").symlink_to(tmp_path / "unplugged")
    assert found(whole) == {"train/HUVEC-02": "no such folder, it holds 624 images"}


def test_a_table_that_is_a_link_to_nowhere_is_not_taken_for_one_that_nobody_has(whole: Path) -> None:
    for name in ("solution.csv", "pixel_stats.csv"):
        (whole / name).unlink(missing_ok=True)
        (whole / name).symlink_to(whole / "unplugged")
        assert found(whole) == {name: "no such file"}
        (whole / name).unlink()


def test_a_link_that_leads_to_itself_stops_no_look_at_the_rest(whole: Path) -> None:
    (whole / "train/round").symlink_to("round")
    assert found(whole) == {"train/round": "no row of the tables names it"}
    rmtree(whole / "train/HUVEC-02")
    (whole / "train/HUVEC-02").symlink_to("HUVEC-02")
    assert found(whole) == {"train/round": "no row of the tables names it", "train/HUVEC-02": "no such folder, it holds 624 images"}


SYSTEM = [".DS_Store", "._HUVEC-01", "Thumbs.db", "desktop.ini", "B02_s1_w1.png:Zone.Identifier", "._B02_s1_w1.png", "__MACOSX/HUVEC-01/._B02_s1_w1.png",
          ".ipynb_checkpoints/B02_s1_w1.png"]  # fmt: skip


def test_what_systems_leave_is_no_image_anywhere(whole: Path, tmp_path: Path) -> None:
    (whole / "pixel_stats.csv").unlink(missing_ok=True)  # so that plates are measured
    stems, folder = read_tables(whole).sites["stem"], "train/HUVEC-01/Plate1"
    parts, source = missing_channels(whole, stems, channels=RXRX1.suffixes), pack.plan_pack(whole).shards[0].source()
    measured, fingerprint = channel_stats(whole, read_tables(whole).sites[:4], "plate", 6), folder_fingerprint(whole / folder)
    for place in ("train", "train/HUVEC-01", folder, "test/RPE-03/Plate2"):
        for name in SYSTEM:
            (whole / place / name).parent.mkdir(parents=True, exist_ok=True)
            (whole / place / name).write_bytes(b"\0\5\x16\7")  # as AppleDouble begins
    for channel in range(1, 7):  # as whole as a site may look
        (whole / folder / f"._B02_s1_w{channel}.png").write_bytes(b"\0\5\x16\7")
    assert found(whole) == {}
    assert stems_in(whole, folder) == sorted(stem for stem in stems if stem.startswith(f"{folder}/"))
    assert (missing_channels(whole, stems, channels=RXRX1.suffixes) == parts).all()
    assert pack.plan_pack(whole).shards[0].source() == source
    _measured_plates.clear()
    assert channel_stats(whole, read_tables(whole).sites[:4], "plate", 6).equal(measured)
    assert folder_fingerprint(whole / folder) == fingerprint
    rxrx1.record_images(whole, {name: 6 * int(count) for name, count in read_tables(whole).sites["experiment"].value_counts().items()})
    assert rxrx1.missing_images(read_tables(whole)) == []


def test_an_unknown_file_is_named_and_never_the_folder_of_named_ones(whole: Path) -> None:
    for name in ("train/notes.txt", "train/HUVEC-01/overview.png", "train/HUVEC-01/Plate1/B02_s3_w1.png", "train/old/a/1.png", "train/old/b/2.png", "test/RPE-03/Plate9/x"):
        (whole / name).parent.mkdir(parents=True, exist_ok=True)
        (whole / name).touch()
    nobody = "no row of the tables names it"
    assert found(whole) == {
        "train/notes.txt": nobody, "train/HUVEC-01/overview.png": nobody, "train/HUVEC-01/Plate1/B02_s3_w1.png": nobody,
        "train/old": f"{nobody} (2 files)", "test/RPE-03/Plate9": nobody,
    }  # fmt: skip
    assert set(check_dataset(whole, progress=False)["cure"]) == {"move it away, or add it to the tables"}


def test_images_beside_the_tables_are_told_from_what_systems_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.csv").write_text("Id,Target\na,0\n")
    (tmp_path / "sample_submission.csv").write_text("Id,Predicted\nb,0\n")
    for number, name in enumerate([f"{site}{suffix}" for site in "ab" for suffix in PROTEIN_ATLAS.suffixes] + ["c_red.png"]):
        cv2.imwrite(name, np.full((4, 4), number, np.uint8))
        Path(f"._{name}").write_bytes(b"\0\5\x16\7")
    assert check_dataset(Path("."), progress=False)["file"].tolist() == ["./c_red.png"]
    for path in tmp_path.glob("*.png"):
        if not path.name.startswith("."):
            path.unlink()
    assert read_site_tables(tmp_path, PROTEIN_ATLAS).sites["stem"].tolist() == ["train/a", "test/b"]


def test_a_store_names_the_site_that_no_row_names(whole: Path, tmp_path: Path) -> None:
    pack.pack(pack.plan_pack(whole), tmp_path / "store", progress=False)
    tables = tmp_path / "store/train_controls.csv"
    tables.write_text("".join(line for line in tables.read_text().splitlines(keepends=True) if "HUVEC-01_1_B02" not in line))
    nobody = "no row of the tables names it"
    assert found(tmp_path / "store") == {SITE: nobody, SITE.replace("_s1", "_s2"): nobody}


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


def test_simulated_plates_lack_images_on_purpose_and_check_says_so(tiny_plates: Path) -> None:
    checked = CliRunner().invoke(app, ["check", str(tiny_plates)])
    assert isinstance(checked.exception, InputError) and checked.stdout.count("no such file") == 2
    assert str(checked.exception) == (f"{tiny_plates}: problems: 2; fix the problems in the table above; "
                                      "simulated plates lack two images of one site on purpose, as the real ones lack some")
