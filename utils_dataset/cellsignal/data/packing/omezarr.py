"""A store as OME-Zarr: each plate one that biologists' tools open (OME-NGFF 0.5, high-content screening).

Each copy of a site is one chunk in a file of its own, so that `data.store` reads it without the library that wrote it. All
those files and folders are the price, in time and on the disk: this is a format to show and to share.
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
from cellsignal.data.images.codecs import CHUNKS
from cellsignal.data.packing.plate_file import AHEAD, PlateShard, StoreSpec, prefetch_map, resized_copies, specification, write_index
from cellsignal.errors import InputError

PLATE = "plate.ome.zarr"  # in the folder of its images
VERSION = "0.5"
_SITE = re.compile(r"([A-Z]+)(\d+)_s(\d+)")
_SYNTAX = {"version": VERSION}


def library() -> Any:
    """The module zarr; InputError that says how to get it."""
    try:
        return importlib.import_module("zarr")
    except ImportError:
        raise InputError("writing OME-Zarr needs zarr", cure="pip install zarr, or pack without --format ome-zarr") from None


def write(out: Path, parcel: PlateShard, form: StoreSpec, *, pool: Executor, threads: int, tell: Callable[[], Any]) -> None:
    """Write a plate, whole or not at all, and then its index; as `parcels.write` does. InputError for sites of no wells."""
    zarr = library()
    places = [_place(parcel, name) for name in parcel.names]
    folder, source = out / parcel.name, specification(parcel, form)
    for orphan in folder.glob(f"{files.TEMPORARY}*"):
        shutil.rmtree(orphan)
    growing = files.temporary_path(folder / PLATE)
    _write_groups(zarr, growing, parcel, places)
    checksums = []
    for sums in prefetch_map(pool, partial(_write_site, zarr, growing, parcel, form), zip(parcel.stems, places), count=threads * AHEAD):
        checksums.append(sums)
        tell()
    shutil.rmtree(folder / PLATE, ignore_errors=True)
    os.replace(growing, folder / PLATE)
    chunks = {size: [f"{PLATE}/{'/'.join(place)}/{level}/c/0/0/0" for place in places] for level, size in enumerate(form.shapes)}
    write_index(out, parcel, source, checksums=dict(zip(form.shapes, map(list, zip(*checksums)))), chunks=chunks)


def _place(parcel: PlateShard, name: str) -> tuple[str, str, str]:
    """Row, column and number of a site, as OME-Zarr names groups."""
    found = _SITE.fullmatch(name)
    if found is None:
        raise InputError("is no site of a well, and OME-Zarr plates consist of wells", where=parcel.root / parcel.folder / name,
                         cure="pack without --format ome-zarr")
    return found[1], found[2], found[3]


def _write_groups(zarr: Any, path: Path, parcel: PlateShard, places: Sequence[tuple[str, str, str]]) -> None:
    """The groups of the plate and of its wells."""
    rows, columns = (sorted({place[axis] for place in places}) for axis in (0, 1))
    wells: dict[tuple[str, str], list[str]] = {}
    for row, column, site in places:
        wells.setdefault((row, column), []).append(site)
    plate = {
        "name": parcel.folder,
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


def _group(zarr: Any, path: Path, **told: Any) -> None:
    zarr.create_group(path, attributes={"ome": {**_SYNTAX, **told}})


def _write_site(zarr: Any, plate: Path, parcel: PlateShard, form: StoreSpec, what: tuple[str, tuple[str, str, str]]) -> list[int]:
    """One image with its copies; the CRC-32 of the pixels of each."""
    stem, place = what
    path = plate.joinpath(*place)
    made = resized_copies(parcel.root, form, stem)
    _group(zarr, path, multiscales=[_multiscale(stem, made)], omero={"channels": [_channel(*label) for label in form.labels]})
    for level, copy in enumerate(made):
        array = zarr.create_array(
            path / str(level), shape=copy.shape, chunks=copy.shape, dtype="uint8", fill_value=0, dimension_names=("c", "y", "x"),
            compressors=_compressors(zarr, form), config={"write_empty_chunks": True},
        )  # fmt: skip
        array[...] = copy
    return [crc32(copy) for copy in made]


def _compressors(zarr: Any, form: StoreSpec) -> Any:
    """The codec as the library has it: its chunks are those that Blosc2 reads."""
    if form.codec.plain:
        return None
    kind, level = CHUNKS[form.codec.name]
    return zarr.codecs.BloscCodec(cname=kind.lower(), clevel=level, shuffle="noshuffle", typesize=1)


def _multiscale(stem: str, made: Sequence[np.ndarray]) -> dict[str, Any]:
    axes = [{"name": "c", "type": "channel"}, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    scales = [[1.0, *(first / side for first, side in zip(made[0].shape[1:], copy.shape[1:]))] for copy in made]
    datasets = [
        {"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]} for level, scale in enumerate(scales)
    ]
    way = {"method": "cv2.resize", "kwargs": {"interpolation": "INTER_AREA"}}
    return {"name": stem, "axes": axes, "datasets": datasets, "type": "mean", "metadata": way}


def _channel(label: str, colour: str) -> dict[str, Any]:
    return {"label": label, "color": colour, "active": True, "window": {"min": 0, "max": 255, "start": 0, "end": 255}}
