"""What a folder has been given: how many images of each experiment came whole out of an archive."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from cellsignal import files, shapes
from cellsignal.data.folders import entries
from cellsignal.data.wells import Tables, select

RECEIPT = "download.json"  # {"images": {experiment: number of files}}, in the data set's folder


def note(root: Path, images: Mapping[str, int]) -> None:
    """Write down that these experiments are whole, with so many images each."""
    files.write_json(root / RECEIPT, {"images": dict(sorted({**_noted(root), **images}.items()))})


def lacking(tables: Tables, *, cell_types: Sequence[str] = ()) -> list[str]:
    """The experiments of these cell types (empty: of all) that never came whole or lost images since.

    Counts names only, one folder listing per plate. InputError when the tables have no such cell type.
    """
    sites = select(tables, cell_types=cell_types).sites
    plates = sites["stem"].str.rpartition("/")[0].groupby(sites["experiment"]).unique()
    noted = _noted(tables.root)
    return [name for name, folders in plates.items() if sum(_images(tables.root / folder) for folder in folders) != noted.get(name)]


def _noted(root: Path) -> Mapping[str, int]:
    return files.read_json(root / RECEIPT, shapes.Download)["images"] if (root / RECEIPT).exists() else {}


def _images(folder: Path) -> int:
    return sum(entry.name.endswith(".png") for entry in entries(folder))
