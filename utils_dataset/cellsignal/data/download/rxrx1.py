"""Downloading the public release of RxRx1, or the competition's files by kagglehub."""

import importlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from cellsignal import files
from cellsignal.data import check
from cellsignal.data.download.archives import unpack
from cellsignal.data.download.http import BLOCK, RemoteFile, fetch
from cellsignal.data.tables.wells import Tables, read_tables, select
from cellsignal.errors import InputError, StepFailed
from cellsignal.files import entries, gigabytes, require_room
from cellsignal.receipts import Receipt
from cellsignal.tasks import RXRX1, TASKS

# The record of completed downloads: the number of images of each experiment.


RECEIPT = "download.json"  # in the data set's folder: how many images each experiment has


def record_images(root: Path, images: Mapping[str, int]) -> None:
    """Record that these experiments are complete, with the number of images of each."""
    Receipt(root / RECEIPT, details=dict(sorted({**_recorded_images(root), **images}.items()))).write()


def missing_images(tables: Tables, *, cell_types: Sequence[str] = ()) -> list[str]:
    """The experiments of these cell types (empty: all) that are incomplete.

    Counts names only, one folder listing per plate. InputError when the tables have no such cell type.
    """
    sites = select(tables, cell_types=cell_types).sites
    plates = sites["stem"].str.rpartition("/")[0].groupby(sites["experiment"]).unique()
    recorded = _recorded_images(tables.root)
    return [name for name, folders in plates.items() if sum(_count_images(tables.root / folder) for folder in folders) != recorded.get(name)]


def _recorded_images(root: Path) -> Mapping[str, int]:
    return Receipt.read(root / RECEIPT, dict[str, int]).details if (root / RECEIPT).exists() else {}


def _count_images(folder: Path) -> int:
    return sum(entry.name.endswith(".png") for entry in entries(folder))


class Published(NamedTuple):
    """A public archive; `md5` is used if the server sends no hash."""

    url: str
    size: int
    md5: str


# https://www.rxrx.ai/rxrx1, github.com/recursionpharma/rxrx-datasets; sums as several users of the archives published them.
TABLES = Published("https://storage.googleapis.com/rxrx/rxrx1/rxrx1-metadata.zip", 1_333_687, "777e959ca0bce5a2aa7f9f9d456aee7e")
IMAGES = Published("https://storage.googleapis.com/rxrx/rxrx1/rxrx1-images.zip", 49_039_640_485, "f75ffa93b917e8a82e27e0c3a2b3425f")
METADATA_SHA256 = "799ed719d2be136db29fef6fcb7a51ceb94d1de9d43421a49b16409329a2f1b7"
LICENCE = "RxRx1 by Recursion, CC BY-NC-SA 4.0: no commercial use, share alike; its tables hold the test labels"
DOWNLOADS = ".downloads"  # in the data set's folder: archives that are not whole, or not unpacked yet
KAGGLEHUB_BYTES = {RXRX1.competition: 2 * IMAGES.size}  # bytes that a competition's archive and its content take, where it is known
_TABLE_NAMES = ("train_controls.csv", "metadata.csv")
_PRINTED_PROBLEMS = 20  # problems that a download prints; `cellsignal check` prints all


def download_rxrx1(folder: Path, *, tables: bool = False, cell_types: Sequence[str] = (), check_images: bool = True) -> None:
    """Download the public release into `folder`: everything, only the tables, or the tables and some cell types.

    The full release is one archive, checked against its published hash and removed after unpacking. Single cell types
    are read from the archive on the server by range requests and checked by each image's CRC-32. A second call keeps
    existing files. InputError if the disk is too small or a cell type is unknown, StepFailed if the server fails.
    """
    folder = Path(folder)
    _fetch_tables(folder)
    if tables:
        print(f"wrote {folder / 'metadata.csv'}\n{LICENCE}")
        return
    release = read_tables(folder)
    missing = missing_images(release, cell_types=cell_types)
    if set(missing) == set(release.wells["experiment"]):
        _download_whole_archive(folder)
    elif missing:
        _stream_experiments(folder, missing)
    print(f"{folder}: {_cell_type_list(cell_types)} {'kept' if not missing else 'unpacked'}\n{LICENCE}")
    if check_images:
        print_problems(folder, cell_types=cell_types)


def print_problems(folder: Path, *, cell_types: Sequence[str] = ()) -> None:
    """Print the problems that `cellsignal check` finds; the published data have a few, so none is an error."""
    problems = check.check_dataset(folder, cell_types=cell_types)
    if problems.empty:
        print(f"{folder}: every row and every image of {_cell_type_list(cell_types)} is whole")
        return
    print(problems.head(_PRINTED_PROBLEMS).to_string(index=False, justify="left", max_colwidth=None))
    print(f"{folder}: problems: {len(problems):,}; a well with one whole site is read from that one")


def from_kagglehub(competition: str) -> Path:
    """The folder of a competition's files, downloaded by kagglehub with the user's token, or mounted.

    kagglehub needs twice the size of the data, because it unpacks before it deletes the archive. InputError if the disk
    is too small, kagglehub is not installed, has no token or the rules were not accepted; StepFailed on other failures.
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
    table_names = [name for task in TASKS.values() if task.competition == competition for name, _ in task.identifying_tables] or _TABLE_NAMES
    data_folder = next((path for path in folders if any((path / name).is_file() for name in table_names)), None)
    if data_folder is None:
        raise InputError("kagglehub brought no tables", where=root, cure=f"look whether {competition!r} is the competition's name")
    return data_folder


def _require_room_for_hub(kagglehub: ModuleType, competition: str) -> None:
    """InputError if kagglehub's cache is too small for the archive and its content, unless it is cached already."""
    config = getattr(kagglehub, "config", None)  # no public name tells where the cache is
    if competition not in KAGGLEHUB_BYTES or not hasattr(config, "get_cache_folder"):
        return
    cache = Path(config.get_cache_folder())
    if not (cache / "competitions" / competition).exists():
        cure = "`cellsignal download rxrx1 --cell-type U2OS` needs a tenth of it and no token; name its folder in `data`"
        require_room(cache, KAGGLEHUB_BYTES[competition], purpose="the competition's archive and what comes out of it", cure=cure)


def _hub_failure(competition: str, error: Exception) -> Exception:
    """The error for a failure of kagglehub, from its type and HTTP status only."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    unauthorized = status in (401, 403) or type(error).__name__ in ("UnauthenticatedError", "CredentialError")
    if not unauthorized:
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
    _remove_archive(archive)


def _known_metadata(folder: Path) -> bool:
    return files.sha256(folder / "metadata.csv") == METADATA_SHA256


def _accept_metadata(folder: Path) -> None:
    """Refuse tables that differ from the published ones; `folder` holds only new files."""
    if (folder / "metadata.csv").exists() and not _known_metadata(folder):
        what = "metadata.csv has another SHA-256 than the published one"
        raise InputError(what, where=TABLES.url, cure="download it again; if it stays so, the publisher has changed it")


def _download_whole_archive(folder: Path) -> None:
    target = folder / DOWNLOADS / "rxrx1-images.zip"
    if not target.exists():
        part = target.with_name(f"{target.name}.part")
        downloaded = part.stat().st_size if part.exists() else 0
        cure = "free some space, or name cell types with --cell-type: these need no room for the archive"
        require_room(folder, 2 * IMAGES.size - downloaded, purpose="the archive and what comes out of it", cure=cure)
        fetch(IMAGES.url, target, md5=IMAGES.md5)
    record_images(folder, unpack(target, folder))
    _remove_archive(target)


def _stream_experiments(folder: Path, experiments: Sequence[str]) -> None:
    """Read the images of some experiments from the archive on the server."""
    with RemoteFile(IMAGES.url) as remote:
        count = unpack(io.BufferedReader(remote, BLOCK), folder, where=IMAGES.url, experiments=experiments)
        print(f"{sum(count.values()):,} images; {gigabytes(remote.fetched)} of {gigabytes(remote.size)} were downloaded")
    record_images(folder, count)


def _remove_archive(archive: Path) -> None:
    """Remove an unpacked archive, and its folder if that is empty."""
    archive.unlink()
    if not any(archive.parent.iterdir()):
        archive.parent.rmdir()


def _cell_type_list(cell_types: Sequence[str]) -> str:
    return ", ".join(cell_types) or "all cell types"
