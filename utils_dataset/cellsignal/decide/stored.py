"""Scores read back as an earlier prediction left them: a decision on them needs neither networks nor images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from cellsignal.decide.kept import read_notes
from cellsignal.decide.scores import read_scores
from cellsignal.errors import InputError
from cellsignal.files import sha256

CURE = "start --from weights, which predicts them again"


def stored_scores(folder: Path, sites: pd.DataFrame, *, read: Callable[[Path], pd.DataFrame] = read_scores) -> pd.DataFrame:
    """The scores of the treatment wells in `sites` that lie in `folder`, whatever network made them.

    Index id_code, one column per class number, float32 natural-log probabilities, or whatever `read` reads
    from a file. Raises InputError when those of an
    experiment are missing, lack a well, or are not the file that metadata.json names.
    """
    notes = read_notes(folder)
    treatments = sites[sites["well_type"] == "treatment"]
    tables = [
        _read(folder / f"{experiment}.parquet", notes.get(experiment), mine["id_code"].unique(), read=read)
        for (_, experiment), mine in treatments.groupby(["cell_type", "experiment"], sort=True)
    ]
    return pd.concat(tables).fillna(-np.inf) if tables else pd.DataFrame(index=pd.Index([], name="id_code", dtype=object))


def _read(path: Path, note: object, id_codes: np.ndarray, *, read: Callable[[Path], pd.DataFrame]) -> pd.DataFrame:
    """The scores of one experiment, its wells in this order."""
    if not path.is_file():
        raise InputError("no such scores", where=path, cure=CURE)
    if not isinstance(note, dict) or sha256(path) != note.get("sha256"):
        raise InputError("not the scores that metadata.json beside them names", where=path, cure=CURE)
    table = read(path)
    missing = pd.Index(id_codes).difference(table.index)
    if len(missing):
        raise InputError(f"no scores of {len(missing)} wells, such as {missing[0]}", where=path, cure=CURE)
    return table.loc[id_codes]
