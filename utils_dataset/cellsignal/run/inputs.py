"""What a run works on: plates that are there or that the virtual microscope draws first, and pretrained weights."""

import os
import shutil
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from cellsignal import files
from cellsignal.data import atlas, wells
from cellsignal.errors import InputError
from cellsignal.run import mounts, paths
from cellsignal.tasks import RXRX1, Task


def data_folder(data: str, *, run: str | Path) -> Path:
    """The absolute folder of a run's data; `data` is empty for where the run's own plates are drawn."""
    return paths.default_data(data) if data else paths.scratch(paths.default_run(str(run)))


def open_tables(
    data: str,
    *,
    run: str | Path,
    preset: str = "",
    seed: int = 0,
    cell_types: Collection[str] = (),
    experiments: Collection[str] = (),
) -> wells.Tables:
    """Tables of the run's plates, simulated first when `preset` is set and they are not there yet.

    Raises InputError when the folder is missing, holds another simulation, or lacks a named cell type or experiment.
    """
    root = prepare(data, run=run, preset=preset, seed=seed)
    return wells.select(wells.read_tables(root), cell_types=cell_types, experiments=experiments)


def open_sites(data: str, *, run: str | Path, task: Task, preset: str = "", seed: int = 0) -> atlas.SiteTables:
    """Tables of labelled sites, simulated first when `preset` is set and they are not there yet.

    Raises InputError when the folder is missing or holds another simulation, or a table has a fault.
    """
    return atlas.read_site_tables(prepare(data, run=run, preset=preset, seed=seed, task=task), task)


def prepare(data: str, *, run: str | Path, preset: str = "", seed: int = 0, task: Task = RXRX1, **how: Any) -> Path:
    """The folder of the run's data, simulated first when `preset` asks for them and they are not whole; `how` goes to `simulate`."""
    root = check(data, run=run, preset=preset, task=task)
    if preset:
        with files.locked(root.with_name(f".{root.name}.lock"), patience=3600, waiting=f"waiting for {root}"):
            _simulate(root, preset=preset, seed=seed, ours=not data, **how)
    return root


def _simulate(root: Path, *, preset: str, seed: int, ours: bool, **how: Any) -> None:
    """Finish the simulation in `root`; another or a damaged one gives way only inside the run's own folder, with a word."""
    from cellsignal.data import simulate

    try:
        simulate.simulate(root, preset=preset, seed=seed, **how)
    except InputError as error:
        marks = (root / simulate.RECEIPT, root / simulate.WORKSHOP)
        if not ours or not any(mark.exists() for mark in marks):
            raise  # not a simulation that we may throw away
        print(f"{str(error).partition('; ')[0]}; the plates are drawn again", flush=True)
        discard(root)
        simulate.simulate(root, preset=preset, seed=seed, **how)


def discard(root: Path) -> None:
    """Remove a data set so that it is whole or gone at any moment."""
    old = root.with_name(f"{files.TEMPORARY}{root.name}")
    shutil.rmtree(old, ignore_errors=True)
    if root.exists():
        os.replace(root, old)
    shutil.rmtree(old, ignore_errors=True)


def check(data: str, *, run: str | Path, preset: str = "", task: Task = RXRX1) -> Path:
    """The data folder, after the checks that need no work: a preset of the task's, or a folder that is there.

    Without `data` and `preset` the attached data set on Kaggle, the competition's download on Colab.
    """
    root = data_folder(data, run=run)
    if not data and not preset and not root.is_dir():
        root = _found(task) or root
    if preset:
        from cellsignal.data.simulate import presets_of  # pulls in SciPy: only who simulates pays

        if preset not in (known := presets_of(task)):
            raise InputError(f"unknown preset {preset!r}", where="preset", cure=f"use one of: {', '.join(known)}")
    elif not root.is_dir():
        raise InputError("no such data folder", where=root, cure="set `data` to the data set, or `preset` to simulate one")
    return root


def _found(task: Task) -> Path | None:
    """The data set that Kaggle has attached, or that Colab can fetch; None on one's own machine without either."""
    if paths.where() == "kaggle" or mounts.data_sets(task):
        return mounts.data_set(task)
    if paths.where() != "colab":
        return None
    from cellsignal.data.download import from_kagglehub

    return from_kagglehub(task.competition)


def attach(package: str) -> None:
    """Let Python import a package from a wheel that is attached, where it is not installed: Kaggle's sessions have no internet."""
    for wheel in mounts.wheels(package)[:1]:
        if str(wheel) not in sys.path:
            sys.path.append(str(wheel))  # last: what is installed wins
