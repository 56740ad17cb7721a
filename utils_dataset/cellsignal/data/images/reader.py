"""Reading a site as one array from its PNGs, grey ones of a channel each or one in colour, or from a packed store; every error names its file."""

import os
import stat
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from cellsignal.data.images import packed_store
from cellsignal.errors import InputError, Problem, raise_if_any
from cellsignal.files import entries, folder_fingerprint
from cellsignal.tasks import RXRX1

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB = 0, 2  # PNG's colour types
_COLOURS = {GREY: "grey", RGB: "colour", 3: "a palette", 4: "grey with transparency", 6: "colour with transparency"}
PLANE = "#"  # in a channel's suffix, before the number of a plane of a colour image: ".png#2"
MAX_PIXELS = 2**26  # of one channel: 8,192 x 8,192
MAX_FILE_BYTES = 2 * MAX_PIXELS  # of its file: PNG never makes pixels much larger
_COPY_AGAIN = "copy the file again"
_SAVE_AS_GREY, _SAVE_AS_RGB = "save it as an 8-bit grey PNG", "save it as an 8-bit RGB PNG, without transparency"


def channel_path(root: Path, stem: str, channel: int) -> Path:
    """The file of one channel (from 1) of a site of RxRx1."""
    return Path(root) / f"{stem}{RXRX1.suffixes[channel - 1]}"


def read_channel(path: Path) -> np.ndarray:
    """One 8-bit grey PNG as uint8[H, W], as OpenCV reads it; InputError names its fault."""
    return _decoded(path, GREY, shape=())


def read_colour(path: Path) -> np.ndarray:
    """One 8-bit RGB PNG as uint8[3, H, W], red first; InputError names its fault."""
    return np.ascontiguousarray(_decoded(path, RGB, shape=(3,))[:, :, ::-1].transpose(2, 0, 1))  # OpenCV's order is blue, green, red


def file_suffix(suffix: str) -> str:
    """How the file of a channel ends: ".png" where the suffix of the channel is ".png#2"."""
    return suffix.partition(PLANE)[0]


def _decoded(path: Path, colour: int, *, shape: tuple[int, ...]) -> np.ndarray:
    """The pixels of a PNG of a colour type, [H, W, *shape]."""
    content, cure = image_content(path), _SAVE_AS_RGB if colour == RGB else _SAVE_AS_GREY
    _refuse(path, _png_fault(content, colour, cure))
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        image = None
    if image is None:
        _refuse(path, ("its pixels are damaged", _COPY_AGAIN))
    if image.shape[2:] != shape:
        _refuse(path, ("has transparency", cure))
    return image


def write_channel(path: str | Path, image: np.ndarray) -> None:
    """Write uint8[H, W] as an 8-bit grey PNG; raises OSError, which OpenCV's own writer does not."""
    _, content = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    Path(path).write_bytes(content)


def read_site(
    root: Path, stem: str, *, channels: Sequence[str] = RXRX1.suffixes, size: int | None = None, out: np.ndarray | None = None
) -> np.ndarray:
    """All channels of a site as uint8[C, H, W]; `channels`: suffixes of their file names.

    `size`: the longer side in pixels of a reduced copy; `out` is filled and returned if given. A folder with a store is
    read from the store, with the same pixels. InputError names the first faulty file.
    """
    packed = packed_store.find_store(root)
    if packed is not None:
        return _read_packed(packed, stem, tuple(channels), size=size, out=out)
    image = area_resized(_read_pngs(root, stem, channels), size)
    return image if out is None else _copy_into(out, image)


def area_resized(image: np.ndarray, size: int | None) -> np.ndarray:
    """uint8[C, H, W] resized to a longer side of `size` px by OpenCV's area interpolation; None leaves it unchanged.

    InputError for a size larger than the image.
    """
    height, width = resized_shape(image.shape[-2:], size)
    if (height, width) == image.shape[-2:]:
        return image
    return np.stack([cv2.resize(plane, (width, height), interpolation=cv2.INTER_AREA) for plane in image])


def resized_shape(shape: Sequence[int], size: int | None) -> tuple[int, int]:
    """Height and width of a copy whose longer side has `size` px; InputError for a size larger than the image."""
    longer_side = max(shape)
    if size is not None and not 0 < size <= longer_side:
        raise InputError(f"a copy of {size} px of an image of {longer_side}", where="size", cure=f"choose 1 to {longer_side}")
    height, width = (max(1, round(side * (size or longer_side) / longer_side)) for side in shape)
    return height, width


def _read_pngs(root: Path, stem: str, channels: Sequence[str]) -> np.ndarray:
    if any(PLANE in suffix for suffix in channels):
        return _read_planes(root, stem, channels)
    paths = [Path(root) / f"{stem}{suffix}" for suffix in channels]
    images = [read_channel(path) for path in paths]
    for path, image in zip(paths, images):
        _same_size(path, image.shape, images[0].shape, other="the site's first channel")
    return np.stack(images)


def _read_planes(root: Path, stem: str, channels: Sequence[str]) -> np.ndarray:
    """The planes of a site's colour image, which all its channels lie in."""
    [suffix] = set(map(file_suffix, channels))
    image, numbers = read_colour(Path(root) / f"{stem}{suffix}"), [int(channel.partition(PLANE)[2]) - 1 for channel in channels]
    return image if numbers == [0, 1, 2] else image[numbers]


def _read_packed(
    packed: packed_store.Store, stem: str, suffixes: tuple[str, ...], *, size: int | None, out: np.ndarray | None
) -> np.ndarray:
    """A site of a store, all of its channels or those with these suffixes."""
    if suffixes == packed.suffixes and packed.locate(stem) is not None:
        return packed.read(stem, out, size=size)
    if missing := _missing_numbers(packed, stem, suffixes):
        path = Path(f"{packed.root / stem}{file_suffix(suffixes[missing[0] - 1])}")
        _refuse(path, ("was not packed into this store", "pack it, or leave out the site"))
    image = packed.read(stem, size=size)[[packed.suffixes.index(end) for end in suffixes]]
    return image if out is None else _copy_into(out, image)


def _missing_numbers(packed: packed_store.Store, stem: str, suffixes: Sequence[str]) -> list[int]:
    """The numbers (from 1) of the channels, given by suffix, that a store does not have of a site."""
    lost_suffixes = {packed.suffixes[number - 1] for number in packed.missing_channels(stem)}
    missing = [number for number, suffix in enumerate(suffixes, 1) if suffix in lost_suffixes or suffix not in packed.suffixes]
    # A site with a missing channel was not packed at all, so its other channels are missing too.
    return missing or (list(range(1, len(suffixes) + 1)) if lost_suffixes else [])


def _copy_into(out: np.ndarray, image: np.ndarray) -> np.ndarray:
    if out.shape != image.shape or out.dtype != np.uint8:
        raise InputError(f"a buffer of {out.shape} for a site of {image.shape}", cure="give bytes of the shape of what is read")
    out[...] = image
    return out


def read_sites(root: Path, sites: pd.DataFrame, *, channels: Sequence[str] = RXRX1.suffixes) -> np.ndarray:
    """All sites of a table, in its order, as uint8[N, C, H, W], read by several threads.

    InputError names the first faulty file, or the first site whose size differs.
    """
    stems = sites["stem"].tolist()
    if not stems:
        return np.empty((0, len(channels), 0, 0), np.uint8)
    suffix, packed = file_suffix(channels[0]), packed_store.is_store(root)
    first = read_site(root, stems[0], channels=channels)
    images = np.empty((len(stems), *first.shape), np.uint8)

    def read(row: int) -> None:
        if packed:  # all sites have one size and are read in place
            read_site(root, stems[row], channels=channels, out=images[row])
            return
        image = read_site(root, stems[row], channels=channels)
        path = Path(root) / f"{stems[row]}{suffix}"
        _same_size(path, image.shape[1:], first.shape[1:], other=f"{stems[0]}{suffix}")
        images[row] = image

    pool = ThreadPoolExecutor()
    try:
        list(pool.map(read, range(len(stems))))
    finally:
        pool.shutdown(cancel_futures=True)
    return images


def whole_sites(
    root: Path, sites: pd.DataFrame, *, channels: Sequence[str] = RXRX1.suffixes
) -> tuple[pd.DataFrame, list[str]]:
    """The sites that have all their files, and a note on each incomplete site whose well has another one.

    Looks at names only, one folder listing per plate. InputError if a well has no complete site.
    """
    missing = missing_channels(Path(root), sites["stem"], channels=channels)
    complete = missing == ""
    has_complete_site = sites["id_code"].isin(sites.loc[complete, "id_code"])
    incomplete_stems = sites["stem"][~has_complete_site]
    raise_if_any(
        [
            Problem(
                f"{Path(root) / stem}{file_suffix(channels[int(missing[row].split(',')[0]) - 1])}",
                "no such file, and the well has no other whole site",
                "add the image or take the well out of the tables",
            )
            for row, stem in incomplete_stems.items()
        ]
    )
    notes = [
        f"{stem}: no channel {missing[row]}; its well is read without this site"
        for row, stem in sites["stem"][~complete].items()
    ]
    return sites[complete], notes


def missing_channels(root: Path, stems: pd.Series, *, channels: Sequence[str]) -> pd.Series:
    """For each site, the numbers (from 1) of the missing channels, such as "5, 6"."""
    suffixes = tuple(channels)
    if packed := packed_store.find_store(root):
        all_channels = suffixes == packed.suffixes  # then a site that was packed lacks nothing
        missing = ["" if all_channels and packed.locate(stem) else ", ".join(map(str, _missing_numbers(packed, stem, suffixes))) for stem in stems]
        return pd.Series(missing, index=stems.index, dtype=object)
    split_stems = [stem.rpartition("/") for stem in stems]
    names_in_folder = {folder: _names(root / folder) for folder in {folder for folder, _, _ in split_stems}}
    numbered_suffixes = [(str(number), file_suffix(suffix)) for number, suffix in enumerate(suffixes, 1)]
    missing = [
        ", ".join(number for number, suffix in numbered_suffixes if f"{name}{suffix}" not in names_in_folder[folder]) for folder, _, name in split_stems
    ]
    return pd.Series(missing, index=stems.index, dtype=object)


def stems_in(root: Path, folder: str) -> list[str]:
    """The sites in a folder of images below `root`, complete or not, sorted by name (RxRx1's files)."""
    if packed := packed_store.find_store(root):
        return sorted(packed.stems(folder))
    suffix = RXRX1.suffixes[0]
    return sorted(f"{folder}/{name.removesuffix(suffix)}" for name in _names(Path(root) / folder) if name.endswith(suffix))


def folder_fingerprints(root: Path, stems: Iterable[str]) -> dict[str, str]:
    """By folder of these sites' images, its fingerprint; in a store, the digest of its pixels."""
    folders, packed = sorted({stem.rpartition("/")[0] for stem in stems}), packed_store.find_store(root)
    return {folder: packed.digest(folder) if packed else folder_fingerprint(Path(root) / folder) for folder in folders}


def _names(folder: Path) -> set[str]:
    return {entry.name for entry in entries(folder)}


def image_content(path: Path) -> bytes:
    """The bytes of an image file; InputError if it is no file, cannot be read or is too large for an image."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:  # a FIFO would be waited for
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                _refuse(path, ("is a pipe or a device, not a file", "put the PNG there"))
            if status.st_size > MAX_FILE_BYTES:
                _refuse(path, (f"has {status.st_size:,} bytes, an image has {MAX_FILE_BYTES:,} at most", _SAVE_AS_GREY))
            return file.read()
    except FileNotFoundError:
        _refuse(path, ("no such file", "add the image, or leave out the site"))
    except IsADirectoryError:
        _refuse(path, ("is a folder, not an image", "put the PNG there"))
    except OSError as error:
        _refuse(path, (f"cannot be read ({error.strerror})", "make it a readable file"))
    raise AssertionError("unreachable")


def _png_fault(content: bytes, expected_colour: int, save_as: str) -> tuple[str, str] | None:
    """Fault and cure of a PNG, without decoding its pixels; None if it is valid and of the expected colour type, else it is to be saved anew."""
    if not content:
        return "the file is empty", _COPY_AGAIN
    if not content.startswith(_SIGNATURE):
        return "is not a PNG", save_as
    # Decoders accept some damaged blocks; the checksum of each chunk detects them.
    kinds = list(_chunks(content))
    if kinds[0] != b"IHDR" or kinds[-1] != b"IEND":
        return "is cut short or damaged", _COPY_AGAIN
    width, height, depth, colour = struct.unpack_from(">IIBB", content, 16)
    if colour != expected_colour:
        return f"is {_COLOURS.get(colour, 'an unknown colour type')}, not {_COLOURS[expected_colour]}", save_as
    if depth != 8:
        return f"has {depth} bits per {'pixel' if colour == GREY else 'channel'}, not 8", save_as
    if b"acTL" in kinds:  # whose first frame decoders read as they like, or as black
        return "is an animation (APNG)", save_as
    if width * height > MAX_PIXELS:  # a few bytes may claim gigabytes
        return f"claims {width:,}x{height:,} pixels, more than {MAX_PIXELS:,}", "cut or shrink it, or copy it again"
    return None


def _chunks(content: bytes) -> Iterator[bytes]:
    """The kind of each chunk of a PNG; the last is b"" where the file ends or a checksum fails."""
    position = len(_SIGNATURE)
    while position + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, position)
        body = content[position + 4 : position + 8 + length]
        if content[position + 8 + length : position + 12 + length] != struct.pack(">I", zlib.crc32(body)):
            break
        yield body[:4]
        if body[:4] == b"IEND":
            return
        position += 12 + length
    yield b""


def _same_size(path: Path, size: tuple[int, ...], expected: tuple[int, ...], *, other: str) -> None:
    if size != expected:
        what = f"is {size[0]}x{size[1]} pixels, {other} is {expected[0]}x{expected[1]}"
        _refuse(path, (what, "give all images one size"))


def _refuse(path: Path, fault: tuple[str, str] | None) -> None:
    raise_if_any([Problem(str(path), *fault)] if fault else [])
