"""The metadata files that the Kaggle client reads: names, placeholders, and what Kaggle would take amiss."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cellsignal import files
from cellsignal.errors import InputError

KERNEL = "kernel-metadata.json"
DATASET = "dataset-metadata.json"
PLACEHOLDER = "INSERT_KAGGLE_USERNAME"
FIRST = "first run: cellsignal kaggle init --user YOUR_NAME"  # stands where the client looks for a file, so that it stops and shows it
_OWNER = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,48}[A-Za-z0-9])?")


def slugify(title: str) -> str:
    """The slug that Kaggle makes of a title in plain letters and digits."""
    return re.sub("[^a-z0-9]+", "-", title.lower()).strip("-")


def check_owner(name: str) -> str:
    """The name itself; InputError when it cannot be a Kaggle user's."""
    if not _OWNER.fullmatch(name) or name.upper() in {PLACEHOLDER, "YOUR_NAME"}:
        cure = "give the name in the address of your profile, https://www.kaggle.com/NAME"
        raise InputError(f"{name!r} is no Kaggle user name", cure=cure)
    return name


def check_kernel(folder: Path) -> dict[str, Any]:
    """A kernel's metadata; InputError when a placeholder remains, title and slug are apart, or its code is not there."""
    path = Path(folder) / KERNEL
    metadata = _read(path)
    slug = _slug(path, metadata, shortest=5)
    _refuse_placeholders(path, metadata)
    title = str(metadata.get("title", ""))
    if slugify(title) != slug.lower():
        found = f"the title {title!r} makes the slug {slugify(title)!r}, and id says {slug!r}"
        raise InputError(found, where=path, cure="give both the same words: Kaggle goes by the title")
    if not (path.parent / str(metadata.get("code_file", ""))).is_file():
        raise InputError(f"no file {metadata.get('code_file')!r} beside it", where=path, cure="name the notebook in code_file")
    return metadata


def check_dataset(folder: Path) -> dict[str, Any]:
    """A dataset's metadata; InputError when a placeholder remains or the slug is not one that Kaggle takes."""
    path = Path(folder) / DATASET
    metadata = _read(path)
    _slug(path, metadata, shortest=6)
    _refuse_placeholders(path, metadata)
    return metadata


def _read(path: Path) -> dict[str, Any]:
    metadata = files.read_json(path)
    if not isinstance(metadata, dict):
        raise InputError("not a JSON object", where=path, cure="restore the file")
    return metadata


def _slug(path: Path, metadata: Mapping[str, Any], *, shortest: int) -> str:
    owner, slash, slug = str(metadata.get("id", "")).partition("/")
    if not (owner and slash and re.fullmatch(rf"[a-z0-9][a-z0-9-]{{{shortest - 1},49}}", slug)):
        cure = f"write OWNER/SLUG, the slug of {shortest} to 50 small letters, digits and hyphens"
        raise InputError(f"id is {metadata.get('id')!r}", where=path, cure=cure)
    return slug


def _refuse_placeholders(path: Path, metadata: Mapping[str, Any]) -> None:
    text = repr(metadata)
    if PLACEHOLDER in text or FIRST in text:
        raise InputError("it still holds a placeholder for your name", where=path, cure="run `cellsignal kaggle init --user YOUR_NAME`")
