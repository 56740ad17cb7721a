"""Packing a data set into a store: folder by folder, lossless, resumable."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from cellsignal import files
from cellsignal.data import simulated
from cellsignal.data.images import packed_store
from cellsignal.data.images.reader import missing_channels, read_site, resized_shape
from cellsignal.data.microscope.workdir import ParallelMap
from cellsignal.data.packing import omezarr, plate_file
from cellsignal.data.packing.plate_file import PlateShard, StoreSpec, encode, read_index, up_to_date
from cellsignal.data.tables import labelled_sites, wells
from cellsignal.errors import InputError
from cellsignal.files import gigabytes, on_a_full_disk, require_room
from cellsignal.progress_bars import progress_bar
from cellsignal.receipts import Receipt
from cellsignal.tasks import Task

CODEC = "raw"
KAGGLE_BYTES = 20 * 10**9  # bytes of working space that a notebook has there
_MAX_SITES_PER_PART = 1024  # sites in one part: RxRx1's plates have 616; a data set without plates is cut
_SAMPLES = 8  # sites that are encoded to estimate the size of the store
_SAMPLE_MARGIN = 1.1  # safety factor on the estimate for compressed images
_OTHER_FOLDER = "choose another folder, or delete this one"


@dataclass(frozen=True)
class PackPlan:
    """What will be packed: the complete `sites` (columns stem, cell_type), divided into `shards`, in the format `spec`.

    `left_out`: the number of sites with missing channels. `site_bytes`: disk space of a site, exact for plain pixels,
    else estimated from samples.
    """

    root: Path
    spec: StoreSpec
    sites: pd.DataFrame
    shards: list[PlateShard]
    left_out: int
    site_bytes: float

    @property
    def bytes(self) -> int:
        """Disk space of the store without its tables."""
        return round(len(self.sites) * self.site_bytes)


def plan_pack(
    data: Path, *, codec: str = CODEC, sizes: Sequence[int] = (), cell_types: Sequence[str] = (), experiments: Sequence[str] = (), format: str = "plates"
) -> PackPlan:
    """Plan the packing of a data set; reads its tables, lists its folders, and encodes some images.

    `sizes`: of the copies' longer side in pixels; empty means the original size. `cell_types`, `experiments`: empty means all.
    `format`: a key of FORMATS. InputError for invalid tables, an unknown codec, cell type or experiment, a size larger than the
    images, and a data set without images.
    """
    root, kind = Path(data), packed_store.codec(codec)
    if format == "ome-zarr":
        omezarr.library()
    task = labelled_sites.task_of(root)
    sites = SITES_BY_READER[task.reader](root, task, cell_types, experiments)
    missing = missing_channels(root, sites["stem"], channels=task.suffixes)
    complete = sites[missing == ""].reset_index(drop=True)
    if complete.empty:
        raise InputError("no site has all of its images there", where=root, cure="download the images first")
    full = read_site(root, complete["stem"].iloc[0], channels=task.suffixes).shape
    shapes = {size: (full[0], *resized_shape(full[1:], size)) for size in _sizes(sizes, max(full[1:]))}
    labels = tuple((name, "{:02X}{:02X}{:02X}".format(*colour)) for name, colour in zip(task.channels, task.colours))
    spec = StoreSpec(kind, task.suffixes, full, shapes, format, labels)
    samples = complete["stem"].iloc[:: -(-len(complete) // _SAMPLES)]
    lengths = [sum(len(content) for content, _ in encode(root, spec, stem)) for stem in samples]
    return PackPlan(root, spec, complete, _shards(root, sites["stem"], missing), len(sites) - len(complete), sum(lengths) / len(lengths))


def _sizes(sizes: Sequence[int], full: int) -> list[int]:
    return sorted(set(sizes) or {full}, reverse=True)


def _well_sites(root: Path, task: Task, cell_types: Sequence[str], experiments: Sequence[str]) -> pd.DataFrame:
    return wells.select(wells.read_tables(root), cell_types=cell_types, experiments=experiments).sites[["stem", "cell_type"]]


def _labelled_sites(root: Path, task: Task, cell_types: Sequence[str], experiments: Sequence[str]) -> pd.DataFrame:
    if cell_types:
        raise InputError(f"the task {task.name} has no cell types", where=root, cure="leave out --cell-type")
    return labelled_sites.read_site_tables(root, task).sites[["stem"]].assign(cell_type="")


def _benchmark_sites(root: Path, task: Task, cell_types: Sequence[str], experiments: Sequence[str]) -> pd.DataFrame:
    if cell_types:
        raise InputError(f"the task {task.name} is scored on all cell types", where=root, cure="leave out --cell-type")
    return wells.read_benchmark_sites(root)[["stem", "cell_type"]]


# By the reader that a task names.
SITES_BY_READER: dict[str, Callable[[Path, Task, Sequence[str], Sequence[str]], pd.DataFrame]] = {
    "wells": _well_sites, "sites": _labelled_sites, "splits": _benchmark_sites,
}


def _shards(root: Path, stems: pd.Series, missing: pd.Series) -> list[PlateShard]:
    """One shard per folder, in the order of the tables, without folders that have no complete site; large ones are split."""
    split_stems = stems.str.rpartition("/")
    table = pd.DataFrame({"folder": split_stems[0], "name": split_stems[2], "missing": missing})
    shards = []
    for folder, part in table.groupby("folder", sort=False):
        complete = part["name"][part["missing"] == ""].tolist()
        missing_by_name = {name: [int(number) for number in numbers.split(", ")] for name, numbers in zip(part["name"], part["missing"]) if numbers}
        for start in range(0, len(complete), _MAX_SITES_PER_PART):
            name = (folder or packed_store.ROOT_PART) + (f"/part{1 + start // _MAX_SITES_PER_PART}" if len(complete) > _MAX_SITES_PER_PART else "")
            shards.append(PlateShard(root, name, folder, tuple(complete[start : start + _MAX_SITES_PER_PART]), missing_by_name if not start else {}))
    return shards


def pack(plan: PackPlan, out: Path, *, jobs: int | None = None, progress: bool = True, parallel_map: ParallelMap | None = None) -> list[str]:
    """Write a store to the folder `out`; the names of the parts that were written by this call.

    A call after a killed one resumes; a call after a finished one adds new parts, such as another cell type. `jobs`: sites
    read in parallel, by default one per core. `parallel_map`: runs the writing of parts elsewhere, such as on a cluster.
    InputError if `out` holds anything but a store of these tables with this spec, if the disk is too small, or for a
    damaged image.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise InputError("is a file", where=out, cure="choose another folder")
    if packed_store.is_store(plan.root) and Path(os.path.realpath(out)).is_relative_to(os.path.realpath(plan.root)):
        raise InputError(f"is the store {plan.root}, or lies in it", where=out, cure="choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    with files.locked(out, busy_message="another process packs into this folder"), on_a_full_disk(out):
        finished = _prepare_folder(out, plan)
        todo = [shard for shard in plan.shards if not up_to_date(out, shard, plan.spec)]
        _check_room(out, plan, todo)
        if finished and any((out / shard.name / packed_store.INDEX).exists() for shard in todo):  # what is replaced is not whole meanwhile
            _unfinished(out, plan).write()
        _write(out, plan, todo, jobs=jobs or len(os.sched_getaffinity(0)), progress=progress, parallel_map=parallel_map)
        if todo or not finished:
            _finished(out, plan).write()
    return [shard.name for shard in todo]


def _prepare_folder(out: Path, plan: PackPlan) -> bool:
    """Prepare `out` with store.json and the data set's tables; whether it is a finished store already."""
    if not (out / packed_store.FILE).exists():
        if any(not path.name.startswith(files.TEMPORARY) for path in out.iterdir()):
            raise InputError("holds files that no packing wrote", where=out, cure="choose another folder")
        _unfinished(out, plan).write()
    receipt = Receipt.read(out / packed_store.FILE, cure=_OTHER_FOLDER)
    if receipt.identity != plan.spec.as_json():
        if receipt.complete or any(path.is_file() for path in out.rglob("*/*")):
            raise InputError(_store_difference(receipt.identity, plan.spec.as_json()), where=out, cure=_OTHER_FOLDER)
        _unfinished(out, plan).write()  # nothing was packed, such as for lack of room: other sizes or another format may do
    files.remove_temporary(out, [path.name for path in out.iterdir() if path.is_dir()])
    for table in sorted(Path(entry.path) for entry in files.entries(plan.root) if entry.name.endswith(".csv") and entry.is_file()):
        _copy(table, out / table.name)
    if simulated.is_simulated(plan.root):
        _copy(simulated.receipt_path(plan.root), out / simulated.RECEIPT)
    return receipt.complete


def _store_difference(stored: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    names = {"suffixes": "channels", "shapes": "sizes", "store": "version"}
    differences = [f"{names.get(key, key)} {_as_text(stored.get(key))}, not {_as_text(expected[key])}" for key in expected if stored.get(key) != expected[key]]
    return f"holds a store of {'; '.join(differences)}"


def _as_text(value: Any) -> str:
    if isinstance(value, dict):
        value = ["×".join(map(str, shape[1:])) for shape in value.values()]
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _unfinished(out: Path, plan: PackPlan) -> Receipt:
    return Receipt(out / packed_store.FILE, plan.spec.as_json(), complete=False, details={"parts": {}})


def _finished(out: Path, plan: PackPlan) -> Receipt:
    """The receipt of a store with all parts in the folder that match the spec."""
    indices = dict(_parts_in_folder(out, plan))
    outputs = {f"{name}/{file}": digest for name, index in indices.items() for file, digest in index.outputs.items()}
    parts = {
        name: {"folder": index.details["folder"], "sites": len(index.details["sites"]), "digest": packed_store.index_digest(index.details), "bytes": index.details["bytes"]}
        for name, index in indices.items()
    }  # fmt: skip
    return Receipt(out / packed_store.FILE, plan.spec.as_json(), outputs, details={"parts": parts})


def _copy(table: Path, target: Path) -> None:
    if not target.exists():
        with files.atomic_path(target) as temporary:
            shutil.copyfile(table, temporary)
    elif files.sha256(table) != files.sha256(target):
        raise InputError(f"differs from {table}: the store is of another data set", where=target, cure=_OTHER_FOLDER)


def _check_room(out: Path, plan: PackPlan, todo: Iterable[PlateShard]) -> None:
    needed = sum(len(shard.names) for shard in todo) * plan.site_bytes * (1 if plan.spec.codec.plain else _SAMPLE_MARGIN)
    require_room(out, round(needed), purpose="packing", cure="free some space, or pack less: --cell-type NAME, --sizes PX")


def _write(out: Path, plan: PackPlan, todo: Sequence[PlateShard], *, jobs: int, progress: bool, parallel_map: ParallelMap | None) -> None:
    total, done = (sum(len(shard.names) for shard in shards) for shards in (plan.shards, todo))
    with ThreadPoolExecutor(jobs) as pool, progress_bar(total=total, initial=total - done, desc="pack", unit="site", disable=not progress) as bar:
        for shard in todo if parallel_map is None else ():
            FORMATS[plan.spec.format](out, shard, plan.spec, pool=pool, threads=jobs, on_site=bar.update)
        for count in parallel_map(partial(_write_part, out, plan.spec), todo) if parallel_map else ():
            bar.update(count)


def _write_part(out: Path, spec: StoreSpec, shard: PlateShard) -> int:
    """Write a part with one core; the number of its sites."""
    with ThreadPoolExecutor(1) as pool:
        FORMATS[spec.format](out, shard, spec, pool=pool, threads=1, on_site=int)
    return len(shard.names)


# By the format of the files.
FORMATS: dict[str, Callable[..., None]] = {"plates": plate_file.write, "ome-zarr": omezarr.write}


def _parts_in_folder(out: Path, plan: PackPlan) -> Iterator[tuple[str, Receipt]]:
    """All parts in the folder that match the spec, by name."""
    planned, folders = ({getattr(shard, attribute) for shard in plan.shards} for attribute in ("name", "folder"))
    for path in sorted(out.rglob(packed_store.INDEX)):
        name = path.parent.relative_to(out).as_posix()
        index = read_index(out, name)
        if index is not None and index.details["folder"] in folders and name not in planned:
            continue  # of a folder that is cut in other parts now
        if index is not None and {key: index.identity.get(key) for key in plan.spec.as_json()} == plan.spec.as_json():
            yield name, index


def size_lines(plan: PackPlan) -> list[str]:
    """The size of the store, one line per cell type, and a note on what fits if it is too large for Kaggle."""
    counts = plan.sites["cell_type"].value_counts()
    about = "" if plan.spec.codec.plain else "about "
    rows = [*((name, count) for name, count in counts.items() if name), ("together", len(plan.sites))]
    lines = [f"{name:8} {count:>8,} sites  {about}{gigabytes(round(count * plan.site_bytes))}" for name, count in rows]
    if plan.left_out:
        lines.append(f"note: sites without all of their images are left out: {plan.left_out:,}")
    return lines + ([] if plan.bytes <= KAGGLE_BYTES else [_kaggle_note(plan, counts)])


def _kaggle_note(plan: PackPlan, counts: pd.Series) -> str:
    options = [f"--cell-type {name}" for name, count in counts.items() if name and count * plan.site_bytes <= KAGGLE_BYTES]
    pixels = sum(height * width for _, height, width in plan.spec.shapes.values())
    size = max(plan.spec.shapes)
    while (smaller := size * size / pixels * plan.bytes) > KAGGLE_BYTES:
        size //= 2
    options.append(f"--sizes {size} ({gigabytes(round(smaller))})")
    return f"note: Kaggle has {gigabytes(KAGGLE_BYTES)} of working space; there fits: {', or '.join(options)}"
