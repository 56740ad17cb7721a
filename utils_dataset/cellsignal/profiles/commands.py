"""The command `cellsignal profile`: a table of profiles corrected, and measured beside the uncorrected one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cellsignal import files
from cellsignal.code_identity import package_code
from cellsignal.data import simulated
from cellsignal.errors import InputError
from cellsignal.profiles.activity import Activity, activity
from cellsignal.profiles.correct import UNCORRECTED, steps
from cellsignal.profiles.mechanisms import has_mechanisms, mechanism_accuracy, neighbours
from cellsignal.profiles.retrieval import Retrieval, retrieve
from cellsignal.profiles.settings import ProfileSettings
from cellsignal.profiles.table import BATCH, PLATE, WELL, Profiles, read_profiles, write_parquet
from cellsignal.receipts import Receipt

CORRECTED, RANDOM = "corrected", "random weights"
PROFILES, PERTURBATIONS, NEIGHBOURS, RESULT, RECEIPT = "profiles.parquet", "perturbations.csv", "neighbours.csv", "profile.json", "receipt.json"


@dataclass(frozen=True)
class Measured:
    """What was measured on one table; None where it cannot be, and `notes` say why."""

    profiles: Profiles
    retrieval: Retrieval | None = None
    activity: Activity | None = None
    mechanisms: pd.DataFrame | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Result:
    """Tables by name: `uncorrected`, `corrected`, and with a second table both of `random weights`."""

    table: Path
    settings: ProfileSettings
    measured: Mapping[str, Measured]
    random: Path | None = None
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def retrieval(self) -> pd.DataFrame:
        """A row per table and restriction."""
        return _rows({name: each.retrieval.summary for name, each in self.measured.items() if each.retrieval})

    @property
    def activity(self) -> pd.DataFrame:
        """A row per table: perturbations, those that do something, and the median distance to untreated wells."""
        found = {name: each.activity for name, each in self.measured.items() if each.activity}
        return pd.DataFrame([
            {"profiles": name, "perturbations": len(each.perturbations), "active": each.active, "median_distance": each.perturbations["distance"].median()}
            for name, each in found.items()
        ])  # fmt: skip

    @property
    def mechanisms(self) -> pd.DataFrame:
        """A row per table and measure, where compounds and mechanisms are known."""
        return _rows({name: each.mechanisms for name, each in self.measured.items() if each.mechanisms is not None})

    @property
    def perturbations(self) -> pd.DataFrame:
        """A row per treatment of the corrected table: distance to untreated wells, and retrieval under each restriction."""
        each, columns = self.measured[CORRECTED], ["mean_average_precision", "recall_at_1", "p_value", "corrected_p_value"]
        parts = []
        if each.activity:
            parts.append(each.activity.perturbations.set_index("perturbation").rename(columns={name: f"distance_{name}" for name in columns[2:]}))
        if each.retrieval:
            for restriction, rows in each.retrieval.perturbations.groupby("restriction", sort=False):
                parts.append(rows.set_index("perturbation")[columns].add_prefix(f"{restriction}: ".replace(" ", "_").replace(":_", ":")))
        return pd.concat(parts, axis=1).rename_axis("perturbation").reset_index() if parts else pd.DataFrame(columns=["perturbation"])

    def record(self) -> dict[str, Any]:
        """profile.json."""
        corrected = self.measured[CORRECTED].profiles
        return {
            "table": self.table.name,
            "random_table": self.random.name if self.random else None,
            "simulated": is_simulated(self.table),
            "wells": len(corrected.wells),
            "plates": int(corrected.plates.max() + 1),
            "features": {name: len(each.profiles.names) for name, each in self.measured.items()},
            "settings": self.settings.model_dump(),
            "retrieval": _plain(self.retrieval),
            "activity": _plain(self.activity),
            "mechanisms": _plain(self.mechanisms),
            "notes": list(self.notes),
        }


def _rows(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([table.assign(profiles=name)[["profiles", *table]] for name, table in tables.items()], ignore_index=True) if tables else pd.DataFrame()


def _plain(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows for JSON, None for missing numbers."""
    return [{name: None if value != value else value for name, value in row.items()} for row in table.astype(object).to_dict("records")]


def profile(table: Path, settings: ProfileSettings = ProfileSettings(), *, random: Path | None = None, progress: bool = True) -> Result:
    """Correct a table and measure it before and after; `random` holds the same wells seen by a network with random weights.

    InputError when a table has a fault, a step is impossible on it, or `random` has other wells.
    """
    profiles = read_profiles(table)
    measured = _before_and_after(profiles, settings, names=(UNCORRECTED, CORRECTED), progress=progress)
    if random is not None:
        other = _same_wells(profiles, read_profiles(random))
        measured |= _before_and_after(other, settings, names=(f"{RANDOM}, {UNCORRECTED}", f"{RANDOM}, {CORRECTED}"), progress=progress)
    notes = list(dict.fromkeys(note for each in measured.values() for note in each.notes))
    return Result(Path(table), settings, measured, random, notes)


def _same_wells(profiles: Profiles, random: Profiles) -> Profiles:
    """The second table in the order of the first."""
    key, other = (pd.MultiIndex.from_frame(each.wells[[BATCH, PLATE, WELL]]) for each in (profiles, random))
    if set(key) != set(other):
        lacking = sorted(set(key) ^ set(other))[0]
        what = f"not the wells of {profiles.where}: only one of the two has well {lacking[2]} on plate {lacking[1]} of {lacking[0]}"
        raise InputError(what, where=random.where, cure="write both tables from the same plates")
    return Profiles(profiles.wells, random.features[other.get_indexer(key)], random.names, random.where)


def _before_and_after(profiles: Profiles, settings: ProfileSettings, *, names: tuple[str, str], progress: bool) -> dict[str, Measured]:
    made = list(steps(profiles, settings))
    before_sphering = [each for name, each in made if name != "sphered"][-1]
    as_it_is = ProfileSettings(**settings.model_dump() | {"center": "none"})
    return {
        names[0]: measure(made[0][1], as_it_is, progress=progress),
        names[1]: measure(made[-1][1], settings, before_sphering=before_sphering, progress=progress),
    }


def measure(profiles: Profiles, settings: ProfileSettings, *, before_sphering: Profiles | None = None, progress: bool = True) -> Measured:
    """Retrieval, activity and accuracy by mechanism of one table; `before_sphering`: the profiles for activity."""
    notes: list[str] = []
    try:
        retrieval = retrieve(profiles, settings, progress=progress)
    except InputError as error:
        retrieval = None
        notes.append(f"retrieval is not measured: {error.what}")
    try:
        found = activity(before_sphering or profiles, settings)
    except InputError as error:
        found = None
        notes.append(f"activity is not measured: {error.what}")
    return Measured(profiles, retrieval, found, mechanism_accuracy(profiles) if has_mechanisms(profiles) else None, notes)


def write(result: Result, out: Path) -> None:
    """Write the corrected table, the tables of perturbations and neighbours, profile.json, and last the receipt, each atomically."""
    out = Path(out)
    corrected = result.measured[CORRECTED].profiles
    write_parquet(corrected, out / PROFILES)
    files.write_text(out / PERTURBATIONS, result.perturbations.to_csv(index=False))
    files.write_text(out / NEIGHBOURS, neighbours(corrected).to_csv(index=False))
    files.write_json(out / RESULT, result.record())
    identity = {
        "table": files.sha256(result.table),
        "random_table": files.sha256(result.random) if result.random else "",
        "settings": result.settings.model_dump(),
        "code": package_code("profiles"),
    }
    Receipt(out / RECEIPT, identity, {name: files.sha256(out / name) for name in (PROFILES, PERTURBATIONS, NEIGHBOURS, RESULT)}).write()


def is_simulated(table: Path) -> bool:
    """Whether a table of a run folder is of simulated plates: those of the run, or by its metrics."""
    metrics = Path(table).parent / "metrics.json"
    told = files.read_json(metrics) if metrics.is_file() else {}
    return simulated.is_simulated(Path(table).parent / "data") or (isinstance(told, dict) and told.get("simulated") is True)


def as_text(result: Result) -> str:
    """A few rows for a terminal."""
    lines = ["simulated data"] if is_simulated(result.table) else []
    corrected = result.measured[CORRECTED].profiles
    lines.append(f"{len(corrected.wells):,} wells on {corrected.plates.max() + 1:,} plates, {len(result.measured[UNCORRECTED].profiles.names):,} features")
    if len(result.retrieval):
        renamed = {"mean_average_precision": "mAP", "recall_at_1": "recall@1", "chance_at_1": "by chance"}
        lines += ["", "retrieval of replicates; found: share of perturbations with a corrected p-value "
                  f"of at most {result.settings.significance:g}", _text(result.retrieval.rename(columns=renamed))]  # fmt: skip
    if len(result.activity):
        lines += ["", "distance to untreated wells; active: share of perturbations that lie further off than as many of these", _text(result.activity)]
    if len(result.mechanisms):
        lines += ["", "nearest treatment with the same mechanism; not of the same compound (NSC), nor of the same batch (NSCB)", _text(result.mechanisms)]
    return "\n".join([*lines, *(f"note: {note}" for note in result.notes)])


def _text(table: pd.DataFrame) -> str:
    shown = table.assign(**{name: table[name].map("{:.3f}".format) for name in table.select_dtypes(np.floating).columns})
    return shown.to_string(index=False, justify="left")
