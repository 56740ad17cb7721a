"""Errors: InputError for what the user can fix, StepFailed for everything else, and one-line messages for both."""

import errno
import os
import resource
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space is left for a file
OF_THE_MACHINE = (*FULL, errno.EMFILE, errno.ENFILE, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)  # and of no code
_SHARED_MEMORY = Path("/dev/shm")  # where parallel processes keep their locks
_CURES = {
    errno.ENOENT: "mend the path, or make what is missing first",
    errno.EROFS: "choose a folder on a disk that can be written to",
    errno.EACCES: "change its rights, or choose another path",
    errno.EPERM: "change its rights, or choose another path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EISDIR: "name a file",
    errno.ENFILE: "end other programs, or raise the system's limit fs.file-max",
    errno.EIO: "look at the disk or the network behind it",
}


class InputError(ValueError):
    """An input of the user is wrong; the message is one line: `where`, `what` is wrong, and the `cure`."""

    def __init__(self, what: str, *, where: object = "", cure: str = "") -> None:
        self.what, self.where, self.cure = what, where, cure
        parts = [f"{where}: {what}" if where != "" else what, cure]
        super().__init__("; ".join(" ".join(part.split()) for part in parts if part))


class StepFailed(RuntimeError):
    """A step failed for a reason other than the user's input."""


def system_fault(error: OSError) -> tuple[str, str]:
    """Message and cure of an error of the operating system, without its path."""
    what = error.strerror or str(error) or type(error).__name__
    if error.errno == errno.EMFILE:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return f"too many open files (a process may have {limit:,})", "raise the limit, such as with ulimit -n 4096"
    return what, _CURES.get(error.errno or 0, "choose another path")


def system_error(error: OSError, *, doing: str = "", folder: Path | None = None, cure: str = "") -> InputError:
    """An error of the operating system as an InputError with its path, or with `doing` where it has none.

    For a full disk `cure` is used. Where the error has no path, the fullest of the file systems of `folder`, the
    temporary folder and shared memory is named.
    """
    where = error.filename2 or error.filename or doing
    where = os.fsdecode(where) if isinstance(where, bytes) else where
    device = bool(error.filename) and os.path.exists(where) and not os.path.isfile(where) and not os.path.isdir(where)
    if error.errno not in FULL or device:
        what, default_cure = system_fault(error)
        return InputError(what, where=where, cure=default_cure)
    if not error.filename:
        where = min((Path(folder or Path.cwd()), Path(tempfile.gettempdir()), *[_SHARED_MEMORY] * _SHARED_MEMORY.is_dir()), key=_free_bytes)
    return InputError(_full_disk(Path(where), error), where=where, cure=cure or "free some space there")


def _full_disk(path: Path, error: OSError) -> str:
    if error.errno == errno.EDQUOT:
        return "your quota on this disk is used up"
    if error.errno == errno.EFBIG:
        return "the file is too large for this disk, or for the limit ulimit -f"
    file_system = os.statvfs(_nearest_existing(path))
    if file_system.f_files and not file_system.f_favail:
        return f"the disk holds as many files as it can ({file_system.f_files:,})"
    return f"the disk is full ({_free_bytes(path) / 1e6:,.1f} MB are free)"


def _free_bytes(path: Path) -> float:
    """Free bytes of the file system of a path, which need not exist yet; infinite if it cannot be determined."""
    try:
        file_system = os.statvfs(_nearest_existing(path))
    except OSError:
        return float("inf")
    return file_system.f_bavail * file_system.f_frsize


def _nearest_existing(path: Path) -> Path:
    return next((ancestor for ancestor in (path, *path.absolute().parents) if ancestor.exists()), path)


def check_can_write(path: Path) -> None:
    """InputError if the folder of an output, or the folder in which that must be made, can hold no new file."""
    folder = _nearest_existing(path.absolute().parent)
    if not folder.is_dir():
        raise InputError("is a file, and no folder", where=folder, cure="name another folder for the output")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError("there is no right to write here", where=folder, cure="name another folder for the output")


def name_advice(name: str, known: Sequence[str], *, otherwise: str = "choose from") -> str:
    """The cure for an unknown name: the known one that differs in capitals alone, or else all of them."""
    same = [each for each in known if each.casefold() == name.casefold()]
    return f"did you mean {same[0]}?" if same else f"{otherwise} {', '.join(known)}"


# Faults of the data, as a list: the message shows the first one.


class Problem(NamedTuple):
    """One fault: `where` is a file, or file:line:column."""

    where: str
    what: str
    cure: str


class Faults(InputError):
    """The data has faults: the message shows the first one, `problems` holds all."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        first, others = problems[0], len(problems) - 1
        what = f"{first.what} (and {others:,} more)" if others else first.what
        super().__init__(what, where=first.where, cure=first.cure)
        self.problems = list(problems)


def raise_if_any(problems: Sequence[Problem]) -> None:
    """Raise Faults if there are any."""
    if problems:
        raise Faults(problems)
