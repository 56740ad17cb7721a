"""The notebooks on Colab: badges that open them, and a cell before the set-up that installs the package.

Colab opens one notebook and none of its neighbours, so the notebook has to know where it was published. Until somebody
says so there is neither, because the badge would lead nowhere.
"""

import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cellsignal
from cellsignal import files
from cellsignal.errors import InputError
from cellsignal.run import environment
from cellsignal.run.chain import notebooks

_IMAGE = "https://colab.research.google.com/assets/colab-badge.svg"
_BADGE = re.compile(r" ?\[!\[Open in Colab\]\([^)\s]*\)\]\([^)\s]*\)")
_SETS_UP = "cellsignal.start("  # in the cell before which the package has to be there
_CELL = "colab"  # its tag and its id
_SOURCE = '''# Written by `cellsignal colab init`. On Colab, which knows nothing of this package, it is fetched and installed.
import os
import subprocess
import sys
from importlib.util import find_spec

REPOSITORY, REF = "{repository}", "{ref}"  # on GitHub; a tag, a branch, a whole commit
on_colab = "COLAB_RELEASE_TAG" in os.environ and "KAGGLE_KERNEL_RUN_TYPE" not in os.environ  # Kaggle's image is Colab's
if on_colab and getattr(find_spec("cellsignal"), "origin", None) is None:
    git, pip = ["git", "-C", "/content/cellsignal"], [sys.executable, "-m", "pip", "install", "-q", "/content/cellsignal/utils_dataset[local]"]
    fetch = [*git, "fetch", "-q", "--depth", "1", f"https://github.com/{{REPOSITORY}}", REF]
    for command in (["git", "init", "-q", "/content/cellsignal"], fetch, [*git, "checkout", "-q", "FETCH_HEAD"], pip):
        done = subprocess.run(command, env={{**os.environ, "GIT_TERMINAL_PROMPT": "0"}}, capture_output=True, text=True)
        if done.returncode:
            raise ModuleNotFoundError(f"cannot install {{REPOSITORY}} at {{REF}}: {{' '.join(done.stderr.split())[-300:]}}; check the connection and both names")
    sys.path.append("/content/cellsignal/utils_dataset")'''
_GITHUB = re.compile(r"(?:https?://(?:[^/@\s]*@)?github\.com/|(?:ssh://)?git@github\.com[:/])([^/\s]+/[^/\s]+?)(?:\.git)?/?")


def init(*, repository: str = "", ref: str = "") -> tuple[str, str, list[Path]]:
    """Write badges and the cell for Colab into the notebooks for a GitHub repository at a ref; gives both and the files that changed.

    `repository` is OWNER/NAME, empty for Git's remote `origin`; `ref` a tag, branch or commit, empty for this version's tag.
    InputError, and nothing written, when a name cannot be one or there is no checkout.
    """
    root = environment.repository()
    if root is None or not (root / "README.md").is_file():
        raise InputError("no checkout of the bundle here or above", where=Path.cwd(), cure="run this inside one")
    repository, ref = _repository(repository or origin(root)), _ref(ref or f"v{cellsignal.__version__}")
    if (commit := commit_of(root, ref)).startswith(ref.lower()):
        ref = commit  # GitHub gives out no commit by the beginning of its name
    return repository, ref, write_links(root, repository, ref)


def write_links(root: Path, repository: str, ref: str) -> list[Path]:
    """Give README and notebooks of a checkout their badges, and the notebooks their cell; the files that changed."""
    paths = sorted(root.glob("kernels/*/*.ipynb"))
    texts = {path: _notebook(path, root=root, repository=repository, ref=ref) for path in paths}
    texts[root / "README.md"] = _readme(root, paths, repository=repository, ref=ref)
    changed = [path for path, text in texts.items() if text != path.read_text(encoding="utf-8")]
    for path in changed:
        files.write_text(path, texts[path])
    return changed


def badge(repository: str, ref: str, path: str) -> str:
    """The Markdown of the button that opens the notebook at `path` of a repository."""
    return f"[![Open in Colab]({_IMAGE})](https://colab.research.google.com/github/{repository}/blob/{ref}/{path})"


def without_badge(text: str) -> str:
    """A notebook's first cell as it is where nobody opens it on Colab, such as on Kaggle."""
    return re.sub(rf"{_BADGE.pattern}\n*", "", text)


def source(repository: str, ref: str) -> str:
    """The code of the cell that installs the package on Colab, and elsewhere does nothing."""
    return _SOURCE.format(repository=repository, ref=ref)


def is_cell(cell: Mapping[str, Any]) -> bool:
    """Whether a cell is the one for Colab."""
    return _CELL in cell["metadata"].get("tags", [])


def origin(root: Path) -> str:
    """OWNER/NAME of the checkout's remote `origin` on GitHub; its address is not quoted, because it may hold a token."""
    command = ["git", "-C", str(root), "remote", "get-url", "origin"]
    try:
        url = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        url = ""
    match = _GITHUB.fullmatch(url)
    if match is None:
        what = "its remote `origin` is not on GitHub" if url else "there is no remote `origin`"
        raise InputError(what, where=root, cure="name the repository with --repository OWNER/NAME")
    return match[1]


def commit_of(root: Path, ref: str) -> str:
    """The commit that a tag, a branch or the beginning of a commit's name stands for; "" where Git knows none here."""
    command = ["git", "-C", str(root), "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def _repository(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,38})/[A-Za-z0-9._-]{1,100}", name) or name.endswith((".git", "/.", "/..")):
        raise InputError(f"{name!r} is no repository on GitHub", where="--repository", cure="write OWNER/NAME")
    return name


def _ref(name: str) -> str:
    # It goes into addresses, and into a command line: no leading hyphen, nothing that Git or a shell would take amiss.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,200}", name) or re.search(r"\.\.|//|\.lock$|[./]$", name):
        raise InputError(f"{name!r} is no tag, branch or commit", where="--ref", cure="write one, such as v0.1.0")
    return name


def _notebook(path: Path, *, root: Path, repository: str, ref: str) -> str:
    """A notebook's text with its badge below the title and the cell for Colab before the set-up; all else as it was."""
    notebook = notebooks.normalise(notebooks.read(path), where=path)  # another editor may have saved it
    cells = [cell for cell in notebook["cells"] if not is_cell(cell)]
    begins = [number for number, cell in enumerate(cells) if cell["cell_type"] == "code" and _SETS_UP in notebooks.source(cell)]
    title_cell = next((cell for cell in cells if cell["cell_type"] == "markdown"), None)
    if len(begins) != 1 or title_cell is None:
        fault = "no cell has a title for the badge" if title_cell is None else f"{len(begins)} cells call {_SETS_UP})"
        raise InputError(fault, where=path, cure=f"git checkout {path}")
    _rewrite(title_cell, _with_badge(notebooks.source(title_cell), badge(repository, ref, path.relative_to(root).as_posix())))
    lines = source(repository, ref).splitlines(keepends=True)
    cell = {"cell_type": "code", "execution_count": None, "id": _CELL, "metadata": {"tags": [_CELL]}, "outputs": [], "source": lines}
    notebook["cells"] = [*cells[: begins[0]], cell, *cells[begins[0] :]]
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _with_badge(text: str, button: str) -> str:
    if _BADGE.search(text):
        return _BADGE.sub(lambda match: button, text, count=1)
    title, _, following_lines = text.partition("\n")
    return f"{title}\n\n{button}\n{following_lines}"


def _rewrite(cell: dict[str, object], text: str) -> None:
    """Give a cell its text in the form in which it was stored."""
    cell["source"] = text if isinstance(cell["source"], str) else text.splitlines(keepends=True)


def _readme(root: Path, paths: list[Path], *, repository: str, ref: str) -> str:
    """README with a badge behind the link of each notebook in the table of kernels."""
    text = (root / "README.md").read_text(encoding="utf-8")
    for path in paths:
        notebook_path = path.relative_to(root).as_posix()
        row = re.compile(rf"(^\| \[[^\]]*\]\({re.escape(notebook_path)}\))(?:{_BADGE.pattern})?", re.MULTILINE)
        button = badge(repository, ref, notebook_path)
        text = row.sub(lambda match, button=button: f"{match[1]} {button}", text)
    return text
