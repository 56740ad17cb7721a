"""Where we are and where things lie: the only reader of the environment."""

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
LONGEST_MINUTES = 11.5 * 60.0  # that anybody may ask for there: what is begun in time must end, and its files be kept
WORKING_BYTES = 20 * 10**9  # what /kaggle/working may hold
_BEGAN = time.time()  # of this process, nearly: notebooks and commands import this first
_CHAIN, _DEADLINE = "CELLSIGNAL_CHAIN", "CELLSIGNAL_DEADLINE"  # what a chain tells its notebooks
_SAFE_PATH = "PYTHONSAFEPATH"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_LIBRARIES = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # what cuBLAS needs to repeat itself
    "NO_ALBUMENTATIONS_UPDATE": "1",  # it would ask the network for its newest version
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    "PYTHONWARNINGS": "ignore:IProgress not found",  # a red box in every page, where Jupyter's widgets are not installed
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray would tell its makers, and every user that it does
}
# Notebooks need no secret; what is not in their environment cannot be printed by them.
_SECRET = re.compile(r"TOKEN(?!IZERS)|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_KEY|PRIVATE_KEY|^KAGGLE_.*(KEY|USERNAME)", re.I)
_claims: dict[Path, int] = {}  # open files, which live as long as the process: closing one drops its lock
_claiming = threading.Lock()  # two threads that open one would lose the first, which nobody could close any more


def where() -> str:
    """"kaggle", "colab" or "local"; Kaggle first, because its image is built from Colab's."""
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        return "kaggle"
    return "colab" if "COLAB_RELEASE_TAG" in os.environ else "local"


def base() -> Path:
    """Where relative run folders start: Kaggle's working folder, Google Drive or Colab's disk, or here."""
    if where() == "kaggle":
        return KAGGLE / "working"
    if where() == "colab":
        drive = COLAB / "drive/MyDrive"
        return drive / "cellsignal" if drive.is_dir() else COLAB
    return Path.cwd()


def expanded(name: str | Path) -> str:
    """A path with `~` and `~user` as the home folders that they mean in a shell; else no shell may have seen it.

    Raises InputError for a user that nobody knows, and for a variable such as $HOME, unless a file is called so.
    """
    path = os.path.expanduser(name)
    user = path.partition("/")[0]
    if user.startswith("~") and not os.path.lexists(user):
        raise InputError(f"{user} is no user's home folder", where=name, cure=f"write the whole path, or ./{user} for a folder of this name")
    for found in re.finditer(r"\$(\{?)([A-Za-z_]\w*)[^/]*", path):
        variable = found[1] or found[2].isupper() or found[2] in os.environ  # and not the price in a folder's name
        if variable and not os.path.lexists(path[: found.end()]):
            what = f"${found[1]}{found[2]}{'}' * len(found[1])} is a variable, which only a shell replaces"
            raise InputError(what, where=name, cure="write the path itself; one may begin with ~ for the home folder")
    return path


def default_run(name: str) -> Path:
    """The absolute run folder for a name or path; InputError as `expanded` raises it, and for one that is no text."""
    return _as_text(Path(os.path.abspath(base() / expanded(name))))


def default_data(name: str) -> Path:
    """The absolute folder of a data set, named as a run is; on Colab never on Google Drive, where each small file takes long."""
    return _as_text(Path(os.path.abspath((COLAB if where() == "colab" else base()) / expanded(name))))


def _as_text(folder: Path) -> Path:
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise InputError("is no name in UTF-8, as notebooks need it", where=folder, cure="rename the folder, or choose another") from None
    return folder


def scratch(run: Path) -> Path:
    """Where the plates of a run are drawn: not among Kaggle's outputs, not on Google Drive."""
    beds = {"kaggle": KAGGLE / "temp", "colab": COLAB / "data"}
    if where() not in beds:
        return run / "data"
    return beds[where()] / short(run) / "data"


def short(run: Path) -> str:
    """The name of a run folder wherever it lies: relative to where relative ones start, else its last part."""
    return run.relative_to(base()).as_posix() if run.is_relative_to(base()) else run.name


def repository() -> Path | None:
    """The checkout around the package, else around the current folder, else Colab's clone, or None."""
    candidates = (PACKAGE.parents[1], Path.cwd(), *Path.cwd().parents, COLAB / "cellsignal")
    return next((folder for folder in candidates if (folder / "kernels").is_dir()), None)


def kernels() -> Path:
    """The folder of the numbered notebooks: in the checkout, or beside the package in its Kaggle dataset."""
    root = repository()
    if root is not None:
        return root / "kernels"
    if (PACKAGE.parent / "kernels").is_dir():
        return PACKAGE.parent / "kernels"
    raise InputError("no folder `kernels` here or above", where=Path.cwd(), cure="run this inside a checkout of the bundle")


def locks(run: Path) -> Path:
    """The folder of a run's locks: the run folder, but on Colab its own disk, because Google Drive knows no locks."""
    return COLAB / ".locks" / hashlib.sha256(str(run).encode()).hexdigest()[:16] if where() == "colab" else run


def claim(run: str | Path) -> Path:
    """Make the run folder, mark it as in use while this process lives, and give its absolute path.

    The mark is a shared flock, so it ends with the process however that dies.
    """
    folder = default_run(str(run))
    folder.mkdir(parents=True, exist_ok=True)
    with _claiming:
        if folder not in _claims:
            _claims[folder] = files.open_lock(locks(folder) / KERNELS_LOCK, fcntl.LOCK_SH)
    return folder


def release(folder: Path) -> None:
    """Give up this process's claim: a notebook that drives the chain would wait for itself."""
    with _claiming:
        if folder in _claims:
            os.close(_claims.pop(folder))


def configure_libraries() -> None:
    """Make libraries that come later repeatable and quiet, as a chain's notebooks have them, in this process too."""
    for name, value in _LIBRARIES.items():
        os.environ.setdefault(name, value)


def shield_children() -> None:
    """Let Python processes that this one starts import nothing from the current folder: a random.py there is not Python's."""
    os.environ.setdefault(_SAFE_PATH, "1")


def under_chain() -> bool:
    """Whether a chain runs this notebook, which then has what it needs and keeps the chain's time."""
    return _CHAIN in os.environ


def deadline(minutes: float) -> float | None:
    """When work must have stopped, in seconds since 1970, or None.

    `minutes` count from the start of this process, 0 for what the place allows, and on Kaggle never more than
    11.5 hours; a notebook under a chain has the chain's deadline.
    """
    if under_chain():
        return float(os.environ[_DEADLINE]) if os.environ.get(_DEADLINE) else None
    if where() == "kaggle":
        minutes = min(minutes or SESSION_MINUTES, LONGEST_MINUTES)
    return _BEGAN + 60 * minutes if minutes else None


def kernel_environment(run: Path, *, threads: int = 1, deadline: float | None = None) -> dict[str, str]:
    """The environment of a notebook's process: this interpreter and package, few threads, no secrets, the chain's deadline."""
    jupyter = os.pathsep.join(filter(None, [str(_write_kernelspec(run)), os.environ.get("JUPYTER_PATH", "")]))
    return {
        # A cell may start a script of the user's, which needs what lies beside it; the kernel itself is started with -P.
        **{name: value for name, value in os.environ.items() if not _SECRET.search(name) and name != _SAFE_PATH},
        **{name: str(threads) for name in _THREADS},
        _CHAIN: "1",
        _DEADLINE: "" if deadline is None else repr(deadline),
        "PYTHONPATH": _python_path(),
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "JUPYTER_PATH": jupyter,
        "JUPYTER_PLATFORM_DIRS": "1",
        **_LIBRARIES,
    }


def child_environment(*, threads: int) -> dict[str, str]:
    """The environment of a further command of ours: this package, so many threads, no secrets."""
    kept = {name: value for name, value in os.environ.items() if not _SECRET.search(name)}
    return {**kept, **{name: str(threads) for name in _THREADS}, "PYTHONPATH": _python_path(), "PYTHONUNBUFFERED": "1"}


def _python_path() -> str:
    """Where Python looks for modules: this package, then what the user added, but not the current folder."""
    return os.pathsep.join([str(PACKAGE.parent), *(part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part not in ("", "."))])


def _write_kernelspec(run: Path) -> Path:
    """A Jupyter data folder whose `python3` is this interpreter, whatever other environments installed."""
    folder = run / ".jupyter"
    # -P: files where the user stands, such as random.py or pandas.py, are no modules of anybody else's. A cell can still
    # import them, because the last place that is looked at is the current folder.
    last = "import sys; sys.path[:] = [*filter(None, sys.path), '']; del sys"
    # No history: parallel kernels would quarrel about one SQLite file in the user's home.
    launch = [sys.executable, "-P", "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "--HistoryManager.enabled=False",
              f"--IPKernelApp.exec_lines={last}"]
    spec = {"argv": [*launch, "-f", "{connection_file}"], "display_name": "Python 3", "language": "python"}
    files.write_json(folder / "kernels/python3/kernel.json", spec)
    return folder
