"""A store looked through: every site's pixels against the sums of the packing, every file against its digest."""

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
_AGAIN = "pack it again: delete its folder in the store first"


class SiteCheck(NamedTuple):
    """What the pixels of a site showed: a digest of each channel, and what is wrong."""

    stem: str
    digests: tuple[bytes, ...] = ()
    problems: tuple[Problem, ...] = ()


def verify(root: Path, *, progress: bool = True) -> int:
    """Read back every copy of every site; their number. InputError names the first that differs from what was packed."""
    packed = packed_store.Store(Path(root))  # a new one, which has looked at nothing yet
    stems = [stem for _, stem in packed_store.store_files(packed)]
    raise_if_any([problem for look in check_sites(packed, stems, progress=progress) for problem in look.problems])
    return len(stems) * len(packed.sizes)


def check_sites(packed: packed_store.Store, stems: Sequence[str], *, progress: bool) -> Iterator[SiteCheck]:
    """Read sites in all their sizes, by several threads."""
    bar = progress_bar(total=len(stems), desc="check sites", unit="site", disable=not progress)
    with bar, ThreadPoolExecutor() as pool:
        for look in pool.map(lambda stem: _look(packed, stem), stems):
            bar.update()
            yield look


def _look(packed: packed_store.Store, stem: str) -> SiteCheck:
    """The largest copy tells one picture from another."""
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
    """One problem for each of these sites that the store has not, or for a folder of which it has none."""
    folders = Counter(folder for stem in stems if not packed.stems(folder := stem.rpartition("/")[0]))
    for folder, count in folders.items():
        yield Problem(str(packed.root / folder), f"none of its {count:,} sites was packed", _MISSING)
    for stem in stems:
        if stem.rpartition("/")[0] not in folders and (numbers := packed.lacking(stem)):
            some = len(numbers) < len(packed.suffixes)
            what = f"lacked channels {', '.join(map(str, numbers))} when it was packed" if some else "was not packed"
            yield Problem(str(packed.root / stem), what, _MISSING)


def altered_files(packed: packed_store.Store, parts: Iterable[str]) -> Iterator[Problem]:
    """One problem for each file of these parts that is not as it was packed."""
    for name in parts:
        for file, length in packed.parts[name]["bytes"].items():
            path = packed.root / name / file
            if not path.is_file():
                yield Problem(str(path), "no such file", _AGAIN)
            elif path.stat().st_size != length:
                yield Problem(str(path), f"has {path.stat().st_size:,} bytes, not {length:,}", _AGAIN)
            elif files.sha256(path) != packed.sha256.get(f"{name}/{file}"):
                yield Problem(str(path), "its bytes are not those that were packed", _AGAIN)
