"""A whole data set looked through: every row, every image, one table of what is wrong."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from cellsignal.data.images import packed_store
from cellsignal.data.images.folders import entries, walk
from cellsignal.data.images.reader import read_channel
from cellsignal.data.packing import verify
from cellsignal.data.tables.labelled_sites import read_site_tables, task_of
from cellsignal.data.tables.pixel_stats import read_pixel_stats
from cellsignal.data.tables.wells import read_tables, select
from cellsignal.errors import Faults, InputError, Problem
from cellsignal.progress_bars import progress_bar
from cellsignal.tasks import Task

_BATCH = 4096  # files handed to the threads at once: a whole data set has 753,060


class _Look(NamedTuple):
    """What one image file showed."""

    file: str
    size: tuple[int, ...] = ()
    digest: bytes = b""
    problems: tuple[Problem, ...] = ()


def check_dataset(root: Path, *, cell_types: Sequence[str] = (), progress: bool = True) -> pd.DataFrame:
    """Every problem of a data set: columns file (with line and column), problem, cure.

    Tables, of wells or of labelled sites: all that their readers refuse; images are looked at once the tables are whole. Images:
    missing, damaged, not 8-bit grey, of another size than most, the same picture as another (labelled sites may
    share one: folds keep them together), or named by no row. Of a store: every site against the sums of its packing, every file
    against its digest. A table without rows means that nothing is wrong.
    Images of other cell types than `cell_types` may be missing, where it names any; InputError when the tables
    have none of these.
    """
    root = Path(root)
    try:
        task = task_of(root)
        stems, wanted = STEMS[task.reader](root, task, cell_types)
        read_pixel_stats(root)
    except Faults as faults:
        return _table(faults.problems)
    if packed_store.is_store(root):
        return _table(_of_store(packed_store.Store(Path(root)), stems, wanted, twins=task.reader in TWINS, progress=progress))
    named, found = _image_files(root, stems, task), _found_files(root, stems)
    expected = _image_files(root, wanted, task)
    there = [file for file in expected if file in found]
    looks = list(_look_at_all(there, progress=progress))
    return _table(
        [
            *_missing([file for file in expected if file not in found]),
            *(problem for look in looks for problem in look.problems),
            *_odd_sizes(looks),
            *([] if task.reader in TWINS else _repeated(looks)),
            *_unmentioned(found.difference(named), named=_folders_of(named)),
        ]
    )


def _of_store(packed: packed_store.Store, stems: list[str], wanted: list[str], *, twins: bool, progress: bool) -> Iterator[Problem]:
    there = [stem for stem in wanted if packed.place(stem) is not None]
    looks = list(verify.check_sites(packed, there, progress=progress))
    yield from verify.missing_sites(packed, wanted)
    yield from (problem for look in looks for problem in look.problems)
    yield from verify.altered_files(packed, {packed.place(stem).part for stem in there})
    if not twins:
        planes = ((f"{packed.root / look.stem}{end}", digest) for look in looks for end, digest in zip(packed.suffixes, look.digests))
        yield from _repeated([_Look(place, digest=digest) for place, digest in planes])
    strange = {stem for _, stem in packed_store.store_files(packed)}.difference(stems)
    yield from _unmentioned({f"{packed.root}/{stem}" for stem in strange}, named=_folders_of(f"{packed.root}/{stem}" for stem in stems))


def _table(problems: Iterable[Problem]) -> pd.DataFrame:
    return pd.DataFrame(problems, columns=["file", "problem", "cure"], dtype=object)


def _of_wells(root: Path, task: Task, cell_types: Sequence[str]) -> tuple[list[str], list[str]]:
    """The stems of all sites, and of those of some cell types."""
    tables = read_tables(root)
    return tables.sites["stem"].tolist(), select(tables, cell_types=cell_types).sites["stem"].tolist()


def _of_sites(root: Path, task: Task, cell_types: Sequence[str]) -> tuple[list[str], list[str]]:
    if cell_types:
        raise InputError(f"the task {task.name} has no cell types", where=root, cure="leave out --cell-type")
    stems = read_site_tables(root, task).sites["stem"].tolist()
    return stems, stems


# By the reader that a task names.
STEMS: dict[str, Callable[[Path, Task, Sequence[str]], tuple[list[str], list[str]]]] = {"wells": _of_wells, "sites": _of_sites}
TWINS = {"sites"}  # readers of data in which a picture may stand twice: folds keep such sites together


def _image_files(root: Path, stems: Iterable[str], task: Task) -> list[str]:
    # Without the cost of 753,060 Path objects.
    return [f"{root}/{stem}{suffix}" for stem in stems for suffix in task.suffixes]


def _found_files(root: Path, stems: Iterable[str]) -> set[str]:
    """Every file in the image tree, and folders that pose as images."""
    tops = sorted({stem.partition("/")[0] for stem in stems if "/" in stem})
    if not tops:  # images lie beside the tables
        return {entry.path for entry in entries(root) if entry.name.endswith(".png")}
    named = _folders_of(f"{root}/{stem}" for stem in stems)
    return {path for top in tops for path in walk(f"{root}/{top}", named=named)}


def _folders_of(files: Iterable[str]) -> set[str]:
    """Every folder on the paths of some files."""
    found, folders = set(), set(map(os.path.dirname, files))
    while folders:
        found |= folders
        folders = set(map(os.path.dirname, folders)) - found
    return found


def _look_at_all(files: list[str], *, progress: bool) -> Iterator[_Look]:
    bar = progress_bar(total=len(files), desc="check images", unit="file", disable=not progress)
    with bar, ThreadPoolExecutor() as pool:
        for start in range(0, len(files), _BATCH):
            for look in pool.map(_look_at, files[start : start + _BATCH]):
                bar.update()
                yield look


def _look_at(file: str) -> _Look:
    try:
        image = read_channel(Path(file))
    except Faults as faults:
        return _Look(file, problems=tuple(faults.problems))
    digest = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
    return _Look(file, image.shape, digest)


def _missing(files: list[str]) -> Iterator[Problem]:
    """One problem for each missing file, or for the highest folder that is missing."""
    highest = {folder: _highest_missing(folder) for folder in set(map(os.path.dirname, files))}
    counts = Counter(highest[os.path.dirname(file)] or file for file in files)
    for place, count in counts.items():
        folder = f"no such folder, it holds {count:,} images"
        what = "no such file" if place.endswith(".png") else folder
        yield Problem(place, what, "copy it again, or take its wells out of the tables")


def _highest_missing(folder: str) -> str:
    """The topmost folder on this path that does not exist; "" when all do."""
    missing = ""
    while folder and not os.path.isdir(folder):
        missing, folder = folder, os.path.dirname(folder)
    return missing


def _odd_sizes(looks: list[_Look]) -> Iterator[Problem]:
    sizes = Counter(look.size for look in looks if look.size)
    usual = max(sizes, key=sizes.__getitem__, default=())
    for look in looks:
        if look.size not in ((), usual):
            what = "is {}x{} pixels, most images are {}x{}".format(*look.size, *usual)
            yield Problem(look.file, what, "give all images one size")


def _repeated(looks: list[_Look]) -> Iterator[Problem]:
    first: dict[bytes, str] = {}
    for look in looks:
        if look.digest and first.setdefault(look.digest, look.file) != look.file:
            what = f"is the same picture as {first[look.digest]}"
            yield Problem(look.file, what, "copy the right image there")


def _unmentioned(files: set[str], *, named: set[str]) -> Iterator[Problem]:
    """One problem for each file that no row names, or for the highest folder of such files alone.

    `named`: all folders with something below them that a row names.
    """
    counts = Counter(_highest_strange(file, named) for file in files - named)  # a link to nowhere may be named
    for place, count in sorted(counts.items()):
        what = "no row of the tables names it" + (f" ({count:,} files)" if count > 1 else "")
        yield Problem(place, what, "move it away, or add it to the tables")


def _highest_strange(place: str, named: set[str]) -> str:
    while (folder := os.path.dirname(place)) not in named:
        place = folder
    return place
