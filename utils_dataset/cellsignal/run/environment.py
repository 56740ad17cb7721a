"""The platform, its folders, and the environment variables, which no other module reads."""

import fcntl
import hashlib
import os
import re
import sys
import threading
import time
from pathlib import Path

import cellsignal
from cellsignal import files
from cellsignal.errors import InputError

PACKAGE = Path(cellsignal.__file__).resolve().parent
KAGGLE, COLAB = Path("/kaggle"), Path("/content")
KERNELS_LOCK = ".kernels.lock"  # shared by every kernel that works in a run folder
CHAIN_LOCK = ".chain.lock"  # held by the one chain that drives it
SESSION_MINUTES = 11 * 60.0  # of the 12 hours after which Kaggle ends a session with all that it has not saved
LONGEST_MINUTES = 11.5 * 60.0  # the longest budget there: steps that began in time must end, and their files be saved
WORKING_BYTES = 20 * 10**9  # what /kaggle/working may hold
_START_TIME = time.time()  # of this process, nearly: notebooks and commands import this first
_CHAIN, _DEADLINE = "CELLSIGNAL_CHAIN", "CELLSIGNAL_DEADLINE"  # what a chain passes to its notebooks
_SAFE_PATH = "PYTHONSAFEPATH"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_MEMORY = {  # of the C library: what a training step frees stays with the process, which would fault it in again at each step
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
}
_LIBRARIES = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # what cuBLAS needs to repeat itself
    "NO_ALBUMENTATIONS_UPDATE": "1",  # it would look for its newest version on the internet
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    "PYTHONWARNINGS": "ignore:IProgress not found",  # a red box in every page, where Jupyter's widgets are not installed
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray would report to its developers, and print a notice
}
# Notebooks need no secrets, and cannot print what is not in their environment.
_SECRET = re.compile(r"TOKEN(?!IZERS)|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_KEY|PRIVATE_KEY|^KAGGLE_.*(KEY|USERNAME)", re.I)
_lock_files: dict[Path, int] = {}  # descriptors, open as long as the process lives: closing one releases its lock
_lock_files_lock = threading.Lock()  # of two threads that open the same file one would lose its descriptor


def platform() -> str:
    """"kaggle", "colab" or "local"; Kaggle first, because its image is built from Colab's."""
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        return "kaggle"
    return "colab" if "COLAB_RELEASE_TAG" in os.environ else "local"


def base_folder() -> Path:
    """The folder from which relative paths start: Kaggle's working folder, Google Drive or Colab's disk, or the current folder."""
    if platform() == "kaggle":
        return KAGGLE / "working"
    if platform() == "colab":
        drive = COLAB / "drive/MyDrive"
        return drive / "cellsignal" if drive.is_dir() else COLAB
    return Path.cwd()


def expand_path(name: str | Path) -> str:
    """A path with `~` and `~user` replaced by home folders, as a shell does it.

    Raises InputError for an unknown user, and for a variable such as $HOME or %USERPROFILE%, unless a file has this name.
    """
    path = os.path.expanduser(name)
    user = path.partition("/")[0]
    if user.startswith("~") and not os.path.lexists(user):
        raise InputError(f"{user} is no user's home folder", where=name, cure=f"write the whole path, or ./{user} for a folder of this name")
    for match in re.finditer(r"(\$(\{?)([A-Za-z_]\w*)\}?|%[A-Za-z_]\w*%)[^/]*", path):
        is_variable = match[2] or not match[3] or match[3].isupper() or match[3] in os.environ  # and not a price in a folder's name
        if is_variable and not os.path.lexists(path[: match.end()]):
            what = f"{match[1]} is a variable, which only a shell replaces"
            raise InputError(what, where=name, cure="write the path itself; one may begin with ~ for the home folder")
    return path


def run_folder(name: str) -> Path:
    """The absolute run folder for a name or path; InputError as `expand_path` raises it, and for a name that is not valid UTF-8."""
    return _check_utf8(Path(os.path.abspath(base_folder() / expand_path(name))))


def data_folder(name: str) -> Path:
    """The absolute folder of a data set, named as a run is; on Colab never on Google Drive, where each small file takes long."""
    return _check_utf8(Path(os.path.abspath((COLAB if platform() == "colab" else base_folder()) / expand_path(name))))


def _check_utf8(folder: Path) -> Path:
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise InputError("is no name in UTF-8, as notebooks need it", where=folder, cure="rename the folder, or choose another") from None
    return folder


def scratch_folder(run: Path) -> Path:
    """The folder where the plates of a run are drawn: not among Kaggle's outputs, not on Google Drive."""
    parents = {"kaggle": KAGGLE / "temp", "colab": COLAB / "data"}
    if platform() not in parents:
        return run / "data"
    return parents[platform()] / short_name(run) / "data"


def short_name(run: Path) -> str:
    """The name of a run folder that is the same on every machine: relative to `base_folder`, else its last part."""
    return run.relative_to(base_folder()).as_posix() if run.is_relative_to(base_folder()) else run.name


def repository() -> Path | None:
    """The checkout that contains the package, else the current folder, else Colab's clone; None without one."""
    candidates = (PACKAGE.parents[1], Path.cwd(), *Path.cwd().parents, COLAB / "cellsignal")
    return next((folder for folder in candidates if (folder / "kernels").is_dir()), None)


def kernels_folder() -> Path:
    """The folder of the numbered notebooks: in the checkout, or beside the package in its Kaggle dataset."""
    root = repository()
    if root is not None:
        return root / "kernels"
    if (PACKAGE.parent / "kernels").is_dir():
        return PACKAGE.parent / "kernels"
    raise InputError("no folder `kernels` here or above", where=Path.cwd(), cure="run this inside a checkout of the bundle")


def locks_folder(run: Path) -> Path:
    """The folder of a run's locks: the run folder, but on Colab one on its own disk, because Google Drive has no locks."""
    return COLAB / ".locks" / hashlib.sha256(str(run).encode()).hexdigest()[:16] if platform() == "colab" else run


def lock_run_folder(run: str | Path) -> Path:
    """Create the run folder, lock it while this process lives, and return its absolute path.

    The lock is a shared flock, which ends with the process however that ends.
    """
    folder = run_folder(str(run))
    folder.mkdir(parents=True, exist_ok=True)
    with _lock_files_lock:
        if folder not in _lock_files:
            _lock_files[folder] = files.open_lock(locks_folder(folder) / KERNELS_LOCK, fcntl.LOCK_SH)
    return folder


def unlock_run_folder(folder: Path) -> None:
    """Release this process's lock: a notebook that runs the chain would wait for itself."""
    with _lock_files_lock:
        if folder in _lock_files:
            os.close(_lock_files.pop(folder))


def configure_libraries() -> None:
    """Set the variables that make libraries repeatable and quiet, unless they are set; before these libraries are imported."""
    for name, value in _LIBRARIES.items():
        os.environ.setdefault(name, value)


def shield_children() -> None:
    """Keep Python processes that this one starts from importing files of the current folder, such as a random.py."""
    os.environ.setdefault(_SAFE_PATH, "1")


def under_chain() -> bool:
    """Whether a chain runs this notebook, whose inputs are then complete and whose deadline is the chain's."""
    return _CHAIN in os.environ


def deadline(minutes: float) -> float | None:
    """The time when work must have stopped, in seconds since 1970, or None.

    `minutes` count from the start of this process, 0 for what the platform allows, and on Kaggle never more than
    11.5 hours; a notebook under a chain has the chain's deadline.
    """
    if under_chain():
        return float(os.environ[_DEADLINE]) if os.environ.get(_DEADLINE) else None
    if platform() == "kaggle":
        minutes = min(minutes or SESSION_MINUTES, LONGEST_MINUTES)
    return _START_TIME + 60 * minutes if minutes else None


def kernel_environment(run: Path, *, threads: int = 1, deadline: float | None = None) -> dict[str, str]:
    """The environment variables of a notebook's process: this interpreter and package, few threads, no secrets, the chain's deadline."""
    jupyter = os.pathsep.join(filter(None, [str(_write_kernelspec(run)), os.environ.get("JUPYTER_PATH", "")]))
    return {
        # A cell may start a script of the user's, which imports files beside it; the kernel itself is started with -P.
        **{name: value for name, value in os.environ.items() if not _SECRET.search(name) and name != _SAFE_PATH},
        **{name: str(threads) for name in _THREADS},
        _CHAIN: "1",
        _DEADLINE: "" if deadline is None else repr(deadline),
        "PYTHONPATH": _python_path(),
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "JUPYTER_PATH": jupyter,
        "JUPYTER_PLATFORM_DIRS": "1",
        **_MEMORY,
        **_LIBRARIES,
    }


def child_environment(*, threads: int) -> dict[str, str]:
    """The environment variables of another command of this package: this package, so many threads, no secrets."""
    variables = {name: value for name, value in os.environ.items() if not _SECRET.search(name)}
    return {**variables, **{name: str(threads) for name in _THREADS}, "PYTHONPATH": _python_path(), "PYTHONUNBUFFERED": "1"}


def _python_path() -> str:
    """PYTHONPATH: this package, then the folders that the user added, without the current folder."""
    parts = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join([str(PACKAGE.parent), *(part for part in parts if os.path.abspath(part) != os.getcwd())])


def _write_kernelspec(run: Path) -> Path:
    """Write a Jupyter data folder whose kernel `python3` is this interpreter, and return it."""
    folder = run / ".jupyter"
    # -P: no library imports files of the current folder, such as random.py or pandas.py. A cell can still import them, because
    # the current folder is searched last.
    append_current_folder = "import sys; sys.path[:] = [*filter(None, sys.path), '']; del sys"
    # No history: parallel kernels would block each other on one SQLite file in the user's home.
    launch = [sys.executable, "-P", "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "--HistoryManager.enabled=False",
              f"--IPKernelApp.exec_lines={append_current_folder}"]
    spec = {"argv": [*launch, "-f", "{connection_file}"], "display_name": "Python 3", "language": "python"}
    files.write_json(folder / "kernels/python3/kernel.json", spec)
    return folder
