"""What the notebook `profiles` opens: the table of a run, or any other; and the images of its wells."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from cellsignal import files
from cellsignal.data import simulated
from cellsignal.data.images.reader import read_site
from cellsignal.data.tables.wells import read_tables
from cellsignal.errors import InputError
from cellsignal.profiles.commands import is_simulated
from cellsignal.profiles.mechanisms import neighbours
from cellsignal.profiles.table import BATCH, PERTURBATION, PLATE, SIMULATED, WELL, Profiles, read_profiles
from cellsignal.run import environment, mounts

EMBEDDINGS, RANDOM_EMBEDDINGS = "embeddings.parquet", "embeddings.random.parquet"


def find_table(table: str, *, run: Path, key: str = "table") -> Path:
    """The file `table`, or if that is empty the embeddings of an attached run, of this one or of those beside it; InputError unless there is one."""
    if table:
        return environment.data_folder(table)
    beside = sorted(run.parent.iterdir()) if run.parent.is_dir() else []
    found = [path / EMBEDDINGS for path in (*mounts.runs(), run, *beside) if (path / EMBEDDINGS).is_file()]
    found = list(dict.fromkeys(path.resolve() for path in found))
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"several tables: {', '.join(map(str, found))}", where=key, cure=f"name one of them as `{key}`")
    raise InputError(
        f"no {EMBEDDINGS} in an attached run, nor beside {run}", where=key,
        cure=f"attach the output of 4-predict-assign, or name a table of profiles as `{key}`")  # fmt: skip


def find_random_table(random_table: str, *, table: Path) -> Path | None:
    """The file `random_table`, or if that is empty RANDOM_EMBEDDINGS beside `table`; where a run has none, prints what writes it, and gives None."""
    if random_table:
        return environment.data_folder(random_table)
    beside = table.with_name(RANDOM_EMBEDDINGS)
    if beside.is_file():
        return beside
    if table.name == EMBEDDINGS:
        print(f"not compared with random weights: cellsignal embed {table.parent} --weights random --experiments scored --out {beside}")
    return None


def open_table(table: Path, *, data: str = "", cell_types: Sequence[str] = ()) -> tuple[Profiles, Path | None]:
    """The profiles of one network, the one with most wells or that of a cell type, and the folder of its plates if they are at hand.

    From here on figures say whether the plates are simulated. InputError for a faulty table, or without such a cell type.
    """
    by_network = read_profiles(table).by_network()
    chosen = next((name for name in by_network if not cell_types or name.partition("/")[0] in cell_types), None)
    if chosen is None:
        raise InputError(f"no network of {', '.join(cell_types)}", where=table, cure=f"choose among {', '.join(by_network)}")
    profiles, plates = by_network[chosen], _plates(table, data)
    simulated.show(is_simulated(table, profiles) or (plates is not None and simulated.is_simulated(plates)))
    if simulated.shown():  # what is written of them says so too
        profiles = replace(profiles, wells=profiles.wells.assign(**{SIMULATED: True}))
    if len(by_network) > 1:
        print(f"network {chosen} of {', '.join(by_network)}: wells.cell_types chooses another")
    return profiles, plates


def _plates(table: Path, data: str) -> Path | None:
    """The folder `data`, that of the table's run, or an attached one."""
    if data:
        return environment.data_folder(data)
    recipe = files.read_json(table.parent / "recipe.json") if (table.parent / "recipe.json").is_file() else {}
    named = recipe.get("parameters", {}).get("data") if isinstance(recipe, dict) else ""
    folders = [table.parent / "data", *([environment.data_folder(named)] if named else []), *mounts.data_sets()]
    return next((folder for folder in folders if _has_tables(folder)), None)


def _has_tables(folder: Path) -> bool:
    """Whether a folder holds tables of plates; a metadata.csv may belong to other data."""
    try:
        read_tables(folder)
    except InputError:
        return False
    return True


def neighbour_images(
    profiles: Profiles, plates: Path | None, perturbation: str, *, count: int = 3, wells: int = 5
) -> tuple[list[np.ndarray], list[str], list[str]]:
    """Images uint8[C, H, W], titles and row names of wells of a perturbation, of its `count` nearest neighbours and of untreated wells.

    The first site of `wells` wells each, from different batches first. Nothing where no plates are at hand; wells that they lack, or
    whose images cannot be read, are left out. InputError for faulty tables.
    """
    if plates is None:
        return [], [], []
    sites = read_tables(plates).sites.drop_duplicates("id_code")
    stems = dict(zip(zip(sites["experiment"], sites["plate"].astype(str), sites["well"]), sites["stem"]))
    near = neighbours(profiles, count)
    near = near[near["perturbation"] == perturbation]
    treated = profiles.wells[profiles.treated].groupby(PERTURBATION)
    rows = {perturbation: treated.get_group(perturbation)}
    rows |= {f"{row.neighbour} ({row.similarity:.2f})": treated.get_group(row.neighbour) for row in near.itertuples()}
    rows["untreated"] = profiles.wells[profiles.negative_controls]
    images, titles, names = [], [], []
    for name, chosen in rows.items():
        for well in _spread(chosen).head(wells).itertuples(index=False):
            batch, plate, position = (str(getattr(well, column)) for column in (BATCH, PLATE, WELL))
            stem = stems.get((batch, plate.removeprefix(f"{batch}_"), position))
            try:
                image = None if stem is None else read_site(plates, stem)
            except InputError:
                continue
            if image is not None:
                images.append(image)
                titles.append(f"{batch} {position}")
                names.append(name)
    return images, titles, names


def _spread(wells: pd.DataFrame) -> pd.DataFrame:
    """The wells in another order: the first of each batch, then the second of each."""
    return wells.iloc[np.argsort(wells.groupby(BATCH).cumcount().to_numpy(), kind="stable")]
