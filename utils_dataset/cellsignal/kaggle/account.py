"""Whose bundle this is: `init` puts a user's name into the metadata files, in place of a placeholder that the client refuses."""

import re
from pathlib import Path

from cellsignal import files
from cellsignal.errors import InputError
from cellsignal.kaggle import client
from cellsignal.kaggle.client import DATASET, FIRST_RUN, KERNEL, PLACEHOLDER, check_owner
from cellsignal.run import environment

SLUG_PREFIX = "cellsignal"  # every slug of the bundle begins so


def init(user: str | None = None) -> tuple[str, list[Path]]:
    """Write a user's name into the checkout's metadata files; gives the name and the files. None: the client's account.

    InputError, and nothing written, when the name cannot be one, there is no checkout, or a file is not as expected.
    """
    owner = check_owner(_client_username() if user is None else user)
    root = checkout()
    tracked = tracked_metadata(root)
    texts = {path: _check_metadata(path, with_name(path.read_text(encoding="utf-8"), owner)) for path in tracked}
    for path, text in texts.items():
        files.write_text(path, text)
    return owner, tracked


def _client_username() -> str:
    try:
        return client.username()
    except InputError as error:  # no client, or no login: neither is needed for a name
        raise InputError(str(error).split("; ")[0], cure="add --user NAME") from None


def checkout() -> Path:
    """The checkout we stand in, else the one around the package; InputError without any."""
    for folder in (Path.cwd(), *Path.cwd().parents, environment.repository()):
        if folder is not None and (folder / KERNEL).is_file() and (folder / "kernels").is_dir():
            return folder
    raise InputError("no checkout of the bundle here or above", where=Path.cwd(), cure="run this inside one")


def tracked_metadata(root: Path) -> list[Path]:
    """The metadata files of a checkout: the whole chain's, each kernel's, the utility dataset's."""
    return [path for path in (root / KERNEL, *sorted(root.glob(f"kernels/*/{KERNEL}")), root / "utils_dataset" / DATASET) if path.is_file()]


def with_name(text: str, owner: str) -> str:
    """A metadata file's text with this owner in place of the placeholder or of another owner, and its real file names."""
    match = re.search(r'"id"\s*:\s*"([\w-]+)/', text)
    replaced = {PLACEHOLDER, *([match[1]] if match else [])}
    text = re.sub(rf'"(?:{"|".join(map(re.escape, replaced))})/', f'"{owner}/', text)
    text = re.sub(rf'"[\w-]+/{SLUG_PREFIX}', f'"{owner}/{SLUG_PREFIX}', text)
    text = re.sub(rf'"{re.escape(FIRST_RUN)} \(([^"]*)\)"', r'"\1"', text)
    return re.sub(rf'("resources"\s*:\s*)\[[^\]]*{re.escape(FIRST_RUN)}[^\]]*\]', r"\1[]", text)


def _check_metadata(path: Path, text: str) -> str:
    """The text, when it is metadata that can be pushed."""
    try:
        metadata = files.parse_json(text)
    except ValueError as error:
        raise InputError(f"not readable as JSON ({error})", where=path, cure=f"git checkout {path}") from None
    metadata = metadata if isinstance(metadata, dict) else {}
    code = path.parent / str(metadata.get("code_file", ""))
    if PLACEHOLDER in text or FIRST_RUN in text or "id" not in metadata or (path.name == KERNEL and not code.is_file()):
        raise InputError("not the metadata of the bundle", where=path, cure=f"git checkout {path}, then run this again")
    return text
