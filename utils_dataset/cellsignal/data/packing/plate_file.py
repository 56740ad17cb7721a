"""One folder of a data set's images on its way into a store: read, reduced, encoded, written, noted."""

import hashlib
import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from zlib import crc32

import numpy as np

from cellsignal import shapes
from cellsignal.data.images import packed_store
from cellsignal.data.images.codecs import Codec
from cellsignal.data.images.folders import entries
from cellsignal.data.images.reader import area_resized, read_site
from cellsignal.errors import InputError
from cellsignal.files import atomic_path
from cellsignal.receipts import Receipt

Item, Made = TypeVar("Item"), TypeVar("Made")
AHEAD = 4  # sites a thread may be ahead of the writer: what waits lies in memory


@dataclass(frozen=True)
class PlateShard:
    """What becomes one part of a store: the images of a folder below `root`, or some of them.

    `names`: its whole sites, in order. `missing`: the numbers of the channels that others lack.
    """

    root: Path
    name: str
    folder: str
    names: tuple[str, ...]
    missing: dict[str, list[int]]

    @property
    def stems(self) -> list[str]:
        """The path of each whole site below the root."""
        return [f"{self.folder}/{name}" if self.folder else name for name in self.names]

    def source(self) -> str:
        """What tells these images from others, without reading them: a digest of names, sizes and times of the files."""
        if packed := packed_store.store_path(self.root):
            facts = [packed.digest(self.folder)]
        else:
            found = [(entry.name, entry.stat()) for entry in entries(self.root / self.folder) if entry.name.endswith(".png")]
            facts = sorted(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in found)
        return hashlib.sha256("\n".join([*facts, *self.names, *self.missing]).encode()).hexdigest()


@dataclass(frozen=True)
class StoreSpec:
    """How pixels are kept: by which codec, of which channels, and the shape (C, H, W) of the copies of each size.

    `full`: the shape of the images themselves. `format`: of the files, "plates" or "ome-zarr". `labels`: name and colour
    (hexadecimal) of each channel.
    """

    codec: Codec
    suffixes: tuple[str, ...]
    full: tuple[int, ...]
    shapes: dict[int, tuple[int, ...]]
    format: str = "plates"
    labels: tuple[tuple[str, str], ...] = ()

    def told(self) -> dict[str, Any]:
        """As store.json has it."""
        shapes = {str(size): list(shape) for size, shape in self.shapes.items()}
        return {"store": packed_store.VERSION, "format": self.format, "codec": self.codec.name, "suffixes": list(self.suffixes), "shapes": shapes}


def up_to_date(out: Path, parcel: PlateShard, form: StoreSpec) -> bool:
    """Whether a part is whole already, and of the same images in the same form."""
    found = read_index(out, parcel.name)
    if found is None or not found.is_current(specification(parcel, form)):
        return False
    place, sizes = out / parcel.name, found.details["bytes"]
    chunks = (place / name for names in found.details["chunks"].values() for name in names)
    return all(path.is_file() for path in chunks) and all(
        path.is_file() and path.stat().st_size == sizes[path.name] for path in (place / name for name in sizes)
    )


def read_index(out: Path, name: str) -> Receipt | None:
    """The receipt of a part that was written whole; None where there is no such part."""
    return Receipt.find(out / name / packed_store.INDEX, shapes.StoreIndex)


def write(out: Path, parcel: PlateShard, form: StoreSpec, *, pool: Executor, threads: int, tell: Callable[[], Any]) -> None:
    """Write a part of a store: its files, whole or not at all, and then its index; `tell` is called for each site.

    InputError for a damaged image, or one of another size than the data set's first.
    """
    folder, source = out / parcel.name, specification(parcel, form)  # as it was before it is read: what changes meanwhile is packed again
    encoded = prefetch_map(pool, partial(encode, parcel.root, form), parcel.stems, count=threads * AHEAD)
    with ExitStack() as stack:
        paths = {size: folder / f"{size}{form.codec.suffix}" for size in form.shapes}
        sinks = {size: stack.enter_context(_sink(path, form, size, len(parcel.names))) for size, path in paths.items()}
        for copies in encoded:
            for sink, (content, checksum) in zip(sinks.values(), copies):
                sink.write(content)
                sink.checksums.append(checksum)
            tell()
    outputs = {paths[size].name: sink.digest.hexdigest() for size, sink in sinks.items()}
    checksums, places = ({size: getattr(sink, kind) for size, sink in sinks.items()} for kind in ("checksums", "places"))
    write_index(out, parcel, source, outputs=outputs, checksums=checksums, places=places)


def write_index(
    out: Path, parcel: PlateShard, source: dict[str, Any], *, checksums: dict[int, list[int]], outputs: dict[str, str] | None = None,
    places: dict[int, list[int]] | None = None, chunks: dict[int, list[str]] | None = None,
) -> None:
    """Write the receipt of a part, its index.

    `source`: the `specification` before the images were read. By size and in the order of the sites: `checksums`, the CRC-32 of
    their pixels; `places`, where each begins and the last ends in the part's file; or `chunks`, the file of each.
    """
    folder = out / parcel.name
    index = {
        "folder": parcel.folder,
        "bytes": {name: (folder / name).stat().st_size for name in outputs or {}},
        "sites": parcel.names,
        "missing": parcel.missing,
        "crc32": checksums,
        "places": places or {},
        "chunks": chunks or {},
    }
    Receipt(folder / packed_store.INDEX, source, outputs or {}, details=index).write()


def encode(root: Path, form: StoreSpec, stem: str) -> list[tuple[bytes, int]]:
    """The bytes of a site's copies, one for each size, and the CRC-32 of their pixels."""
    return [(form.codec.encode(copy), crc32(copy)) for copy in resized_copies(root, form, stem)]


def resized_copies(root: Path, form: StoreSpec, stem: str) -> list[np.ndarray]:
    """A site at each size, uint8[C, H, W]; InputError for one of another size than the data set's first."""
    image = read_site(root, stem, channels=form.suffixes)
    if image.shape != form.full:
        what = "is {}x{} pixels, the data set's first site {}x{}".format(*image.shape[1:], *form.full[1:])
        raise InputError(what, where=root / stem, cure="give all images one size")
    return [np.ascontiguousarray(area_resized(image, size)) for size in form.shapes]


def specification(parcel: PlateShard, form: StoreSpec) -> dict[str, Any]:
    """Of which images, as they are now, and in what form a part is made."""
    return {"source": parcel.source(), **form.told()}


@dataclass
class _Sink:
    """A part's file of one size while it is written: where each site begins, and where the last ends."""

    stream: BinaryIO
    digest: Any = field(default_factory=hashlib.sha256)
    places: list[int] = field(default_factory=list)
    checksums: list[int] = field(default_factory=list)

    def write(self, content: bytes) -> None:
        self.stream.write(content)
        self.digest.update(content)
        self.places.append(self.stream.tell())


@contextmanager
def _sink(path: Path, form: StoreSpec, size: int, count: int) -> Iterator[_Sink]:
    """Open a part's file of one size; with plain pixels it is one that NumPy opens, uint8[N, C, H, W]."""
    header = io.BytesIO()
    if form.codec.plain:
        shape = (count, *form.shapes[size])
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        sink = _Sink(stream)
        sink.write(header.getvalue())
        yield sink


def prefetch_map(pool: Executor, function: Callable[[Item], Made], items: Iterable[Item], *, count: int) -> Iterator[Made]:
    """`function` of each item, in order, with so many of them under way."""
    waiting: deque[Future[Made]] = deque()
    try:
        for item in items:
            if len(waiting) >= count:
                yield waiting.popleft().result()
            waiting.append(pool.submit(function, item))
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
