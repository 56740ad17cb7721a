"""Where a simulation works: alone in its folder, with a receipt, going on where a killed one stopped, on all cores."""

import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import cv2

from cellsignal import files
from cellsignal.code_identity import changed, package_code
from cellsignal.data.simulated import RECEIPT, WORKSHOP
from cellsignal.errors import InputError
from cellsignal.receipts import Receipt

CODE = ".simulate-code.json"  # which code drew; apart from the receipt, because the same plates are the same data
Part, Made = TypeVar("Part"), TypeVar("Made")
SideBySide = Callable[..., Iterator[Any]]  # as `side_by_side`: whoever draws the parts


@contextmanager
def working_folder(out: Path, identity: dict[str, Any], *, keep: bool = True) -> Iterator[bool]:
    """Hold `out`, made for it, against a second simulation; gives whether there is anything left to do.

    On leaving without error `out` is whole, and says so by its receipt, which vouches for its tables; images carry checksums of their own. Raises InputError
    when it holds anything but this simulation, when a table is not as it was left, and for what other code of this
    package drew, unless that is whole: then it is kept if `keep`, and a line says so.
    """
    with _alone(out):
        todo = _claim(out, identity=identity)
        _of_this_code(out, keep=keep, whole=not todo)
        yield todo
        if todo:
            files.remove_temporary(out, ())
            Receipt(out / CODE, package_code("data")).write()
            Receipt(out / RECEIPT, identity, {path.name: files.sha256(path) for path in sorted(out.glob("*.csv"))}).write()
        shutil.rmtree(out / WORKSHOP, ignore_errors=True)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold `out`, made for it, against a second simulation; the folder is its own lock and nothing is left of it."""
    if out.exists() and not out.is_dir():
        raise InputError("holds files that no simulation wrote", where=out, cure="choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    with files.locked(out, refusal="another simulation works in this folder"):
        yield


def _claim(out: Path, *, identity: dict[str, Any]) -> bool:
    """Whether anything is left to do in `out`; InputError when it holds anything but this simulation."""
    found = [path for path in (out / RECEIPT, out / WORKSHOP / RECEIPT) if path.exists()]
    if found:
        anew = f"delete the whole folder {out} and simulate again"
        receipt = Receipt.read(found[0], cure=anew)  # without it the rest cannot be told from foreign files
        if not replace(receipt, complete=True).is_current(identity):
            raise InputError("holds a different simulation", where=out, cure="choose another folder, or delete this one")
        receipt.check_outputs(out, made_by="the simulation", cure=anew)
        return not receipt.complete
    if any(path.name != WORKSHOP for path in out.iterdir()):
        cure = "choose another folder"
        if (out / "train.csv").exists():
            cure = "leave the preset out to use these plates (-p preset=), or choose another folder"
        raise InputError("holds files that no simulation wrote", where=out, cure=cure)
    Receipt(out / WORKSHOP / CODE, package_code("data")).write()
    Receipt(out / WORKSHOP / RECEIPT, identity, complete=False).write()
    return True


def _of_this_code(out: Path, *, keep: bool, whole: bool) -> None:
    """Refuse plates of other code, or say that they are kept."""
    drawn = Receipt.find(out / (CODE if whole else f"{WORKSHOP}/{CODE}"))
    if not (other := changed(drawn and drawn.identity, package_code("data"))):
        return
    if not (whole and keep):
        raise InputError(f"drawn by other code of cellsignal ({', '.join(other)})", where=out, cure="delete this folder, or choose another")
    print(f"{out}: kept, although other code of cellsignal ({', '.join(other)}) drew these plates; delete the folder to draw them anew")


def worker_folder(out: Path) -> Path:
    """A folder of this process in the workshop; those that killed processes left are removed."""
    for orphan in (out / WORKSHOP).glob("desk-*"):
        shutil.rmtree(orphan)
    return out / WORKSHOP / f"desk-{os.getpid()}"


def side_by_side(function: Callable[[Part], Made], parts: Iterable[Part], *, processes: int | None) -> Iterator[Made]:
    """`function` of each part, in whatever order they end, by so many processes; None: one a core."""
    parts = list(parts)
    count = min(processes or os.cpu_count() or 1, len(parts))
    if count <= 1:
        yield from map(function, parts)
        return
    with multiprocessing.get_context("spawn").Pool(count, initializer=_start_worker) as pool:
        yield from pool.imap_unordered(function, parts)


def _start_worker() -> None:
    """One thread each; and a worker whose parent was killed must not wait for work for ever."""
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
