"""Whose bundle this is: one's name goes into the metadata files here, and into no commit.

The tracked files hold a placeholder that the client refuses before it sends anything. `init` replaces it in the
working tree and gives Git a filter that puts it back whenever Git reads those files.
"""

import re
import shutil
import subprocess
from pathlib import Path

from cellsignal import files
from cellsignal.errors import InputError
from cellsignal.kaggle import client
from cellsignal.kaggle.client import DATASET, FIRST_RUN, KERNEL, PLACEHOLDER, check_owner
from cellsignal.run import environment

FILTER = "cellsignal-owner"  # as .gitattributes names it
SLUG_PREFIX = "cellsignal"  # every slug of the bundle begins so
_RESOURCES = f'[{{"path": "{FIRST_RUN}"}}]'


def init(user: str | None = None) -> tuple[str, list[Path]]:
    """Write a user's name into the checkout's metadata files; gives the name and the files. None: the client's account.

    InputError, and nothing written, when the name cannot be one, there is no checkout, a file is not as expected, or
    Git does not take the filter.
    """
    owner = check_owner(_client_username() if user is None else user)
    root = checkout()
    tracked = tracked_metadata(root)
    texts = {path: _check_metadata(path, with_name(path.read_text(encoding="utf-8"), owner)) for path in tracked}
    _set_filter(root, owner)  # first: a name must not stand in a file that Git sees as it is
    for path, text in texts.items():
        files.write_text(path, text)
    _refresh_git_index(root, tracked)
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
        raise InputError(f"not readable as JSON ({error})", where=path, cure=f"git checkout {path.name}") from None
    metadata = metadata if isinstance(metadata, dict) else {}
    code = path.parent / str(metadata.get("code_file", ""))
    if PLACEHOLDER in text or FIRST_RUN in text or "id" not in metadata or (path.name == KERNEL and not code.is_file()):
        raise InputError("not the metadata of the bundle", where=path, cure=f"git checkout {path.name}, then run this again")
    return text


def clean(owner: str) -> str:
    """The command by which Git reads a metadata file: names become the placeholder. `sed` is wherever Git is."""
    rules = (
        rf's|"{owner}/|"{PLACEHOLDER}/|g',
        rf's|"[A-Za-z0-9_-]*/{SLUG_PREFIX}|"{PLACEHOLDER}/{SLUG_PREFIX}|g',
        rf'/{FIRST_RUN}/!s|\("code_file" *: *\)"\([^"]*\)"|\1"{FIRST_RUN} (\2)"|',
        rf'/{FIRST_RUN}/!s|\("resources" *: *\)\[[^]]*\]|\1{_RESOURCES}|',
    )
    return _sed(rules)


def smudge(owner: str) -> str:
    """The command by which Git writes a metadata file: the placeholder becomes the name, also after a pull."""
    rules = (
        rf's|"{PLACEHOLDER}/|"{owner}/|g',
        rf's|"{FIRST_RUN} (\([^"]*\))"|"\1"|',
        rf's|\("resources" *: *\)\[[^]]*{FIRST_RUN}[^]]*\]|\1[]|',
    )
    return _sed(rules)


def _sed(rules: tuple[str, ...]) -> str:
    return "sed " + " ".join(f"-e '{rule}'" for rule in rules)


def _set_filter(root: Path, owner: str) -> None:
    """Give Git the filter; where there is no Git or no repository, nothing can be committed either."""
    if shutil.which("git") is None or not (root / ".git").exists():
        return
    for key, value in {"clean": clean(owner), "smudge": smudge(owner), "required": "true"}.items():
        if _git(root, "config", "--local", f"filter.{FILTER}.{key}", value) is None:
            raise InputError("Git does not take a setting", where=root, cure=f"mend what `git config --local filter.{FILTER}.{key} x` says there")


def _refresh_git_index(root: Path, tracked: list[Path]) -> None:
    """Renew Git's notes of the files that hold nothing new: by their other size alone it would call them modified."""
    for path in tracked:
        if _git(root, "diff", "--numstat", "--", str(path)) == "":
            _git(root, "add", "--update", "--", str(path))  # the same content, so nothing is staged


def _git(root: Path, *arguments: str) -> str | None:
    """What Git says, None when there is none or it fails."""
    command = ["git", "-C", str(root), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout if result.returncode == 0 else None
