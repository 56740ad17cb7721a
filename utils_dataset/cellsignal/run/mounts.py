"""What is attached on Kaggle: competitions, data sets and outputs of notebooks, in its old and new folder layouts."""

import os
from collections.abc import Iterator
from fnmatch import fnmatch
from itertools import chain, islice
from pathlib import Path

from cellsignal.data.tables.headers import is_table_of
from cellsignal.errors import InputError
from cellsignal.run import environment
from cellsignal.tasks import RXRX1, Task

RUN_FILE = "run.json"  # in every run folder, which is recognised by it
PACKED, PACKED_RECEIPT = "packed", "packed.json"  # of a run: the store of its images at a reduced size, and what made it
MOUNT_DEPTHS = {"competitions": 1, "datasets": 2, "notebooks": 2, "models": 5}  # by folder of the new layout
MAX_ENTRIES = 256  # looked at in a folder: one of images holds half a million, and listing it takes minutes


def mounts() -> list[Path]:
    """Every attached input but models: /kaggle/input/<slug>, or .../competitions/<slug>, .../{datasets,notebooks}/<owner>/<slug>."""
    root = environment.KAGGLE / "input"
    new_layout = [path for kind, depth in MOUNT_DEPTHS.items() if kind != "models" for path in _folders_at_depth(root / kind, depth)]
    return [*new_layout, *(path for path in _subfolders(root) if path.name not in MOUNT_DEPTHS)]


def wheels(package: str) -> list[Path]:
    """Wheels of a pure Python package (by its name on PyPI) in attached data sets and outputs, at most two levels down."""
    pattern = f"{package.replace('-', '_')}-*-none-any.whl"
    folders = [folder for mount in mounts() for depth in range(3) for folder in _folders_at_depth(mount, depth)]
    return [path for folder in folders for path in _first_entries(folder) if fnmatch(path.name, pattern)]


def describe_mounts() -> str:
    """The attached inputs in words, for messages."""
    names = [path.relative_to(environment.KAGGLE / "input").as_posix() for path in mounts()]
    return f"attached are {', '.join(names)}" if names else "nothing is attached"


def data_sets(task: Task = RXRX1) -> list[Path]:
    """Folders with a task's data: the highest of each mount that holds tables, at most two levels below it.

    If the tables of some identify the task with certainty, only those: a metadata.csv may belong to other data. Of these only the
    user's own, if there are any: the competition is attached to every kernel that is pushed as it is in the repository.
    """
    folders = [folder for mount in mounts() for folder in islice(_table_folders(mount, task), 1)]
    certain = [folder for folder in folders if has_task_tables(folder, task)] or folders
    return [folder for folder in certain if not _is_of_competition(folder, task)] or certain


def data_set(task: Task = RXRX1) -> Path:
    """The attached data set. Raises InputError, which lists what is attached, when there is none or more than one."""
    folders = data_sets(task)
    if len(folders) == 1:
        return folders[0]
    if folders:
        what = f"{len(folders)} data sets are attached: {', '.join(map(str, folders))}"
        raise InputError(what, where="data", cure="name one of them as `data`")
    competition, simulate = f"the competition {task.competition} or " * bool(task.competition), ", or set `preset` to simulate plates" * bool(task.presets)
    cure = f"attach {competition}a data set with {task.identifying_tables[0][0]}{simulate}"
    raise InputError(f"no plates to be found; {describe_mounts()}", where=environment.KAGGLE / "input", cure=cure)


def has_task_tables(folder: Path, task: Task) -> bool:
    """Whether a folder holds tables that are certainly the task's: by their columns where the name alone does not say so."""
    return any((folder / name).is_file() and (not column or is_table_of(folder / name, column, task)) for name, column in task.identifying_tables)


def runs() -> list[Path]:
    """Folders of earlier runs, in mounted outputs and data sets: a mount, a folder in it, or one in its `runs`."""
    folders = (folder for mount in mounts() for folder in (mount, *_subfolders(mount), *_subfolders(mount / "runs")))
    return [folder for folder in folders if (folder / RUN_FILE).is_file()]


def find_files(name: str) -> Iterator[Path]:
    """Files called `name`: where relative run folders start, then in attached inputs, models too, at most two folders deep."""
    models = _folders_at_depth(environment.KAGGLE / "input/models", MOUNT_DEPTHS["models"])
    attached = (folder for mount in (*mounts(), *models) for depth in range(3) for folder in _folders_at_depth(mount, depth))
    yield from (folder / name for folder in chain([environment.base_folder()], attached) if (folder / name).is_file())


def _table_folders(mount: Path, task: Task) -> Iterator[Path]:
    for depth in range(3):
        for folder in _folders_at_depth(mount, depth):
            if any((folder / name).is_file() for name, _ in task.identifying_tables):
                yield folder


def _is_of_competition(folder: Path, task: Task) -> bool:
    """Whether a folder is the competition's mount, or lies in it."""
    first, second, *_ = (*folder.relative_to(environment.KAGGLE / "input").parts, "")
    return bool(task.competition) and task.competition in (first.lower(), second.lower() * (first == "competitions"))


def _folders_at_depth(folder: Path, depth: int) -> list[Path]:
    """The folders `depth` levels below a folder."""
    return [folder] if depth == 0 else [deeper for child in _subfolders(folder) for deeper in _folders_at_depth(child, depth - 1)]


def _subfolders(folder: Path) -> list[Path]:
    """The folders among the first entries of a folder, by name; none when it does not exist."""
    return [path for path in _first_entries(folder) if path.is_dir()]


def _first_entries(folder: Path) -> list[Path]:
    """The first entries of a folder, by name; none when it does not exist."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in islice(entries, MAX_ENTRIES))
    except OSError:
        return []
