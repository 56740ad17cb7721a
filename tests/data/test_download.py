"""The public release: all of it, its tables, or a cell type out of the archive on the server."""

import hashlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import bundles
import pytest
from file_server import Shelf
from typer.testing import CliRunner

from cellsignal.cli.main import app
from cellsignal.data.download import archives, rxrx1, http
from cellsignal.data.download.rxrx1 import Published, download_rxrx1, from_kagglehub
from cellsignal.errors import InputError, StepFailed


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    """The publisher's server."""
    monkeypatch.setattr(http, "FIRST_PAUSE", 0.0)
    content = {"rxrx1-metadata.zip": bundles.release_tables(), "rxrx1-images.zip": bundles.release_images()}
    with Shelf(content) as server:
        for name, archive in {"TABLES": "rxrx1-metadata.zip", "IMAGES": "rxrx1-images.zip"}.items():
            published = Published(server.url(archive), len(content[archive]), hashlib.md5(content[archive]).hexdigest())
            monkeypatch.setattr(rxrx1, name, published)
        monkeypatch.setattr(rxrx1, "METADATA_SHA256", hashlib.sha256(bundles.metadata()).hexdigest())
        monkeypatch.setattr(rxrx1, "BLOCK", 4096)
        yield server


def images(folder: Path) -> set[str]:
    """The experiments of which all images are there."""
    return {path.name for path in folder.glob("images/*") if len(list(path.rglob("*.png"))) == bundles.IMAGES}


def test_all_of_it(shelf: Shelf, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    download_rxrx1(tmp_path)
    assert images(tmp_path) == set(bundles.EXPERIMENTS)
    assert {path.name for path in tmp_path.iterdir()} == {"metadata.csv", "images", "download.json"}
    said = capsys.readouterr().out
    assert "all cell types unpacked" in said and "CC BY-NC-SA" in said and "every image of all cell types is whole" in said
    shelf.asked.clear()
    download_rxrx1(tmp_path)
    assert "all cell types kept" in capsys.readouterr().out
    assert shelf.asked == []


def test_the_tables_alone(shelf: Shelf, tmp_path: Path) -> None:
    download_rxrx1(tmp_path, tables=True)
    assert {path.name for path in tmp_path.iterdir()} == {"metadata.csv"}
    assert {name for name, _, _ in shelf.asked} == {"rxrx1-metadata.zip"}


def test_a_cell_type_costs_its_own_bytes(shelf: Shelf, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    download_rxrx1(tmp_path, cell_types=["U2OS"])
    assert images(tmp_path) == {"U2OS-01", "U2OS-02"}
    said = capsys.readouterr().out
    assert "144 images" in said and "every image of U2OS is whole" in said
    archive = len(shelf.files["rxrx1-images.zip"])
    assert 0.5 * archive < shelf.sent < 0.75 * archive  # half the images, the list of members, a few bytes more


def test_then_another_cell_type_and_then_nothing(shelf: Shelf, tmp_path: Path) -> None:
    download_rxrx1(tmp_path, cell_types=["U2OS"], check_images=False)
    download_rxrx1(tmp_path, cell_types=["RPE"], check_images=False)
    assert images(tmp_path) == set(bundles.EXPERIMENTS)
    shelf.asked.clear()
    download_rxrx1(tmp_path)
    assert shelf.asked == []


def test_what_was_lost_is_fetched_again(shelf: Shelf, tmp_path: Path) -> None:
    download_rxrx1(tmp_path, check_images=False)
    shutil.rmtree(tmp_path / "images/RPE-02")
    (tmp_path / "images/U2OS-01/Plate1/B02_s1_w1.png").unlink()
    shelf.sent = 0
    download_rxrx1(tmp_path, check_images=False)
    assert images(tmp_path) == set(bundles.EXPERIMENTS)
    assert shelf.sent < 0.75 * len(shelf.files["rxrx1-images.zip"])


def test_a_server_that_fails_amid_a_cell_type(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = archives._write, []

    def failing(*arguments: object) -> int:
        written.append(arguments)
        if len(written) == 60:
            shelf.answers = [(503, {})] * 99
        return write(*arguments)

    monkeypatch.setattr(archives, "_write", failing)
    with pytest.raises(StepFailed, match="HTTP 503"):
        download_rxrx1(tmp_path, cell_types=["U2OS"])
    assert not (tmp_path / "images").exists()
    shelf.answers = []
    download_rxrx1(tmp_path, cell_types=["U2OS"])
    assert images(tmp_path) == {"U2OS-01", "U2OS-02"}
    assert len(written) < 144 + 60


def test_a_damaged_archive_is_named_where_it_lies(shelf: Shelf, tmp_path: Path) -> None:
    download_rxrx1(tmp_path, tables=True)
    archive = tmp_path / ".downloads/rxrx1-images.zip"
    archive.parent.mkdir()
    archive.write_bytes(shelf.files["rxrx1-images.zip"][:-9])
    with pytest.raises(InputError, match=f"^{archive}: is no whole zip archive .*; delete it and download it again"):
        download_rxrx1(tmp_path)
    archive.unlink()
    download_rxrx1(tmp_path, check_images=False)
    assert images(tmp_path) == set(bundles.EXPERIMENTS)


def test_problems_of_the_data_are_told_and_no_failure(shelf: Shelf, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    download_rxrx1(tmp_path, check_images=False)
    (tmp_path / "images/U2OS-01/Plate1/B02_s1_w1.png").unlink()
    rxrx1.print_problems(tmp_path)
    said = capsys.readouterr().out
    assert "B02_s1_w1.png" in said and "problems: 1; a well with one whole site is read from that one" in said


def test_unknown_cell_type(shelf: Shelf, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no cell_type 'HELA'; choose from RPE, U2OS"):
        download_rxrx1(tmp_path, cell_types=["HELA"])
    assert {name for name, _, _ in shelf.asked} == {"rxrx1-metadata.zip"}


def test_tables_that_were_tampered_with_come_not_to_their_place(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rxrx1, "METADATA_SHA256", "0" * 64)
    with pytest.raises(InputError, match="another SHA-256 than the published one"):
        download_rxrx1(tmp_path, tables=True)
    assert not (tmp_path / "metadata.csv").exists()


@pytest.mark.parametrize(("name", "what"), [("train.csv", "holds the competition's tables"), ("metadata.csv", "another metadata.csv")])
def test_a_folder_with_other_tables_is_left_alone(shelf: Shelf, tmp_path: Path, name: str, what: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=what):
        download_rxrx1(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name] and shelf.asked == []


def test_no_room_for_the_archive_and_what_comes_out(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rxrx1, "IMAGES", rxrx1.IMAGES._replace(size=49_039_640_485))
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 60 * 10**9})())
    with pytest.raises(InputError, match=r"needs 98.1 GB, 60.0 GB are free; .* name cell types with --cell-type"):
        download_rxrx1(tmp_path)
    assert {name for name, _, _ in shelf.asked} == {"rxrx1-metadata.zip"}


def test_the_command(shelf: Shelf, tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "choose from RPE, U2OS" in refused("download", "rxrx1", "--out", tmp_path / "plates", "--cell-type", "HELA")
    assert "--help" in refused("download", "rxrx9")
    assert "give one of them" in refused("download", "rxrx1", "--out", tmp_path / "plates", "--tables", "--cell-type", "RPE")
    ended = CliRunner().invoke(app, ["download", "rxrx1", "--out", str(tmp_path / "plates"), "--cell-type", "RPE"])
    assert ended.exit_code == 0 and images(tmp_path / "plates") == {"RPE-01", "RPE-02"}
    checked = CliRunner().invoke(app, ["check", str(tmp_path / "plates"), "--cell-type", "RPE"])
    assert checked.exit_code == 0 and "no problem in any row or image" in checked.stdout
    assert "no such folder" in CliRunner().invoke(app, ["check", str(tmp_path / "plates")]).stdout


# kagglehub


class UnauthenticatedError(Exception):
    """As kagglehub names it."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("kagglehub")
    monkeypatch.setitem(sys.modules, "kagglehub", module)
    return module


@pytest.mark.parametrize("inside", [".", "data", "data/rxrx1"])
def test_kagglehubs_folder_is_found_by_its_tables(hub: ModuleType, tmp_path: Path, inside: str) -> None:
    (tmp_path / inside).mkdir(parents=True, exist_ok=True)
    (tmp_path / inside / "train_controls.csv").touch()
    asked = []
    hub.competition_download = lambda name: asked.append(name) or str(tmp_path)
    assert from_kagglehub("rcic") == tmp_path / inside and asked == ["rcic"]


def test_kagglehub_brings_something_else(hub: ModuleType, tmp_path: Path) -> None:
    hub.competition_download = lambda name: str(tmp_path)
    with pytest.raises(InputError, match="brought no tables"):
        from_kagglehub("titanic")


@pytest.mark.parametrize("status", [401, 403, None])
def test_kagglehub_without_a_token_or_the_rules(hub: ModuleType, status: int | None) -> None:
    secret = "KGAT_0123456789abcdef"

    def refuse(name: str) -> str:
        error = UnauthenticatedError(f"token {secret} refused")
        error.response = None if status is None else SimpleNamespace(status_code=status)
        raise error

    hub.competition_download = refuse
    with pytest.raises(InputError, match="KAGGLE_API_TOKEN, accept the competition's rules .* or set `preset: demo`") as error:
        from_kagglehub("rcic")
    assert secret not in str(error.value) and error.value.__cause__ is None and error.value.__suppress_context__


def test_kagglehub_without_network(hub: ModuleType) -> None:
    def fail(name: str) -> str:
        raise ConnectionError("https://storage.example/?signature=secret")

    hub.competition_download = fail
    with pytest.raises(StepFailed, match=r"kagglehub could not fetch rcic \(ConnectionError\)") as error:
        from_kagglehub("rcic")
    assert "secret" not in str(error.value)


def test_kagglehub_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(InputError, match="kagglehub is not installed"):
        from_kagglehub("rcic")
