"""The utility dataset: this package and the notebooks, brought to Kaggle and waited for."""

import hashlib
import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cellsignal
from cellsignal import files, shapes
from cellsignal.errors import StepFailed
from cellsignal.kaggle import client
from cellsignal.kaggle.client import DATASET
from cellsignal.kaggle.errors import RateLimited, ServerError, Unreachable
from cellsignal.kaggle.push_state import folder_of
from cellsignal.receipts import Receipt
from cellsignal.run import environment
from cellsignal.run.record import provenance

SLUG = "cellsignal-utils"
READY, FAILED = "ready", frozenset({"failed", "deleted"})
LOST = 3600.0  # seconds after which a version that does not show never will
_LEFT_OUT = ("__pycache__", "*.pyc", "*.egg-info", ".ipynb_checkpoints", files.TEMPORARY + "*")
_DESCRIBED: dict[str, Any] = {
    "title": "CellSignal utils",
    "subtitle": "The Python package behind the CellSignal kernels for RxRx1",
    "licenses": [{"name": "MIT"}],
    "keywords": [],
}


@dataclass(frozen=True)
class Waiting:
    """How long to wait for Kaggle to unpack an upload, and how often to ask, in seconds."""

    patience: float = 1800.0
    interval: float = 5.0


def publish_dataset(owner: str, *, folder: Path | None = None, waiting: Waiting = Waiting()) -> int:
    """Bring the package to Kaggle as `owner`/cellsignal-utils and wait until it can be attached; gives its version.

    Nothing is uploaded when the newest version there came from here and holds the same. StepFailed when Kaggle does
    not get ready in time, or says that it failed; what client.py raises else.
    """
    folder = folder or folder_of("utils_dataset")
    with files.locked(folder.parent / f".{folder.name}.lock", patience=waiting.patience, waiting="another push is uploading the package"):
        content = {"owner": owner, "content": build_dataset(folder, owner)}
        uploaded = folder.parent / f"{folder.name}.json"
        codes = [*codes_after("", uploaded), files.read_json(folder / "cellsignal" / provenance.BUILD)["code"]]
        before, failed = _settled(f"{owner}/{SLUG}", waiting)
        version = 0 if failed else _uploaded(uploaded, content, before)
        if version == 0:
            uploaded.unlink(missing_ok=True)
            _upload(folder, before)
            version = before + 1
            Receipt(uploaded, content, details={"version": version, "codes": list(dict.fromkeys(reversed(codes)))[::-1]}).write()  # now: who ends us while we wait must not upload it twice
        return _wait(f"{owner}/{SLUG}", version, waiting, failed=failed) if version > before else version


def _uploaded(record: Path, content: dict[str, str], before: int) -> int:
    """The version under which this content is there or on its way; 0 when it never went up, or should have shown long ago."""
    held = Receipt.find(record, shapes.Upload)
    if before == 0 or held is None:
        return 0
    version = held.details["version"]
    on_its_way = version == before + 1 and time.time() - record.stat().st_mtime < LOST
    return version if held.is_current(content) and (version == before or on_its_way) else 0


def codes_after(code: str, record: Path | None = None) -> list[str]:
    """The code digests of the packages that were uploaded from here after one with this code; all for ""."""
    record = record or folder_of("utils_dataset").with_suffix(".json")
    held = Receipt.find(record, shapes.Upload)
    codes = held.details["codes"] if held else []
    return codes[codes.index(code) + 1 :] if code in codes else codes if code == "" else []


def build_dataset(folder: Path, owner: str) -> str:
    """Fill `folder` with what the dataset holds, and give the SHA-256 over its files' names and contents.

    The package as it runs here with the commit in build.json, the notebooks, the recipes, and the metadata.
    """
    kernels = environment.kernels()
    partial = files.temporary_path(folder)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        ignored = shutil.ignore_patterns(*_LEFT_OUT)
        shutil.copytree(environment.PACKAGE, partial / "cellsignal", ignore=ignored)
        for source in (kernels, kernels.parent / "papermill_params"):
            if source.is_dir():
                shutil.copytree(source, partial / source.name, ignore=ignored)
        built = {"version": cellsignal.__version__, "commit": provenance.commit(), "code": provenance.code_digest(partial / "cellsignal")}
        files.write_json(partial / "cellsignal" / provenance.BUILD, built)
        digest = _digest(partial, (path for path in partial.rglob("*") if path.is_file()))
        files.write_json(partial / DATASET, {"id": f"{owner}/{SLUG}", **_DESCRIBED})
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return digest


def _digest(root: Path, found: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(found):
        digest.update(f"{path.relative_to(root).as_posix()} {files.sha256(path)}\n".encode())
    return digest.hexdigest()


def _upload(folder: Path, before: int) -> None:
    if before == 0:
        client.create_dataset(folder)
        return
    built = files.read_json(folder / "cellsignal" / provenance.BUILD)
    client.version_dataset(folder, " ".join(filter(None, ["cellsignal", built["version"], built["commit"][:12]])))


def _settled(slug: str, waiting: Waiting) -> tuple[int, bool]:
    """The version that is there now, 0 for none, and whether Kaggle failed to unpack it.

    A first one that is still unpacked takes no second before it is ready. A failed one takes another: kernels cannot
    mount a dataset that was deleted and made anew under the same slug.
    """
    status, version = client.dataset_status(slug)
    if status in FAILED:
        return max(version, 1), True
    if status in (client.MISSING, READY):
        return (version if status == READY else 0), False
    return _wait(slug, max(version, 1), waiting), False


def _wait(slug: str, wanted: int, waiting: Waiting, *, failed: bool = False) -> int:
    """Ask until version `wanted` of a dataset can be attached; gives it. One line for each new state.

    `failed`: the version before it failed, and Kaggle says so until the next one is there.
    """
    deadline, told = time.monotonic() + waiting.patience, ""
    while True:
        status, version = _ask(slug)
        if status == READY and version >= wanted:
            return version
        if status in FAILED and (version >= wanted or not failed):
            raise StepFailed(f"dataset {slug}: Kaggle says {status}; the same command uploads another version; see https://www.kaggle.com/datasets/{slug}")
        if time.monotonic() > deadline:
            raise StepFailed(f"dataset {slug}: version {wanted} is not ready after {waiting.patience:.0f} s ({status}); run the same command again later")
        line = f"dataset {slug}: waiting for version {wanted} ({status if status != READY else f'version {version} is there'})"
        if line != told:
            print(line, file=sys.stderr, flush=True)
            told = line
        time.sleep(waiting.interval)


def _ask(slug: str) -> tuple[str, int]:
    """The status; what may pass by itself is a status, too, and shown as such."""
    try:
        return client.dataset_status(slug)
    except (RateLimited, ServerError, Unreachable) as error:
        return str(error), 0
