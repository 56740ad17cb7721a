"""Every kind of bad table and image ends in one line with the file, the place and a cure."""

import os
import signal
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from errno import EACCES
from pathlib import Path

import cv2
import numpy as np
import pytest

from cellsignal.data.tables.labelled_sites import same_images
from cellsignal.data.images.reader import read_site
from cellsignal.data.tables.wells import read_solution, read_tables
from cellsignal.errors import InputError

Lines = list[str]
Edit = Callable[[Lines], Lines]


def message_of(error: pytest.ExceptionInfo[InputError]) -> str:
    """The message, which is one line and ends with a cure."""
    message = str(error.value)
    assert "\n" not in message and "Traceback" not in message
    assert all(message.rpartition("; "))
    return message


def cell(line: int, column: int, value: str) -> Edit:
    """Write one cell; lines count from 1, as in messages, columns from 0."""

    def edit(lines: Lines) -> Lines:
        cells = lines[line - 1].split(",")
        cells[column] = value
        return [*lines[: line - 1], ",".join(cells), *lines[line:]]

    return edit


def append(text: str) -> Edit:
    return lambda lines: [*lines, text]


def each(change: Callable[[str], str]) -> Edit:
    return lambda lines: [change(line) for line in lines]


ID, EXPERIMENT, PLATE, WELL, SIRNA, WELL_TYPE = range(6)
TABLES: dict[str, tuple[str, Edit, str]] = {
    "empty file": ("train.csv", lambda lines: [], ": the file is empty"),
    "header alone": ("train.csv", lambda lines: lines[:1], ": no row below the header"),
    "no header": ("train.csv", lambda lines: lines[1:], ":1: no column id_code, experiment"),
    "no column": ("train.csv", each(lambda s: s.rpartition(",")[0]), ":1: no column sirna"),
    "column twice": (
        "test.csv",
        each(lambda s: f"{s},{s.split(',')[WELL]}"),
        ":1:well: column stands twice",
    ),
    "semicolons": ("test.csv", each(lambda s: s.replace(",", ";")), ":1: columns are not sep"),
    "tabs": ("test.csv", each(lambda s: s.replace(",", "\t")), ":1: columns are not sep"),
    "too few cells": ("train.csv", append("HUVEC-01_1_B05"), ":82: 1 cells where the header has 5"),
    "too many cells": ("train.csv", cell(3, SIRNA, "1,2"), ":3: 6 cells where the header has 5"),
    "open quote": ("train.csv", cell(3, ID, '"HUVEC'), ": is not CSV (unexpected end of data)"),
    "empty id": ("train.csv", cell(2, ID, ""), ":2:id_code: '' is not an id"),
    "other id": ("train.csv", cell(2, ID, "X"), ":2:id_code: 'X' disagrees with experiment"),
    "row twice": ("test.csv", lambda s: [*s, s[1]], ":34:id_code: '"),
    "experiment": ("train.csv", cell(2, EXPERIMENT, "HUVEC"), "'HUVEC' is not an experiment"),
    "folder": ("train.csv", cell(2, EXPERIMENT, "../x-1"), "'../x-1' is not an experiment"),
    "cell type above": ("train.csv", cell(2, EXPERIMENT, "..-01"), "'..-01' is not an experiment; write cell type, hyphen, number"),
    "hidden cell type": ("train.csv", cell(2, EXPERIMENT, ".x-01"), "'.x-01' is not an experiment"),
    "cell type ends in a space": ("test.csv", cell(2, EXPERIMENT, "RPE -03"), "'RPE -03' is not an experiment"),
    "formula": ("test.csv", cell(2, EXPERIMENT, "+1-03"), "'+1-03' is not an experiment"),
    "no number": ("test.csv", cell(2, EXPERIMENT, "RPE-"), "'RPE-' is not an experiment"),
    "name longer than files have": ("test.csv", cell(2, EXPERIMENT, "x" * 99 + "-1"), "is not an experiment"),
    "plate 0": ("train.csv", cell(4, PLATE, "0"), ":4:plate: '0' is not a plate"),
    "plate huge": ("train.csv", cell(4, PLATE, "1000000000"), ":4:plate: '1000000000' is not a plate"),
    "plate text": ("test.csv", cell(4, PLATE, "one"), ":4:plate: 'one' is not a plate"),
    "row of well": ("train.csv", cell(5, WELL, "Q03"), ":5:well: 'Q03' is not a well"),
    "column of well": ("train.csv", cell(5, WELL, "B25"), ":5:well: 'B25' is not a well"),
    "well without 0": ("test.csv", cell(5, WELL, "B3"), ":5:well: 'B3' is not a well"),
    "class text": ("train.csv", cell(6, SIRNA, "s20"), ":6:sirna: 's20' is not a class"),
    "class empty": ("train.csv", cell(6, SIRNA, ""), ":6:sirna: '' is not a class"),
    "class below": ("train.csv", cell(6, SIRNA, "-1"), ":6:sirna: '-1' is not a class"),
    "class fraction": ("train.csv", cell(6, SIRNA, "1.5"), ":6:sirna: '1.5' is not a class"),
    "class as a float": ("train.csv", cell(6, SIRNA, "3.0"), ":6:sirna: '3.0' is not a class"),
    "class with a zero": ("train_controls.csv", cell(6, SIRNA, "01138"), ":6:sirna: '01138' is not a class"),
    "plate in Python": ("test.csv", cell(4, PLATE, "1_0"), ":4:plate: '1_0' is not a plate"),
    "control treats": ("train.csv", cell(6, SIRNA, "1138"), ":6:sirna: '1138' is not a class"),
    "treatment controls": ("train_controls.csv", cell(6, SIRNA, "7"), ":6:sirna: '7' is not a"),
    "well type": ("test_controls.csv", cell(7, WELL_TYPE, "dmso"), ":7:well_type: 'dmso' is not"),
    "well type denied": (
        "train_controls.csv",
        cell(2, WELL_TYPE, "positive_control"),
        ":2:well_type: 'positive_control' disagrees with the row's class number",
    ),
    "well in two tables": (
        "train_controls.csv",
        lambda s: [*s, "HUVEC-01_1_B02,HUVEC-01,1,B02,1138,negative_control"],
        ":182:id_code: 'HUVEC-01_1_B02' stands in an earlier row or table too",
    ),
    "train and test": (
        "test.csv",
        append("RPE-01_1_P24,RPE-01,1,P24"),
        ":34:experiment: 'RPE-01' is in train and in test",
    ),
    "sample of others": ("sample_submission.csv", cell(2, ID, "X_1_B02"), ":2:id_code: 'X_1_B02'"),
    "sample is short": ("sample_submission.csv", lambda s: s[:-2], ": 2 wells of test.csv are mis"),
    "solution twice": ("solution.csv", lambda s: [*s, s[1]], ":34:id_code: '"),
    "solution class": ("solution.csv", cell(2, 1, "1139"), ":2:sirna: '1139' is not a class"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_bad_table(data_set: Path, kind: str, refused: Callable[..., str]) -> None:
    name, edit, expected = TABLES[kind]
    path = data_set / name
    path.write_text("\n".join(edit(path.read_text().splitlines())))
    message = refused("layout", data_set)
    assert message.startswith(f"{path}:") and expected in message and message.rpartition("; ")[2]


def test_all_faults_are_counted(data_set: Path) -> None:
    path = data_set / "train.csv"
    path.write_text(path.read_text().replace(",HUVEC-01,1,", ",HUVEC-01,0,"))
    with pytest.raises(InputError) as error:
        read_tables(data_set)
    assert f"{path}:2:plate: '0' is not a plate (and 3 more); " in message_of(error)


def test_a_very_long_cell_is_cut_short(data_set: Path) -> None:
    path = data_set / "train.csv"
    path.write_text(path.read_text().replace("HUVEC-01,1,", f"{'x' * 9999},1,"))
    with pytest.raises(InputError) as error:
        read_tables(data_set)
    assert len(message_of(error)) < 300


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, ": no such file"),
        ("folder", ": cannot be read (Is a directory)"),
        (b"id_code,\xff\xfe", ": is not UTF-8 text"),
        (b"\x00\x01\x02\x03", ": is not UTF-8 text"),
        ("fifo", ": is a device or a FIFO, no file; save the table as a file first"),
    ],
)
def test_a_file_that_is_no_table(data_set: Path, content: object, expected: str) -> None:
    path = data_set / "test.csv"
    path.unlink()
    if content == "folder":
        path.mkdir()
    elif content == "fifo":
        os.mkfifo(path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_tables(data_set)
    assert f"{path}{expected}" in message_of(error)


RELEASE = "site_id,well_id,cell_type,dataset,experiment,plate,well,site,well_type,sirna,sirna_id"
RELEASED = [
    RELEASE,
    "A-1_1_B03_1,A-1_1_B03,A,train,A-1,1,B03,1,treatment,s1,7",
    "A-1_1_B03_2,A-1_1_B03,A,train,A-1,1,B03,2,treatment,s1,7",
    "A-2_1_B02_1,A-2_1_B02,A,test,A-2,1,B02,1,negative_control,EMPTY,1138",
]


@pytest.mark.parametrize(
    ("line", "column", "value", "expected"),
    [
        (2, 0, "A-1_1_B03_2", ":3:site_id: 'A-1_1_B03_2' stands in an earlier row"),
        (2, 1, "A-1_1_B04", ":2:well_id: 'A-1_1_B04' disagrees with experiment"),
        (2, 2, "B", ":2:cell_type: 'B' disagrees with the experiment's name"),
        (2, 3, "val", ":2:dataset: 'val' is not a data set"),
        (4, 4, "A-1", ":4:well_id: 'A-2_1_B02' disagrees with experiment"),
        (2, 7, "0", ":2:site: '0' is not a site"),
        (3, 7, "1", ":3:site: 1 is the site of an earlier row of this well; give each site one row"),
        (4, 8, "positive_control", ":4:well_type: 'positive_control' disagrees"),
        (3, 10, "8", ":3:sirna_id: 8 differs from the well's other site"),
        (3, 10, "1200", ":3:sirna_id: '1200' is not a class"),
        (3, 3, "test", ":3:experiment: 'A-1' is in train and in test"),
    ],
)
def test_a_bad_release(tmp_path: Path, line: int, column: int, value: str, expected: str) -> None:
    path = tmp_path / "metadata.csv"
    path.write_text("\n".join(cell(line, column, value)(RELEASED)))
    with pytest.raises(InputError) as error:
        read_tables(tmp_path)
    assert f"{path}{expected}" in message_of(error)


def test_a_solution_without_rows(tmp_path: Path) -> None:
    (tmp_path / "solution.csv").write_text("id_code,sirna\n")
    with pytest.raises(InputError) as error:
        read_solution(tmp_path / "solution.csv")
    assert "solution.csv: no row below the header" in message_of(error)


def test_a_solution_is_checked_alone(tmp_path: Path) -> None:
    path = tmp_path / "solution.csv"
    path.write_text("id_code,sirna\nX,1\nX,2\n")
    with pytest.raises(InputError) as error:
        read_solution(path)
    assert f"{path}:3:id_code: 'X' stands in an earlier row" in message_of(error)


def png(*, depth: int = 8, colour: int = 0, size: int = 8, data: bytes = bytes(72), before: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
    """An image with right checksums, whatever it holds."""

    def chunk(kind: bytes, body: bytes = b"") -> bytes:
        checksum = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", size, size, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + b"".join(chunk(*each) for each in before) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND")
    return b"\x89PNG\r\n\x1a\n" + body


def encoded(image: np.ndarray, kind: str = ".png") -> bytes:
    return cv2.imencode(kind, image)[1].tobytes()


GREY = np.arange(64, dtype=np.uint8).reshape(8, 8)
WHOLE = encoded(GREY)
IMAGES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty"),
    "text": (b"<html>not found</html>", "is not a PNG"),
    "JPEG": (encoded(GREY, ".jpg"), "is not a PNG"),
    "TIFF": (encoded(GREY, ".tiff"), "is not a PNG"),
    "signature alone": (WHOLE[:8], "is cut short or damaged"),
    "half": (WHOLE[: len(WHOLE) // 2], "is cut short or damaged"),
    "no end": (WHOLE[:-12], "is cut short or damaged"),
    "no header": (WHOLE[:8] + WHOLE[33:], "is cut short or damaged"),
    "one bit": (WHOLE[:50] + bytes([WHOLE[50] ^ 1]) + WHOLE[51:], "is cut short or damaged"),
    "zeros": (WHOLE[:48] + bytes(8) + WHOLE[56:], "is cut short or damaged"),
    "too few rows": (png(data=bytes(30)), "its pixels are damaged"),
    "absurd size": (png(size=70_000), "claims 70,000x70,000 pixels, more than 67,108,864"),
    "largest size": (png(size=2**31 - 1), "claims 2,147,483,647x2,147,483,647 pixels, more than 67,108,864"),
    "65,535 a side": (png(size=65_535), "claims 65,535x65,535 pixels, more than 67,108,864"),
    "a row too many": (png(size=8_193), "claims 8,193x8,193 pixels, more than 67,108,864"),
    "animation": (png(before=[(b"acTL", struct.pack(">II", 2, 0))]), "is an animation (APNG)"),
    "16 bits": (encoded(GREY.astype(np.uint16)), "has 16 bits per pixel, not 8"),
    "1 bit": (png(depth=1, data=bytes(16)), "has 1 bits per pixel, not 8"),
    "colour": (encoded(np.dstack([GREY] * 3)), "is colour, not grey"),
    "transparency": (encoded(np.dstack([GREY] * 4)), "is colour with transparency, not grey"),
    "palette": (png(colour=3), "is a palette, not grey"),
    "grey and alpha": (png(colour=4, data=bytes(136)), "is grey with transparency, not grey"),
    "other size": (encoded(GREY[:5]), "is 5x8 pixels, the site's first channel is 8x8"),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_a_bad_image(tmp_path: Path, draw: Callable[..., None], kind: str) -> None:
    content, expected = IMAGES[kind]
    draw(tmp_path, "site")
    path = tmp_path / "site_w4.png"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_site(tmp_path, "site")
    assert message_of(error).startswith(f"{path}: {expected}; ")


def test_a_missing_image(tmp_path: Path, draw: Callable[..., None]) -> None:
    draw(tmp_path, "site", channels=5)
    with pytest.raises(InputError) as error:
        read_site(tmp_path, "site")
    assert message_of(error).startswith(f"{tmp_path}/site_w6.png: no such file; ")


def test_a_folder_for_an_image(tmp_path: Path, draw: Callable[..., None]) -> None:
    draw(tmp_path, "site", channels=5)
    (tmp_path / "site_w6.png").mkdir()
    with pytest.raises(InputError) as error:
        read_site(tmp_path, "site")
    assert message_of(error).startswith(f"{tmp_path}/site_w6.png: is a folder, not an image; ")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**27 + 1)


@pytest.fixture
def impatient() -> Iterator[None]:
    """Whoever waits in the main thread is interrupted."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("waits for ever"))
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("make", "words"), [
    (pipe, "is a pipe or a device, not a file; put the PNG there"),
    (device, "is a pipe or a device, not a file; put the PNG there"),
    (sparse, "has 134,217,729 bytes, an image has 134,217,728 at most; save it as an 8-bit grey PNG"),
])
def test_what_never_ends_is_not_read(tmp_path: Path, draw: Callable[..., None], make: Callable[[Path], None], words: str) -> None:
    draw(tmp_path, "site", channels=5)
    draw(tmp_path, "twin", channels=5)
    for name in ("site", "twin"):
        make(tmp_path / f"{name}_w6.png")
    line = f"{tmp_path}/site_w6.png: {words}"
    with pytest.raises(InputError) as error:
        read_site(tmp_path, "site")
    assert message_of(error) == line
    with pytest.raises(InputError) as error:
        same_images(tmp_path, ["site", "twin"], suffixes=["_w6.png"])
    assert message_of(error) == line


def test_an_image_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, flags: int) -> int:
        raise PermissionError(EACCES, "Permission denied")

    monkeypatch.setattr("cellsignal.data.images.reader.os.open", refuse)  # file modes do not stop root
    with pytest.raises(InputError) as error:
        read_site(tmp_path, "site")
    assert "site_w1.png: cannot be read (Permission denied); " in message_of(error)


def test_a_link_to_nowhere(tmp_path: Path, draw: Callable[..., None]) -> None:
    draw(tmp_path, "site", channels=5)
    (tmp_path / "site_w6.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(InputError) as error:
        read_site(tmp_path, "site")
    assert message_of(error).startswith(f"{tmp_path}/site_w6.png: no such file; ")
