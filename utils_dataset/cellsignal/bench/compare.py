"""Two benchmarks side by side."""

from collections.abc import Iterator, Mapping
from math import inf
from pathlib import Path
from typing import Any

import pandas as pd

from cellsignal.errors import InputError
from cellsignal.files import read_json

SCHEMA = "cellsignal-benchmark-1"
NEEDED = {"machine": dict, "method": dict, "rows": list}
NUMBERS = ("median", "min", "max")
NAMES = ("stage", "name", "kind", "unit")
SAME = ("image_size", "network_size", "backbone", "sites", "channels", "precision")  # what must be alike for rates to be


def read_benchmark(path: Path) -> dict[str, Any]:
    """The content of a benchmark.json; InputError when the file is none."""
    cure = "give a benchmark.json that `cellsignal benchmark` wrote"
    try:
        found = read_json(Path(path))
    except InputError as error:
        raise InputError("is no benchmark" if Path(path).exists() else "no such file", where=path, cure=cure) from error
    ours = isinstance(found, dict) and found.get("schema") == SCHEMA
    ours = ours and all(isinstance(found.get(key), kind) for key, kind in NEEDED.items())
    if not ours or not isinstance(found["machine"].get("libraries", {}), dict):
        raise InputError("is no benchmark", where=path, cure=cure)
    for row in found["rows"]:
        if not _is_row(row):
            raise InputError("has a damaged row", where=path, cure="measure again")
    return found


def _is_row(row: Any) -> bool:
    named = isinstance(row, dict) and all(isinstance(row.get(name), str) for name in NAMES)
    return named and all(type(row.get(name)) in (int, float) and 0 < row[name] < inf for name in NUMBERS)


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> pd.DataFrame:
    """One row for each thing that both measured: medians, the second's by the first's, and whether their ranges are apart.

    Columns stage, name, kind, unit, first, second, ratio, apart. Raises InputError when they have no row in common.
    """
    theirs = {_key(row): row for row in second["rows"]}
    rows = [_beside(row, theirs[_key(row)]) for row in first["rows"] if _key(row) in theirs]
    if not rows:
        raise InputError("the two benchmarks measured nothing in common", cure="measure both with the same version of cellsignal")
    return pd.DataFrame(rows)


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(row[name] for name in NAMES)


def _beside(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    several = all(row["min"] < row["max"] for row in (first, second))  # one round has no range
    apart = several and (second["min"] > first["max"] or second["max"] < first["min"])
    named = {name: first[name] for name in NAMES}
    return {**named, "first": first["median"], "second": second["median"], "ratio": second["median"] / first["median"], "apart": apart}


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[str]:
    """One line for each way in which machines or methods differ, as far as rates hang on it."""
    for name in ("place", "cpu", "cores", "gpus"):
        yield from _differs(name, first["machine"].get(name), second["machine"].get(name))
    for name in SAME:
        yield from _differs(name, first["method"].get(name), second["method"].get(name), note="; rates are not of the same work")
    versions = [found["machine"].get("libraries") or {} for found in (first, second)]
    for name in sorted(versions[0].keys() & versions[1].keys()):
        yield from _differs(name, versions[0][name], versions[1][name])


def _differs(name: str, first: Any, second: Any, *, note: str = "") -> Iterator[str]:
    if first != second:
        yield f"{name}: {_said(first)} and {_said(second)}{note}"


def _said(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value) if value not in (None, "") else "none"


def as_text(table: pd.DataFrame) -> str:
    """The table of `compare` in columns; a star where the ranges of the rounds do not touch."""
    shown = table.assign(first=table["first"].map("{:,.4g}".format), second=table["second"].map("{:,.4g}".format),
                         ratio=table["ratio"].map("{:.2f}".format) + table["apart"].map({True: " *", False: "  "}))
    return shown.drop(columns="apart").to_string(index=False, justify="left")
