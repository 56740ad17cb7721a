"""Writing one part of a store: the images of a folder are read, resized, encoded and written, then the index."""

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

from cellsignal.data.images import packed_store
from cellsignal.data.images.packed_store import Codec
from cellsignal.data.images.reader import area_resized, read_site
from cellsignal.errors import InputError
from cellsignal.files import atomic_path, png_files
from cellsignal.receipts import Receipt

Item, Output = TypeVar("Item"), TypeVar("Output")
SITES_PER_THREAD = 4  # sites that a thread may read ahead of the writer; they are held in memory


@dataclass(frozen=True)
class PlateShard:
    """The content of one part of a store: the images of a folder below `root`, or some of them.

    `names`: its complete sites, in order. `missing`: the numbers of the missing channels of incomplete sites.
    """

    root: Path
    name: str
    folder: str
    names: tuple[str, ...]
    missing: dict[str, list[int]]

    @property
    def stems(self) -> list[str]:
        """The path of each complete site below the root."""
        return [f"{self.folder}/{name}" if self.folder else name for name in self.names]

    def source(self) -> str:
        """A fingerprint of the images without reading them: a digest of names, sizes and times of the files."""
        if packed := packed_store.find_store(self.root):
            parts = [packed.digest(self.folder)]
        else:
            parts = sorted(f"{name} {status.st_size} {status.st_mtime_ns}" for name, status in png_files(self.root / self.folder))
        return hashlib.sha256("\n".join([*parts, *self.names, *self.missing]).encode(errors="surrogateescape")).hexdigest()


@dataclass(frozen=True)
class StoreSpec:
    """How pixels are stored: the codec, the channels, and the shape (C, H, W) of the copies of each size.

    `full`: the shape of the images themselves. `format`: of the files, "plates" or "ome-zarr". `labels`: name and colour
    (hexadecimal) of each channel.
    """

    codec: Codec
    suffixes: tuple[str, ...]
    full: tuple[int, ...]
    shapes: dict[int, tuple[int, ...]]
    format: str = "plates"
    labels: tuple[tuple[str, str], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The entries of store.json."""
        shapes = {str(size): list(shape) for size, shape in self.shapes.items()}
        return {"store": packed_store.VERSION, "format": self.format, "codec": self.codec.name, "suffixes": list(self.suffixes), "shapes": shapes}


def up_to_date(out: Path, shard: PlateShard, spec: StoreSpec) -> bool:
    """Whether a part is complete and was made from the same images with the same spec."""
    index = read_index(out, shard.name)
    if index is None or not index.is_current(specification(shard, spec)):
        return False
    folder, sizes = out / shard.name, index.details["bytes"]
    chunks = (folder / name for names in index.details["chunks"].values() for name in names)
    return all(path.is_file() for path in chunks) and all(
        path.is_file() and path.stat().st_size == sizes[path.name] for path in (folder / name for name in sizes)
    )


def read_index(out: Path, name: str) -> Receipt | None:
    """The receipt of a complete part; None if there is no such part."""
    return Receipt.find(out / name / packed_store.INDEX, packed_store.IndexContent)


def write(out: Path, shard: PlateShard, spec: StoreSpec, *, pool: Executor, threads: int, on_site: Callable[[], Any]) -> None:
    """Write a part of a store: its files atomically, and then its index; `on_site` is called after each site.

    InputError for a damaged image, or one of another size than the data set's first.
    """
    folder, source = out / shard.name, specification(shard, spec)  # before reading: if images change meanwhile, the part is packed again
    encoded = prefetch_map(pool, partial(encode, shard.root, spec), shard.stems, count=threads * SITES_PER_THREAD)
    with ExitStack() as stack:
        paths = {size: folder / f"{size}{spec.codec.suffix}" for size in spec.shapes}
        pixel_files = {size: stack.enter_context(_open_pixel_file(path, spec, size, len(shard.names))) for size, path in paths.items()}
        for copies in encoded:
            for pixel_file, (content, checksum) in zip(pixel_files.values(), copies):
                pixel_file.write(content)
                pixel_file.checksums.append(checksum)
            on_site()
    outputs = {paths[size].name: pixel_file.digest.hexdigest() for size, pixel_file in pixel_files.items()}
    checksums, offsets = ({size: getattr(pixel_file, kind) for size, pixel_file in pixel_files.items()} for kind in ("checksums", "offsets"))
    write_index(out, shard, source, outputs=outputs, checksums=checksums, offsets=offsets)


def write_index(
    out: Path, shard: PlateShard, source: dict[str, Any], *, checksums: dict[int, list[int]], outputs: dict[str, str] | None = None,
    offsets: dict[int, list[int]] | None = None, chunks: dict[int, list[str]] | None = None,
) -> None:
    """Write the receipt of a part, its index, which marks it as complete.

    `source`: its `specification` before the images were read. By size and in the order of the sites: `checksums`, the
    CRC-32 of their pixels; `offsets` in the part's file, and the end of the last; or `chunks`, the file of each.
    `outputs`: SHA-256 of the part's files.
    """
    folder = out / shard.name
    index = {
        "folder": shard.folder,
        "bytes": {name: (folder / name).stat().st_size for name in outputs or {}},
        "sites": shard.names,
        "missing": shard.missing,
        "crc32": checksums,
        "places": offsets or {},
        "chunks": chunks or {},
    }
    Receipt(folder / packed_store.INDEX, source, outputs or {}, details=index).write()


def encode(root: Path, spec: StoreSpec, stem: str) -> list[tuple[bytes, int]]:
    """The bytes of a site's copies, one for each size, and the CRC-32 of their pixels."""
    return [(spec.codec.encode(copy), crc32(copy)) for copy in resized_copies(root, spec, stem)]


def resized_copies(root: Path, spec: StoreSpec, stem: str) -> list[np.ndarray]:
    """A site at each size, uint8[C, H, W]; InputError for one of another size than the data set's first."""
    image = read_site(root, stem, channels=spec.suffixes)
    if image.shape != spec.full:
        what = "is {}x{} pixels, the data set's first site {}x{}".format(*image.shape[1:], *spec.full[1:])
        raise InputError(what, where=root / stem, cure="give all images one size")
    return [np.ascontiguousarray(area_resized(image, size)) for size in spec.shapes]


def specification(shard: PlateShard, spec: StoreSpec) -> dict[str, Any]:
    """Fingerprint of the images as they are now, and the spec."""
    return {"source": shard.source(), **spec.as_json()}


@dataclass
class _PixelFile:
    """A part's file of one size while it is written, with the offset of each site and the end of the last."""

    stream: BinaryIO
    digest: Any = field(default_factory=hashlib.sha256)
    offsets: list[int] = field(default_factory=list)
    checksums: list[int] = field(default_factory=list)

    def write(self, content: bytes) -> None:
        self.stream.write(content)
        self.digest.update(content)
        self.offsets.append(self.stream.tell())


@contextmanager
def _open_pixel_file(path: Path, spec: StoreSpec, size: int, count: int) -> Iterator[_PixelFile]:
    """Open a part's file of one size; with plain pixels it is one that NumPy opens, uint8[N, C, H, W]."""
    header = io.BytesIO()
    if spec.codec.plain:
        shape = (count, *spec.shapes[size])
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        pixel_file = _PixelFile(stream)
        pixel_file.write(header.getvalue())
        yield pixel_file


def prefetch_map(pool: Executor, function: Callable[[Item], Output], items: Iterable[Item], *, count: int) -> Iterator[Output]:
    """`function` of each item, in order, with up to `count` of them submitted ahead."""
    pending: deque[Future[Output]] = deque()
    try:
        for item in items:
            if len(pending) >= count:
                yield pending.popleft().result()
            pending.append(pool.submit(function, item))
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
