"""Checking a data set: every row of its tables, every image, every part of a store; the result is one table of problems."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from cellsignal import files
from cellsignal.data.images import packed_store
from cellsignal.data.images.reader import PLANE, file_suffix, read_channel, read_colour
from cellsignal.data.tables.labelled_sites import read_site_tables, task_of
from cellsignal.data.tables.wells import read_benchmark_sites, read_pixel_stats, read_tables, select
from cellsignal.errors import Faults, InputError, Problem, raise_if_any
from cellsignal.files import entries, walk
from cellsignal.progress_bars import progress_bar
from cellsignal.tasks import Task

# Verifying a store: every site's pixels against their checksums, every file against its digest.

_MISSING = "pack it, or take its wells out of the tables"
_REPACK = "pack it again: delete its folder in the store first"


class SiteCheck(NamedTuple):
    """The result of checking a site: a digest of each channel, and problems."""

    stem: str
    digests: tuple[bytes, ...] = ()
    problems: tuple[Problem, ...] = ()


def verify(root: Path, *, progress: bool = True) -> int:
    """Read back every copy of every site; their number. InputError names the first that is damaged."""
    packed = packed_store.Store(Path(root))  # a new one, which has verified nothing yet
    stems = [stem for _, stem in packed_store.store_files(packed)]
    raise_if_any([problem for check in check_sites(packed, stems, progress=progress) for problem in check.problems])
    return len(stems) * len(packed.sizes)


def check_sites(packed: packed_store.Store, stems: Sequence[str], *, progress: bool) -> Iterator[SiteCheck]:
    """Read sites in all their sizes, by several threads."""
    bar = progress_bar(total=len(stems), desc="check sites", unit="site", disable=not progress)
    with bar, ThreadPoolExecutor() as pool:
        for check in pool.map(lambda stem: _check_site(packed, stem), stems):
            bar.update()
            yield check


def _check_site(packed: packed_store.Store, stem: str) -> SiteCheck:
    """Read every copy; the digests are of the largest one."""
    digests, problems = (), []
    for size in packed.sizes:
        try:
            image = packed.read(stem, size=size)
        except InputError as error:
            problems.append(Problem(str(packed.root / stem), f"{error.where}: {error.what}", error.cure))
            continue
        if size == packed.sizes[0]:
            digests = tuple(hashlib.blake2b(plane, digest_size=16).digest() for plane in image)
    return SiteCheck(stem, digests, tuple(problems))


def missing_sites(packed: packed_store.Store, stems: Iterable[str]) -> Iterator[Problem]:
    """One problem for each of these sites that is not in the store, or for a folder without any."""
    folders = Counter(folder for stem in stems if not packed.stems(folder := stem.rpartition("/")[0]))
    for folder, count in folders.items():
        yield Problem(str(packed.root / folder), f"none of its {count:,} sites was packed", _MISSING)
    for stem in stems:
        if stem.rpartition("/")[0] not in folders and (numbers := packed.missing_channels(stem)):
            partly = len(numbers) < len(packed.suffixes)
            what = f"lacked channels {', '.join(map(str, numbers))} when it was packed" if partly else "was not packed"
            yield Problem(str(packed.root / stem), what, _MISSING)


def altered_files(packed: packed_store.Store, parts: Iterable[str]) -> Iterator[Problem]:
    """One problem for each file of these parts that is not as it was packed."""
    for name in parts:
        for file, length in packed.parts[name]["bytes"].items():
            path = packed.root / name / file
            if not path.is_file():
                yield Problem(str(path), "no such file", _REPACK)
            elif path.stat().st_size != length:
                yield Problem(str(path), f"has {path.stat().st_size:,} bytes, not {length:,}", _REPACK)
            elif files.sha256(path) != packed.sha256.get(f"{name}/{file}"):
                yield Problem(str(path), "its bytes are not those that were packed", _REPACK)


_FILES_PER_BATCH = 4096  # files handed to the threads at once: a whole data set has 753,060


class _ImageCheck(NamedTuple):
    """The result of checking one image file."""

    file: str
    size: tuple[int, ...] = ()
    digest: bytes = b""
    problems: tuple[Problem, ...] = ()


def check_dataset(root: Path, *, cell_types: Sequence[str] = (), progress: bool = True) -> pd.DataFrame:
    """Every problem of a data set: columns file (with line and column), problem, cure; no rows if nothing is wrong.

    Tables: everything that their readers refuse; images are checked only if the tables are valid. Images: missing,
    damaged, not 8-bit grey (or RGB, as the task says), of another size than most, identical to another (allowed for labelled sites, which folds
    keep together), or listed in no row. In a store, every site is checked against its checksum and every file against
    its digest. With `cell_types`, images of other cell types may be missing; InputError for an unknown cell type.
    """
    root = Path(root)
    try:
        task = task_of(root)
        stems, required_stems = STEMS_BY_READER[task.reader](root, task, cell_types)
        read_pixel_stats(root)
    except Faults as faults:
        return _table(faults.problems)
    if packed_store.is_store(root):
        return _table(_check_store(packed_store.Store(Path(root)), stems, required_stems, duplicates_allowed=task.reader in DUPLICATES_ALLOWED, progress=progress))
    listed_files, existing_files = _image_files(root, stems, task), _existing_files(root, stems)
    required_files = _image_files(root, required_stems, task)
    present_files = [file for file in required_files if file in existing_files]
    checks = list(_check_images(present_files, read=read_colour if PLANE in task.suffixes[0] else read_channel, progress=progress))
    return _table(
        [
            *_missing([file for file in required_files if file not in existing_files]),
            *(problem for check in checks for problem in check.problems),
            *_unusual_sizes(checks),
            *([] if task.reader in DUPLICATES_ALLOWED else _duplicate_images(checks)),
            *_unlisted_files(existing_files.difference(listed_files), listed_folders=_parent_folders(listed_files)),
        ]
    )


def _check_store(packed: packed_store.Store, stems: list[str], required_stems: list[str], *, duplicates_allowed: bool, progress: bool) -> Iterator[Problem]:
    present_stems = [stem for stem in required_stems if packed.locate(stem) is not None]
    checks = list(check_sites(packed, present_stems, progress=progress))
    yield from missing_sites(packed, required_stems)
    yield from (problem for check in checks for problem in check.problems)
    yield from altered_files(packed, {packed.locate(stem).part for stem in present_stems})
    if not duplicates_allowed:
        planes = ((f"{packed.root / check.stem}{suffix}", digest) for check in checks for suffix, digest in zip(packed.suffixes, check.digests))
        yield from _duplicate_images([_ImageCheck(plane_path, digest=digest) for plane_path, digest in planes])
    unlisted_stems = {stem for _, stem in packed_store.store_files(packed)}.difference(stems)
    yield from _unlisted_files({f"{packed.root}/{stem}" for stem in unlisted_stems}, listed_folders=_parent_folders(f"{packed.root}/{stem}" for stem in stems))


def _table(problems: Iterable[Problem]) -> pd.DataFrame:
    return pd.DataFrame(problems, columns=["file", "problem", "cure"], dtype=object)


def _well_stems(root: Path, task: Task, cell_types: Sequence[str]) -> tuple[list[str], list[str]]:
    """The stems of all sites, and of those of some cell types."""
    tables = read_tables(root)
    return tables.sites["stem"].tolist(), select(tables, cell_types=cell_types).sites["stem"].tolist()


def _site_stems(root: Path, task: Task, cell_types: Sequence[str]) -> tuple[list[str], list[str]]:
    if cell_types:
        raise InputError(f"the task {task.name} has no cell types", where=root, cure="leave out --cell-type")
    stems = read_site_tables(root, task).sites["stem"].tolist()
    return stems, stems


def _benchmark_stems(root: Path, task: Task, cell_types: Sequence[str]) -> tuple[list[str], list[str]]:
    if cell_types:
        raise InputError(f"the task {task.name} is scored on all cell types", where=root, cure="leave out --cell-type")
    stems = read_benchmark_sites(root)["stem"].tolist()
    return stems, stems


# By the reader that a task names.
STEMS_BY_READER: dict[str, Callable[[Path, Task, Sequence[str]], tuple[list[str], list[str]]]] = {
    "wells": _well_stems, "sites": _site_stems, "splits": _benchmark_stems,
}
DUPLICATES_ALLOWED = {"sites"}  # readers of data in which an image may occur twice: folds keep such sites together


def _image_files(root: Path, stems: Iterable[str], task: Task) -> list[str]:
    # Without the cost of 753,060 Path objects.
    return [f"{root}/{stem}{suffix}" for stem in stems for suffix in dict.fromkeys(map(file_suffix, task.suffixes))]


def _existing_files(root: Path, stems: Iterable[str]) -> set[str]:
    """Every file in the image tree, and folders that are named *.png."""
    top_folders = sorted({stem.partition("/")[0] for stem in stems if "/" in stem})
    if not top_folders:  # images lie beside the tables
        return {entry.path for entry in entries(root) if entry.name.endswith(".png")}
    listed_folders = _parent_folders(f"{root}/{stem}" for stem in stems)
    return {path for top_folder in top_folders for path in walk(f"{root}/{top_folder}", follow_links=listed_folders)}


def _parent_folders(files: Iterable[str]) -> set[str]:
    """Every folder on the paths of some files."""
    parents, folders = set(), set(map(os.path.dirname, files))
    while folders:
        parents |= folders
        folders = set(map(os.path.dirname, folders)) - parents
    return parents


def _check_images(files: list[str], *, read: Callable[[Path], np.ndarray], progress: bool) -> Iterator[_ImageCheck]:
    bar = progress_bar(total=len(files), desc="check images", unit="file", disable=not progress)
    with bar, ThreadPoolExecutor() as pool:
        for start in range(0, len(files), _FILES_PER_BATCH):
            for check in pool.map(partial(_check_image, read=read), files[start : start + _FILES_PER_BATCH]):
                bar.update()
                yield check


def _check_image(file: str, *, read: Callable[[Path], np.ndarray]) -> _ImageCheck:
    try:
        image = read(Path(file))
    except Faults as faults:
        return _ImageCheck(file, problems=tuple(faults.problems))
    digest = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
    return _ImageCheck(file, image.shape[-2:], digest)


def _missing(files: list[str]) -> Iterator[Problem]:
    """One problem for each missing file, or for the highest folder that is missing."""
    missing_folder = {folder: _highest_missing(folder) for folder in set(map(os.path.dirname, files))}
    counts = Counter(missing_folder[os.path.dirname(file)] or file for file in files)
    for path, count in counts.items():
        folder = f"no such folder, it holds {count:,} images"
        what = "no such file" if path.endswith(".png") else folder
        yield Problem(path, what, "copy it again, or take its wells out of the tables")


def _highest_missing(folder: str) -> str:
    """The topmost folder on this path that does not exist; "" when all do."""
    missing = ""
    while folder and not os.path.isdir(folder):
        missing, folder = folder, os.path.dirname(folder)
    return missing


def _unusual_sizes(checks: list[_ImageCheck]) -> Iterator[Problem]:
    sizes = Counter(check.size for check in checks if check.size)
    most_common = max(sizes, key=sizes.__getitem__, default=())
    for check in checks:
        if check.size not in ((), most_common):
            what = "is {}x{} pixels, most images are {}x{}".format(*check.size, *most_common)
            yield Problem(check.file, what, "give all images one size")


def _duplicate_images(checks: list[_ImageCheck]) -> Iterator[Problem]:
    first_file: dict[bytes, str] = {}
    for check in checks:
        if check.digest and first_file.setdefault(check.digest, check.file) != check.file:
            what = f"is the same image as {first_file[check.digest]}"
            yield Problem(check.file, what, "copy the right image there")


def _unlisted_files(files: set[str], *, listed_folders: set[str]) -> Iterator[Problem]:
    """One problem for each file that no row lists, or for the highest folder with only such files.

    `listed_folders`: all folders with a listed file below them.
    """
    counts = Counter(_highest_unlisted(file, listed_folders) for file in files - listed_folders)  # a link to nowhere may be named
    for path, count in sorted(counts.items()):
        what = "no row of the tables names it" + (f" ({count:,} files)" if count > 1 else "")
        yield Problem(path, what, "move it away, or add it to the tables")


def _highest_unlisted(path: str, listed_folders: set[str]) -> str:
    while (folder := os.path.dirname(path)) not in listed_folders:
        path = folder
    return path
