"""The utility dataset: this package and the notebooks, brought to Kaggle and waited for."""

import hashlib
import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

import cellsignal
from cellsignal import files, provenance
from cellsignal.errors import StepFailed
from cellsignal.kaggle import client
from cellsignal.kaggle.client import DATASET
from cellsignal.kaggle.errors import RateLimited, ServerError, Unreachable
from cellsignal.kaggle.push_state import folder_of
from cellsignal.receipts import Receipt
from cellsignal.run import environment

SLUG = "cellsignal-utils"
READY, FAILED_STATES = "ready", frozenset({"failed", "deleted"})
MAX_UNPACK_SECONDS = 3600.0  # seconds after which a version that does not show never will
_IGNORED = ("__pycache__", "*.pyc", "*.egg-info", ".*")  # hidden are checkpoints of Jupyter and what editors leave while a file is open
_METADATA: dict[str, Any] = {
    "title": "CellSignal utils",
    "subtitle": "The Python package behind the CellSignal kernels for RxRx1",
    "licenses": [{"name": "MIT"}],
    "keywords": [],
}


class UploadDetails(TypedDict):
    """Details of the receipt of an upload of the package: its version on Kaggle, and the code digests of all uploads."""

    version: int
    codes: list[str]


@dataclass(frozen=True)
class Waiting:
    """How long to wait for Kaggle to unpack an upload, and how often to ask, in seconds."""

    timeout: float = 1800.0
    interval: float = 5.0


def publish_dataset(owner: str, *, folder: Path | None = None, waiting: Waiting = Waiting()) -> int:
    """Bring the package to Kaggle as `owner`/cellsignal-utils and wait until it can be attached; gives its version.

    Nothing is uploaded when the newest version there came from here and holds the same. StepFailed when Kaggle does
    not get ready in time, or says that it failed; what client.py raises else.
    """
    folder = folder or folder_of("utils_dataset")
    with files.locked(folder.parent / f".{folder.name}.lock", timeout=waiting.timeout, waiting_message="another push is uploading the package"):
        content = {"owner": owner, "content": build_dataset(folder, owner)}
        uploaded = folder.parent / f"{folder.name}.json"
        codes = [*codes_after("", uploaded), files.read_json(folder / "cellsignal" / provenance.BUILD_FILE)["code"]]
        current_version, failed = _current_version(f"{owner}/{SLUG}", waiting)
        version = 0 if failed else _uploaded_version(uploaded, content, current_version)
        if version == 0:
            uploaded.unlink(missing_ok=True)
            _upload(folder, current_version)
            version = current_version + 1
            Receipt(uploaded, content, details={"version": version, "codes": list(dict.fromkeys(reversed(codes)))[::-1]}).write()  # now: who ends us while we wait must not upload it twice
        return _wait(f"{owner}/{SLUG}", version, waiting, failed=failed) if version > current_version else version


def _uploaded_version(record: Path, content: dict[str, str], current_version: int) -> int:
    """The version under which this content is there or on its way; 0 when it never went up, or should have shown long ago."""
    recorded = Receipt.find(record, UploadDetails)
    if current_version == 0 or recorded is None:
        return 0
    version = recorded.details["version"]
    unpacking = version == current_version + 1 and time.time() - record.stat().st_mtime < MAX_UNPACK_SECONDS
    return version if recorded.is_current(content) and (version == current_version or unpacking) else 0


def codes_after(code: str, record: Path | None = None) -> list[str]:
    """The code digests of the packages that were uploaded from here after one with this code; all for ""."""
    record = record or folder_of("utils_dataset").with_suffix(".json")
    recorded = Receipt.find(record, UploadDetails)
    codes = recorded.details["codes"] if recorded else []
    return codes[codes.index(code) + 1 :] if code in codes else codes if code == "" else []


def build_dataset(folder: Path, owner: str) -> str:
    """Fill `folder` with what the dataset holds, and give the SHA-256 over its files' names and contents.

    The package as it runs here with the commit in build.json, the notebooks, the recipes, and the metadata.
    """
    kernels = environment.kernels_folder()
    temporary = files.temporary_path(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        ignored = shutil.ignore_patterns(*_IGNORED)
        shutil.copytree(environment.PACKAGE, temporary / "cellsignal", ignore=ignored)
        for source in (kernels, kernels.parent / "papermill_params"):
            if source.is_dir():
                shutil.copytree(source, temporary / source.name, ignore=ignored)
        build_record = {"version": cellsignal.__version__, "commit": provenance.commit(), "code": provenance.code_digest(temporary / "cellsignal")}
        files.write_json(temporary / "cellsignal" / provenance.BUILD_FILE, build_record)
        digest = _digest(temporary, (path for path in temporary.rglob("*") if path.is_file()))
        files.write_json(temporary / DATASET, {"id": f"{owner}/{SLUG}", **_METADATA})
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return digest


def _digest(root: Path, paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.relative_to(root).as_posix()} {files.sha256(path)}\n".encode())
    return digest.hexdigest()


def _upload(folder: Path, current_version: int) -> None:
    if current_version == 0:
        client.create_dataset(folder)
        return
    built = files.read_json(folder / "cellsignal" / provenance.BUILD_FILE)
    client.version_dataset(folder, " ".join(filter(None, ["cellsignal", built["version"], built["commit"][:12]])))


def _current_version(slug: str, waiting: Waiting) -> tuple[int, bool]:
    """The version that is there now, 0 for none, and whether Kaggle failed to unpack it.

    A first one that is still unpacked takes no second before it is ready. A failed one takes another: kernels cannot
    mount a dataset that was deleted and made anew under the same slug.
    """
    status, version = client.dataset_status(slug)
    if status in FAILED_STATES:
        return max(version, 1), True
    if status in (client.DATASET_MISSING, READY):
        return (version if status == READY else 0), False
    return _wait(slug, max(version, 1), waiting), False


def _wait(slug: str, wanted_version: int, waiting: Waiting, *, failed: bool = False) -> int:
    """Ask until version `wanted_version` of a dataset can be attached; returns the version. One line for each new state.

    `failed`: the version before it failed, and Kaggle says so until the next one is there.
    """
    deadline, last_line = time.monotonic() + waiting.timeout, ""
    while True:
        status, version = _ask(slug)
        if status == READY and version >= wanted_version:
            return version
        if status in FAILED_STATES and (version >= wanted_version or not failed):
            raise StepFailed(f"dataset {slug}: Kaggle says {status}; the same command uploads another version; see https://www.kaggle.com/datasets/{slug}")
        if time.monotonic() > deadline:
            raise StepFailed(f"dataset {slug}: version {wanted_version} is not ready after {waiting.timeout:.0f} s ({status}); run the same command again later")
        line = f"dataset {slug}: waiting for version {wanted_version} ({status if status != READY else f'version {version} is there'})"
        if line != last_line:
            print(line, file=sys.stderr, flush=True)
            last_line = line
        time.sleep(waiting.interval)


def _ask(slug: str) -> tuple[str, int]:
    """The status; what may pass by itself is a status, too, and shown as such."""
    try:
        return client.dataset_status(slug)
    except (RateLimited, ServerError, Unreachable) as error:
        return str(error), 0
