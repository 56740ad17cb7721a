"""The working folder of a simulation: locked, with a receipt, resumable; and a parallel map over processes."""

import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import cv2

from cellsignal import files
from cellsignal.code_identity import changed_parts, package_code
from cellsignal.data.simulated import CODE, RECEIPT, WORKING_FOLDER, receipt_path
from cellsignal.errors import InputError, StepFailed
from cellsignal.receipts import Receipt

Part, Output = TypeVar("Part"), TypeVar("Output")
ParallelMap = Callable[..., Iterator[Any]]  # as `run_in_processes` and `map`: whoever draws the parts


@contextmanager
def working_folder(out: Path, identity: dict[str, Any], *, keep_other_code: bool = True, own_design: bool = False) -> Iterator[bool]:
    """Create and lock `out`; yields whether anything is left to do.

    Unless the block raises, `out` is then complete and has a receipt with the hashes of its tables; images carry
    checksums of their own. InputError if it holds anything but this simulation, if a table was altered, and for plates
    drawn by another version of the code, except complete ones if `keep_other_code`: these are kept with a note.
    `own_design`: nothing but preset and seed decided the wells, which `simulated.is_current` may then rely on.
    """
    with _exclusive(out):
        unfinished = _prepare_folder(out, identity=identity)
        _check_code(out, keep_other_code=keep_other_code, complete=not unfinished)
        yield unfinished
        if unfinished:
            files.remove_temporary(out, ())
            Receipt(out / CODE, package_code("data"), details={"own_design": own_design}).write()
            Receipt(out / RECEIPT, identity, {path.name: files.sha256(path) for path in sorted(out.glob("*.csv"))}).write()
        shutil.rmtree(out / WORKING_FOLDER, ignore_errors=True)


@contextmanager
def _exclusive(out: Path) -> Iterator[None]:
    """Create `out` and lock it against a second simulation; the folder itself is the lock."""
    if out.exists() and not out.is_dir():
        raise InputError("holds files that no simulation wrote", where=out, cure="choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    with files.locked(out, busy_message="another simulation works in this folder"):
        yield


def _prepare_folder(out: Path, *, identity: dict[str, Any]) -> bool:
    """Whether anything is left to do in `out`; InputError when it holds anything but this simulation."""
    if (path := receipt_path(out)).exists():
        start_again = f"delete the whole folder {out} and simulate again"
        receipt = Receipt.read(path, cure=start_again)  # without it the rest cannot be distinguished from foreign files
        if not replace(receipt, complete=True).is_current(identity):
            raise InputError("holds a different simulation", where=out, cure="choose another folder, or delete this one")
        receipt.check_outputs(out, made_by="the simulation", cure=start_again)
        return not receipt.complete
    if any(path.name != WORKING_FOLDER for path in out.iterdir()):
        cure = "choose another folder"
        if (out / "train.csv").exists():
            cure = "leave the preset out to use these plates (-p preset=), or choose another folder"
        raise InputError("holds files that no simulation wrote", where=out, cure=cure)
    Receipt(out / WORKING_FOLDER / CODE, package_code("data")).write()
    Receipt(out / WORKING_FOLDER / RECEIPT, identity, complete=False).write()
    return True


def _check_code(out: Path, *, keep_other_code: bool, complete: bool) -> None:
    """Refuse plates drawn by another version of the code, or print that they are kept."""
    code = Receipt.find(out / (CODE if complete else f"{WORKING_FOLDER}/{CODE}"))
    if not (changed_rooms := changed_parts(code and code.identity, package_code("data"))):
        return
    if not (complete and keep_other_code):
        raise InputError(f"drawn by other code of cellsignal ({', '.join(changed_rooms)})", where=out, cure="delete this folder, or choose another")
    print(f"{out}: kept, although other code of cellsignal ({', '.join(changed_rooms)}) drew these plates; delete the folder to draw them anew")


def worker_folder(out: Path) -> Path:
    """A folder of this process in the working folder; those of killed processes are removed."""
    for orphan in (out / WORKING_FOLDER).glob("desk-*"):
        shutil.rmtree(orphan)
    return out / WORKING_FOLDER / f"desk-{os.getpid()}"


def run_in_processes(function: Callable[[Part], Output], parts: Iterable[Part], *, processes: int | None = None) -> Iterator[Output]:
    """`function` of each part, in order of completion, by `processes` processes (None: one per core).

    Raises StepFailed when a process is killed or cannot start; parts that have not begun are then left out, as after any error.
    """
    parts = list(parts)
    count = min(processes or os.cpu_count() or 1, len(parts))
    if count <= 1:
        yield from map(function, parts)
        return
    executor = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_start_worker)
    try:
        for future in as_completed([executor.submit(function, part) for part in parts]):
            yield future.result()
    except BrokenProcessPool:
        raise StepFailed("a process was killed, or could not start; give the same command again to make what is missing") from None
    finally:
        executor.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Use one thread, and end when the parent process dies."""
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
