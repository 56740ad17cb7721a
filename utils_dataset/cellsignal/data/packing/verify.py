"""Verifying a store: every site's pixels against their checksums, every file against its digest."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from cellsignal import files
from cellsignal.data.images import packed_store
from cellsignal.errors import InputError, Problem, raise_if_any
from cellsignal.progress_bars import progress_bar

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
            what, _, cure = str(error).partition("; ")
            problems.append(Problem(str(packed.root / stem), what, cure))
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
