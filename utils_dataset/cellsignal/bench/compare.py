"""Comparing two benchmarks."""

from collections.abc import Iterator, Mapping
from math import inf
from pathlib import Path
from typing import Any

import pandas as pd

from cellsignal.errors import InputError
from cellsignal.files import read_json

SCHEMA = "cellsignal-benchmark-1"
REQUIRED_KEYS = {"machine": dict, "method": dict, "rows": list}
NUMBER_COLUMNS = ("median", "min", "max")
NAME_COLUMNS = ("stage", "name", "kind", "unit")
COMPARABLE = ("image_size", "network_size", "backbone", "batch_size", "sites", "channels", "precision")  # rates are comparable only if these agree


def read_benchmark(path: Path) -> dict[str, Any]:
    """The content of a benchmark.json; InputError for any other file."""
    cure = "give a benchmark.json that `cellsignal benchmark` wrote"
    try:
        content = read_json(Path(path))
    except InputError as error:
        raise InputError("is no benchmark" if Path(path).exists() else "no such file", where=path, cure=cure) from error
    valid = isinstance(content, dict) and content.get("schema") == SCHEMA
    valid = valid and all(isinstance(content.get(key), kind) for key, kind in REQUIRED_KEYS.items())
    if not valid or not isinstance(content["machine"].get("libraries", {}), dict):
        raise InputError("is no benchmark", where=path, cure=cure)
    for row in content["rows"]:
        if not _is_row(row):
            raise InputError("has a damaged row", where=path, cure="measure again")
    return content


def _is_row(row: Any) -> bool:
    has_names = isinstance(row, dict) and all(isinstance(row.get(name), str) for name in NAME_COLUMNS)
    return has_names and all(type(row.get(name)) in (int, float) and 0 < row[name] < inf for name in NUMBER_COLUMNS)


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> pd.DataFrame:
    """One row for each thing that both measured: medians, their ratio (second by first), and whether the ranges are disjoint.

    Columns stage, name, kind, unit, first, second, ratio, apart. Raises InputError when they have no row in common.
    """
    second_rows = {_key(row): row for row in second["rows"]}
    rows = [_compare_rows(row, second_rows[_key(row)]) for row in first["rows"] if _key(row) in second_rows]
    if not rows:
        raise InputError("the two benchmarks measured nothing in common", cure="measure both with the same version of cellsignal")
    return pd.DataFrame(rows)


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(row[name] for name in NAME_COLUMNS)


def _compare_rows(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    have_ranges = all(row["min"] < row["max"] for row in (first, second))  # one round has no range
    apart = have_ranges and (second["min"] > first["max"] or second["max"] < first["min"])
    identity = {name: first[name] for name in NAME_COLUMNS}
    return {**identity, "first": first["median"], "second": second["median"], "ratio": second["median"] / first["median"], "apart": apart}


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[str]:
    """One line for each difference of machine or method that affects rates."""
    for name in ("platform", "cpu", "cores", "gpus"):
        yield from _difference(name, first["machine"].get(name), second["machine"].get(name))
    for name in COMPARABLE:
        yield from _difference(name, first["method"].get(name), second["method"].get(name), note="; rates are not of the same work")
    versions = [benchmark["machine"].get("libraries") or {} for benchmark in (first, second)]
    for name in sorted(versions[0].keys() & versions[1].keys()):
        yield from _difference(name, versions[0][name], versions[1][name])


def _difference(name: str, first: Any, second: Any, *, note: str = "") -> Iterator[str]:
    if first != second:
        yield f"{name}: {_as_text(first)} and {_as_text(second)}{note}"


def _as_text(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value) if value not in (None, "") else "none"


def as_text(table: pd.DataFrame) -> str:
    """The table of `compare` in columns; a star where the ranges of the rounds do not touch."""
    table_text = table.assign(first=table["first"].map("{:,.4g}".format), second=table["second"].map("{:,.4g}".format),
                         ratio=table["ratio"].map("{:.2f}".format) + table["apart"].map({True: " *", False: "  "}))
    return table_text.drop(columns="apart").to_string(index=False, justify="left")
