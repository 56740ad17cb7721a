"""Receipts: JSON records with the SHA-256 of files and a checksum of their own."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cellsignal import files
from cellsignal.errors import InputError

CHECKSUM = "checksum"  # the last key: SHA-256 of the record without it
RUN_AGAIN = "delete it and run the step that writes it again"


def text(facts: Mapping[str, Any]) -> str:
    """A record as text: indented JSON, the checksum last; ValueError for NaN."""
    return _dumped({**facts, CHECKSUM: hashlib.sha256(_dumped(facts).encode()).hexdigest()})


def parse(content: bytes) -> dict[str, Any]:
    """The content of a record without its checksum; ValueError unless the bytes are exactly those of `text`."""
    try:
        record = files.parse_json(content)
    except ValueError as error:
        raise ValueError(f"not readable as JSON ({error})") from None
    facts = {name: value for name, value in record.items() if name != CHECKSUM} if isinstance(record, dict) else {}
    try:
        unaltered = text(facts).encode() == content  # bytes, not values: 1.0 and 1.00 are the same number
    except ValueError:  # NaN
        unaltered = False
    if not unaltered:
        raise ValueError("not as it was written")
    return facts


def write(path: Path, facts: Mapping[str, Any]) -> None:
    """Write a record atomically."""
    files.write_text(path, text(facts))


def read(path: Path, shape: Any = None, *, cure: str = RUN_AGAIN) -> dict[str, Any]:
    """Read a record; InputError if it is missing, altered since `write`, or not of a `shape` (`files.shaped`)."""
    try:
        with os.fdopen(files.open_regular(path), "rb") as stream:
            facts = parse(stream.read())
    except FileNotFoundError:
        raise InputError("no such file", where=path, cure="run the step that writes it") from None
    except InputError:
        raise
    except ValueError as error:
        raise InputError(str(error), where=path, cure=cure) from None
    return facts if shape is None else files.shaped(facts, shape, where=path, cure=cure)


def check(folder: Path, outputs: Mapping[str, str], *, made_by: str, cure: str) -> None:
    """InputError for the first file of `folder` that is missing or differs from its SHA-256 in `outputs` (by name)."""
    for name, digest in outputs.items():
        if not (folder / name).is_file():
            raise InputError("is missing", where=folder / name, cure=cure)
        if files.sha256(folder / name) != digest:
            raise InputError(f"not as {made_by} left it", where=folder / name, cure=cure)


def _dumped(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1, allow_nan=False) + "\n"
