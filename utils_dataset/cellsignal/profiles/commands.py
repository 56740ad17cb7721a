"""The command `cellsignal profile`: a table of profiles corrected, and measured beside the uncorrected one."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cellsignal import files
from cellsignal.code_identity import package_code
from cellsignal.data import simulated
from cellsignal.errors import InputError, check_can_write
from cellsignal.profiles.activity import Activity, activity
from cellsignal.profiles.correct import UNCORRECTED, steps
from cellsignal.profiles.mechanisms import has_mechanisms, means, mechanism_accuracy, neighbours
from cellsignal.profiles.retrieval import Retrieval, retrieve
from cellsignal.profiles.settings import ProfileSettings
from cellsignal.profiles.table import BATCH, PERTURBATION, PLATE, WELL, Profiles, read_profiles
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
    """The profiles of one network by name: `uncorrected`, `corrected`, and with a second table both of `random weights`."""

    network: str  # "" where the table names none
    settings: ProfileSettings
    measured: Mapping[str, Measured]

    @property
    def corrected(self) -> Profiles:
        """The corrected profiles."""
        return self.measured[CORRECTED].profiles

    @property
    def notes(self) -> list[str]:
        """What was not measured, and why."""
        profiles, found = self.corrected, [note for each in self.measured.values() for note in each.notes]
        if (learnt := int(profiles.learnt.sum())) and not (profiles.learnt & profiles.treated).any():
            found.append(f"{learnt:,} wells are not measured because the network has learnt from their labels (Metadata_Split train)")
        elif learnt:
            found.append("the network has learnt from the labels of all treated wells: retrieval says how well it remembers them")
        return list(dict.fromkeys(found))

    @property
    def retrieval(self) -> pd.DataFrame:
        """A row per table and restriction."""
        found = _rows({name: each.retrieval.summary for name, each in self.measured.items() if each.retrieval})
        return found if len(found) else pd.DataFrame(columns=["profiles", "restriction"])

    @property
    def activity(self) -> pd.DataFrame:
        """A row per table: perturbations, those that do something, and the median distance to untreated wells."""
        found = {name: each.activity for name, each in self.measured.items() if each.activity}
        return pd.DataFrame([
            {"profiles": name, "perturbations": len(each.perturbations), "active": each.active, "median_distance": each.perturbations["distance"].median()}
            for name, each in found.items()
        ])  # fmt: skip

    @property
    def strongest(self) -> str:
        """The treatment that lies furthest from untreated wells; where activity is not measured, the first by name."""
        found = self.measured[CORRECTED].activity
        return found.perturbations.set_index("perturbation")["distance"].idxmax() if found else means(self.corrected).wells[PERTURBATION].iloc[0]

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
        """What profile.json says of this network."""
        return {
            "network": self.network,
            "wells": len(self.corrected.wells),
            "plates": int(self.corrected.plates.max() + 1),
            "features": {name: len(each.profiles.names) for name, each in self.measured.items()},
            "retrieval": _plain(self.retrieval),
            "activity": _plain(self.activity),
            "mechanisms": _plain(self.mechanisms),
            "notes": self.notes,
        }


def _rows(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([table.assign(profiles=name)[["profiles", *table]] for name, table in tables.items()], ignore_index=True) if tables else pd.DataFrame()


def _plain(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows for JSON, None for missing numbers."""
    return [{name: None if value != value else value for name, value in row.items()} for row in table.astype(object).to_dict("records")]


def profile(
    profiles: Profiles, settings: ProfileSettings = ProfileSettings(), *, random: Profiles | None = None, every_step: bool = False, progress: bool = True
) -> Result:
    """Correct the profiles of one network and measure them before and after, or after every step.

    random: the same wells seen by a network with random weights. InputError when a step is impossible on these wells, or `random`
    has others.
    """
    measured = _before_and_after(profiles, settings, names=(UNCORRECTED, CORRECTED), every_step=every_step, progress=progress)
    if random is not None:
        names = (f"{RANDOM}, {UNCORRECTED}", f"{RANDOM}, {CORRECTED}")
        measured |= _before_and_after(_same_wells(profiles, random), settings, names=names, every_step=False, progress=progress)
    return Result(next(iter(profiles.by_network())), settings, measured)


def check_folder(out: Path, *tables: Path | None) -> None:
    """InputError unless results can go into the folder `out` and leave the `tables` they are made of as they are."""
    if out.exists() and not out.is_dir():
        raise InputError("is a file", where=out, cure="name a folder with --out")
    check_can_write(out / RECEIPT)
    for table in tables:
        if table and os.path.realpath(table) in [os.path.realpath(out / name) for name in (PROFILES, PERTURBATIONS, NEIGHBOURS)]:
            raise InputError("would be overwritten by its results", where=table, cure="name another folder with --out")
    if not (out / RECEIPT).exists() and (foreign := [name for name in (PROFILES, PERTURBATIONS, NEIGHBOURS, RESULT) if (out / name).exists()]):
        raise InputError("is there, and no receipt says that `cellsignal profile` wrote it", where=out / foreign[0], cure="remove it if it is the unfinished result of an earlier call, or name another folder with --out")


def profile_table(table: Path, settings: ProfileSettings = ProfileSettings(), *, random: Path | None = None, progress: bool = True) -> list[Result]:
    """The results of each network of a table; InputError as `read_profiles` and `profile` raise it."""
    profiles, others = read_profiles(table), read_profiles(random) if random else None
    return [profile(each, settings, random=others, progress=progress) for each in profiles.by_network().values()]


def _same_wells(profiles: Profiles, random: Profiles) -> Profiles:
    """The wells of the first table in the second, in the order of the first."""
    key, other = (pd.MultiIndex.from_frame(each.wells[[BATCH, PLATE, WELL]]) for each in (profiles, random))
    if len(lacking := key.difference(other)):
        batch, plate, well = lacking[0]
        what = f"lacks {len(lacking)} wells of {profiles.where}, such as {well} on plate {plate} of {batch}"
        raise InputError(what, where=random.where, cure="write both tables from the same plates")
    found = Profiles(profiles.wells, random.features[other.get_indexer(key)], random.names, random.where).without_missing_features()
    if np.isnan(found.features).any():
        raise InputError(f"its networks have different features in the wells of one network of {profiles.where}", where=random.where, cure="write both tables with the same networks")
    return found


def _before_and_after(
    profiles: Profiles, settings: ProfileSettings, *, names: tuple[str, str], every_step: bool, progress: bool
) -> dict[str, Measured]:
    (_, first), *others = steps(profiles, settings)
    before_sphering = [each for name, each in [(names[0], first), *others] if name != "sphered"][-1]
    as_it_is = ProfileSettings(**settings.model_dump() | {"center": "none"})
    measured = {names[0]: measure(first, as_it_is, progress=progress)}
    for name, each in others[:-1] if every_step else []:
        measured[name] = measure(each, settings, progress=progress)
    return measured | {names[1]: measure(others[-1][1] if others else first, settings, before_sphering=before_sphering, progress=progress)}


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
    count = max(len(found.perturbations) if found else 0, retrieval.summary["perturbations"].max() if retrieval else 0)
    if count > settings.significance * (settings.permutations + 1):
        least = math.ceil(count / settings.significance) - 1
        notes.append(f"no single perturbation among {count:,} can be significant after correction; give --permutations {least} or more")
    return Measured(profiles, retrieval, found, mechanism_accuracy(profiles) if has_mechanisms(profiles) else None, notes)


def write(results: Sequence[Result], out: Path, *, table: Path, random: Path | None = None) -> dict[str, Any]:
    """Write the corrected table, the tables of perturbations and neighbours, profile.json, and last the receipt, each atomically; returns profile.json.

    Rows of several networks stand below each other.
    """
    out = Path(out)
    settings = results[0].settings.model_dump()
    simulated_plates = is_simulated(table, results[0].corrected)
    names = {"table": Path(table).name, "random_table": Path(random).name if random else None, "simulated": simulated_plates}
    record = {**names, "settings": settings, "networks": [result.record() for result in results]}
    texts = {}  # before anything is written, as a table without known treatments has no neighbours
    for name, of in ((PERTURBATIONS, lambda result: result.perturbations), (NEIGHBOURS, lambda result: neighbours(result.corrected))):
        rows = pd.concat([of(result).assign(**{"network": result.network} if result.network else {}) for result in results], ignore_index=True)
        texts[name] = files.spreadsheet_text(rows)
    files.write_parquet(out / PROFILES, pd.concat([result.corrected.frame() for result in results], ignore_index=True))
    for name, text in texts.items():
        files.write_text(out / name, text)
    files.write_json(out / RESULT, record)
    digests = {"table": files.sha256(table), "random_table": files.sha256(random) if random else ""}
    outputs = {name: files.sha256(out / name) for name in (PROFILES, PERTURBATIONS, NEIGHBOURS, RESULT)}
    Receipt(out / RECEIPT, {**digests, "settings": settings, "code": package_code("profiles")}, outputs).write()
    return record


def is_simulated(table: Path, profiles: Profiles) -> bool:
    """Whether profiles are of simulated plates: by a column of their own, or because their run drew its plates."""
    return profiles.simulated or simulated.is_simulated(Path(table).parent / "data")


def as_text(result: Result) -> str:
    """A few rows for a terminal."""
    corrected = result.corrected
    lines = [f"network {result.network}"] if result.network else []
    lines.append(f"{len(corrected.wells):,} wells on {corrected.plates.max() + 1:,} plates, {len(result.measured[UNCORRECTED].profiles.names):,} features")
    if len(result.retrieval):
        renamed = {"mean_average_precision": "mAP", "recall_at_1": "recall@1", "chance_at_1": "by chance"}
        found = f"fraction_retrieved: share of perturbations with a corrected p-value of at most {result.settings.significance:g}"
        lines += ["", f"retrieval of replicates; {found}", _text(result.retrieval.rename(columns=renamed))]
    if len(result.activity):
        lines += ["", "distance to untreated wells; active: share of perturbations significantly further from untreated wells than equally many untreated wells", _text(result.activity)]
    if len(result.mechanisms):
        lines += ["", "nearest treatment with the same mechanism; not of the same compound (NSC), nor of the same batch (NSCB)", _text(result.mechanisms)]
    return "\n".join([*lines, *(f"note: {note}" for note in result.notes)])


def _text(table: pd.DataFrame) -> str:
    shown = table.assign(**{name: table[name].map("{:.3f}".format) for name in table.select_dtypes(np.floating).columns})
    return shown.to_string(index=False, justify="left")
