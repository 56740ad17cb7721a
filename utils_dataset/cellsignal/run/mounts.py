"""What is attached: competitions, data sets and outputs of notebooks, in Kaggle's layouts old and new."""

import os
from collections.abc import Iterator
from fnmatch import fnmatch
from itertools import chain, islice
from pathlib import Path

from cellsignal.data.tables.headers import has_columns
from cellsignal.errors import InputError
from cellsignal.run import environment
from cellsignal.run.record.manifest import RUN
from cellsignal.tasks import RXRX1, Task

KINDS = {"competitions": 1, "datasets": 2, "notebooks": 2, "models": 5}  # folders of the new layout, and the depth of mounts in them
FEW = 256  # entries that are looked at in a folder: one of images holds half a million, and listing it takes minutes


def mounts() -> list[Path]:
    """Every attached input but models: /kaggle/input/<slug>, or .../competitions/<slug>, .../{datasets,notebooks}/<owner>/<slug>."""
    attached = environment.KAGGLE / "input"
    new = [path for kind, depth in KINDS.items() if kind != "models" for path in _deep(attached / kind, depth)]
    return [*new, *(path for path in _folders(attached) if path.name not in KINDS)]


def wheels(package: str) -> list[Path]:
    """Wheels of a pure Python package (by its name on PyPI) in attached data sets and outputs, at most two levels down."""
    pattern = f"{package.replace('-', '_')}-*-none-any.whl"
    places = [place for mount in mounts() for depth in range(3) for place in _deep(mount, depth)]
    return [path for place in places for path in _first(place) if fnmatch(path.name, pattern)]


def names() -> str:
    """The attached inputs in words, for messages."""
    found = [path.relative_to(environment.KAGGLE / "input").as_posix() for path in mounts()]
    return f"attached are {', '.join(found)}" if found else "nothing is attached"


def data_sets(task: Task = RXRX1) -> list[Path]:
    """Folders with a task's data: the highest of each mount that holds tables, at most two levels below it.

    Those whose tables are certainly the task's when there are any: a metadata.csv may be anybody's. Of these the user's
    own, when there are any: the competition is attached to every kernel that is pushed as it is tracked.
    """
    found = [place for mount in mounts() for place in islice(_tables(mount, task), 1)]
    certain = [place for place in found if is_certain(place, task)] or found
    return [place for place in certain if not _of_competition(place, task)] or certain


def data_set(task: Task = RXRX1) -> Path:
    """The attached data set. Raises InputError, which lists what is attached, when there is none or more than one."""
    found = data_sets(task)
    if len(found) == 1:
        return found[0]
    if found:
        what = f"{len(found)} data sets are attached: {', '.join(map(str, found))}"
        raise InputError(what, where="data", cure="name one of them as `data`")
    cure = f"attach the competition {task.competition} or a data set with {task.identifying_tables[0][0]}, or set `preset` to simulate plates"
    raise InputError(f"no plates to be found; {names()}", where=environment.KAGGLE / "input", cure=cure)


def is_certain(place: Path, task: Task) -> bool:
    """Whether tables are the task's by more than a name."""
    return any((place / name).is_file() and (not column or has_columns(place / name, column)) for name, column in task.identifying_tables)


def runs() -> list[Path]:
    """Folders of earlier runs, in mounted outputs and data sets: a mount, a folder in it, or one in its `runs`."""
    return [place for mount in mounts() for place in _run_places(mount) if (place / RUN).is_file()]


def holding_file(name: str) -> Iterator[Path]:
    """Files called `name`: where relative run folders start, then in attached inputs, models too, at most two folders deep."""
    models = _deep(environment.KAGGLE / "input/models", KINDS["models"])
    inside = (place for mount in (*mounts(), *models) for depth in range(3) for place in _deep(mount, depth))
    yield from (place / name for place in chain([environment.base()], inside) if (place / name).is_file())


def _tables(mount: Path, task: Task) -> Iterator[Path]:
    for depth in range(3):
        yield from (place for place in _deep(mount, depth) if any((place / name).is_file() for name, _ in task.identifying_tables))


def _of_competition(place: Path, task: Task) -> bool:
    """Whether a folder is the competition's mount, or lies in it."""
    first, second, *_ = (*place.relative_to(environment.KAGGLE / "input").parts, "")
    return task.competition in (first.lower(), second.lower() * (first == "competitions"))


def _run_places(mount: Path) -> list[Path]:
    return [mount, *_folders(mount), *_folders(mount / "runs")]


def _deep(place: Path, depth: int) -> list[Path]:
    """The folders `depth` levels below `place`."""
    return [place] if depth == 0 else [deeper for folder in _folders(place) for deeper in _deep(folder, depth - 1)]


def _folders(place: Path) -> list[Path]:
    """The folders among the first entries of a folder, by name; none when it is not there."""
    return [path for path in _first(place) if path.is_dir()]


def _first(place: Path) -> list[Path]:
    """The first entries of a folder, by name; none when it is not there."""
    try:
        with os.scandir(place) as entries:
            return sorted(Path(entry.path) for entry in islice(entries, FEW))
    except OSError:
        return []
