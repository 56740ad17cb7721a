"""The packed store: a data set whose images lie in one file a plate, read many times faster than their PNGs.

A store is a folder with the data set's own tables, `store.json`, and for each folder of images `sites.json` and one file a
size, such as `512.npy`, or an OME-Zarr plate. Who reads images by `data.images` reads them from here and sees no difference.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from cellsignal import files, shapes
from cellsignal.data.images.codecs import Codec, codec
from cellsignal.errors import InputError
from cellsignal.receipts import Receipt

FILE, INDEX = "store.json", "sites.json"
VERSION = 1
BESIDE = "sites"  # the part of images that lie beside the tables, in no folder
_ROWS = ("crc32", "places", "chunks")  # of an index: by size, one for each site
_OPEN = 512  # files kept open by a process; what is beyond is opened and closed for each site
_AGAIN = "pack the data set again"
_NO_STORE, _NO_INDEX = "does not say what the store holds", "is no index of a store"
_REPACK = "delete it, then pack the data set again"
_LARGEST = 1 << 30  # bytes of a site; those of RxRx1 have 1.6 million
_HEADER = 1 << 16  # bytes that a codec adds at most to what it cannot make smaller, and more
_ANEW = "delete its folder in the store, then pack the data set again"  # what packing cannot see by itself


class SiteLocation(NamedTuple):
    """Where a site lies: a part of the store, and its row there."""

    part: str
    row: int


class StoreFile:
    """One folder's images, or some of them: `sites`, names in order of rows; `crc32` of each row's pixels, by size.

    `places`: where each row begins in the part's file, and the last ends; or else `chunks`, the file of each row.
    `missing`: sites that lacked channels when they were packed, and the numbers of those. `digest`: what store.json says of it.
    """

    def __init__(self, root: Path, name: str, *, digest: str) -> None:
        self.path = root / name / INDEX
        receipt = Receipt.find(self.path, shapes.StoreIndex)
        if receipt is None:
            raise InputError(_NO_INDEX, where=self.path, cure=_ANEW)
        index = receipt.details
        self.sites: list[str] = index["sites"]
        self.missing: dict[str, list[int]] = index["missing"]
        try:
            self.crc32, self.places, self.chunks = ({int(size): rows for size, rows in index[name].items()} for name in _ROWS)
        except ValueError:
            raise InputError(_NO_INDEX, where=self.path, cure=_ANEW) from None
        fits = all(len(rows) == len(self.sites) for rows in (*self.crc32.values(), *self.chunks.values()))
        fits &= all(len(rows) == len(self.sites) + 1 and rows == sorted(rows) and 0 <= rows[0] <= rows[-1] < 2**63 for rows in self.places.values())
        fits &= (self.chunks or self.places).keys() == self.crc32.keys()
        fits &= index_digest(index) == digest
        fits &= all(files.stays_inside(name) for rows in self.chunks.values() for name in rows)
        if not fits:
            raise InputError(_NO_INDEX, where=self.path, cure=_ANEW)


def index_digest(index: Mapping[str, Any]) -> str:
    """SHA-256 over the sites of an index and the CRC-32 of their pixels, whatever the codec; store.json holds it."""
    return hashlib.sha256(json.dumps([index["sites"], index["crc32"]]).encode()).hexdigest()


class Store:
    """An open store. It may be used by any threads, and by processes forked from this one; pickled, it is opened again.

    `suffixes`: how its channels' PNGs ended. `sizes`: of the longer side in pixels, the largest first; what is read without
    naming a size has the largest. `sha256`: of its files, by their names below the root. Raises InputError for a store that is not whole, or that another version wrote.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        receipt = _read_store_file(self.root)
        told, self.sha256 = receipt.identity, receipt.outputs
        self.codec: Codec = codec(told["codec"])
        self.suffixes: tuple[str, ...] = tuple(told["suffixes"])
        self.parts: dict[str, dict[str, Any]] = receipt.details["parts"]
        self._folders: dict[str, list[str]] = {}
        for name, facts in self.parts.items():
            self._folders.setdefault(facts["folder"], []).append(name)
        try:
            self.shapes = {int(size): tuple(shape) for size, shape in told["shapes"].items()}  # C, H, W
        except ValueError:
            raise InputError(_NO_STORE, where=self.root / FILE, cure=_REPACK) from None
        self._check()
        self.sizes = sorted(self.shapes, reverse=True)
        self._read: dict[str, StoreFile] = {}
        self._known: dict[str, dict[str, SiteLocation]] = {}
        self._open: dict[tuple[str, int], _Reader] = {}
        self._checked: dict[tuple[str, int], bytearray] = {}  # 1 for each row whose pixels were looked at

    def _check(self) -> None:
        """Refuse images of impossible sizes, and parts or files that lie elsewhere."""
        odd = next((shape for shape in self.shapes.values() if len(shape) != 3 or min(shape) < 1 or prod(shape) > _LARGEST), None)
        if odd is not None:
            what = f"tells of images of {'x'.join(map(str, odd))}, not of channels, rows and columns, {_LARGEST:,} bytes in all at most"
            raise InputError(what, where=self.root / FILE, cure=_REPACK)
        if not self.shapes:
            raise InputError(_NO_STORE, where=self.root / FILE, cure=_REPACK)
        names = (each for name, facts in self.parts.items() for each in (name, *facts["bytes"]))
        outside = next((name for name in names if not files.stays_inside(name)), None)
        if outside is not None:
            raise InputError(f"{outside!r} does not name a file inside the store", where=self.root / FILE, cure=_REPACK)

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.root,)

    def read(self, stem: str, out: np.ndarray | None = None, *, size: int | None = None) -> np.ndarray:
        """All channels of a site, uint8[C, H, W], written into `out` where it is given, without a copy in between.

        InputError for a site or a size that the store has not, and for damaged pixels: they are looked at when a site is read
        for the first time, because their CRC-32 takes twice as long as plain pixels do.
        """
        size = self._size(size)
        out = self._buffer(out, self.shapes[size])
        place = self.place(stem)
        if place is None:
            raise InputError("the store has no such site", where=self.root / stem, cure="pack it if its images are whole, or leave out the site")
        reader, start, stop = self._span(place, size)
        whole = True
        if self.codec.plain:
            reader.fill(out, start)
        else:
            whole = stop - start <= 2 * out.nbytes + _HEADER  # more bytes than any codec makes of these pixels
            content = reader.content(start, stop) if whole else b""
            try:
                self.codec.decode(content, out)
            except (ValueError, RuntimeError):
                whole = False
        part = self.part(place.part)
        checked = self._checked.setdefault((place.part, size), bytearray(len(part.sites)))
        if not whole or not (checked[place.row] or crc32(out) == part.crc32[size][place.row]):
            raise InputError(f"the pixels of {stem} are damaged", where=reader.path, cure=_ANEW)
        checked[place.row] = 1
        return out

    def read_many(self, stems: Sequence[str], out: np.ndarray | None = None) -> np.ndarray:
        """Several sites, uint8[N, C, H, W], written into `out` where it is given; raises as `read` does."""
        out = self._buffer(out, (len(stems), *self.shapes[self._size(None)]))
        for row, stem in enumerate(stems):
            self.read(stem, out[row])
        return out

    def place(self, stem: str) -> SiteLocation | None:
        """Where a site lies; None when it was not packed, or not whole."""
        folder, _, name = stem.rpartition("/")
        return self._places(folder).get(name)

    def lacking(self, stem: str) -> tuple[int, ...]:
        """The numbers of the channels that a site lacks; () when it is whole, all for one that nobody packed."""
        if self.place(stem) is not None:
            return ()
        folder, _, name = stem.rpartition("/")
        noted = [self.part(part).missing.get(name) for part in self._folders.get(folder, ())]
        return next((tuple(numbers) for numbers in noted if numbers), tuple(range(1, len(self.suffixes) + 1)))

    def stems(self, folder: str) -> list[str]:
        """The whole sites of a folder of images."""
        return [f"{folder}/{name}" if folder else name for name in self._places(folder)]

    def part(self, name: str) -> StoreFile:
        """What is known of a part."""
        if name not in self._read:
            found = StoreFile(self.root, name, digest=self.parts[name]["digest"])  # twice by two threads at worst, and then the same
            if not self.shapes.keys() <= found.crc32.keys():
                raise InputError(f"lacks sizes that {FILE} names", where=found.path, cure=_ANEW)
            self._read[name] = found
        return self._read[name]

    def file(self, part: str, size: int) -> Path:
        """The file with a part's pixels at one size."""
        return self.root / part / f"{size}{self.codec.suffix}"

    def digest(self, folder: str) -> str:
        """What tells the pixels of a folder from others, whatever the codec; "" for a folder that the store has not."""
        return " ".join(self.parts[name]["digest"] for name in self._folders.get(folder, ()))

    def _places(self, folder: str) -> dict[str, SiteLocation]:
        if folder not in self._known:
            parts = self._folders.get(folder, ())
            self._known[folder] = {site: SiteLocation(part, row) for part in parts for row, site in enumerate(self.part(part).sites)}
        return self._known[folder]

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

    def _span(self, place: SiteLocation, size: int) -> tuple["_Reader", int, int]:
        """The file that holds a site, and from where to where."""
        part = self.part(place.part)
        if part.chunks:
            reader = _Reader(self.root / place.part / part.chunks[size][place.row])
            return reader, 0, reader.length()
        start, stop = part.places[size][place.row : place.row + 2]
        return self._reader(place.part, size), start, stop

    def _reader(self, part: str, size: int) -> "_Reader":
        reader = self._open.get((part, size))
        if reader is None:
            reader = _Reader(self.file(part, size))
            if len(self._open) < _OPEN:
                reader = self._open.setdefault((part, size), reader)
        return reader


class _Reader:
    """A file that is read at given places, so that threads and forked processes do not move it for each other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = files.open_regular(path)
        except OSError as error:
            raise InputError(error.strerror or "cannot be read", where=path, cure=_AGAIN) from None

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def length(self) -> int:
        """Its bytes."""
        return os.fstat(self._descriptor).st_size

    def fill(self, out: np.ndarray, start: int) -> None:
        """Read so many bytes as `out` has; InputError where the file ends before."""
        rest = memoryview(out).cast("B")
        while rest:
            count = os.preadv(self._descriptor, [rest], start)
            if not count:
                raise InputError("is cut short", where=self.path, cure=_ANEW)
            rest, start = rest[count:], start + count

    def content(self, start: int, stop: int) -> bytearray:
        """The bytes from one place to another."""
        content = bytearray(stop - start)
        self.fill(np.frombuffer(content, np.uint8), start)
        return content


_stores: dict[str, tuple[tuple[int, ...], Store]] = {}  # of this process, by folder


def store_path(root: Path | str) -> Store | None:
    """The store in a folder, opened once for as long as it is the same; None where images lie as PNGs."""
    name = os.fspath(root)
    try:
        facts = os.stat(f"{name}/{FILE}")
    except OSError:
        return None
    version = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
    known = _stores.get(name)
    if known is None or known[0] != version:
        known = _stores[name] = (version, Store(Path(root)))
    return known[1]


def is_store(root: Path | str) -> bool:
    """Whether a folder holds a store, whole or not."""
    return os.path.isfile(os.path.join(root, FILE))


def open_store(root: Path | str) -> Store:
    """The store in a folder; InputError when there is none, or it is not whole."""
    found = store_path(root)
    if found is None:
        raise InputError(f"no {FILE} is there", where=root, cure="name a folder that `cellsignal pack` wrote")
    return found


def _read_store_file(root: Path) -> Receipt:
    """The receipt of a store, once it says all that is needed."""
    receipt = Receipt.read(root / FILE, cure=_REPACK)
    if receipt.identity.get("store") != VERSION:
        raise InputError("is no store that this version reads", where=root / FILE, cure=_AGAIN)
    if not receipt.complete:
        raise InputError("the store is not whole", where=root, cure="the same `cellsignal pack` goes on where it stopped")
    files.shaped({**receipt.identity, **receipt.details}, shapes.Store, where=root / FILE, what=_NO_STORE, cure=_REPACK)
    return receipt


def store_files(store: Store) -> Iterator[tuple[str, str]]:
    """Every site of a store, as the name of its part and its stem."""
    for name, facts in store.parts.items():
        folder = facts["folder"]
        for site in store.part(name).sites:
            yield name, f"{folder}/{site}" if folder else site
