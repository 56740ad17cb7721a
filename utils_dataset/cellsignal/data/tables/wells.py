"""Tables of wells and sites, read from the competition's files, from the public release, or from the benchmark RxRx1-WILDS."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from cellsignal.data.tables import headers, schema
from cellsignal.errors import InputError, Problem, name_advice, raise_if_any
from cellsignal.tasks import RXRX1

COLUMNS = ["id_code", "experiment", "cell_type", "plate", "well", "well_type", "sirna", "dataset"]
_POSITION = ["experiment", "plate", "well"]
_TABLES = {
    "train.csv": schema.TrainRow,
    "train_controls.csv": schema.ControlRow,
    "test.csv": schema.TestRow,
    "test_controls.csv": schema.ControlRow,
}
_OPTIONAL = {"sample_submission.csv": schema.SampleRow, "solution.csv": schema.SolutionRow}
# Where an experiment's images lie: Kaggle's tree, the same below images/, rxrx.ai's tree.
_TREES = ("{dataset}/{experiment}", "images/{dataset}/{experiment}", "images/{experiment}")


@dataclass(frozen=True)
class Tables:
    """A data set without its pixels."""

    root: Path  # folder of the data set
    source: str  # "kaggle" | "rxrx.ai"
    wells: pd.DataFrame  # one row per well, columns COLUMNS; sirna is <NA> for test treatments
    sites: pd.DataFrame  # one row per site: wells' columns, site, stem (path without "_w1.png")
    sample: list[str]  # id_codes in the order a submission has
    solution: pd.Series | None  # sirna by id_code of test treatments, where it is known


def read_tables(root: Path) -> Tables:
    """Read the competition's tables, or the public release's metadata.csv, from a folder.

    Rows are sorted by data set (train first), experiment, plate and well.
    Raises InputError naming file, line and column of the first fault.
    """
    root = Path(root)
    if (root / "train.csv").exists():
        return _read_kaggle(root)
    if (root / "metadata.csv").exists():
        return _read_release(root)
    what = "neither train.csv nor metadata.csv is there" if root.is_dir() else "no such folder"
    raise InputError(what, where=root, cure="name the folder that holds the tables")


def read_solution(path: Path) -> pd.Series:
    """The true class by id_code, from a solution.csv; raises InputError."""
    frame, problems = schema.read_rows(Path(path), schema.SolutionRow)
    raise_if_any(problems or _empty_table(path, frame) + _duplicates(frame))
    return frame.set_index("id_code")["sirna"].astype("int64")


def select(
    tables: Tables, *, cell_types: Sequence[str] = (), experiments: Sequence[str] = ()
) -> Tables:
    """The part of the tables that has these cell types and experiments; empty means all.

    Raises InputError that names the valid ones when one is unknown or nothing is left.
    """
    wells = tables.wells
    keep = _is_chosen(wells["cell_type"], cell_types) & _is_chosen(wells["experiment"], experiments)
    if not keep.any():
        what = f"no experiment of {', '.join(experiments)} is {' or '.join(cell_types)}"
        raise InputError(what, where=tables.root, cure="choose others")
    ids = set(wells.loc[keep, "id_code"])
    solution = tables.solution
    return replace(
        tables,
        wells=wells[keep].reset_index(drop=True),
        sites=tables.sites[tables.sites["id_code"].isin(ids)].reset_index(drop=True),
        sample=[name for name in tables.sample if name in ids],
        solution=None if solution is None else _none_if_empty(solution[solution.index.isin(ids)]),
    )


def _is_chosen(values: pd.Series, names: Sequence[str]) -> pd.Series:
    valid = sorted(values.unique())
    unknown = [name for name in names if name not in valid]
    if unknown:
        what = f"no {values.name} {', '.join(map(repr, unknown))}"
        raise InputError(what, cure=name_advice(unknown[0], valid))
    return values.isin(list(names) or valid)


def _read_kaggle(root: Path) -> Tables:
    frames = _read_files(root)
    tables = pd.concat([_with_dataset(name, frames[name]) for name in _TABLES if len(frames[name])])
    raise_if_any(_id_problems(tables) + _duplicates(tables) + _row_problems(tables))
    wells = _sorted_wells(tables)
    sample, solution = frames.get("sample_submission.csv"), frames.get("solution.csv")
    ids = _unlabelled(wells)
    raise_if_any(_answer_problems(ids, sample, complete=True) + _answer_problems(ids, solution))
    sites = wells.loc[wells.index.repeat(2)].reset_index(drop=True)
    return Tables(
        root=root,
        source="kaggle",
        wells=wells,
        sites=_with_stems(root, sites.assign(site=[1, 2] * len(wells)), tree=_TREES[0]),
        sample=ids if sample is None else sample["id_code"].tolist(),
        solution=None if solution is None else _none_if_empty(solution.set_index("id_code")["sirna"]),
    )


def _with_dataset(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of one file with the columns that follow from its name."""
    kind = {} if "controls" in name else {"well_type": "treatment"}
    return frame.assign(dataset="train" if name.startswith("train") else "test", **kind)


def _none_if_empty(solution: pd.Series) -> pd.Series | None:
    """None for an empty solution."""
    return solution if len(solution) else None


def _empty_table(path: Path, frame: pd.DataFrame) -> list[Problem]:
    return [] if len(frame) else [Problem(str(path), "no row below the header", "copy it again")]


def _read_files(root: Path) -> dict[str, pd.DataFrame]:
    optional = {name: row for name, row in _OPTIONAL.items() if os.path.lexists(root / name)}  # a link to nowhere is said
    tables = {
        name: schema.read_rows(root / name, row) for name, row in {**_TABLES, **optional}.items()
    }
    raise_if_any([problem for _, problems in tables.values() for problem in problems])
    raise_if_any(_empty_table(root / "train.csv", tables["train.csv"][0]))
    return {name: frame for name, (frame, _) in tables.items()}


def _read_release(root: Path) -> Tables:
    frame, problems = schema.read_rows(root / "metadata.csv", schema.ReleaseRow)
    raise_if_any(problems or _empty_table(root / "metadata.csv", frame) or _site_problems(frame))
    frame = frame.rename(columns={"sirna_id": "sirna", "well_id": "id_code"})
    raise_if_any(_row_problems(frame))
    labelled = frame.drop_duplicates("id_code")
    is_test_treatment = (labelled["dataset"] == "test") & (labelled["well_type"] == "treatment")
    wells = _sorted_wells(labelled.assign(sirna=labelled["sirna"].astype("Int64").mask(is_test_treatment)))
    site_numbers = frame[["id_code", "site"]].sort_values("site")
    sample = _unlabelled(wells)
    return Tables(
        root=root,
        source="rxrx.ai",
        wells=wells,
        sites=_with_stems(root, wells.merge(site_numbers, on="id_code", how="left"), tree=_TREES[2]),
        sample=sample,
        solution=_none_if_empty(labelled.set_index("id_code")["sirna"].loc[sample]),
    )


def _sorted_wells(tables: pd.DataFrame) -> pd.DataFrame:
    experiments = tables["experiment"]
    cell_types = {name: name.rpartition("-")[0] for name in experiments.unique()}
    wells = tables.assign(
        cell_type=experiments.map(cell_types), sirna=tables["sirna"].astype("Int64")
    )
    return wells.sort_values(
        ["dataset", *_POSITION], ascending=[False, True, True, True], ignore_index=True
    )[COLUMNS]


def _unlabelled(wells: pd.DataFrame) -> list[str]:
    return wells.loc[wells["sirna"].isna(), "id_code"].tolist()


def _with_stems(root: Path, sites: pd.DataFrame, *, tree: str) -> pd.DataFrame:
    """Add the path of each site below the root, in the tree that is there, else the usual."""
    folders = sites[["dataset", "experiment"]].drop_duplicates().to_dict("records")
    for candidate in _TREES:
        if any((root / candidate.format(**folder)).is_dir() for folder in folders):
            tree = candidate
            break
    prefixes = {folder["experiment"]: tree.format(**folder) for folder in folders}
    plates = sites["experiment"].map(prefixes) + "/Plate" + sites["plate"].astype(str)
    return sites.assign(stem=plates + "/" + sites["well"] + "_s" + sites["site"].astype(str))


def _id_problems(frame: pd.DataFrame, column: str = "id_code") -> list[Problem]:
    parts = frame["experiment"] + "_" + frame["plate"].astype(str) + "_" + frame["well"]
    what, cure = "disagrees with experiment, plate and well", "write experiment_plate_well"
    return schema.flag(frame, frame[column] != parts, column, what, cure)


def _duplicates(frame: pd.DataFrame, column: str = "id_code") -> list[Problem]:
    what, cure = "stands in an earlier row or table too", "keep one of the rows"
    return schema.flag(frame, frame[column].duplicated(), column, what, cure)


def _row_problems(tables: pd.DataFrame) -> list[Problem]:
    """Well types that contradict the class number, and experiments that are in both data sets."""
    labelled = tables[tables["sirna"].notna()]
    expected_types = {sirna: _well_type(sirna) for sirna in labelled["sirna"].unique()}
    disagrees = labelled["well_type"] != labelled["sirna"].map(expected_types)
    cure = "1108-1137 are positive controls, 1138 is the negative one, lower ones are treatments"
    return schema.flag(labelled, disagrees, "well_type", "disagrees with the row's class number", cure) + _mixed_experiments(tables)


def _mixed_experiments(tables: pd.DataFrame) -> list[Problem]:
    experiments = tables.drop_duplicates(["experiment", "dataset"])
    names = sorted(tables["dataset"].unique(), reverse=True)
    sets = " and in ".join(names) if len(names) < 3 else "two data sets"
    return schema.flag(experiments, experiments["experiment"].duplicated(), "experiment", f"is in {sets}", "keep it in one of them")


def _well_type(sirna: int) -> str:
    if sirna == RXRX1.negative_control:
        return "negative_control"
    return "positive_control" if sirna in RXRX1.positive_controls else "treatment"


def _site_problems(frame: pd.DataFrame) -> list[Problem]:
    """Faults of the public release's rows, whose wells have one row per site."""
    problems = _id_problems(frame, "well_id") + _duplicates(frame, "site_id")
    cell_type = frame["experiment"].str.rpartition("-")[0]
    what, cure = "disagrees with the experiment's name", "write what stands before the last hyphen"
    problems += schema.flag(frame, frame["cell_type"] != cell_type, "cell_type", what, cure)
    repeated = frame.duplicated(["well_id", "site"]) & ~frame["site_id"].duplicated()
    problems += schema.flag(frame, repeated, "site", "is the site of an earlier row of this well", "give each site one row")
    classes = frame.groupby("well_id")["sirna_id"].transform("first")
    what, cure = "differs from the well's other site", "give a well one class"
    return problems + schema.flag(frame, frame["sirna_id"] != classes, "sirna_id", what, cure)


def _answer_problems(
    ids: list[str], frame: pd.DataFrame | None, *, complete: bool = False
) -> list[Problem]:
    """What is wrong in a table with one row per test well (or some of them)."""
    if frame is None:
        return []
    listed, test_ids = frame["id_code"].tolist(), set(ids)
    is_known = pd.Series([name in test_ids for name in listed], dtype=bool)
    what, cure = "is not a well of test.csv", "take the tables of one and the same data set"
    problems = schema.flag(frame, ~is_known, "id_code", what, cure) + _duplicates(frame)
    missing = sorted(test_ids.difference(listed)) if complete else []
    if missing and not problems:
        file = frame.index[0][0]
        what = f"{len(missing):,} wells of test.csv are missing, the first is {missing[0]}"
        problems.append(Problem(file, what, cure))
    return problems


# The benchmark RxRx1-WILDS: each site has its label and its split, and is scored alone.

TRAIN_SPLIT, VALIDATION_SPLIT = "train", "val"
SPLIT_NAMES = {VALIDATION_SPLIT: "validation (OOD)", "test": "test (OOD)", "id_test": "test (ID)"}  # of experiments out of, and in, the training distribution
EVALUATED_SPLITS = tuple(SPLIT_NAMES)


def read_benchmark_sites(root: Path) -> pd.DataFrame:
    """The sites of RxRx1-WILDS, in the order of metadata.csv, which is that of its predictions.

    Columns: id_code (of the site, such as HUVEC-01_1_B03_2), well_id, experiment, cell_type, plate, well, well_type, site, sirna, split and
    stem. Splits are the benchmark's official ones: "train" is site 1 of the 33 training experiments, "id_test" their site 2; "val" and
    "test" are both sites of 4 and of 14 other experiments. Raises InputError naming file, line and column of the first fault.
    """
    root = Path(root)
    if not (root / "metadata.csv").exists():
        what = "metadata.csv is not there" if root.is_dir() else "no such folder"
        raise InputError(what, where=root, cure="name the folder that holds metadata.csv and images")
    typed = headers.has_columns(root / "metadata.csv", "well_type")
    frame, problems = schema.read_rows(root / "metadata.csv", schema.TypedBenchmarkRow if typed else schema.BenchmarkRow)
    raise_if_any(problems or _empty_table(root / "metadata.csv", frame))
    wells = frame["experiment"] + "_" + frame["plate"].astype(str) + "_" + frame["well"]
    frame = frame.assign(well_id=wells, site_id=wells + "_" + frame["site"].astype(str))
    if not typed:
        frame["well_type"] = frame["sirna_id"].map({sirna: _well_type(sirna) for sirna in frame["sirna_id"].unique()})
    raise_if_any(_site_problems(frame) + _row_problems(frame.assign(sirna=frame["sirna_id"])))
    is_second_site = (frame["dataset"] == TRAIN_SPLIT) & (frame["site"] == 2)
    stems = "images/" + frame["experiment"] + "/Plate" + frame["plate"].astype(str) + "/" + frame["well"] + "_s" + frame["site"].astype(str)
    sites = frame.assign(split=np.where(is_second_site, EVALUATED_SPLITS[-1], frame["dataset"]), stem=stems).reset_index(drop=True)
    return sites.rename(columns={"site_id": "id_code", "sirna_id": "sirna"}).drop(columns="dataset")


# The competition's table of brightness, which a data set may bring along.

PIXEL_STATS_FILE = "pixel_stats.csv"


def read_pixel_stats(root: Path) -> pd.DataFrame | None:
    """pixel_stats.csv of a data set: one row per site and channel, the columns of `schema.PixelRow`; None where it is absent.

    Raises Faults naming file, line and column of the first fault.
    """
    path = Path(root) / PIXEL_STATS_FILE
    if not os.path.lexists(path):
        return None
    table, problems = schema.read_rows(path, schema.PixelRow)
    problems = problems or _empty_table(path, table) or _pixel_problems(table)
    raise_if_any([problem._replace(cure=f"{problem.cure}, or remove the file to do without") for problem in problems])
    return table.reset_index(drop=True)


def _pixel_problems(table: pd.DataFrame) -> list[Problem]:
    """Rows of another well than their id says, and channels that would count twice."""
    rows = table[["id_code", *_POSITION]].drop_duplicates()
    repeated = table.duplicated(["id_code", "site", "channel"])
    return _id_problems(rows) + schema.flag(table, repeated, "channel", "is the channel of an earlier row of this site", "keep one of the rows")
