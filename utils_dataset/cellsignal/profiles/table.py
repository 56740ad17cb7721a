"""A table of profiles: one row per well, with the columns that image-based profiling expects.

`Metadata_Plate`, `Metadata_Well`, `Metadata_Batch` (the experiment), `Metadata_Perturbation` (empty where unknown) and
`Metadata_Control_Type` (negcon, poscon, treatment or empty) are needed; `Metadata_Control` must agree with the type;
`Metadata_Compound`, `Metadata_Mechanism`, `Metadata_Network`, `Metadata_Split` and `Metadata_Simulated` are read where there are
any. Every other numeric column is a feature, and every
other `Metadata_` column is kept.
"""

import io
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from cellsignal.data.tables import headers
from cellsignal.errors import InputError
from cellsignal.files import gigabytes, open_regular, sha256
from cellsignal.receipts import Receipt

PLATE, WELL, BATCH = "Metadata_Plate", "Metadata_Well", "Metadata_Batch"
PERTURBATION, CONTROL_TYPE, CONTROL = "Metadata_Perturbation", "Metadata_Control_Type", "Metadata_Control"
COMPOUND, MECHANISM = "Metadata_Compound", "Metadata_Mechanism"
NETWORK, SPLIT, SIMULATED = "Metadata_Network", "Metadata_Split", "Metadata_Simulated"  # of the embeddings of a run
REQUIRED = (PLATE, WELL, BATCH, PERTURBATION, CONTROL_TYPE)
CONTROL_TYPES = ("negcon", "poscon", "treatment", "empty")
TRUTH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}  # of Metadata_Control and Metadata_Simulated, in lower case
UNTRUE = ("", *(text for text, truth in TRUTH.items() if not truth))
SUFFIXES = (".parquet", ".csv", ".csv.gz", ".h5ad")
MAX_RATIO = 100  # bytes in the memory by byte of a file: measurements pack ten times smaller at best, equal numbers thousands of times


@dataclass(frozen=True)
class Profiles:
    """Wells and their features."""

    wells: pd.DataFrame  # a row per well, the columns Metadata_*
    features: np.ndarray  # float32[wells, features]
    names: list[str]  # of the features
    where: str = "profiles"  # the file, for messages

    @cached_property
    def plates(self) -> np.ndarray:
        """The number of each well's plate, int[wells]; a plate's name may occur in several batches."""
        return self.wells.groupby([BATCH, PLATE], sort=True, observed=True).ngroup().to_numpy()

    @cached_property
    def perturbations(self) -> np.ndarray:
        """The number of each well's perturbation, int[wells]; -1 where it is unknown."""
        return pd.factorize(self.wells[PERTURBATION], sort=True)[0]

    @property
    def negative_controls(self) -> np.ndarray:
        """Which wells are untreated, bool[wells]."""
        return (self.wells[CONTROL_TYPE] == "negcon").to_numpy()

    @cached_property
    def learnt(self) -> np.ndarray:
        """Which treated wells a network has learnt from, bool[wells]: similar to each other whatever their images show."""
        learnt = (self.wells[SPLIT] == "train").to_numpy() if SPLIT in self.wells else np.zeros(len(self.wells), bool)
        return learnt & (self.wells[CONTROL_TYPE] == "treatment").to_numpy()

    @cached_property
    def treated(self) -> np.ndarray:
        """Which wells are measured, bool[wells]: treatments of known perturbation, without those that a network has learnt from."""
        known = (self.wells[CONTROL_TYPE] == "treatment").to_numpy() & (self.perturbations >= 0)
        return known & ~self.learnt if (known & ~self.learnt).any() else known

    @property
    def simulated(self) -> bool:
        """Whether the table says that its plates are simulated."""
        return SIMULATED in self.wells and not self.wells[SIMULATED].dropna().astype(str).str.lower().isin(UNTRUE).all()

    def plate_name(self, number: int) -> str:
        """The name of a plate, for messages."""
        row = self.wells.iloc[int(np.flatnonzero(self.plates == number)[0])]
        return f"plate {row[PLATE]} of {row[BATCH]}"

    def by_network(self) -> dict[str, "Profiles"]:
        """The wells of each network, the one with most wells first, as features of different networks have nothing in common; "" where none is named.

        Each has the features of its network only: those of a larger one are missing in all of its wells.
        """
        if NETWORK not in self.wells:
            return {"": self}
        rows = self.wells.groupby(NETWORK, sort=True, dropna=False).indices
        names = sorted(rows, key=lambda name: -len(rows[name]))
        parts = {str(name): replace(self, wells=self.wells.iloc[rows[name]].reset_index(drop=True), features=self.features[rows[name]]) for name in names}
        return {name: part.without_missing_features() for name, part in parts.items()}

    def without_missing_features(self) -> "Profiles":
        """The same wells without the features that none of them has."""
        missing = np.isnan(self.features).all(axis=0)
        return self.with_features(self.features[:, ~missing], [name for name, each in zip(self.names, missing) if not each]) if missing.any() else self

    def with_features(self, features: np.ndarray, names: list[str] | None = None) -> "Profiles":
        """The same wells with other features."""
        return replace(self, features=features, names=self.names if names is None else names)

    def frame(self) -> pd.DataFrame:
        """All columns in one table."""
        return pd.concat([self.wells, pd.DataFrame(self.features, columns=self.names, index=self.wells.index)], axis=1)


def read_profiles(path: Path) -> Profiles:
    """Read .parquet, .csv, .csv.gz or .h5ad (which needs anndata); InputError in one line for a table that is no table of profiles."""
    path = Path(path)
    if not path.is_file():
        raise InputError("no such file", where=path, cure="name a table of profiles, such as the embeddings.parquet of a run")
    suffix = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")
    if not suffix:
        raise InputError("not a file name of profiles", where=path, cure=f"give a file that ends with {', '.join(SUFFIXES)}")
    _check_receipt(path)
    try:
        frame = _read_h5ad(path) if suffix == ".h5ad" else _read_parquet(path) if suffix == ".parquet" else _read_csv(path)
    except InputError:
        raise
    except Exception as error:  # readers raise many kinds of errors for damaged files
        raise InputError(f"cannot be read ({type(error).__name__}: {error})", where=path, cure="write it again") from None
    return from_frame(frame, where=str(path))


def _check_receipt(path: Path) -> None:
    """InputError for a table that is not as the receipt beside it says: that of `cellsignal embed` or of `cellsignal profile`, if there is one."""
    for name in (f"{path.name}.json", "receipt.json"):
        receipt = Receipt.find(path.with_name(name))
        if receipt is not None and path.name in receipt.outputs and sha256(path) != receipt.outputs[path.name]:
            raise InputError(f"not as its receipt {name} says", where=path, cure=f"write it again, or remove {name} if you changed it yourself")


def _read_parquet(path: Path) -> pd.DataFrame:
    """Equal texts are read once, so that their size is known before each row has its own."""
    with open_regular(path) as stream:  # given a name, Arrow takes only those in UTF-8
        file = pa.parquet.ParquetFile(stream)
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        columns = [group.column(number) for group in groups for number in range(group.num_columns)]
        _refuse_size(path, sum(max(column.total_uncompressed_size, 4 * column.num_values) for column in columns))
        schema = file.schema_arrow
        table = pa.parquet.read_table(stream, read_dictionary=[field.name for field in schema if field.type in (pa.string(), pa.large_string())])
    for column in table.columns:
        if pa.types.is_dictionary(column.type) and pa.types.is_string(column.type.value_type):
            longest = (pa.compute.max(pa.compute.binary_length(chunk.dictionary)).as_py() or 0 for chunk in column.chunks)
            _refuse_size(path, sum(len(chunk) * size for chunk, size in zip(column.chunks, longest)))
    return table.cast(schema).to_pandas()


def _refuse_size(path: Path, size: int) -> None:
    """InputError for a table that would become far larger in the memory than its file is."""
    limit = max(headers.MAX_TABLE_BYTES, MAX_RATIO * path.stat().st_size)
    if size > limit:
        raise InputError(f"unpacks to more than {gigabytes(limit)}, as no measurements in a file of its size do", where=path, cure="look what it holds, and write it again")


def _read_csv(path: Path) -> pd.DataFrame:
    """Names are text, as 01 and 1 are two; but 1.0 is 1 where a program made all of them floats because some are missing."""
    headers.require_text(path)
    header = headers.read_header(path)
    if header.separator != ",":
        raise InputError("columns are not separated by commas", where=f"{path}:1", cure="save it as CSV with commas")
    if twice := [name for name in header.names if name and header.names.count(name) > 1]:  # which pandas would rename
        raise InputError(f"two columns {twice[0]}", where=f"{path}:1", cure="rename or drop one")
    names = [name or f"Unnamed: {number}" for number, name in enumerate(header.names)]
    texts = [name for name in (PLATE, WELL, BATCH, PERTURBATION, CONTROL_TYPE, COMPOUND) if name in names]
    with headers.open_table(path) as stream:
        bounded = io.BufferedReader(headers.BoundedStream(stream, lambda size: _refuse_size(path, size)), 1 << 20)
        frame = pd.read_csv(bounded, names=names, header=0, dtype=dict.fromkeys(texts, str), skipinitialspace=True)
    if not isinstance(frame.index, pd.RangeIndex):  # which pandas makes of the cells that are too many
        raise InputError(f"rows have more cells than the header's {len(names)}", where=path, cure="give each column one cell, and write numbers with a decimal point")
    frame[texts] = frame[texts].apply(lambda column: column.str.strip())
    for name in {PERTURBATION, COMPOUND} & set(frame):
        if frame[name].dropna().str.fullmatch(r"-?\d+\.0").all():
            frame[name] = frame[name].str.removesuffix(".0")
    return frame


def _read_h5ad(path: Path) -> pd.DataFrame:
    if find_spec("anndata") is None:
        raise InputError("AnnData files need the library anndata", where=path, cure="pip install anndata, or write the table as Parquet")
    import anndata

    data = anndata.read_h5ad(path)
    values = data.X.toarray() if hasattr(data.X, "toarray") else data.X
    return pd.concat([data.obs, pd.DataFrame(values, index=data.obs_names, columns=data.var_names)], axis=1).reset_index(drop=True)


def from_frame(frame: pd.DataFrame, *, where: str = "profiles") -> Profiles:
    """Profiles of a table; InputError in one line for what is wrong whatever is done with it."""
    if frame.columns.nlevels > 1:
        raise InputError(f"column names of {frame.columns.nlevels} levels", where=where, cure="give each column one name")
    missing = [name for name in REQUIRED if name not in frame.columns]
    if missing:
        raise InputError(f"no column {', '.join(missing)}", where=where, cure=f"name the columns {', '.join(REQUIRED)}; all wells may share one value")
    if not len(frame):
        raise InputError("no row", where=where, cure="write it again")
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise InputError(f"two columns {twice[0]}", where=where, cure="rename or drop one")
    frame = frame.reset_index(drop=True)
    numeric = frame.select_dtypes("number", exclude="timedelta").columns
    _check_features(frame, where)
    names = [name for name in numeric if not str(name).startswith("Metadata_")]
    if not names:
        raise InputError("no numeric column besides Metadata_*", where=where, cure="add the features, a numeric column each")
    wells = frame[[name for name in frame.columns if str(name).startswith("Metadata_")]].copy()
    for name in (PLATE, WELL, BATCH):
        if wells[name].isna().any():
            raise InputError(f"no {name} in row {int(wells[name].isna().to_numpy().argmax()) + 1}", where=where, cure="fill the column")
        wells[name] = wells[name].astype(str)
    known = wells[PERTURBATION].notna() & (wells[PERTURBATION].astype(str) != "")
    wells[PERTURBATION] = wells[PERTURBATION].astype(object).where(known, None).map(_as_text, na_action="ignore")
    _check_control_types(wells, where)
    _check_positions(wells, where)
    with np.errstate(over="ignore"):  # what is too large for float32 is refused as infinite
        features = frame[names].to_numpy(np.float32)
    profiles = Profiles(wells, features, [str(name) for name in names], where)
    _check_values(profiles)
    return profiles


def _check_features(frame: pd.DataFrame, where: str) -> None:
    """InputError for the index of another table, which would be a feature, and for numbers as text, which would be none."""
    for name in frame.columns:
        if str(name).startswith("Metadata_"):
            continue
        if str(name).startswith(("Unnamed: ", "__index_level_")):
            raise InputError(f"the column {name} seems to be an index, not a feature", where=where, cure="write the table without its index (index=False), or name the column Metadata_Index")
        if frame[name].dtype.kind not in "biufcmM" and len(text := frame[name].dropna()):
            numbers = pd.to_numeric(text.astype(str), errors="coerce").isna()
            if numbers.mean() < 0.5:
                row = int(numbers.to_numpy().argmax())
                what = f"the feature {name} is text, such as {str(text.iloc[row])!r} in row {text.index[row] + 1}"
                raise InputError(what, where=where, cure=f"write numbers, or call it Metadata_{name} if it is no feature")


def _as_text(value: object) -> str:
    """A perturbation as text; a number that pandas made a float because others are missing is whole again."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _check_control_types(wells: pd.DataFrame, where: str) -> None:
    types = wells[CONTROL_TYPE].astype(object)
    unknown = types[~types.isin(CONTROL_TYPES)]
    if len(unknown):
        raise InputError(
            f"{CONTROL_TYPE} is {unknown.iloc[0]!r} in row {unknown.index[0] + 1}", where=where, cure=f"write one of {', '.join(CONTROL_TYPES)}")
    wells[CONTROL_TYPE] = types
    is_control = types != "treatment"
    if CONTROL in wells and len(wrong := np.flatnonzero(wells[CONTROL].astype(str).str.lower().map(TRUTH) != is_control)):
        row = int(wrong[0])
        raise InputError(
            f"{CONTROL} is {wells[CONTROL].iloc[row]} and {CONTROL_TYPE} {types.iloc[row]!r} in row {row + 1}", where=where,
            cure=f"{CONTROL} is true for all wells but treatments; or drop that column")  # fmt: skip
    wells[CONTROL] = is_control


def _check_positions(wells: pd.DataFrame, where: str) -> None:
    twice = wells.duplicated([BATCH, PLATE, WELL])
    if twice.any():
        row = wells[twice].iloc[0]
        what = f"{int(twice.sum())} wells are there twice, such as well {row[WELL]} on plate {row[PLATE]} of {row[BATCH]}"
        raise InputError(what, where=where, cure="average the rows of a well, such as its sites, or name plates apart")


def _check_values(profiles: Profiles) -> None:
    wrong = ~np.isfinite(profiles.features)
    if wrong.any() and NETWORK in profiles.wells:  # a smaller network has not all the features of another
        missing = np.isnan(profiles.features)
        for rows in profiles.wells.groupby(NETWORK, dropna=False).indices.values():
            absent = missing[rows].all(axis=0) & ~missing.all(axis=0)
            wrong[np.ix_(rows, absent & ~absent.all())] = False
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        well, features = profiles.wells.iloc[row], wrong.any(axis=0)
        what = f"{profiles.names[column]} is {profiles.features[row, column]} in well {well[WELL]} on plate {well[PLATE]} of {well[BATCH]}"
        raise InputError(
            f"{what} (features with such values: {int(features.sum())} of {len(features)})", where=profiles.where, cure="drop these features, or fill in their median")
    if (np.ptp(profiles.features, axis=0) == 0).all():
        raise InputError("all wells have the same features", where=profiles.where, cure="write the table again")


def constant_features(profiles: Profiles) -> list[str]:
    """The names of features with the same value in all wells."""
    return [name for name, extent in zip(profiles.names, np.ptp(profiles.features, axis=0)) if extent == 0]

