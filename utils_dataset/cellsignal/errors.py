"""What the user can mend, what failed all the same, and how both read."""

import errno
import os
import resource
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the errors of a file for which there is no room
_SHARED_MEMORY = Path("/dev/shm")  # where processes that work side by side keep their locks
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
    """Something the user gave is wrong: one line says `what`, `where` and how to mend it, the `cure`."""

    def __init__(self, what: str, *, where: object = "", cure: str = "") -> None:
        self.what, self.where, self.cure = what, where, cure
        parts = [f"{where}: {what}" if where != "" else what, cure]
        super().__init__("; ".join(" ".join(part.split()) for part in parts if part))


class StepFailed(RuntimeError):
    """A step ended without its work done, and not because of what the user gave."""


def system_fault(error: OSError) -> tuple[str, str]:
    """What an error of the operating system says, whatever path it is about, and its cure."""
    what = error.strerror or str(error) or type(error).__name__
    if error.errno == errno.EMFILE:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return f"too many open files (a process may have {most:,})", "raise the limit, such as with ulimit -n 4096"
    return what, _CURES.get(error.errno or 0, "choose another path")


def system_error(error: OSError, *, doing: str = "", folder: Path | None = None, cure: str = "") -> InputError:
    """An error of the operating system as one line, with the path that it is about, else what was being done.

    When there was no room: on the file system of that path. Where the error names none it may be that of `folder`, or one
    of those that programs use without being told, and the fullest is named. `cure` is then the given one.
    """
    where = error.filename2 or error.filename or doing
    where = os.fsdecode(where) if isinstance(where, bytes) else where
    device = bool(error.filename) and os.path.exists(where) and not os.path.isfile(where) and not os.path.isdir(where)
    if error.errno not in FULL or device:
        what, usual = system_fault(error)
        return InputError(what, where=where, cure=usual)
    if not error.filename:
        where = min((Path(folder or Path.cwd()), Path(tempfile.gettempdir()), *[_SHARED_MEMORY] * _SHARED_MEMORY.is_dir()), key=_room)
    return InputError(_full(Path(where), error), where=where, cure=cure or "free some space there")


def _full(path: Path, error: OSError) -> str:
    if error.errno == errno.EDQUOT:
        return "your quota on this disk is used up"
    if error.errno == errno.EFBIG:
        return "the file is too large for this disk, or for the limit ulimit -f"
    found = os.statvfs(_there(path))
    if found.f_files and not found.f_favail:
        return f"the disk holds as many files as it can ({found.f_files:,})"
    return f"the disk is full ({_room(path) / 1e6:,.1f} MB are free)"


def _room(path: Path) -> float:
    """Free bytes of the file system of a path, which need not be there yet; infinite where there is none."""
    try:
        found = os.statvfs(_there(path))
    except OSError:
        return float("inf")
    return found.f_bavail * found.f_frsize


def _there(path: Path) -> Path:
    return next((place for place in (path, *path.absolute().parents) if place.exists()), path)


# What is wrong with the data, as a list: the first is told, all can be asked for.


class Problem(NamedTuple):
    """One fault: `where` is a file, or file:line:column."""

    where: str
    what: str
    cure: str


class Faults(InputError):
    """The data has faults: the message tells the first, `problems` holds every one."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        first, more = problems[0], len(problems) - 1
        what = f"{first.what} (and {more:,} more)" if more else first.what
        super().__init__(what, where=first.where, cure=first.cure)
        self.problems = list(problems)


def raise_if_any(problems: Sequence[Problem]) -> None:
    """Raise Faults if there are any."""
    if problems:
        raise Faults(problems)
