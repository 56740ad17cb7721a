"""Receipts: JSON records of what made some files, their SHA-256, and whether they are complete; with a checksum of their own, written last."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cellsignal import files
from cellsignal.errors import InputError

CHECKSUM = "checksum"  # the last key: SHA-256 of the receipt without it
FIELD_TYPES = {"identity": dict, "outputs": dict, "complete": bool, "details": dict}


@dataclass(frozen=True)
class Receipt:
    """What the file `path` says of others; two receipts that say the same are equal wherever they lie.

    `identity`: all that decides what is made, such as parameters, inputs and code. `outputs`: by name,
    SHA-256 of files and fingerprints of folders. `complete`: nothing is left to do. `details`: what else readers want to know.
    """

    path: Path = field(compare=False)
    identity: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    complete: bool = True
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, details: Any = None, *, cure: str = files.RERUN_STEP) -> "Receipt":
        """Read a receipt; InputError when it is missing, not as it was written, or `details` are not of this type (`files.validated`)."""
        try:
            with files.open_regular(path) as stream:
                record = cls.parse(path, stream.read())
        except FileNotFoundError:
            raise InputError("no such file", where=path, cure="run the step that writes it") from None
        except InputError:
            raise
        except ValueError as error:
            raise InputError(str(error), where=path, cure=cure) from None
        if details is not None:
            files.validated(record.details, details, where=path, cure=cure)
        return record

    @classmethod
    def find(cls, path: Path, details: Any = None) -> "Receipt | None":
        """The same; None for one that is missing, damaged, or of another kind or version."""
        try:
            return cls.read(path, details)
        except (InputError, OSError):
            return None

    @classmethod
    def parse(cls, path: Path, content: bytes) -> "Receipt":
        """The receipt whose file holds `content`; ValueError unless it is to the byte as `content` gave it."""
        try:
            record = files.parse_json(content)
        except ValueError as error:
            raise ValueError(f"not readable as JSON ({error})") from None
        fields = {name: value for name, value in record.items() if name != CHECKSUM} if isinstance(record, dict) else {}
        try:
            unaltered = _sealed(fields) == content  # bytes, not values: 1.0 and 1.00 are the same number
        except ValueError:  # NaN
            unaltered = False
        if not unaltered:
            raise ValueError("not as it was written")
        return cls.of(path, fields)

    @classmethod
    def of(cls, path: Path, fields: Any) -> "Receipt":
        """The receipt that says these `fields`; ValueError if they are those of none."""
        if not isinstance(fields, dict) or {name: type(value) for name, value in fields.items()} != FIELD_TYPES:
            raise ValueError("not a receipt of this version")
        if not all(isinstance(digest, str) for digest in fields["outputs"].values()):
            raise ValueError("not a receipt of this version")
        return cls(path, **fields)

    @property
    def fields(self) -> dict[str, Any]:
        """All that it says."""
        return {name: getattr(self, name) for name in FIELD_TYPES}

    @property
    def content(self) -> bytes:
        """The bytes of its file: indented JSON, the checksum last; ValueError for NaN."""
        return _sealed(self.fields)

    def write(self) -> "Receipt":
        """Write it atomically; gives it as it is read back."""
        files.write_bytes(self.path, self.content)
        return replace(self, **json.loads(json.dumps(self.fields)))

    def is_current(self, identity: Mapping[str, Any]) -> bool:
        """Whether all is there, and was made by what `identity` says."""
        return self.complete and self.identity == json.loads(json.dumps(identity))

    def check_outputs(self, folder: Path, names: Iterable[str] | None = None, *, made_by: str, cure: str) -> None:
        """InputError for the first output, or of these `names` the first, that is missing in `folder` or has another SHA-256."""
        for name in self.outputs if names is None else names:
            if not (folder / name).is_file():
                raise InputError("is missing", where=folder / name, cure=cure)
            if files.sha256(folder / name) != self.outputs[name]:
                raise InputError(f"not as {made_by} left it", where=folder / name, cure=cure)


def _sealed(fields: Mapping[str, Any]) -> bytes:
    return _dumped({**fields, CHECKSUM: hashlib.sha256(_dumped(fields)).hexdigest()})


def _dumped(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()
