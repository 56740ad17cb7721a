"""The competition's files through both real clients: tables, a cell type, all; refusals in one line; second calls."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import bundles
import pytest
from fake_kaggle import COMPETITION, FakeKaggle
from typer.testing import CliRunner

from cellsignal.cli.main import app
from cellsignal.data.download import archives
from cellsignal.data.microscope import simulate
from cellsignal.errors import InputError, StepFailed
from cellsignal.kaggle import competition
from cellsignal.kaggle.competition import FILES, download_competition


newest = pytest.mark.parametrize("client", ["2.2.5"], indirect=True)  # where the client's version makes no difference


@pytest.fixture
def kaggle(tmp_path: Path, connect: Callable[..., object], client: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKaggle]:
    """A Kaggle that holds a small screen as the competition."""
    held = tmp_path / "held"
    held.mkdir()
    for name, content in bundles.tables().items():
        (held / name).write_bytes(content)
    (held / f"{COMPETITION}.zip").write_bytes(bundles.bundle())
    monkeypatch.setattr(competition, "IMAGES", competition.IMAGES._replace(size=1 << 20))  # no 100 GB have to be free here
    with FakeKaggle(tmp_path / "kaggle") as server:
        server.competitions[COMPETITION] = held
        connect(server, client)
        yield server


def images(folder: Path) -> set[str]:
    """The experiments of which all images are there."""
    return {path.name for path in folder.glob("t*/*") if len(list(path.rglob("*.png"))) == bundles.IMAGES}


def asked(kaggle: FakeKaggle) -> list[str]:
    """The files that the client asked for."""
    return [str(request.body.get("fileName", "all")) for request in kaggle.requests if request.call.startswith("DownloadData")]


def test_the_tables_alone(kaggle: FakeKaggle, tmp_path: Path) -> None:
    kaggle.zipped.add("train.csv")
    (kaggle.competitions[COMPETITION] / "train.csv.zip").write_bytes(bundles.honest({"train.csv": bundles.tables()["train.csv"]}))
    download_competition(tmp_path / "plates", tables=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "plates").iterdir()} == bundles.tables()
    assert sorted(asked(kaggle)) == sorted(FILES)
    download_competition(tmp_path / "plates", tables=True)
    assert len(asked(kaggle)) == len(FILES)


def test_a_cell_type_and_then_all(kaggle: FakeKaggle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    download_competition(tmp_path / "plates", cell_types=["U2OS"])
    assert images(tmp_path / "plates") == {"U2OS-01", "U2OS-02"}
    assert "every image of U2OS is whole" in capsys.readouterr().out
    download_competition(tmp_path / "plates")
    assert images(tmp_path / "plates") == set(bundles.EXPERIMENTS)
    assert {path.name for path in (tmp_path / "plates").iterdir()} == {*FILES, "train", "test", "download.json"}
    assert "every image of all cell types is whole" in capsys.readouterr().out
    assert asked(kaggle).count("all") == 2
    download_competition(tmp_path / "plates", check_images=False)
    assert asked(kaggle).count("all") == 2 and "all cell types kept" in capsys.readouterr().out


@newest
def test_no_images_come_among_simulated_ones(kaggle: FakeKaggle, tmp_path: Path) -> None:
    simulate.simulate(tmp_path / "plates", preset="tiny", experiments=["RPE-01"])
    with pytest.raises(InputError, match="plates: holds simulated plates; choose another folder with --out"):
        download_competition(tmp_path / "plates", check_images=False)
    assert asked(kaggle) == []


@newest
def test_the_older_bundle_with_archives_inside(kaggle: FakeKaggle, tmp_path: Path) -> None:
    (kaggle.competitions[COMPETITION] / f"{COMPETITION}.zip").write_bytes(bundles.bundle(nested=True))
    download_competition(tmp_path / "plates", cell_types=["RPE"])
    assert images(tmp_path / "plates") == {"RPE-01", "RPE-02"}


@newest
def test_rules_that_were_not_accepted(kaggle: FakeKaggle, tmp_path: Path) -> None:
    kaggle.competitions[COMPETITION] = None
    with pytest.raises((InputError, StepFailed), match=f"accept the rules at https://www.kaggle.com/competitions/{COMPETITION}/rules"):
        download_competition(tmp_path / "plates")
    assert not list((tmp_path / "plates").rglob("*.csv"))


@newest
def test_a_page_instead_of_a_table(kaggle: FakeKaggle, tmp_path: Path) -> None:
    held = kaggle.competitions[COMPETITION]
    (held / "test.csv").write_text("<html>come back later</html>")
    with pytest.raises(StepFailed, match="what came are no tables"):
        download_competition(tmp_path / "plates", tables=True)
    assert not list((tmp_path / "plates").rglob("*.csv"))
    (held / "test.csv").write_bytes(bundles.tables()["test.csv"])
    download_competition(tmp_path / "plates", tables=True)
    assert {path.name for path in (tmp_path / "plates").iterdir()} == set(FILES)


def test_a_page_instead_of_the_archive(kaggle: FakeKaggle, tmp_path: Path) -> None:
    held = kaggle.competitions[COMPETITION]
    (held / f"{COMPETITION}.zip").write_text("<html>come back later</html>")
    with pytest.raises(StepFailed, match="what came is no archive; the same command downloads it again"):
        download_competition(tmp_path / "plates")
    (held / f"{COMPETITION}.zip").write_bytes(bundles.bundle())
    download_competition(tmp_path / "plates", cell_types=["RPE"])
    assert images(tmp_path / "plates") == {"RPE-01", "RPE-02"}


def test_an_archive_that_is_there_is_not_downloaded_again(kaggle: FakeKaggle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(competition, "unpack", lambda *arguments, **options: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            download_competition(tmp_path / "plates")
    sent = sum(request.call == "GET" for request in kaggle.requests)
    download_competition(tmp_path / "plates", check_images=False)
    assert images(tmp_path / "plates") == set(bundles.EXPERIMENTS)
    assert sum(request.call == "GET" for request in kaggle.requests) == sent + 1  # asked for its size, and left alone


@newest
def test_no_room_is_said_before_the_archive(kaggle: FakeKaggle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(competition, "IMAGES", competition.IMAGES._replace(size=49_039_640_485))
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 60 * 10**9})())
    with pytest.raises(InputError, match=r"needs 73.6 GB, 60.0 GB are free"):
        download_competition(tmp_path / "plates", cell_types=["U2OS"])
    assert "all" not in asked(kaggle)


@newest
def test_unknown_cell_type_and_a_folder_of_the_release(kaggle: FakeKaggle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="choose from RPE, U2OS"):
        download_competition(tmp_path / "plates", cell_types=["HELA"])
    assert "all" not in asked(kaggle)
    (tmp_path / "release").mkdir()
    (tmp_path / "release/metadata.csv").touch()
    with pytest.raises(InputError, match="holds the public release"):
        download_competition(tmp_path / "release")


@newest
def test_a_wrong_login_is_one_line(kaggle: FakeKaggle, connect: Callable[..., object], client: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    key = "feedfacefeedfacefeedfacefeedface"
    connect(kaggle, client, key=key)
    assert key not in refused("kaggle", "download", "--out", tmp_path / "plates")


@newest
def test_the_command(kaggle: FakeKaggle, tmp_path: Path) -> None:
    ended = CliRunner().invoke(app, ["kaggle", "download", "--out", str(tmp_path / "plates"), "--cell-type", "RPE"])
    assert ended.exit_code == 0 and images(tmp_path / "plates") == {"RPE-01", "RPE-02"}
    shutil.rmtree(tmp_path / "plates/test/RPE-02")
    again = CliRunner().invoke(app, ["kaggle", "download", "--out", str(tmp_path / "plates"), "--cell-type", "RPE", "--no-check"])
    assert again.exit_code == 0 and images(tmp_path / "plates") == {"RPE-01", "RPE-02"}
