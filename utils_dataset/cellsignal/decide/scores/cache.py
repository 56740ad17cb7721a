"""Scores that a prediction goes on from: whole, and made by the same network from the same sites in the same way."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cellsignal.code_identity import package_code
from cellsignal.data.images.reader import image_fingerprint
from cellsignal.decide.scores.files import METADATA, read_scores, write_scores
from cellsignal.errors import InputError
from cellsignal.files import sha256
from cellsignal.receipts import Receipt
from cellsignal.json_schemas import ScoreDetails

COUNTS = ("sites", "images", "seconds")  # of an experiment's facts, which are summed


class ScoreCache:
    """The scores of one kind: `<folder>/<experiment>.parquet`, and their receipt, `<folder>/metadata.json`.

    The receipt holds the identity of what made each file, its SHA-256, and a note among the details: writing it is the
    moment at which the scores come to be. `identities`: what must have made the scores of each experiment,
    in their order; `facts` of the metadata hold for all of them. Starts with what is whole in the folder and
    of its identity, as `tables`; everything else there is removed, and a line says where only the code was other.
    `read` reads a file of the folder.
    """

    def __init__(self, folder: Path, identities: Mapping[str, str], *, read: Callable[[Path], pd.DataFrame] = read_scores,
                 **facts: Any) -> None:
        self.folder, self.identities, self.facts, self.read = folder, identities, facts, read
        self.notes: dict[str, dict[str, Any]] = {}
        self.digests: dict[str, str] = {}  # by the file's name
        self.tables: dict[str, pd.DataFrame] = {}
        found = read_receipt(folder)
        if other := [name for name, made_by in found.identity.items() if _of_other_code(made_by, identities.get(name, ""))]:
            print(f"{folder.name}: other code made the scores of {', '.join(other)}; they are predicted again")
        for experiment, table in self._usable(found):
            self.notes[experiment], self.tables[experiment] = found.details["experiments"][experiment], table
            self.digests[f"{experiment}.parquet"] = found.outputs[f"{experiment}.parquet"]
        for path in folder.glob("*.parquet"):
            if path.stem not in self.notes:
                path.unlink()
        if self.notes:
            self._write()
        else:
            (folder / METADATA).unlink(missing_ok=True)

    @property
    def missing(self) -> list[str]:
        """The experiments without scores."""
        return [experiment for experiment in self.identities if experiment not in self.tables]

    def add(self, experiment: str, table: pd.DataFrame, facts: Mapping[str, Any]) -> None:
        """Write the scores of one experiment, and the note that makes them count."""
        path = write_scores(self.folder, table, experiment=experiment)
        self.notes[experiment], self.digests[path.name] = dict(facts), sha256(path)
        self.tables[experiment] = table
        self._write()

    def stacked(self) -> pd.DataFrame:
        """The scores so far, in the order of `identities`; without any, an empty table."""
        tables = [self.tables[experiment] for experiment in self.identities if experiment in self.tables]
        # Cell types may have been trained on different classes; an absent class is impossible, not unknown.
        return pd.concat(tables).fillna(-np.inf) if tables else pd.DataFrame(index=pd.Index([], name="id_code", dtype=object))

    def _write(self) -> None:
        notes = {experiment: self.notes[experiment] for experiment in self.identities if experiment in self.notes}
        sums = {key: sum(note[key] for note in notes.values()) for key in COUNTS[1:]}
        identity, outputs = {name: self.identities[name] for name in notes}, {f"{name}.parquet": self.digests[f"{name}.parquet"] for name in notes}
        details = {"values": "natural-log probabilities", **self.facts, **sums, "experiments": notes}
        Receipt(self.folder / METADATA, identity, outputs, details=details).write()

    def _usable(self, receipt: Receipt) -> Iterator[tuple[str, pd.DataFrame]]:
        """Experiment and scores of what is whole and of its identity; the folder may hold anything."""
        for experiment, note in receipt.details["experiments"].items():
            path = self.folder / f"{experiment}.parquet"
            if experiment in self.identities and receipt.identity.get(experiment) == self.identities[experiment] and _is_whole(note):
                if path.is_file() and sha256(path) == receipt.outputs.get(path.name) and (table := self._read(path)) is not None:
                    yield experiment, table

    def _read(self, path: Path) -> pd.DataFrame | None:
        """The table of a file; None where it holds none that can be used."""
        try:
            return self.read(path)
        except InputError:
            return None


def read_embeddings(path: Path) -> pd.DataFrame:
    """Embeddings of wells: index id_code, columns 0 to F - 1, float32; InputError when a file holds none."""
    try:
        table = pd.read_parquet(path).set_index("id_code")
        return table.rename(columns=int).astype(np.float32)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"holds no embeddings ({error})", where=path, cure="predict again") from None


def cache_key(root: Path, sites: pd.DataFrame, **made_with: Any) -> str:
    """SHA-256 over all that decides an experiment's scores: its sites, `made_with`, and the code that makes scores.

    `sites`: as `predict_experiment` takes them. The first image of each plate, or its file in a store, stands for all of its images.
    """
    facts = {
        **made_with,
        "sites": hashlib.sha256(sites[["id_code", "stem", "plate", "well_type"]].to_csv(index=False).encode()).hexdigest(),
        "images": [image_fingerprint(root, stem) for stem in sites.groupby("plate")["stem"].min()],
    }
    return with_code(facts)


def with_code(facts: Mapping[str, Any]) -> str:
    """SHA-256 over facts, a dot, and SHA-256 over the code that makes scores."""
    return f"{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}.{code()}"


@cache
def code() -> str:
    """SHA-256 over the rooms of this package that make scores."""
    return hashlib.sha256(json.dumps(package_code("decide")).encode()).hexdigest()


def read_receipt(folder: Path) -> Receipt:
    """The receipt of a folder of scores; an empty one where there is none, or a damaged one."""
    return Receipt.find(folder / METADATA, ScoreDetails) or Receipt(folder / METADATA, details={"experiments": {}})


def read_notes(folder: Path) -> dict[str, dict[str, Any]]:
    """The notes on record in a folder of scores, by experiment."""
    return read_receipt(folder).details["experiments"]


def _of_other_code(theirs: Any, identity: str) -> bool:
    """Whether an identity on record differs in the code alone."""
    return isinstance(theirs, str) and theirs != identity and theirs.partition(".")[0] == identity.partition(".")[0]


def _is_whole(note: Mapping[str, Any]) -> bool:
    """Whether a note says all that is summed up."""
    return isinstance(note.get("gathered"), dict) and all(type(note.get(key)) in (int, float) for key in COUNTS)


# Scores read back as an earlier prediction left them: a decision on them needs neither networks nor images.


CURE = "start --from weights, which predicts them again"


def read_stored_scores(folder: Path, sites: pd.DataFrame, *, read: Callable[[Path], pd.DataFrame] = read_scores) -> pd.DataFrame:
    """The scores of the treatment wells in `sites` that lie in `folder`, whatever network made them.

    Index id_code, one column per class number, float32 natural-log probabilities, or whatever `read` reads
    from a file. Raises InputError when those of an
    experiment are missing, lack a well, or are not the file that metadata.json names.
    """
    written = read_receipt(folder)
    treatments = sites[sites["well_type"] == "treatment"]
    tables = [
        _read(folder / f"{experiment}.parquet", written, mine["id_code"].unique(), read=read)
        for (_, experiment), mine in treatments.groupby(["cell_type", "experiment"], sort=True)
    ]
    return pd.concat(tables).fillna(-np.inf) if tables else pd.DataFrame(index=pd.Index([], name="id_code", dtype=object))


def _read(path: Path, written: Receipt, id_codes: np.ndarray, *, read: Callable[[Path], pd.DataFrame]) -> pd.DataFrame:
    """The scores of one experiment, its wells in this order."""
    if not path.is_file():
        raise InputError("no such scores", where=path, cure=CURE)
    if sha256(path) != written.outputs.get(path.name):
        raise InputError("not the scores that metadata.json beside them names", where=path, cure=CURE)
    table = read(path)
    missing = pd.Index(id_codes).difference(table.index)
    if len(missing):
        raise InputError(f"no scores of {len(missing)} wells, such as {missing[0]}", where=path, cure=CURE)
    return table.loc[id_codes]
