"""The packed store: a data set whose images lie in one file a plate, read many times faster than their PNGs.

A store is a folder with the data set's own tables, `store.json`, and for each folder of images `sites.json` and one file per
size, such as `512.npy`, or an OME-Zarr plate. `data.images.reader` reads PNG folders and stores alike.
"""

import hashlib
import importlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from cellsignal import files
from cellsignal.errors import InputError
from cellsignal.receipts import Receipt

# Lossless codecs for the pixels of a site in a store: raw bytes, or one chunk of Blosc2.


# Blosc's codec and level, as measured on real sites on one core (MB a site, times OpenCV's reading of six PNGs, sites packed a second):
# LZ4HC 5 0.88, 22, 10; LZ4HC 9 0.84, 23, 3; ZSTD 5 0.69, 10, 9; ZSTD 3 0.72, 7, 16; plain pixels 1.57, 85, 33; PNGs 0.55.
# Shuffled bits make chunks of microscope images larger or slower, with either.
CHUNKS = {"lz4": ("LZ4HC", 5), "zstd": ("ZSTD", 5)}
_SIZES = struct.Struct("<4xii")  # of a chunk's header: bytes of pixels, bytes in a block


@dataclass(frozen=True)
class Codec:
    """A codec: `encode` turns uint8[C, H, W] into bytes, `decode` fills such an array from them.

    `decode` raises ValueError for bytes that `encode` did not produce. `plain`: the bytes are the pixels themselves.
    """

    name: str
    suffix: str  # of the files
    encode: Callable[[np.ndarray], bytes]
    decode: Callable[[bytes, np.ndarray], None]
    plain: bool = False


@cache
def codec(name: str) -> Codec:
    """The codec of a name; InputError for an unknown one, or one whose library is not installed."""
    if name not in CODECS:
        raise InputError(f"no codec {name!r}", cure=f"choose one of {', '.join(CODECS)}")
    return CODECS[name]()


def _raw() -> Codec:
    return Codec("raw", ".npy", np.ndarray.tobytes, _copy, plain=True)


def _copy(content: bytes, out: np.ndarray) -> None:
    if len(content) != out.nbytes:
        raise ValueError(f"{len(content)} bytes, not {out.nbytes}")
    out[...] = np.frombuffer(content, np.uint8).reshape(out.shape)


def _blosc(name: str) -> Codec:
    """Chunks of Blosc2, without a filter."""
    blosc2, (kind, level) = _library(name), CHUNKS[name]
    options = {
        "codec": blosc2.Codec[kind], "clevel": level, "typesize": 1, "nthreads": 1, "filters": [blosc2.Filter.NOFILTER],
        "filters_meta": [0], "splitmode": blosc2.SplitMode.NEVER_SPLIT,
    }  # fmt: skip

    def encode(image: np.ndarray) -> bytes:
        return blosc2.compress2(np.ascontiguousarray(image), **options)

    def decode(content: bytes, out: np.ndarray) -> None:
        # The library trusts the size in the chunk's header.
        if len(content) < 16 or _SIZES.unpack_from(content)[0] != out.nbytes:
            raise ValueError("is no chunk of this many pixels")
        blosc2.decompress2(content, dst=out, nthreads=1)

    return Codec(name, ".blosc2", encode, decode)


def _library(name: str) -> Any:
    try:
        blosc2 = importlib.import_module("blosc2")
    except ImportError:
        raise InputError(f"the codec {name} needs blosc2", cure="pip install blosc2, or pack with --codec raw") from None
    blosc2.set_releasegil(True)  # so that threads work side by side
    return blosc2


# By name; the library is imported when a codec is used.
CODECS: dict[str, Callable[[], Codec]] = {
    "raw": _raw,
    "lz4": lambda: _blosc("lz4"),
    "zstd": lambda: _blosc("zstd"),
}


FILE, INDEX = "store.json", "sites.json"
VERSION = 1
ROOT_PART = "sites"  # the part with images in the root folder, next to the tables
_INDEX_COLUMNS = ("crc32", "places", "chunks")  # of an index: by size, one for each site
_MAX_OPEN_FILES = 512  # files kept open by a process; further ones are opened and closed for each site
_PACK_AGAIN = "pack the data set again"
_INVALID_STORE, _INVALID_INDEX = "does not say what the store holds", "is no index of a store"
_REPACK = "delete the whole folder of the store, then pack the data set again"
_MAX_SITE_BYTES = 1 << 30  # bytes of a site; those of RxRx1 have 1.6 million
_CODEC_OVERHEAD = 1 << 16  # more bytes than a codec adds to incompressible pixels
_REPACK_FOLDER = "delete its folder in the store, then pack the data set again"  # for damage that packing does not detect


class PartContent(TypedDict):
    """A part of a store in store.json."""

    folder: str
    bytes: dict[str, int]
    digest: str


class StoreContent(TypedDict):
    """Identity and details of store.json, the receipt of a packed store."""

    codec: str
    suffixes: list[str]
    shapes: dict[str, list[int]]
    parts: dict[str, PartContent]


class IndexContent(TypedDict):
    """Details of sites.json, the receipt of one part of a store: by size, a row for each site."""

    folder: str
    bytes: dict[str, int]
    sites: list[str]
    missing: dict[str, list[int]]
    crc32: dict[str, list[int]]
    places: dict[str, list[int]]
    chunks: dict[str, list[str]]


class SiteLocation(NamedTuple):
    """The location of a site: a part of the store and its row in that part."""

    part: str
    row: int


class StoreFile:
    """The index of a part, one folder's images or some of them: `sites`, names by row; `crc32` of each row's pixels, by size.

    `places`: the offset of each row in the part's file, and the end of the last; or else `chunks`, the file of each row.
    `missing`: sites with missing channels when packed, and the numbers of those. `digest`: the part's digest in store.json.
    """

    def __init__(self, root: Path, name: str, *, digest: str) -> None:
        self.path = root / name / INDEX
        receipt = Receipt.find(self.path, IndexContent)
        if receipt is None:
            raise InputError(_INVALID_INDEX, where=self.path, cure=_REPACK_FOLDER)
        index = receipt.details
        self.sites: list[str] = index["sites"]
        self.missing: dict[str, list[int]] = index["missing"]
        try:
            self.crc32, self.places, self.chunks = ({int(size): rows for size, rows in index[name].items()} for name in _INDEX_COLUMNS)
        except ValueError:
            raise InputError(_INVALID_INDEX, where=self.path, cure=_REPACK_FOLDER) from None
        fits = all(len(rows) == len(self.sites) for rows in (*self.crc32.values(), *self.chunks.values()))
        fits &= all(len(rows) == len(self.sites) + 1 and rows == sorted(rows) and 0 <= rows[0] <= rows[-1] < 2**63 for rows in self.places.values())
        fits &= (self.chunks or self.places).keys() == self.crc32.keys()
        fits &= index_digest(index) == digest
        fits &= all(files.stays_inside(name) for rows in self.chunks.values() for name in rows)
        if not fits:
            raise InputError(_INVALID_INDEX, where=self.path, cure=_REPACK_FOLDER)


def index_digest(index: Mapping[str, Any]) -> str:
    """SHA-256 over the sites of an index and the CRC-32 of their pixels, whatever the codec; store.json holds it."""
    return hashlib.sha256(json.dumps([index["sites"], index["crc32"]]).encode()).hexdigest()


class Store:
    """An open store, usable from threads and forked processes; a pickled one is opened again.

    `suffixes`: of its channels' PNGs. `sizes`: of the longer side in pixels, the largest first, which is the default for
    reading. `sha256`: of its files, by their names below the root. InputError for a store that is incomplete or of another
    version.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        receipt = _read_store_file(self.root)
        content, self.sha256 = receipt.identity, receipt.outputs
        self.codec: Codec = codec(content["codec"])
        self.suffixes: tuple[str, ...] = tuple(content["suffixes"])
        self.parts: dict[str, dict[str, Any]] = receipt.details["parts"]
        self._folders: dict[str, list[str]] = {}
        for name, facts in self.parts.items():
            self._folders.setdefault(facts["folder"], []).append(name)
        try:
            self.shapes = {int(size): tuple(shape) for size, shape in content["shapes"].items()}  # C, H, W
        except ValueError:
            raise InputError(_INVALID_STORE, where=self.root / FILE, cure=_REPACK) from None
        self._check()
        self.sizes = sorted(self.shapes, reverse=True)
        self._loaded_parts: dict[str, StoreFile] = {}
        self._locations_by_folder: dict[str, dict[str, SiteLocation]] = {}
        self._readers: dict[tuple[str, int], _Reader] = {}
        self._verified: dict[tuple[str, int], bytearray] = {}  # 1 for each row whose checksum was verified

    def _check(self) -> None:
        """Refuse invalid image sizes, and parts or files outside the store."""
        invalid_shape = next((shape for shape in self.shapes.values() if len(shape) != 3 or min(shape) < 1 or prod(shape) > _MAX_SITE_BYTES), None)
        if invalid_shape is not None:
            what = f"tells of images of {'x'.join(map(str, invalid_shape))}, not of channels, rows and columns, {_MAX_SITE_BYTES:,} bytes in all at most"
            raise InputError(what, where=self.root / FILE, cure=_REPACK)
        if not self.shapes:
            raise InputError(_INVALID_STORE, where=self.root / FILE, cure=_REPACK)
        names = (file for name, facts in self.parts.items() for file in (name, *facts["bytes"]))
        outside = next((name for name in names if not files.stays_inside(name)), None)
        if outside is not None:
            raise InputError(f"{outside!r} does not name a file inside the store", where=self.root / FILE, cure=_REPACK)

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.root,)

    def read(self, stem: str, out: np.ndarray | None = None, *, size: int | None = None) -> np.ndarray:
        """All channels of a site, uint8[C, H, W], read directly into `out` if given.

        InputError for a site or a size that the store does not have, and for damaged pixels: the CRC-32 is verified on the
        first read only, because it takes twice as long as reading plain pixels.
        """
        size = self._size(size)
        out = self._buffer(out, self.shapes[size])
        location = self.locate(stem)
        if location is None:
            raise InputError("the store has no such site", where=self.root / stem, cure="pack it if its images are whole, or leave out the site")
        reader, start, stop = self._byte_range(location, size)
        intact = True
        if self.codec.plain:
            reader.fill(out, start)
        else:
            intact = stop - start <= 2 * out.nbytes + _CODEC_OVERHEAD  # more bytes than any codec makes of these pixels
            content = reader.content(start, stop) if intact else b""
            try:
                self.codec.decode(content, out)
            except (ValueError, RuntimeError):
                intact = False
        part = self.part(location.part)
        checked = self._verified.setdefault((location.part, size), bytearray(len(part.sites)))
        if not intact or not (checked[location.row] or crc32(out) == part.crc32[size][location.row]):
            raise InputError(f"the pixels of {stem} are damaged", where=reader.path, cure=_REPACK_FOLDER)
        checked[location.row] = 1
        return out

    def read_many(self, stems: Sequence[str], out: np.ndarray | None = None) -> np.ndarray:
        """Several sites, uint8[N, C, H, W], read into `out` if given; raises as `read` does."""
        out = self._buffer(out, (len(stems), *self.shapes[self._size(None)]))
        for row, stem in enumerate(stems):
            self.read(stem, out[row])
        return out

    def locate(self, stem: str) -> SiteLocation | None:
        """The location of a site; None if it was not packed or was incomplete."""
        folder, _, name = stem.rpartition("/")
        return self._locations(folder).get(name)

    def missing_channels(self, stem: str) -> tuple[int, ...]:
        """The numbers of a site's missing channels; () if it is complete, all if it was not packed."""
        if self.locate(stem) is not None:
            return ()
        folder, _, name = stem.rpartition("/")
        recorded = [self.part(part).missing.get(name) for part in self._folders.get(folder, ())]
        return next((tuple(numbers) for numbers in recorded if numbers), tuple(range(1, len(self.suffixes) + 1)))

    def stems(self, folder: str) -> list[str]:
        """The complete sites of a folder of images."""
        return [f"{folder}/{name}" if folder else name for name in self._locations(folder)]

    def part(self, name: str) -> StoreFile:
        """The index of a part."""
        if name not in self._loaded_parts:
            store_file = StoreFile(self.root, name, digest=self.parts[name]["digest"])  # twice by two threads at worst, and then the same
            if not self.shapes.keys() <= store_file.crc32.keys():
                raise InputError(f"lacks sizes that {FILE} names", where=store_file.path, cure=_REPACK_FOLDER)
            self._loaded_parts[name] = store_file
        return self._loaded_parts[name]

    def file(self, part: str, size: int) -> Path:
        """The file with a part's pixels at one size."""
        return self.root / part / f"{size}{self.codec.suffix}"

    def digest(self, folder: str) -> str:
        """A digest of the pixels of a folder, independent of the codec; "" for a folder that is not in the store."""
        return " ".join(self.parts[name]["digest"] for name in self._folders.get(folder, ()))

    def checksum(self, stem: str) -> int | None:
        """The CRC-32 of a site's pixels; None for a site that is not in the store."""
        location = self.locate(stem)
        return None if location is None else self.part(location.part).crc32[self.sizes[0]][location.row]

    def _locations(self, folder: str) -> dict[str, SiteLocation]:
        if folder not in self._locations_by_folder:
            parts = self._folders.get(folder, ())
            self._locations_by_folder[folder] = {site: SiteLocation(part, row) for part in parts for row, site in enumerate(self.part(part).sites)}
        return self._locations_by_folder[folder]

    def _size(self, size: int | None) -> int:
        if size is None:
            return self.sizes[0]
        if size not in self.shapes:
            cure = f"choose one of {', '.join(map(str, self.sizes))}, or pack with --sizes {size}"
            raise InputError(f"the store has no copies of {size} px", where=self.root, cure=cure)
        return size

    def _buffer(self, out: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
        if out is None:
            return np.empty(shape, np.uint8)
        if out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous:
            what = f"a buffer of {'x'.join(map(str, out.shape))} for sites of {'x'.join(map(str, shape))}"
            raise InputError(what, where=self.root, cure="give contiguous bytes of the shape of what is read")
        return out

    def _byte_range(self, location: SiteLocation, size: int) -> tuple["_Reader", int, int]:
        """The file that holds a site, with first and last offset."""
        part = self.part(location.part)
        if part.chunks:
            reader = _Reader(self.root / location.part / part.chunks[size][location.row])
            return reader, 0, reader.length()
        start, stop = part.places[size][location.row : location.row + 2]
        return self._reader(location.part, size), start, stop

    def _reader(self, part: str, size: int) -> "_Reader":
        reader = self._readers.get((part, size))
        if reader is None:
            reader = _Reader(self.file(part, size))
            if len(self._readers) < _MAX_OPEN_FILES:
                reader = self._readers.setdefault((part, size), reader)
        return reader


class _Reader:
    """A file read at given offsets (pread), so that threads and forked processes share no file position."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = files.regular_descriptor(path)
        except OSError as error:
            raise InputError(error.strerror or "cannot be read", where=path, cure=_PACK_AGAIN) from None

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def length(self) -> int:
        """Its bytes."""
        return os.fstat(self._descriptor).st_size

    def fill(self, out: np.ndarray, start: int) -> None:
        """Fill `out`; InputError if the file is shorter."""
        remaining = memoryview(out).cast("B")
        while remaining:
            count = os.preadv(self._descriptor, [remaining], start)
            if not count:
                raise InputError("is cut short", where=self.path, cure=_REPACK_FOLDER)
            remaining, start = remaining[count:], start + count

    def content(self, start: int, stop: int) -> bytearray:
        """The bytes from `start` to `stop`."""
        content = bytearray(stop - start)
        self.fill(np.frombuffer(content, np.uint8), start)
        return content


_stores: dict[str, tuple[tuple[int, ...], Store]] = {}  # of this process, by folder


def find_store(root: Path | str) -> Store | None:
    """The store in a folder, opened once while it is unchanged; None if there is none."""
    name = os.fspath(root)
    try:
        status = os.stat(f"{name}/{FILE}")
    except OSError:
        return None
    version = (status.st_ino, status.st_mtime_ns, status.st_size)
    cached = _stores.get(name)
    if cached is None or cached[0] != version:
        cached = _stores[name] = (version, Store(Path(root)))
    return cached[1]


def is_store(root: Path | str) -> bool:
    """Whether a folder holds a store, complete or not."""
    return os.path.isfile(os.path.join(root, FILE))


def open_store(root: Path | str) -> Store:
    """The store in a folder; InputError if there is none or it is incomplete."""
    store = find_store(root)
    if store is None:
        raise InputError(f"no {FILE} is there", where=root, cure="name a folder that `cellsignal pack` wrote")
    return store


def _read_store_file(root: Path) -> Receipt:
    """The validated receipt of a store."""
    receipt = Receipt.read(root / FILE, cure=_REPACK)
    if receipt.identity.get("store") != VERSION:
        raise InputError("is no store that this version reads", where=root / FILE, cure=_PACK_AGAIN)
    if not receipt.complete:
        raise InputError("the store is not whole", where=root, cure="the same `cellsignal pack` goes on where it stopped")
    files.validated({**receipt.identity, **receipt.details}, StoreContent, where=root / FILE, fault=_INVALID_STORE, cure=_REPACK)
    return receipt


def store_files(store: Store) -> Iterator[tuple[str, str]]:
    """Every site of a store as (part, stem)."""
    for name, part in store.parts.items():
        folder = part["folder"]
        for site in store.part(name).sites:
            yield name, f"{folder}/{site}" if folder else site
