"""Archives: what a data set holds comes out, once; what is hostile reaches nothing else."""

import io
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from hostile_archives import IMAGE, OTHER, Entry, archives, craft, honest, strange_kinds, strange_names

from cellsignal.data.download import archives as unpacking
from cellsignal.data.download.archives import WORKING_FOLDER, unpack
from cellsignal.files import require_room
from cellsignal.errors import InputError

HOSTILE = archives()
# Members that no data set has are left in their archive, and what has the name of an image becomes a plain file of its place.
HARMLESS = {*(strange_names() | strange_kinds()), "twice", "twice but for case", "twice by another way", "one inside the other",
            "packed size beyond the file", "masked"} - {"not UTF-8"}  # fmt: skip
RELEASE = {
    "rxrx1/README.md": b"read me",
    "rxrx1/metadata.csv": b"site_id,well_id\n" * 9,
    **{f"rxrx1/images/{name}/Plate{plate}/B02_s1_w{channel}.png": f"{name}{plate}{channel}".encode() * 50
       for name in ("HUVEC-01", "RPE-01", "RPE-02") for plate in (1, 2) for channel in (1, 2)},
}  # fmt: skip


def written(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, and where links lead."""
    return {
        path.relative_to(folder).as_posix(): os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def save(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.fixture
def spent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes that unpacking writes, file by file."""
    copy, sizes = unpacking.shutil.copyfileobj, []

    def counting(source: io.BufferedIOBase, sink: io.BufferedWriter, length: int) -> None:
        try:
            copy(source, sink, length)
        finally:
            sizes.append(sink.tell())

    monkeypatch.setattr(unpacking.shutil, "copyfileobj", counting)
    return sizes


def test_there_are_enough_attacks() -> None:
    assert len(HOSTILE) >= 40


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_hostile_archive_reaches_nothing(tmp_path: Path, spent: list[int], attack: str) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "here/plates").mkdir(parents=True)
    archive = save(tmp_path / "here/a.zip", HOSTILE[attack])
    before = written(tmp_path)
    try:
        unpack(archive, tmp_path / "here/plates")
    except InputError as error:
        message = str(error)
        assert message.isprintable() and len(message) < 400 + len(str(archive)) and ";" in message
        assert written(tmp_path) == before
    else:
        assert attack in HARMLESS
        for path in {tmp_path / name for name in written(tmp_path)} - {tmp_path / name for name in before}:
            name = path.relative_to(tmp_path / "here/plates").as_posix()
            assert path.is_file() and not path.is_symlink() and re.fullmatch(rf"metadata\.csv|{IMAGE[:-5]}[12]\.png", name, re.IGNORECASE)
    assert not (tmp_path / "here/plates" / WORKING_FOLDER).exists()
    assert sum(spent) <= len(HOSTILE[attack]) + 4000  # nothing grew on the way


def test_what_a_data_set_holds_comes_out_and_nothing_else(tmp_path: Path) -> None:
    count = unpack(save(tmp_path / "a.zip", honest(RELEASE)), tmp_path / "plates")
    assert count == Counter({"HUVEC-01": 4, "RPE-01": 4, "RPE-02": 4})
    expected = {name.removeprefix("rxrx1/"): content for name, content in RELEASE.items() if "README" not in name}
    assert written(tmp_path / "plates") == expected


def test_a_member_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    assert unpack(save(tmp_path / "a.zip", craft(Entry(), Entry())), tmp_path / "plates") == Counter({"RPE-01": 1})


def test_a_selection_of_experiments_and_then_the_rest(tmp_path: Path, spent: list[int]) -> None:
    archive = save(tmp_path / "a.zip", honest(RELEASE))
    assert unpack(archive, tmp_path / "plates", experiments=["RPE-02"]) == Counter({"RPE-02": 4})
    assert {path.name for path in (tmp_path / "plates/images").iterdir()} == {"RPE-02"}
    assert unpack(archive, tmp_path / "plates", experiments=()) == Counter()
    assert len(spent) == 5  # the table and four images
    unpack(archive, tmp_path / "plates")
    assert len(spent) == 13  # the other eight: what is whole is not written again


def test_a_damaged_file_is_replaced_and_a_whole_one_kept(tmp_path: Path, spent: list[int]) -> None:
    archive = save(tmp_path / "a.zip", craft(Entry(), Entry(name=OTHER, content=b"others" * 20)))
    unpack(archive, tmp_path / "plates")
    (tmp_path / "plates" / OTHER).write_bytes(b"OTHERS" * 20)
    kept = (tmp_path / "plates" / IMAGE).stat().st_mtime_ns
    unpack(archive, tmp_path / "plates")
    assert (tmp_path / "plates" / OTHER).read_bytes() == b"others" * 20
    assert (tmp_path / "plates" / IMAGE).stat().st_mtime_ns == kept and len(spent) == 3


def test_archives_as_other_tools_write_them(tmp_path: Path) -> None:
    dos = craft(Entry(mode=0), Entry(name="images/", content=b"", method=0, mode=0o40755))
    unpack(save(tmp_path / "dos.zip", b"self-extracting stub" + dos), tmp_path / "dos")
    assert set(written(tmp_path / "dos")) == {IMAGE}
    streamed = io.BytesIO()
    with zipfile.ZipFile(streamed, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open(IMAGE, "w", force_zip64=True) as member:
            member.write(b"pixels")
    unpack(save(tmp_path / "streamed.zip", streamed.getvalue()), tmp_path / "streamed")
    assert written(tmp_path / "streamed") == {IMAGE: b"pixels"}


def test_the_competitions_older_bundles_hold_an_archive_for_each_data_set(tmp_path: Path) -> None:
    inner = {f"{name}/Plate1/B02_s1_w1.png": name.encode() for name in ("RPE-01", "HUVEC-01")}
    bundle = honest({"train.csv": b"id_code\n", "train.zip": honest(inner), "test.zip": honest({"RPE-08/Plate1/B02_s1_w1.png": b"x"})})
    count = unpack(save(tmp_path / "a.zip", bundle), tmp_path / "plates", experiments=["RPE-01", "RPE-08"])
    assert count == Counter({"RPE-01": 1, "RPE-08": 1})
    assert set(written(tmp_path / "plates")) == {"train.csv", "train/RPE-01/Plate1/B02_s1_w1.png", "test/RPE-08/Plate1/B02_s1_w1.png"}


@pytest.mark.parametrize("place", ["images", "images/RPE-01/Plate1", WORKING_FOLDER])
def test_nothing_is_written_through_a_link_that_is_there_already(tmp_path: Path, place: str) -> None:
    (tmp_path / "outside").mkdir()
    link = tmp_path / "plates" / place
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match="link"):
        unpack(save(tmp_path / "a.zip", craft(Entry())), tmp_path / "plates")
    assert not list((tmp_path / "outside").iterdir())


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "large disk").mkdir()
    (tmp_path / "plates").symlink_to(tmp_path / "large disk")
    unpack(save(tmp_path / "a.zip", craft(Entry())), tmp_path / "plates")
    assert (tmp_path / "large disk" / IMAGE).exists()


def test_what_is_refused_at_the_end_comes_not_to_its_place(tmp_path: Path) -> None:
    def refuse(folder: Path) -> None:
        assert (folder / IMAGE).exists()
        raise InputError("not the published table", where=folder)

    with pytest.raises(InputError, match="not the published"):
        unpack(save(tmp_path / "a.zip", craft(Entry())), tmp_path / "plates", accept=refuse)
    assert written(tmp_path / "plates") == {}


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spent: list[int]) -> None:
    (tmp_path / "plates" / WORKING_FOLDER).mkdir(parents=True)
    kept = save(tmp_path / "plates" / WORKING_FOLDER / "from an earlier call", b"x")
    monkeypatch.setattr(unpacking.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 40 << 20})())
    with pytest.raises(InputError, match=r"unpacking needs .*, 41.9 MB are free; free some space"):
        unpack(save(tmp_path / "a.zip", craft(*(Entry(name=IMAGE.replace("B02", f"B{i:02d}"), content=os.urandom(3 << 20)) for i in range(4)))),
               tmp_path / "plates")  # fmt: skip
    assert spent == [] and kept.exists()
    with pytest.raises(InputError, match=r"a test needs 100.0 GB, 41.9 MB are free"):
        require_room(tmp_path / "not/there/yet", 10**11, purpose="a test")


SMALL_DISK = """
mount -t tmpfs -o size=1m none {folder}/plates && exec {python} - <<'END'
from pathlib import Path
from cellsignal.data.download import archives
from cellsignal.errors import InputError
archives.require_room = lambda *arguments, **options: None  # as if somebody else filled the disk meanwhile
root = Path({folder!r})
try:
    archives.unpack(root / "a.zip", root / "plates")
except InputError as error:
    print(error)
    print(sorted(path.name for path in (root / "plates").rglob("*.png")))
END
"""


def test_a_disk_that_fills_up_is_one_line_and_keeps_what_is_whole(tmp_path: Path) -> None:
    images = [Entry(name=IMAGE.replace("B02", f"B{i:02d}"), content=os.urandom(300_000), method=0) for i in range(2, 9)]
    save(tmp_path / "a.zip", craft(*images))
    (tmp_path / "plates").mkdir()
    script = SMALL_DISK.format(folder=str(tmp_path), python=sys.executable)
    ended = subprocess.run(["unshare", "--mount", "--map-root-user", "sh", "-c", script], capture_output=True, text=True)
    if "unshare" in ended.stderr or "mount" in ended.stderr:
        pytest.skip("no right to mount a small disk")
    message, left = ended.stdout.splitlines()
    assert "the disk is full" in message and "then give the same command again to continue" in message
    assert left == str([f"B0{i}_s1_w1.png" for i in (2, 3, 4)])


KILLED = """
import sys, time
from pathlib import Path
from cellsignal.data.download import archives
write = archives._write
def slowly(*arguments):
    time.sleep(0.02)
    return write(*arguments)
archives._write = slowly
archives.unpack(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_killed_unpacking_goes_on(tmp_path: Path, spent: list[int]) -> None:
    images = [Entry(name=IMAGE.replace("B02", f"{row}{column:02d}"), content=os.urandom(999)) for row in "ABCDEFGH" for column in range(1, 25)]
    archive = save(tmp_path / "a.zip", craft(*images))
    process = subprocess.Popen([sys.executable, "-c", KILLED, archive, tmp_path / "plates"])
    while process.poll() is None and len(list((tmp_path / "plates" / WORKING_FOLDER).rglob("[A-Z]*.png"))) < 20:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert {path.name for path in (tmp_path / "plates").iterdir()} == {WORKING_FOLDER}  # nothing looks like a data set yet
    unpack(archive, tmp_path / "plates")
    assert written(tmp_path / "plates") == {str(entry.name): entry.content for entry in images}
    assert len(spent) <= len(images) - 20


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    from cellsignal import files

    archive = save(tmp_path / "a.zip", craft(Entry()))
    (tmp_path / "plates").mkdir()
    with files.locked(tmp_path / "plates"), pytest.raises(InputError, match="another process"):
        unpack(archive, tmp_path / "plates")


def test_no_archive_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such archive; download it first"):
        unpack(tmp_path / "a.zip", tmp_path / "plates")
