"""Where we are and where things lie: the only reader of the environment."""

import fcntl
import os
import sys
from pathlib import Path

import cellsignal
from cellsignal import files
from cellsignal.errors import InputError

PACKAGE = Path(cellsignal.__file__).resolve().parent
KERNELS_LOCK = ".kernels.lock"  # shared by every kernel that works in a run folder
CHAIN_LOCK = ".chain.lock"  # held by the one chain that drives it
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_claims: dict[Path, int] = {}  # open files, which live as long as the process: closing one drops its lock


def where() -> str:
    """"kaggle", "colab" or "local"; Kaggle first, because its image is built from Colab's."""
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        return "kaggle"
    return "colab" if "COLAB_RELEASE_TAG" in os.environ else "local"


def default_run(name: str) -> Path:
    """The absolute run folder for a name or path; relative ones start in Kaggle's working folder or here."""
    base = Path("/kaggle/working") if where() == "kaggle" else Path.cwd()
    return Path(os.path.abspath(base / name))


def repository() -> Path | None:
    """The checkout around the package, else around the current folder, or None."""
    candidates = (PACKAGE.parents[1], Path.cwd(), *Path.cwd().parents)
    return next((folder for folder in candidates if (folder / "kernels").is_dir()), None)


def kernels() -> Path:
    """The folder of the numbered notebooks: in the checkout, or beside the package in its Kaggle dataset."""
    root = repository()
    if root is not None:
        return root / "kernels"
    if (PACKAGE.parent / "kernels").is_dir():
        return PACKAGE.parent / "kernels"
    raise InputError("no folder `kernels` here or above", where=Path.cwd(), cure="run this inside a checkout of the bundle")


def claim(run: str | Path) -> Path:
    """Make the run folder, mark it as in use while this process lives, and give its absolute path.

    The mark is a shared flock, so it ends with the process however that dies.
    """
    folder = default_run(str(run))
    folder.mkdir(parents=True, exist_ok=True)
    if folder not in _claims:
        _claims[folder] = files.open_lock(folder / KERNELS_LOCK, fcntl.LOCK_SH)
    return folder


def release(folder: Path) -> None:
    """Give up this process's claim: a notebook that drives the chain would wait for itself."""
    if folder in _claims:
        os.close(_claims.pop(folder))


def kernel_environment(run: Path, *, threads: int = 1) -> dict[str, str]:
    """The environment of a notebook's process: this interpreter and package, few threads, quiet libraries."""
    package = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")]))
    jupyter = os.pathsep.join(filter(None, [str(_write_kernelspec(run)), os.environ.get("JUPYTER_PATH", "")]))
    return {
        **os.environ,
        **{name: str(threads) for name in _THREADS},
        "PYTHONPATH": package,
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # what cuBLAS needs to repeat itself
        "JUPYTER_PATH": jupyter,
        "JUPYTER_PLATFORM_DIRS": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "NO_ALBUMENTATIONS_UPDATE": "1",
    }


def _write_kernelspec(run: Path) -> Path:
    """A Jupyter data folder whose `python3` is this interpreter, whatever other environments installed."""
    folder = run / ".jupyter"
    # No history: parallel kernels would quarrel about one SQLite file in the user's home.
    launch = [sys.executable, "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "--HistoryManager.enabled=False"]
    spec = {"argv": [*launch, "-f", "{connection_file}"], "display_name": "Python 3", "language": "python"}
    files.write_json(folder / "kernels/python3/kernel.json", spec)
    return folder
