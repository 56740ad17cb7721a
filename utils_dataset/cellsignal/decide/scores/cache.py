"""The cache of scores: reused if complete and made by the same network from the same sites with the same options."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cellsignal.code_identity import package_code
from cellsignal.decide.scores.files import METADATA, read_scores, write_scores
from cellsignal.errors import InputError
from cellsignal.files import open_regular, sha256
from cellsignal.json_schemas import ScoreDetails
from cellsignal.receipts import Receipt

COUNT_KEYS = ("sites", "images", "seconds")  # numbers in the note of an experiment; all but the first are summed in the metadata


class ScoreCache:
    """The scores of one kind: `<folder>/<experiment>.parquet`, and their receipt, `<folder>/metadata.json`.

    The receipt holds the identity and the SHA-256 of each file, and a note among the details; scores count once it is written.
    `identities`: of the scores of each experiment, in order; `facts`: details that hold for all of them; `read`: reads a file of
    the folder. At first `tables` holds the complete scores in the folder with the right identity; all other scores there are
    removed, and a line reports those that differ in the code only.
    """

    def __init__(self, folder: Path, identities: Mapping[str, str], *, read: Callable[[Path], pd.DataFrame] = read_scores,
                 **facts: Any) -> None:
        self.folder, self.identities, self.facts, self.read = folder, identities, facts, read
        self.notes: dict[str, dict[str, Any]] = {}
        self.digests: dict[str, str] = {}  # by file name
        self.tables: dict[str, pd.DataFrame] = {}
        receipt = read_receipt(folder)
        if outdated := [name for name, identity in receipt.identity.items() if _differs_in_code_only(identity, identities.get(name, ""))]:
            print(f"{folder.name}: other code made the scores of {', '.join(outdated)}; they are predicted again")
        for experiment, table in self._usable(receipt):
            self.notes[experiment], self.tables[experiment] = receipt.details["experiments"][experiment], table
            self.digests[f"{experiment}.parquet"] = receipt.outputs[f"{experiment}.parquet"]
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
        """Write the scores of one experiment and its note."""
        path = write_scores(self.folder, table, experiment=experiment)
        self.notes[experiment], self.digests[path.name] = dict(facts), sha256(path)
        self.tables[experiment] = table
        self._write()

    def stacked(self) -> pd.DataFrame:
        """All scores so far, in the order of `identities`; an empty table if there are none."""
        tables = [self.tables[experiment] for experiment in self.identities if experiment in self.tables]
        # Cell types may have been trained on different classes; a missing class is impossible (-inf).
        return pd.concat(tables).fillna(-np.inf) if tables else pd.DataFrame(index=pd.Index([], name="id_code", dtype=object))

    def _write(self) -> None:
        notes = {experiment: self.notes[experiment] for experiment in self.identities if experiment in self.notes}
        sums = {key: sum(note[key] for note in notes.values()) for key in COUNT_KEYS[1:]}
        identity, outputs = {name: self.identities[name] for name in notes}, {f"{name}.parquet": self.digests[f"{name}.parquet"] for name in notes}
        details = {"values": "natural-log probabilities", **self.facts, **sums, "experiments": notes}
        Receipt(self.folder / METADATA, identity, outputs, details=details).write()

    def _usable(self, receipt: Receipt) -> Iterator[tuple[str, pd.DataFrame]]:
        """Yield experiment and scores of complete files with the right identity."""
        for experiment, note in receipt.details["experiments"].items():
            path = self.folder / f"{experiment}.parquet"
            if experiment in self.identities and receipt.identity.get(experiment) == self.identities[experiment] and _is_complete(note):
                if path.is_file() and sha256(path) == receipt.outputs.get(path.name) and (table := self._read(path)) is not None:
                    yield experiment, table

    def _read(self, path: Path) -> pd.DataFrame | None:
        """The table of a file; None if it cannot be read."""
        try:
            return self.read(path)
        except InputError:
            return None


def read_embeddings(path: Path) -> pd.DataFrame:
    """Embeddings of wells: index id_code, columns 0 to F - 1, float32; InputError if a file holds none."""
    try:
        with open_regular(path) as stream:  # given a name, Arrow takes only those in UTF-8
            table = pd.read_parquet(stream).set_index("id_code")
        return table.rename(columns=int).astype(np.float32)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"holds no embeddings ({error})", where=path, cure="predict again") from None


def cache_key(sites: pd.DataFrame, images: Mapping[str, str], **options: Any) -> str:
    """The identity of an experiment's scores: a hash of its sites, the `options`, and the code that computes scores.

    `sites`: as in `predict_experiment`. `images`: the fingerprints of their images (`folder_fingerprints`).
    """
    facts = {
        **options,
        "sites": hashlib.sha256(sites[["id_code", "stem", "plate", "well_type"]].to_csv(index=False).encode()).hexdigest(),
        "images": dict(images),
    }
    return identity_with_code(facts)


def identity_with_code(facts: Mapping[str, Any]) -> str:
    """SHA-256 of the facts, a dot, and SHA-256 of the code that computes scores."""
    return f"{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}.{scoring_code()}"


@cache
def scoring_code() -> str:
    """SHA-256 of the parts of this package that compute scores."""
    return hashlib.sha256(json.dumps(package_code("decide")).encode()).hexdigest()


def read_receipt(folder: Path) -> Receipt:
    """The receipt of a folder of scores; an empty one if it is missing or damaged."""
    return Receipt.find(folder / METADATA, ScoreDetails) or Receipt(folder / METADATA, details={"experiments": {}})


def read_notes(folder: Path) -> dict[str, dict[str, Any]]:
    """The notes in the receipt of a folder of scores, by experiment."""
    return read_receipt(folder).details["experiments"]


def _differs_in_code_only(recorded: Any, identity: str) -> bool:
    """Whether a recorded identity differs in the code alone."""
    return isinstance(recorded, str) and recorded != identity and recorded.partition(".")[0] == identity.partition(".")[0]


def _is_complete(note: Mapping[str, Any]) -> bool:
    """Whether a note holds all numbers that are summed."""
    return isinstance(note.get("gathered"), dict) and all(type(note.get(key)) in (int, float) for key in COUNT_KEYS)


# Stored scores of an earlier prediction: an assignment by them needs neither networks nor images.


PREDICT_AGAIN = "start --from weights, which predicts them again"


def read_stored_scores(folder: Path, sites: pd.DataFrame, *, read: Callable[[Path], pd.DataFrame] = read_scores) -> pd.DataFrame:
    """The scores in `folder` of the treatment wells in `sites`, whatever network made them.

    Index id_code, one column per class number, float32 natural-log probabilities, or what `read` returns for a file. Raises
    InputError if the scores of an experiment are missing, lack a well, or differ from the SHA-256 in metadata.json.
    """
    receipt = read_receipt(folder)
    treatments = sites[sites["well_type"] == "treatment"]
    tables = [
        _read_stored(folder / f"{experiment}.parquet", receipt, wells["id_code"].unique(), read=read)
        for (_, experiment), wells in treatments.groupby(["cell_type", "experiment"], sort=True)
    ]
    return pd.concat(tables).fillna(-np.inf) if tables else pd.DataFrame(index=pd.Index([], name="id_code", dtype=object))


def _read_stored(path: Path, receipt: Receipt, id_codes: np.ndarray, *, read: Callable[[Path], pd.DataFrame]) -> pd.DataFrame:
    """The scores of one experiment, in the order of `id_codes`."""
    if not path.is_file():
        raise InputError("no such scores", where=path, cure=PREDICT_AGAIN)
    if sha256(path) != receipt.outputs.get(path.name):
        raise InputError("not the scores that metadata.json beside them names", where=path, cure=PREDICT_AGAIN)
    table = read(path)
    missing = pd.Index(id_codes).difference(table.index)
    if len(missing):
        raise InputError(f"no scores of {len(missing)} wells, such as {missing[0]}", where=path, cure=PREDICT_AGAIN)
    return table.loc[id_codes]
