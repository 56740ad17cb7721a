"""Writing a store as OME-Zarr plates (OME-NGFF 0.5, high-content screening), which other microscopy tools can open.

Each copy of a site is one chunk in its own file, so that `packed_store` reads it without zarr. The many files make it slower
and larger than the default format: use it for sharing.
"""

import importlib
import os
import re
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from cellsignal import files
from cellsignal.data.images.packed_store import CHUNKS
from cellsignal.data.packing.plate_file import (
    SITES_PER_THREAD,
    PlateShard,
    StoreSpec,
    prefetch_map,
    resized_copies,
    specification,
    write_index,
)
from cellsignal.errors import InputError

PLATE = "plate.ome.zarr"  # in the folder of its images
VERSION = "0.5"
_SITE = re.compile(r"([A-Z]+)(\d+)_s(\d+)")
_SYNTAX = {"version": VERSION}


def library() -> Any:
    """The module zarr; InputError if it is not installed."""
    try:
        return importlib.import_module("zarr")
    except ImportError:
        raise InputError("writing OME-Zarr needs zarr", cure="pip install zarr, or pack without --format ome-zarr") from None


def write(out: Path, shard: PlateShard, spec: StoreSpec, *, pool: Executor, threads: int, on_site: Callable[[], Any]) -> None:
    """Write a plate atomically, and then its index, like `plate_file.write`. InputError for sites that belong to no well."""
    zarr = library()
    positions = [_site_position(shard, name) for name in shard.names]
    folder, source = out / shard.name, specification(shard, spec)
    for orphan in folder.glob(f"{files.TEMPORARY}*"):
        shutil.rmtree(orphan)
    temporary = files.temporary_path(folder / PLATE)
    _write_groups(zarr, temporary, shard, positions)
    checksums = []
    for sums in prefetch_map(pool, partial(_write_site, zarr, temporary, shard, spec), zip(shard.stems, positions), count=threads * SITES_PER_THREAD):
        checksums.append(sums)
        on_site()
    shutil.rmtree(folder / PLATE, ignore_errors=True)
    os.replace(temporary, folder / PLATE)
    chunks = {size: [f"{PLATE}/{'/'.join(position)}/{level}/c/0/0/0" for position in positions] for level, size in enumerate(spec.shapes)}
    write_index(out, shard, source, checksums=dict(zip(spec.shapes, map(list, zip(*checksums)))), chunks=chunks)


def _site_position(shard: PlateShard, name: str) -> tuple[str, str, str]:
    """Row, column and number of a site, as OME-Zarr names groups."""
    match = _SITE.fullmatch(name)
    if match is None:
        raise InputError("is no site of a well, and OME-Zarr plates consist of wells", where=shard.root / shard.folder / name,
                         cure="pack without --format ome-zarr")
    return match[1], match[2], match[3]


def _write_groups(zarr: Any, path: Path, shard: PlateShard, positions: Sequence[tuple[str, str, str]]) -> None:
    """The groups of the plate and of its wells."""
    rows, columns = (sorted({position[axis] for position in positions}) for axis in (0, 1))
    wells: dict[tuple[str, str], list[str]] = {}
    for row, column, site in positions:
        wells.setdefault((row, column), []).append(site)
    plate = {
        "name": shard.folder,
        "version": VERSION,
        "rows": [{"name": name} for name in rows],
        "columns": [{"name": name} for name in columns],
        "wells": [
            {"path": f"{row}/{column}", "rowIndex": rows.index(row), "columnIndex": columns.index(column)} for row, column in wells
        ],
        "field_count": max(map(len, wells.values())),
    }  # fmt: skip
    _group(zarr, path, plate=plate)
    for row in rows:
        zarr.create_group(path / row)
    for (row, column), sites in wells.items():
        _group(zarr, path / row / column, well={"images": [{"path": site} for site in sites]})


def _group(zarr: Any, path: Path, **metadata: Any) -> None:
    zarr.create_group(path, attributes={"ome": {**_SYNTAX, **metadata}})


def _write_site(zarr: Any, plate: Path, shard: PlateShard, spec: StoreSpec, stem_and_position: tuple[str, tuple[str, str, str]]) -> list[int]:
    """One image with its copies; the CRC-32 of the pixels of each."""
    stem, position = stem_and_position
    path = plate.joinpath(*position)
    copies = resized_copies(shard.root, spec, stem)
    _group(zarr, path, multiscales=[_multiscale(stem, copies)], omero={"channels": [_channel(*label) for label in spec.labels]})
    for level, copy in enumerate(copies):
        array = zarr.create_array(
            path / str(level), shape=copy.shape, chunks=copy.shape, dtype="uint8", fill_value=0, dimension_names=("c", "y", "x"),
            compressors=_compressors(zarr, spec), config={"write_empty_chunks": True},
        )  # fmt: skip
        array[...] = copy
    return [crc32(copy) for copy in copies]


def _compressors(zarr: Any, spec: StoreSpec) -> Any:
    """The codec as the library has it: its chunks are those that Blosc2 reads."""
    if spec.codec.plain:
        return None
    kind, level = CHUNKS[spec.codec.name]
    return zarr.codecs.BloscCodec(cname=kind.lower(), clevel=level, shuffle="noshuffle", typesize=1)


def _multiscale(stem: str, copies: Sequence[np.ndarray]) -> dict[str, Any]:
    axes = [{"name": "c", "type": "channel"}, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    scales = [[1.0, *(first / side for first, side in zip(copies[0].shape[1:], copy.shape[1:]))] for copy in copies]
    datasets = [
        {"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]} for level, scale in enumerate(scales)
    ]
    resize = {"method": "cv2.resize", "kwargs": {"interpolation": "INTER_AREA"}}
    return {"name": stem, "axes": axes, "datasets": datasets, "type": "mean", "metadata": resize}


def _channel(label: str, colour: str) -> dict[str, Any]:
    return {"label": label, "color": colour, "active": True, "window": {"min": 0, "max": 255, "start": 0, "end": 255}}
