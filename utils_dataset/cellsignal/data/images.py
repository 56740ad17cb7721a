"""The grey PNGs of a site, one a channel, to one array; every fault names its file."""

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from cellsignal.data.problems import Problem, refuse

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOURS = {2: "colour", 3: "a palette", 4: "grey with transparency", 6: "colour with transparency"}
_AGAIN = "copy the file again"
_GREY = "save it as an 8-bit grey PNG"


def channel_path(root: Path, stem: str, channel: int) -> Path:
    """The file of one channel (from 1) of a site."""
    return Path(root) / f"{stem}_w{channel}.png"


def suffixes(channels: int | Sequence[str]) -> tuple[str, ...]:
    """How the file names of a site's channels end: as given, or for a number `_w1.png`, `_w2.png`, ... (RxRx1)."""
    return tuple(f"_w{number}.png" for number in range(1, channels + 1)) if isinstance(channels, int) else tuple(channels)


def read_channel(path: Path) -> np.ndarray:
    """One 8-bit grey PNG as uint8[H, W], as OpenCV reads it; InputError names its fault."""
    content = _content(path)
    _refuse(path, _fault(content))
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # an absurd size
        image = None
    if image is None:
        _refuse(path, ("its pixels are damaged", _AGAIN))
    if image.ndim != 2:
        _refuse(path, ("has transparency", _GREY))
    return image


def read_site(root: Path, stem: str, *, channels: int | Sequence[str] = 6) -> np.ndarray:
    """All channels of a site as uint8[C, H, W]; `channels`: how many, or how their file names end (`suffixes`).

    InputError names the first file at fault.
    """
    paths = [Path(root) / f"{stem}{suffix}" for suffix in suffixes(channels)]
    images = [read_channel(path) for path in paths]
    for path, image in zip(paths, images):
        _same_size(path, image.shape, images[0].shape, other="the site's first channel")
    return np.stack(images)


def read_sites(
    root: Path, sites: pd.DataFrame, *, channels: int | Sequence[str] = 6, progress: bool = False
) -> np.ndarray:
    """All sites of a table, in its order, as uint8[N, C, H, W], read by several threads.

    InputError names the first file at fault, or the first site of another size than the first.
    """
    stems = sites["stem"].tolist()
    if not stems:
        return np.empty((0, len(suffixes(channels)), 0, 0), np.uint8)
    end = suffixes(channels)[0]
    first = read_site(root, stems[0], channels=channels)
    images = np.empty((len(stems), *first.shape), np.uint8)

    def read(place: int) -> None:
        image = read_site(root, stems[place], channels=channels)
        path = Path(root) / f"{stems[place]}{end}"
        _same_size(path, image.shape[1:], first.shape[1:], other=f"{stems[0]}{end}")
        images[place] = image

    pool = ThreadPoolExecutor()
    try:
        done = pool.map(read, range(len(stems)))
        list(tqdm(done, "read sites", len(stems), unit="site", disable=not progress))
    finally:
        pool.shutdown(cancel_futures=True)
    return images


def whole_sites(
    root: Path, sites: pd.DataFrame, *, channels: int | Sequence[str] = 6
) -> tuple[pd.DataFrame, list[str]]:
    """The sites that have all their files, and one line on each site left out for the well's other.

    Looks at names only, one folder listing per plate. InputError when a well has no whole site.
    """
    missing = missing_channels(Path(root), sites["stem"], channels=channels)
    whole = missing == ""
    rescued = sites["id_code"].isin(sites.loc[whole, "id_code"])
    lost = sites["stem"][~rescued]
    refuse(
        [
            Problem(
                f"{Path(root) / stem}{suffixes(channels)[int(missing[row].split(',')[0]) - 1]}",
                "no such file, and the well has no other whole site",
                "add the image or take the well out of the tables",
            )
            for row, stem in lost.items()
        ]
    )
    notes = [
        f"{stem}: no channel {missing[row]}; its well is read without this site"
        for row, stem in sites["stem"][~whole].items()
    ]
    return sites[whole], notes


def missing_channels(root: Path, stems: pd.Series, *, channels: int | Sequence[str]) -> pd.Series:
    """For each site, the numbers (from 1) of the channels without a file, such as "5, 6"."""
    places = [stem.rpartition("/") for stem in stems]
    there = {folder: _names(root / folder) for folder in {folder for folder, _, _ in places}}
    ends = [(str(number), suffix) for number, suffix in enumerate(suffixes(channels), 1)]
    missing = [
        ", ".join(number for number, end in ends if f"{name}{end}" not in there[folder]) for folder, _, name in places
    ]
    return pd.Series(missing, index=stems.index, dtype=object)


def _names(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except OSError:
        return set()


def _content(path: Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        _refuse(path, ("no such file", "add the image, or leave out the site"))
    except IsADirectoryError:
        _refuse(path, ("is a folder, not an image", "put the PNG there"))
    except OSError as error:
        _refuse(path, (f"cannot be read ({error.strerror})", "make it a readable file"))
    raise AssertionError("unreachable")


def _fault(content: bytes) -> tuple[str, str] | None:
    """What is wrong with a PNG before its pixels are decoded, and the cure."""
    if not content:
        return "the file is empty", _AGAIN
    if not content.startswith(_SIGNATURE):
        return "is not a PNG", _GREY
    # Decoders let some damaged blocks pass; the checksum of each chunk does not.
    kinds = list(_chunks(content))
    if kinds[0] != b"IHDR" or kinds[-1] != b"IEND":
        return "is cut short or damaged", _AGAIN
    depth, colour = content[24], content[25]
    if colour != 0:
        return f"is {_COLOURS.get(colour, 'an unknown colour type')}, not grey", _GREY
    if depth != 8:
        return f"has {depth} bits per pixel, not 8", _GREY
    return None


def _chunks(content: bytes) -> Iterator[bytes]:
    """The kind of each chunk of a PNG; the last is b"" where the file ends or a checksum fails."""
    place = len(_SIGNATURE)
    while place + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, place)
        body = content[place + 4 : place + 8 + length]
        if content[place + 8 + length : place + 12 + length] != struct.pack(">I", zlib.crc32(body)):
            break
        yield body[:4]
        if body[:4] == b"IEND":
            return
        place += 12 + length
    yield b""


def _same_size(path: Path, size: tuple[int, ...], expected: tuple[int, ...], *, other: str) -> None:
    if size != expected:
        what = f"is {size[0]}x{size[1]} pixels, {other} is {expected[0]}x{expected[1]}"
        _refuse(path, (what, "give all images one size"))


def _refuse(path: Path, fault: tuple[str, str] | None) -> None:
    refuse([Problem(str(path), *fault)] if fault else [])
