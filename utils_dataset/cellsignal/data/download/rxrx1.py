"""The public release of RxRx1, and the competition's files where kagglehub fetches them."""

import importlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from cellsignal import files
from cellsignal.data import check
from cellsignal.data.download.archives import gigabytes, require_room, unpack
from cellsignal.data.download.http import BLOCK, RemoteFile, fetch
from cellsignal.data.images.folders import entries
from cellsignal.data.tables.wells import Tables, read_tables, select
from cellsignal.errors import InputError, StepFailed
from cellsignal.receipts import Receipt
from cellsignal.tasks import RXRX1, TASKS

# What a folder has been given: how many images of each experiment came whole out of an archive.


RECEIPT = "download.json"  # in the data set's folder: how many images each experiment has


def record_images(root: Path, images: Mapping[str, int]) -> None:
    """Write down that these experiments are whole, with so many images each."""
    Receipt(root / RECEIPT, details=dict(sorted({**_noted(root), **images}.items()))).write()


def missing_images(tables: Tables, *, cell_types: Sequence[str] = ()) -> list[str]:
    """The experiments of these cell types (empty: of all) that never came whole or lost images since.

    Counts names only, one folder listing per plate. InputError when the tables have no such cell type.
    """
    sites = select(tables, cell_types=cell_types).sites
    plates = sites["stem"].str.rpartition("/")[0].groupby(sites["experiment"]).unique()
    noted = _noted(tables.root)
    return [name for name, folders in plates.items() if sum(_images(tables.root / folder) for folder in folders) != noted.get(name)]


def _noted(root: Path) -> Mapping[str, int]:
    return Receipt.read(root / RECEIPT, dict[str, int]).details if (root / RECEIPT).exists() else {}


def _images(folder: Path) -> int:
    return sum(entry.name.endswith(".png") for entry in entries(folder))


class Published(NamedTuple):
    """A public archive: bytes, and its MD5 for the case that the server tells none."""

    url: str
    size: int
    md5: str


# https://www.rxrx.ai/rxrx1, github.com/recursionpharma/rxrx-datasets; sums as several users of the archives published them.
TABLES = Published("https://storage.googleapis.com/rxrx/rxrx1/rxrx1-metadata.zip", 1_333_687, "777e959ca0bce5a2aa7f9f9d456aee7e")
IMAGES = Published("https://storage.googleapis.com/rxrx/rxrx1/rxrx1-images.zip", 49_039_640_485, "f75ffa93b917e8a82e27e0c3a2b3425f")
METADATA_SHA256 = "799ed719d2be136db29fef6fcb7a51ceb94d1de9d43421a49b16409329a2f1b7"
LICENCE = "RxRx1 by Recursion, CC BY-NC-SA 4.0: no commercial use, share alike; its tables hold the test labels"
DOWNLOADS = ".downloads"  # in the data set's folder: archives that are not whole, or not unpacked yet
HUB_ROOM = {RXRX1.competition: 2 * IMAGES.size}  # bytes that a competition's archive and its content take, where it is known
_SENTINELS = ("train_controls.csv", "metadata.csv")
_SHOWN = 20  # problems that a download prints; `cellsignal check` prints all


def download_rxrx1(folder: Path, *, tables: bool = False, cell_types: Sequence[str] = (), look: bool = True) -> None:
    """Bring the public release into `folder`: all of it, the tables alone, or the tables and some cell types.

    All of it is one archive, checked against its published sum and removed after it was unpacked. Single cell types are read
    out of the archive on the server, so that they cost no more than their own bytes; there each image's CRC-32 is the check.
    A second call keeps what is there. InputError when the disk is too small or a cell type unknown, StepFailed when the
    server fails.
    """
    folder = Path(folder)
    _fetch_tables(folder)
    if tables:
        print(f"wrote {folder / 'metadata.csv'}\n{LICENCE}")
        return
    release = read_tables(folder)
    missing = missing_images(release, cell_types=cell_types)
    if set(missing) == set(release.wells["experiment"]):
        _whole_archive(folder)
    elif missing:
        _parts(folder, missing)
    print(f"{folder}: {_named(cell_types)} {'kept' if not missing else 'unpacked'}\n{LICENCE}")
    if look:
        look_through(folder, cell_types=cell_types)


def look_through(folder: Path, *, cell_types: Sequence[str] = ()) -> None:
    """Print what `cellsignal check` finds; published data have a few faults, which are no reason to fail."""
    problems = check.check_dataset(folder, cell_types=cell_types)
    if problems.empty:
        print(f"{folder}: every row and every image of {_named(cell_types)} is whole")
        return
    print(problems.head(_SHOWN).to_string(index=False, justify="left", max_colwidth=None))
    print(f"{folder}: problems: {len(problems):,}; a well with one whole site is read from that one")


def from_kagglehub(competition: str) -> Path:
    """The folder of a competition's files, downloaded by kagglehub with the user's token, or mounted where it can.

    kagglehub keeps the archive beside what it unpacks for a moment, so this needs twice the size of the data. InputError when
    there is no room for that, it is not installed, has no token or the rules were not accepted; StepFailed on any other failure.
    """
    try:
        kagglehub = importlib.import_module("kagglehub")
    except ImportError:
        raise InputError("kagglehub is not installed", cure="pip install kagglehub, or set `preset: demo`") from None
    _require_room_for_hub(kagglehub, competition)
    try:
        root = Path(kagglehub.competition_download(competition))
    except Exception as error:  # its own, those of requests and of the SDK; none may reach a page with what it quotes
        raise _hub_failure(competition, error) from None
    folders = [root, *(path for depth in ("*", "*/*") for path in root.glob(depth))]
    marks = [name for task in TASKS.values() if task.competition == competition for name, _ in task.marks] or _SENTINELS
    found = next((path for path in folders if any((path / name).is_file() for name in marks)), None)
    if found is None:
        raise InputError("kagglehub brought no tables", where=root, cure=f"look whether {competition!r} is the competition's name")
    return found


def _require_room_for_hub(kagglehub: ModuleType, competition: str) -> None:
    """InputError when kagglehub's cache has no room for the archive and its content, unless it is there already."""
    config = getattr(kagglehub, "config", None)  # no public name tells where the cache is
    if competition not in HUB_ROOM or not hasattr(config, "get_cache_folder"):
        return
    cache = Path(config.get_cache_folder())
    if not (cache / "competitions" / competition).exists():
        cure = "`cellsignal download rxrx1 --cell-type U2OS` needs a tenth of it and no token; name its folder in `data`"
        require_room(cache, HUB_ROOM[competition], purpose="the competition's archive and what comes out of it", cure=cure)


def _hub_failure(competition: str, error: Exception) -> Exception:
    """What the user can do about kagglehub's failure, told by its kind and status alone."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    refused = status in (401, 403) or type(error).__name__ in ("UnauthenticatedError", "CredentialError")
    if not refused:
        return StepFailed(f"kagglehub could not fetch {competition} ({type(error).__name__}); the same call tries again")
    cure = "store a token as the secret KAGGLE_API_TOKEN, accept the competition's rules on its page, or set `preset: demo`"
    return InputError("Kaggle refuses the download", where=competition, cure=cure)


def _fetch_tables(folder: Path) -> None:
    """metadata.csv, if it is not there."""
    if (folder / "train.csv").exists():
        raise InputError("holds the competition's tables", where=folder, cure="choose another folder with --out")
    if (folder / "metadata.csv").exists():
        if not _known_metadata(folder):
            cure = "choose another folder with --out, or move it away"
            raise InputError("holds another metadata.csv than the published one", where=folder, cure=cure)
        return
    archive = fetch(TABLES.url, folder / DOWNLOADS / "rxrx1-metadata.zip", md5=TABLES.md5)
    unpack(archive, folder, where=TABLES.url, experiments=(), accept=_accept_metadata)
    _discard(archive)


def _known_metadata(folder: Path) -> bool:
    return files.sha256(folder / "metadata.csv") == METADATA_SHA256


def _accept_metadata(folder: Path) -> None:
    """Refuse other tables than those that were published; `folder` holds only what is new."""
    if (folder / "metadata.csv").exists() and not _known_metadata(folder):
        what = "metadata.csv has another SHA-256 than the published one"
        raise InputError(what, where=TABLES.url, cure="download it again; if it stays so, the publisher has changed it")


def _whole_archive(folder: Path) -> None:
    target = folder / DOWNLOADS / "rxrx1-images.zip"
    if not target.exists():
        part = target.with_name(f"{target.name}.part")
        there = part.stat().st_size if part.exists() else 0
        cure = "free some space, or name cell types with --cell-type: these need no room for the archive"
        require_room(folder, 2 * IMAGES.size - there, purpose="the archive and what comes out of it", cure=cure)
        fetch(IMAGES.url, target, md5=IMAGES.md5)
    record_images(folder, unpack(target, folder, where=IMAGES.url))
    _discard(target)


def _parts(folder: Path, experiments: Sequence[str]) -> None:
    """Read some experiments' images out of the archive where it lies."""
    with RemoteFile(IMAGES.url) as remote:
        count = unpack(io.BufferedReader(remote, BLOCK), folder, where=IMAGES.url, experiments=experiments)
        print(f"{sum(count.values()):,} images; {gigabytes(remote.fetched)} of {gigabytes(remote.size)} were downloaded")
    record_images(folder, count)


def _discard(archive: Path) -> None:
    """Remove an archive that is unpacked, and the folder if nothing else waits there."""
    archive.unlink()
    if not any(archive.parent.iterdir()):
        archive.parent.rmdir()


def _named(cell_types: Sequence[str]) -> str:
    return ", ".join(cell_types) or "all cell types"
