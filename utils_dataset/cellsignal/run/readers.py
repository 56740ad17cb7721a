"""The tables of a run, looked at before anything is trained: whether there is enough to train on, and for which cell types."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from cellsignal.errors import InputError
from cellsignal.run import inputs
from cellsignal.tasks import TASKS

if TYPE_CHECKING:
    import pandas as pd


def look(
    task: str, data: str, *, run: str | Path, preset: str = "", seed: int = 0, cell_types: Collection[str] = (),
    experiments: Collection[str] = (), folds: int = 2,
) -> list[str]:
    """The cell types to train, those with most wells first; none where a task has none. InputError for tables that cannot be trained on."""
    return READERS[TASKS[task].reader](
        task, data, run=run, preset=preset, seed=seed, cell_types=cell_types, experiments=experiments, folds=folds
    )


def _wells(
    task: str, data: str, *, run: str | Path, preset: str, seed: int, cell_types: Collection[str], experiments: Collection[str], folds: int
) -> list[str]:
    tables = inputs.open_tables(data, run=run, preset=preset, seed=seed, cell_types=cell_types, experiments=experiments)
    wells = tables.wells
    _check_test(wells, where=tables.root)
    sizes = wells.loc[wells["dataset"] == "train", "cell_type"].value_counts()
    return sorted(sizes.index, key=lambda name: (-sizes[name], name))


def _check_test(wells: "pd.DataFrame", *, where: Path) -> None:
    """Refuse now what only the prediction would notice, hours later."""
    asked = wells[(wells["dataset"] == "test") & (wells["well_type"] == "treatment")]
    if asked.empty:
        what = "no test wells among these experiments"
        raise InputError(what, where=where, cure="name a test experiment in `experiments` too, or leave it empty")
    trained = wells[(wells["dataset"] == "train") & (wells["well_type"] == "treatment")]
    if untrained := sorted(set(asked["cell_type"]) - set(trained["cell_type"])):
        what = f"{', '.join(untrained)} has test wells and no training wells"
        raise InputError(what, where=where, cure="leave it out with `cell_types` or `experiments`")


def _sites(
    task: str, data: str, *, run: str | Path, preset: str, seed: int, cell_types: Collection[str], experiments: Collection[str], folds: int
) -> list[str]:
    """Labelled sites have no cell types to be told apart by; what names some is refused."""
    for name, given in (("cell_types", cell_types), ("experiments", experiments)):
        if given:
            raise InputError(f"the task {task} has no {name}", where=name, cure="leave it empty")
    tables = inputs.open_sites(data, run=run, preset=preset, seed=seed, task=TASKS[task])
    labelled = int((tables.sites["dataset"] == "train").sum())
    if labelled < 2 * folds:
        raise InputError(f"{labelled} labelled sites are too few for {folds} folds", where=tables.root, cure="choose fewer folds")
    return []


# By the reader that a task names.
READERS: dict[str, Callable[..., list[str]]] = {"wells": _wells, "sites": _sites}
