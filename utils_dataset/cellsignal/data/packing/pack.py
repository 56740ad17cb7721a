"""From a data set to its store: folder by folder, without loss, going on where an earlier call stopped."""

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
from cellsignal.data.download.archives import gigabytes, on_a_full_disk, require_room
from cellsignal.data.images import codecs, packed_store
from cellsignal.data.images.reader import missing_channels, read_site, resized_sides
from cellsignal.data.microscope.workdir import SideBySide
from cellsignal.data.packing import omezarr, plate_file
from cellsignal.data.packing.plate_file import PlateShard, StoreSpec, encode, read_index, up_to_date
from cellsignal.data.tables import labelled_sites, wells
from cellsignal.errors import InputError
from cellsignal.progress_bars import progress_bar
from cellsignal.receipts import Receipt
from cellsignal.tasks import Task

CODEC = "raw"
KAGGLE = 20 * 10**9  # bytes of working space that a notebook has there
_MOST = 1024  # sites in one part: RxRx1's plates have 616; a data set without plates is cut
_SAMPLES = 8  # sites that are encoded to tell how much room all will take
_SLACK = 1.1  # by which compressed images may turn out larger than the sample
_CURE = "choose another folder, or delete this one"


@dataclass(frozen=True)
class PackPlan:
    """What is to be packed: `sites` (columns stem, cell_type) that are whole, in `parcels`, and in which `form`.

    `left_out`: the number of sites without all of their channels. `site_bytes`: what a site takes on the disk,
    exactly for plain pixels, else as measured on some.
    """

    root: Path
    form: StoreSpec
    sites: pd.DataFrame
    parcels: list[PlateShard]
    left_out: int
    site_bytes: float

    @property
    def bytes(self) -> int:
        """What the whole store takes on the disk, but for its tables."""
        return round(len(self.sites) * self.site_bytes)


def plan_pack(
    data: Path, *, codec: str = CODEC, sizes: Sequence[int] = (), cell_types: Sequence[str] = (), format: str = "plates"
) -> PackPlan:
    """What packing a data set will mean; reads its tables, lists its folders, and looks at some images.

    `sizes`: of the copies' longer side in pixels; empty means the images' own. `cell_types`: empty means all. `format`: one
    of FORMATS. Raises InputError for a fault of the tables, an unknown codec or cell type, a size beyond the images', and
    where no image is.
    """
    root, kind = Path(data), codecs.codec(codec)
    if format == "ome-zarr":
        omezarr.library()
    task = labelled_sites.task_of(root)
    sites = SITES[task.reader](root, task, cell_types)
    missing = missing_channels(root, sites["stem"], channels=task.suffixes)
    whole = sites[missing == ""].reset_index(drop=True)
    if whole.empty:
        raise InputError("no site has all of its images there", where=root, cure="download the images first")
    full = read_site(root, whole["stem"].iloc[0], channels=task.suffixes).shape
    shapes = {size: (full[0], *resized_sides(full[1:], size)) for size in _sizes(sizes, max(full[1:]))}
    labels = tuple((name, "{:02X}{:02X}{:02X}".format(*colour)) for name, colour in zip(task.channels, task.colours))
    form = StoreSpec(kind, task.suffixes, full, shapes, format, labels)
    chosen = whole["stem"].iloc[:: -(-len(whole) // _SAMPLES)]
    lengths = [sum(len(content) for content, _ in encode(root, form, stem)) for stem in chosen]
    return PackPlan(root, form, whole, _parcels(root, sites["stem"], missing), len(sites) - len(whole), sum(lengths) / len(lengths))


def _sizes(sizes: Sequence[int], full: int) -> list[int]:
    return sorted(set(sizes) or {full}, reverse=True)


def _of_wells(root: Path, task: Task, cell_types: Sequence[str]) -> pd.DataFrame:
    return wells.select(wells.read_tables(root), cell_types=cell_types).sites[["stem", "cell_type"]]


def _of_sites(root: Path, task: Task, cell_types: Sequence[str]) -> pd.DataFrame:
    if cell_types:
        raise InputError(f"the task {task.name} has no cell types", where=root, cure="leave out --cell-type")
    return labelled_sites.read_site_tables(root, task).sites[["stem"]].assign(cell_type="")


# By the reader that a task names.
SITES: dict[str, Callable[[Path, Task, Sequence[str]], pd.DataFrame]] = {"wells": _of_wells, "sites": _of_sites}


def _parcels(root: Path, stems: pd.Series, missing: pd.Series) -> list[PlateShard]:
    """Folder by folder, in the order of the tables; a folder without a whole site is none."""
    places = stems.str.rpartition("/")
    table = pd.DataFrame({"folder": places[0], "name": places[2], "missing": missing})
    parcels = []
    for folder, part in table.groupby("folder", sort=False):
        whole = part["name"][part["missing"] == ""].tolist()
        lacking = {name: [int(number) for number in numbers.split(", ")] for name, numbers in zip(part["name"], part["missing"]) if numbers}
        for start in range(0, len(whole), _MOST):
            name = (folder or packed_store.BESIDE) + (f"/part{1 + start // _MOST}" if len(whole) > _MOST else "")
            parcels.append(PlateShard(root, name, folder, tuple(whole[start : start + _MOST]), lacking if not start else {}))
    return parcels


def pack(plan: PackPlan, out: Path, *, jobs: int | None = None, progress: bool = True, by: SideBySide | None = None) -> list[str]:
    """Write a store to the folder `out`; the names of the parts that were written now.

    A call after a killed one goes on; one after a whole one adds what is new, such as another cell type. `jobs`: sites read
    side by side, by default one a core; `by`: who writes the parts with a core each, if not this process. Raises InputError
    when `out` holds anything but a store of these tables in this form, when the disk is too small, and for a damaged image,
    which is named.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise InputError("is a file", where=out, cure="choose another folder")
    if packed_store.is_store(plan.root) and plan.root.resolve() in out.resolve().parents:
        raise InputError(f"lies in the store {plan.root}", where=out, cure="choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    with files.locked(out, refusal="another process packs into this folder"), on_a_full_disk(out):
        whole = _claim(out, plan)
        todo = [parcel for parcel in plan.parcels if not up_to_date(out, parcel, plan.form)]
        _check_room(out, plan, todo)
        if whole and any((out / parcel.name / packed_store.INDEX).exists() for parcel in todo):  # what is replaced is not whole meanwhile
            _begun(out, plan).write()
        _write(out, plan, todo, jobs=jobs or len(os.sched_getaffinity(0)), progress=progress, by=by)
        if todo or not whole:
            _whole(out, plan).write()
    return [parcel.name for parcel in todo]


def _claim(out: Path, plan: PackPlan) -> bool:
    """Make `out` a store to be, with the data set's tables; whether it is whole already, as far as it goes."""
    if not (out / packed_store.FILE).exists():
        if any(not path.name.startswith(files.TEMPORARY) for path in out.iterdir()):
            raise InputError("holds files that no packing wrote", where=out, cure="choose another folder")
        _begun(out, plan).write()
    receipt = Receipt.read(out / packed_store.FILE, cure=_CURE)
    if receipt.identity != plan.form.told():
        raise InputError(_refuse_other_store(receipt.identity, plan.form.told()), where=out, cure=_CURE)
    files.remove_temporary(out, [path.name for path in out.iterdir() if path.is_dir()])
    for table in (*sorted(plan.root.glob("*.csv")), *filter(Path.is_file, [plan.root / simulated.RECEIPT])):
        _copy(table, out / table.name)
    return receipt.complete


def _refuse_other_store(told: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    names = {"suffixes": "channels", "shapes": "sizes", "store": "version"}
    points = [f"{names.get(key, key)} {_brief(told.get(key))}, not {_brief(asked[key])}" for key in asked if told.get(key) != asked[key]]
    return f"holds a store of {'; '.join(points)}"


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        value = ["×".join(map(str, shape[1:])) for shape in value.values()]
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _begun(out: Path, plan: PackPlan) -> Receipt:
    return Receipt(out / packed_store.FILE, plan.form.told(), complete=False, details={"parts": {}})


def _whole(out: Path, plan: PackPlan) -> Receipt:
    """The receipt of a store with each part of this form that lies in the folder."""
    found = dict(_found(out, plan))
    outputs = {f"{name}/{file}": digest for name, index in found.items() for file, digest in index.outputs.items()}
    parts = {
        name: {"folder": index.details["folder"], "sites": len(index.details["sites"]), "digest": packed_store.index_digest(index.details), "bytes": index.details["bytes"]}
        for name, index in found.items()
    }  # fmt: skip
    return Receipt(out / packed_store.FILE, plan.form.told(), outputs, details={"parts": parts})


def _copy(table: Path, target: Path) -> None:
    if not target.exists():
        with files.atomic_path(target) as temporary:
            shutil.copyfile(table, temporary)
    elif files.sha256(table) != files.sha256(target):
        raise InputError(f"differs from {table}: the store is of another data set", where=target, cure=_CURE)


def _check_room(out: Path, plan: PackPlan, todo: Iterable[PlateShard]) -> None:
    needed = sum(len(parcel.names) for parcel in todo) * plan.site_bytes * (1 if plan.form.codec.plain else _SLACK)
    require_room(out, round(needed), purpose="packing", cure="free some space, or pack less: --cell-type NAME, --sizes PX")


def _write(out: Path, plan: PackPlan, todo: Sequence[PlateShard], *, jobs: int, progress: bool, by: SideBySide | None) -> None:
    total, done = (sum(len(parcel.names) for parcel in parcels) for parcels in (plan.parcels, todo))
    with ThreadPoolExecutor(jobs) as pool, progress_bar(total=total, initial=total - done, desc="pack", unit="site", disable=not progress) as bar:
        for parcel in todo if by is None else ():
            FORMATS[plan.form.format](out, parcel, plan.form, pool=pool, threads=jobs, tell=bar.update)
        for count in by(partial(_write_part, out, plan.form), todo) if by else ():
            bar.update(count)


def _write_part(out: Path, form: StoreSpec, parcel: PlateShard) -> int:
    """Write a part with one core; the number of its sites."""
    with ThreadPoolExecutor(1) as pool:
        FORMATS[form.format](out, parcel, form, pool=pool, threads=1, tell=int)
    return len(parcel.names)


# By the format of the files.
FORMATS: dict[str, Callable[..., None]] = {"plates": plate_file.write, "ome-zarr": omezarr.write}


def _found(out: Path, plan: PackPlan) -> Iterator[tuple[str, Receipt]]:
    """Each part of this form that lies in the folder, by name."""
    planned, folders = ({getattr(parcel, what) for parcel in plan.parcels} for what in ("name", "folder"))
    for path in sorted(out.rglob(packed_store.INDEX)):
        name = path.parent.relative_to(out).as_posix()
        found = read_index(out, name)
        if found is not None and found.details["folder"] in folders and name not in planned:
            continue  # of a folder that is cut in other parts now
        if found is not None and {key: found.identity.get(key) for key in plan.form.told()} == plan.form.told():
            yield name, found


def size_lines(plan: PackPlan) -> list[str]:
    """How large the store will be, one line a cell type, and a note when Kaggle cannot hold it, which names what fits there."""
    counts = plan.sites["cell_type"].value_counts()
    about = "" if plan.form.codec.plain else "about "
    rows = [*((name, count) for name, count in counts.items() if name), ("together", len(plan.sites))]
    lines = [f"{name:8} {count:>8,} sites  {about}{gigabytes(round(count * plan.site_bytes))}" for name, count in rows]
    if plan.left_out:
        lines.append(f"note: sites without all of their images are left out: {plan.left_out:,}")
    return lines + ([] if plan.bytes <= KAGGLE else [_kaggle_line(plan, counts)])


def _kaggle_line(plan: PackPlan, counts: pd.Series) -> str:
    ways = [f"--cell-type {name}" for name, count in counts.items() if name and count * plan.site_bytes <= KAGGLE]
    pixels = sum(height * width for _, height, width in plan.form.shapes.values())
    size = max(plan.form.shapes)
    while (smaller := size * size / pixels * plan.bytes) > KAGGLE:
        size //= 2
    ways.append(f"--sizes {size} ({gigabytes(round(smaller))})")
    return f"note: Kaggle has {gigabytes(KAGGLE)} of working space; there fits: {', or '.join(ways)}"
