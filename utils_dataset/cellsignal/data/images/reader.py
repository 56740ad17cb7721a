"""A site to one array, from its grey PNGs, one a channel, or from a packed store; every fault names its file."""

import os
import stat
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from cellsignal.data.images import packed_store
from cellsignal.data.images.folders import entries
from cellsignal.errors import InputError, Problem, raise_if_any
from cellsignal.files import sha256
from cellsignal.tasks import RXRX1

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOURS = {2: "colour", 3: "a palette", 4: "grey with transparency", 6: "colour with transparency"}
MOST_PIXELS = 2**26  # of one channel: 8,192 x 8,192
MOST_BYTES = 2 * MOST_PIXELS  # of its file: PNG never makes pixels much larger
_AGAIN = "copy the file again"
_GREY = "save it as an 8-bit grey PNG"


def channel_path(root: Path, stem: str, channel: int) -> Path:
    """The file of one channel (from 1) of a site of RxRx1."""
    return Path(root) / f"{stem}{RXRX1.suffixes[channel - 1]}"


def read_channel(path: Path) -> np.ndarray:
    """One 8-bit grey PNG as uint8[H, W], as OpenCV reads it; InputError names its fault."""
    content = image_content(path)
    _refuse(path, _fault(content))
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        image = None
    if image is None:
        _refuse(path, ("its pixels are damaged", _AGAIN))
    if image.ndim != 2:
        _refuse(path, ("has transparency", _GREY))
    return image


def write_channel(path: Path, image: np.ndarray) -> None:
    """Write uint8[H, W] as an 8-bit grey PNG; OSError where it has no place, which OpenCV's own writer keeps to itself."""
    _, content = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    Path(path).write_bytes(content)


def read_site(
    root: Path, stem: str, *, channels: Sequence[str] = RXRX1.suffixes, size: int | None = None, out: np.ndarray | None = None
) -> np.ndarray:
    """All channels of a site as uint8[C, H, W]; `channels`: how their file names end.

    `size`: of the longer side in pixels, where a reduced copy is wanted; `out` is filled and returned where it is given.
    A folder with a store is read from the store, with the same pixels. InputError names the first file at fault.
    """
    packed = packed_store.store_path(root)
    if packed is not None:
        return _unpacked(packed, stem, tuple(channels), size=size, out=out)
    image = area_resized(_decoded(root, stem, channels), size)
    return image if out is None else _into(out, image)


def area_resized(image: np.ndarray, size: int | None) -> np.ndarray:
    """uint8[C, H, W] with a longer side of `size` px: means over areas, as OpenCV rounds them; None leaves it as it is.

    InputError for a size that the image does not reach.
    """
    height, width = resized_sides(image.shape[-2:], size)
    if (height, width) == image.shape[-2:]:
        return image
    return np.stack([cv2.resize(plane, (width, height), interpolation=cv2.INTER_AREA) for plane in image])


def resized_sides(sides: Sequence[int], size: int | None) -> tuple[int, int]:
    """Height and width of a copy whose longer side has `size` px; InputError for more than there are."""
    longer = max(sides)
    if size is not None and not 0 < size <= longer:
        raise InputError(f"a copy of {size} px of an image of {longer}", where="size", cure=f"choose 1 to {longer}")
    height, width = (max(1, round(side * (size or longer) / longer)) for side in sides)
    return height, width


def _decoded(root: Path, stem: str, channels: Sequence[str]) -> np.ndarray:
    paths = [Path(root) / f"{stem}{suffix}" for suffix in channels]
    images = [read_channel(path) for path in paths]
    for path, image in zip(paths, images):
        _same_size(path, image.shape, images[0].shape, other="the site's first channel")
    return np.stack(images)


def _unpacked(
    packed: packed_store.Store, stem: str, ends: tuple[str, ...], *, size: int | None, out: np.ndarray | None
) -> np.ndarray:
    """A site of a store, all of its channels or those whose file names would end so."""
    if ends == packed.suffixes and packed.place(stem) is not None:
        return packed.read(stem, out, size=size)
    if gaps := _gaps(packed, stem, ends):
        path = Path(f"{packed.root / stem}{ends[gaps[0] - 1]}")
        _refuse(path, ("was not packed into this store", "pack it, or leave out the site"))
    image = packed.read(stem, size=size)[[packed.suffixes.index(end) for end in ends]]
    return image if out is None else _into(out, image)


def _gaps(packed: packed_store.Store, stem: str, ends: Sequence[str]) -> list[int]:
    """The numbers (from 1) of the channels, named by how their files end, that a store does not have of a site."""
    lost = {packed.suffixes[number - 1] for number in packed.lacking(stem)}
    gaps = [number for number, end in enumerate(ends, 1) if end in lost or end not in packed.suffixes]
    # A site that lost a channel was not packed at all: nothing is there even of the others.
    return gaps or (list(range(1, len(ends) + 1)) if lost else [])


def _into(out: np.ndarray, image: np.ndarray) -> np.ndarray:
    if out.shape != image.shape or out.dtype != np.uint8:
        raise InputError(f"a buffer of {out.shape} for a site of {image.shape}", cure="give bytes of the shape of what is read")
    out[...] = image
    return out


def read_sites(root: Path, sites: pd.DataFrame, *, channels: Sequence[str] = RXRX1.suffixes) -> np.ndarray:
    """All sites of a table, in its order, as uint8[N, C, H, W], read by several threads.

    InputError names the first file at fault, or the first site of another size than the first.
    """
    stems = sites["stem"].tolist()
    if not stems:
        return np.empty((0, len(channels), 0, 0), np.uint8)
    end, packed = channels[0], packed_store.is_store(root)
    first = read_site(root, stems[0], channels=channels)
    images = np.empty((len(stems), *first.shape), np.uint8)

    def read(place: int) -> None:
        if packed:  # of one size, and into its place without a copy
            read_site(root, stems[place], channels=channels, out=images[place])
            return
        image = read_site(root, stems[place], channels=channels)
        path = Path(root) / f"{stems[place]}{end}"
        _same_size(path, image.shape[1:], first.shape[1:], other=f"{stems[0]}{end}")
        images[place] = image

    pool = ThreadPoolExecutor()
    try:
        list(pool.map(read, range(len(stems))))
    finally:
        pool.shutdown(cancel_futures=True)
    return images


def whole_sites(
    root: Path, sites: pd.DataFrame, *, channels: Sequence[str] = RXRX1.suffixes
) -> tuple[pd.DataFrame, list[str]]:
    """The sites that have all their files, and one line on each site left out for the well's other.

    Looks at names only, one folder listing per plate. InputError when a well has no whole site.
    """
    missing = missing_channels(Path(root), sites["stem"], channels=channels)
    whole = missing == ""
    rescued = sites["id_code"].isin(sites.loc[whole, "id_code"])
    lost = sites["stem"][~rescued]
    raise_if_any(
        [
            Problem(
                f"{Path(root) / stem}{channels[int(missing[row].split(',')[0]) - 1]}",
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


def missing_channels(root: Path, stems: pd.Series, *, channels: Sequence[str]) -> pd.Series:
    """For each site, the numbers (from 1) of the channels without a file, such as "5, 6"."""
    ends = tuple(channels)
    if packed := packed_store.store_path(root):
        all_of_them = ends == packed.suffixes  # then a site that was packed lacks nothing
        missing = ["" if all_of_them and packed.place(stem) else ", ".join(map(str, _gaps(packed, stem, ends))) for stem in stems]
        return pd.Series(missing, index=stems.index, dtype=object)
    places = [stem.rpartition("/") for stem in stems]
    there = {folder: _names(root / folder) for folder in {folder for folder, _, _ in places}}
    numbered = [(str(number), end) for number, end in enumerate(ends, 1)]
    missing = [
        ", ".join(number for number, end in numbered if f"{name}{end}" not in there[folder]) for folder, _, name in places
    ]
    return pd.Series(missing, index=stems.index, dtype=object)


def stems_in(root: Path, folder: str) -> list[str]:
    """The sites in a folder of images below `root`, whole or not, in the order of their names (RxRx1's files)."""
    if packed := packed_store.store_path(root):
        return sorted(packed.stems(folder))
    end = RXRX1.suffixes[0]
    return sorted(f"{folder}/{name.removesuffix(end)}" for name in _names(Path(root) / folder) if name.endswith(end))


def image_fingerprint(root: Path, stem: str) -> str:
    """What tells the images around a site from others: SHA-256 of its first channel's file, or of its plate in a store.

    "" where there is no such file.
    """
    if packed := packed_store.store_path(root):
        return packed.digest(stem.rpartition("/")[0])
    path = channel_path(root, stem, 1)
    return sha256(path) if path.is_file() else ""


def _names(folder: Path) -> set[str]:
    return {entry.name for entry in entries(folder)}


def image_content(path: Path) -> bytes:
    """The bytes of an image file; InputError names what is no file, cannot be read or is too large for an image."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:  # a FIFO would be waited for
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                _refuse(path, ("is a pipe or a device, not a file", "put the PNG there"))
            if facts.st_size > MOST_BYTES:
                _refuse(path, (f"has {facts.st_size:,} bytes, an image has {MOST_BYTES:,} at most", _GREY))
            return file.read()
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
    width, height, depth, colour = struct.unpack_from(">IIBB", content, 16)
    if colour != 0:
        return f"is {_COLOURS.get(colour, 'an unknown colour type')}, not grey", _GREY
    if depth != 8:
        return f"has {depth} bits per pixel, not 8", _GREY
    if b"acTL" in kinds:  # whose first frame decoders read as they like, or as black
        return "is an animation (APNG)", _GREY
    if width * height > MOST_PIXELS:  # a few bytes may claim gigabytes
        return f"claims {width:,}x{height:,} pixels, more than {MOST_PIXELS:,}", "cut or shrink it, or copy it again"
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
    raise_if_any([Problem(str(path), *fault)] if fault else [])
