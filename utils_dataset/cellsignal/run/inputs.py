"""The inputs of a run: plates, which the virtual microscope may draw first, and pretrained weights."""

import os
import shutil
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellsignal import files
from cellsignal.data import simulated
from cellsignal.data.images.packed_store import is_store
from cellsignal.data.settings import WellSettings
from cellsignal.data.simulated import WORKING_FOLDER
from cellsignal.data.tables import wells
from cellsignal.decide.settings import STATISTICS
from cellsignal.errors import InputError
from cellsignal.receipts import Receipt
from cellsignal.run import environment, mounts
from cellsignal.tasks import RXRX1, TASKS, Task

if TYPE_CHECKING:
    import pandas as pd

    from cellsignal.data.tables.labelled_sites import SiteTables

_printed: set[str] = set()


def data_folder(data: str, *, run: str | Path) -> Path:
    """The absolute folder of a run's data; an empty `data` means the folder where the run's own plates are drawn."""
    return environment.data_folder(data) if data else environment.scratch_folder(environment.run_folder(str(run)))


def open_tables(
    data: str,
    *,
    run: str | Path,
    preset: str = "",
    seed: int = 0,
    cell_types: Collection[str] = (),
    experiments: Collection[str] = (),
    packed_size: int = 0,
) -> wells.Tables:
    """Tables of the run's plates, simulated first when `preset` is set and they are not there yet; with `packed_size` those of its packed images.

    Raises InputError when the folder is missing, holds another simulation, or lacks a named cell type or experiment.
    """
    root = packed_images(run, packed_size) if packed_size else prepare(data, run=run, preset=preset, seed=seed)
    return wells.select(wells.read_tables(root), cell_types=cell_types, experiments=experiments)


def open_sites(data: str, *, run: str | Path, task: Task, preset: str = "", seed: int = 0) -> "SiteTables":
    """Tables of labelled sites, simulated first when `preset` is set and they are not there yet.

    Raises InputError when the folder is missing or holds another simulation, or a table has a fault.
    """
    from cellsignal.data.tables.labelled_sites import read_site_tables

    return read_site_tables(prepare(data, run=run, preset=preset, seed=seed, task=task), task)


def open_benchmark_sites(data: str, *, run: str | Path, task: Task) -> "tuple[Path, pd.DataFrame]":
    """The folder of a benchmark's data, and its sites as `wells.read_benchmark_sites` gives them; raises InputError."""
    root = prepare(data, run=run, task=task)
    return root, wells.read_benchmark_sites(root)


def prepare(
    data: str, *, run: str | Path, preset: str = "", seed: int = 0, task: Task = RXRX1, replace: bool = True, **options: Any
) -> Path:
    """The folder of the run's data, simulated first when `preset` is set and it is not complete; `options` are passed to `simulate`.

    From here on the figures and pages of this process say whether the data are simulated. `replace`: whether another simulation in
    the run's own folder is replaced, or else refused.
    """
    root, preset = resolve(data, run=run, preset=preset, seed=seed, task=task)
    if preset and not is_store(root) and not simulated.is_current(root, preset=preset, seed=seed):  # a store checks its pixels itself
        if not (root / simulated.RECEIPT).is_file():
            _print_once(_simulated_warning(preset, seed))
        with files.locked(root.with_name(f".{root.name}.lock"), timeout=3600, waiting_message=f"waiting for {root}"):
            _simulate(root, preset=preset, seed=seed, replace=replace and not data, **options)
    return _labelled(root)


def packed_images(run: str | Path, size: int) -> Path:
    """The store of a run's images at `size` px, in its own folder or in that of an attached run; InputError where the notebook `pack` has not made it."""
    folder = environment.run_folder(str(run))
    receipt = Receipt.find(folder / mounts.PACKED_RECEIPT)
    if receipt is not None and receipt.complete and receipt.identity.get("size") == size:
        for root in (candidate / mounts.PACKED for candidate in (folder, *mounts.runs()) if Receipt.find(candidate / mounts.PACKED_RECEIPT) == receipt):
            if is_store(root):
                _check_tables(root, receipt)
                return _labelled(root)
    attached = f"; {mounts.describe_mounts()}" if environment.platform() == "kaggle" else ""
    raise InputError(f"the images were not packed at {size} px{attached}", where=folder / mounts.PACKED, cure="run the notebook `pack` first; on Kaggle attach its output")


def _check_tables(root: Path, receipt: Receipt) -> None:
    """InputError for the first table of packed images that is not the one which they were packed with."""
    for name, digest in receipt.identity.get("tables", {}).items():
        if not (root / name).is_file() or files.sha256(root / name) != digest:
            raise InputError("is not the table that the notebook `pack` put there", where=root / name, cure="delete it, then give the whole command or run `pack` again")


def _labelled(root: Path) -> Path:
    """The folder; from here on the figures and pages of this process say whether its images are simulated."""
    simulated.show(simulated.is_simulated(root))
    if simulated.shown():
        identity = simulated.identity(root)
        _print_once(_simulated_warning(identity.get("preset"), identity.get("seed")))
    return root


def _simulated_warning(preset: str | None, seed: int | None) -> str:
    return (
        f"SIMULATED DATA: a virtual microscope draws every image (preset {preset!r}, seed {seed}), and none is the competition's; "
        "for real plates name their folder as `data`, or attach them on Kaggle"
    )


def _print_once(line: str) -> None:
    """Print a line once in this process: every notebook opens its data, and a chain does so several times."""
    if line not in _printed:
        _printed.add(line)
        print(line, flush=True)


def _simulate(root: Path, *, preset: str, seed: int, replace: bool, **options: Any) -> None:
    """Complete the simulation in `root`; `replace`: draw it again, with a message, where another or a damaged one is there."""
    from cellsignal.data.microscope import simulate

    try:
        simulate.simulate(root, preset=preset, seed=seed, keep=not replace, **options)
    except InputError as error:
        is_simulation = any(path.exists() for path in (root / simulated.RECEIPT, root / WORKING_FOLDER))
        if not replace or not is_simulation:
            raise
        print(f"{str(error).partition('; ')[0]}; the plates are drawn again", flush=True)
        discard(root)
        simulate.simulate(root, preset=preset, seed=seed, **options)


def check_discard(root: Path) -> None:
    """InputError when `discard` must not remove a folder: a link may lead to files that other runs use."""
    if root.is_symlink():
        what = f"is a link to {os.path.realpath(root)}, and would have to be emptied"
        raise InputError(what, where=root, cure="empty it and put a folder here, or choose another run folder")
    if root.exists() and not root.is_dir():
        raise InputError("is no folder", where=root, cure="remove it, or choose another run folder")


def discard(root: Path) -> None:
    """Remove a folder so that at any moment it is complete or gone; raises as `check_discard` does."""
    check_discard(root)
    old = root.with_name(f"{files.TEMPORARY}{root.name}")
    shutil.rmtree(old, ignore_errors=True)
    if root.exists():
        os.replace(root, old)
    shutil.rmtree(old, ignore_errors=True)


def resolve(data: str, *, run: str | Path, preset: str = "", seed: int = 0, task: Task = RXRX1) -> tuple[Path, str]:
    """The data folder and the preset to draw there, "" for none; only quick checks are made.

    Existing plates take precedence over a preset: those in the folder that `data` names, else those that are attached. Without
    `data` and `preset` also those in the run's own folder, and on Colab the competition's download.
    """
    root = data_folder(data, run=run)
    if not preset:
        root = root if data or root.is_dir() else _attached_or_downloaded(task) or root
        if not root.is_dir():
            raise InputError("no such data folder", where=root, cure="set `data` to the data set, or `preset` to simulate one")
        return root, ""
    check_preset(preset, task)
    attached = not data and any(mounts.has_task_tables(folder, task) for folder in mounts.data_sets(task))
    root = mounts.data_set(task) if attached else root
    has_plates = mounts.has_task_tables(root, task) and not (root / WORKING_FOLDER).is_dir()  # of no unfinished simulation
    if attached or (data and has_plates and not _is_preset(root, preset, seed)):
        _print_once(f"preset {preset!r} is ignored: plates that are {'attached' if attached else 'named as `data`'} take precedence, {root}")
        return root, ""
    return root, preset


def check_preset(preset: str, task: Task) -> None:
    """Raise InputError for a preset that does not draw for a task."""
    if preset not in task.presets:
        from cellsignal.data.microscope.simulate import presets_of  # pulls in SciPy, which takes time

        if preset not in (known := presets_of(task)):
            cure = f"use one of: {', '.join(known)}" if known else f"leave it empty, because none draws for the task {task.name}"
            raise InputError(f"unknown preset {preset!r}", where="preset", cure=cure)


def _is_preset(root: Path, preset: str, seed: int) -> bool:
    """Whether a folder holds the plates of this preset and seed."""
    if not simulated.is_simulated(root):
        return False
    identity = Receipt.read(root / simulated.RECEIPT, cure=f"delete the whole folder {root} and simulate again").identity
    return (identity.get("preset"), identity.get("seed")) == (preset, seed)


def check_cell_types(names: Collection[str], *, run: str | Path, preset: str, where: str) -> None:
    """Raise InputError for cell types that the plates of a preset will not have, before they are drawn."""
    folder = data_folder("", run=run)
    drawn_already = simulated.identity(folder).get("preset") == preset and not (folder / WORKING_FOLDER).is_dir()
    if not names or not preset or drawn_already:  # then their tables say it
        return
    from cellsignal.data.microscope.simulate import PRESETS

    drawn = PRESETS[preset].cell_types if preset in PRESETS else ()
    unknown = next((name for name in names if drawn and name not in drawn), None)
    if unknown is not None:
        raise InputError(f"no cell_type {unknown!r} in the preset {preset}", where=where, cure=f"choose from {', '.join(drawn)}")


def _attached_or_downloaded(task: Task) -> Path | None:
    """The data set that Kaggle has attached, or that Colab can fetch; None on one's own machine without either."""
    if environment.platform() == "kaggle" or mounts.data_sets(task):
        return mounts.data_set(task)
    if environment.platform() != "colab" or not task.competition:
        return None
    from cellsignal.data.download.rxrx1 import from_kagglehub

    return from_kagglehub(task.competition)


def attach_wheel(package: str) -> None:
    """Let Python import a package from an attached wheel where it is not installed: Kaggle's sessions have no internet."""
    for wheel in mounts.wheels(package)[:1]:
        if str(wheel) not in sys.path:
            sys.path.append(str(wheel))  # last, after what is installed


def find_pretrained(source: str, backbone: str) -> Path:
    """The file of the weights with which a network starts: `source` is a path, or "imagenet".

    ImageNet's are `<backbone>.safetensors` in the current folder or in an attached input (`mounts.find_files`), else they
    are downloaded. Raises InputError, which says what to attach, when there are none.
    """
    from cellsignal.learn.networks.pretrained import IMAGENET, download_imagenet, imagenet_file_name  # pulls in PyTorch

    if source == IMAGENET:
        return next(mounts.find_files(imagenet_file_name(backbone)), None) or download_imagenet(backbone)
    path = environment.data_folder(source)
    if not path.is_file():
        raise InputError("no such weights", where=path, cure=f'name a .safetensors file, or {IMAGENET}, or set network.pretrained: ""')
    return path


# Checks of a run's tables before anything is trained: whether there are enough wells, and of which cell types.


def cell_types_to_train(
    task: str, data: str, settings: WellSettings, *, run: str | Path, preset: str = "", seed: int = 0
) -> list[str]:
    """The cell types to train, those with most wells first; none where a task has none. InputError for tables that cannot be trained on."""
    return READERS[TASKS[task].reader](task, data, settings, run=run, preset=preset, seed=seed)


def _cell_types_of_wells(task: str, data: str, settings: WellSettings, *, run: str | Path, preset: str, seed: int) -> list[str]:
    tables = open_tables(data, run=run, preset=preset, seed=seed, cell_types=settings.cell_types, experiments=settings.experiments)
    wells = tables.wells
    _check_test_wells(wells, where=tables.root)
    sizes = wells.loc[wells["dataset"] == "train", "cell_type"].value_counts()
    return sorted(sizes.index, key=lambda name: (-sizes[name], name))


def _check_test_wells(wells: "pd.DataFrame", *, where: Path) -> None:
    """Raise InputError for test wells without training wells, which the prediction would notice hours later."""
    test_wells = wells[(wells["dataset"] == "test") & (wells["well_type"] == "treatment")]
    if test_wells.empty:
        what = "no test wells among these experiments"
        raise InputError(what, where=where, cure="name a test experiment in `wells.experiments` too, or leave it empty")
    training_wells = wells[(wells["dataset"] == "train") & (wells["well_type"] == "treatment")]
    if untrained := sorted(set(test_wells["cell_type"]) - set(training_wells["cell_type"])):
        what = f"{', '.join(untrained)} has test wells and no training wells"
        raise InputError(what, where=where, cure="leave it out with `wells.cell_types` or `wells.experiments`")


def _check_sites(task: str, data: str, settings: WellSettings, *, run: str | Path, preset: str, seed: int) -> list[str]:
    """No cell types, because labelled sites have none; InputError when some are named, or there are too few sites."""
    for name, values in (("cell_types", settings.cell_types), ("experiments", settings.experiments)):
        if values:
            raise InputError(f"the task {task} has no {name}", where=f"wells.{name}", cure="leave it empty")
    tables = open_sites(data, run=run, preset=preset, seed=seed, task=TASKS[task])
    labelled = int((tables.sites["dataset"] == "train").sum())
    folds = settings.folds
    if labelled < 2 * folds:
        raise InputError(f"{labelled} labelled sites are too few for {folds} folds", where=tables.root, cure="choose fewer folds")
    return []


def _check_splits(task: str, data: str, settings: WellSettings, *, run: str | Path, preset: str, seed: int) -> list[str]:
    """No cell types: one network serves all. InputError where a split of the benchmark, or the training sites, are missing."""
    sites = open_benchmark_sites(data, run=run, task=TASKS[task])[1]
    if missing := sorted({wells.TRAIN_SPLIT, *wells.EVALUATED_SPLITS} - set(sites["split"])):
        raise InputError(f"no site of the split {missing[0]}", where=data_folder(data, run=run), cure="use all rows of the benchmark's metadata.csv")
    return []


def check_one_network(statistics: str, standardise: str, *, location: Callable[[str], str] = str) -> None:
    """Raise InputError for settings that use which wells are controls, or images of other splits: a benchmark's sites are answered without."""
    for key, value, known in (("prediction.statistics", statistics, STATISTICS), ("network.standardise", standardise, ("none", "image"))):
        if value not in known:
            what = f"{key} is {value!r}, and this benchmark scores every site, controls too, without knowing others"
            raise InputError(what, where=location(key), cure=f"write {' or '.join(known)}")


# By the reader that a task names.
READERS: dict[str, Callable[..., list[str]]] = {"wells": _cell_types_of_wells, "sites": _check_sites, "splits": _check_splits}
