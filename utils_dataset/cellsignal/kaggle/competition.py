"""The competition's files through the Kaggle client: all of them, one cell type, or the tables alone."""

import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from cellsignal.data import simulated
from cellsignal.data.download import rxrx1
from cellsignal.data.download.archives import unpack
from cellsignal.data.download.rxrx1 import DOWNLOADS, IMAGES, print_problems
from cellsignal.data.tables.wells import Tables, read_tables
from cellsignal.decide.commands import check_file, submission_task
from cellsignal.errors import InputError, StepFailed
from cellsignal.files import require_room
from cellsignal.kaggle import client
from cellsignal.run.record.results import check_files
from cellsignal.tasks import RXRX1, Task

FILES = ("train.csv", "test.csv", "train_controls.csv", "test_controls.csv", "sample_submission.csv")


def download_competition(folder: Path, *, tables: bool = False, cell_types: Sequence[str] = (), check_images: bool = True) -> None:
    """Bring the competition's files into `folder`: all of them, the tables alone, or the tables and some cell types.

    Kaggle gives single files or one archive of everything, and 74,000 single images for the smallest cell type would take
    days: so a cell type costs the download of the archive, and room for its own images only. The archive is removed after it
    was unpacked. A second call keeps what is there. InputError for a login, rules that were not accepted, a disk that is too
    small or an unknown cell type; StepFailed when Kaggle fails.
    """
    folder = Path(folder)
    _fetch_tables(folder)
    if tables:
        print(f"wrote {', '.join(FILES)} in {folder}")
        return
    tables_read = read_tables(folder)
    missing = rxrx1.missing_images(tables_read, cell_types=cell_types)
    if missing:
        _fetch_images(tables_read, missing)
    print(f"{folder}: {', '.join(cell_types) or 'all cell types'} {'unpacked' if missing else 'kept'}")
    if check_images:
        print_problems(folder, cell_types=cell_types)


def _fetch_tables(folder: Path) -> None:
    """The tables, all or none, if they are not there: a table that cannot be read is not taken for one."""
    if simulated.is_simulated(folder):
        raise InputError("holds simulated plates", where=folder, cure="choose another folder with --out")
    if all((folder / name).exists() for name in FILES):
        return
    if (folder / "metadata.csv").exists():
        raise InputError("holds the public release", where=folder, cure="choose another folder with --out")
    temporary = folder / DOWNLOADS / "tables"
    require_room(folder, 64 << 20, purpose="the tables")
    for name in FILES:
        fetched = client.download(RXRX1.competition, temporary, name)
        if fetched.suffix == ".zip":  # Kaggle keeps large files so
            unpack(fetched, temporary, where=f"{RXRX1.competition}: {fetched.name}", experiments=())
    try:
        read_tables(temporary)
    except InputError as error:
        shutil.rmtree(temporary)
        raise StepFailed(f"{RXRX1.competition}: what came are no tables ({error})") from None
    for name in sorted(FILES, reverse=True):
        (temporary / name).replace(folder / name)
    _remove(temporary)


def _fetch_images(tables: Tables, experiments: Sequence[str]) -> None:
    folder, archive = tables.root, tables.root / DOWNLOADS / f"{RXRX1.competition}.zip"
    share = tables.wells["experiment"].isin(experiments).mean()
    downloaded = archive.stat().st_size if archive.exists() else 0
    # Kaggle's client tells the size of the archive only when it writes it; the public release holds the same images.
    require_room(folder, round((1 + share) * IMAGES.size) - downloaded, purpose="the archive and what comes out of it")
    client.download(RXRX1.competition, archive.parent)
    if not zipfile.is_zipfile(archive):
        archive.unlink()
        raise StepFailed(f"{RXRX1.competition}: what came is no archive; the same command downloads it again")
    rxrx1.record_images(folder, unpack(archive, folder, where=archive, experiments=experiments))
    _remove(archive)


def _remove(path: Path) -> None:
    """Remove what was downloaded on the way, and the folder of downloads if nothing else waits there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    if not any(path.parent.iterdir()):
        path.parent.rmdir()


# Sending a submission: checked against the competition's own sample first, because a wrong one uses up a try.


SAMPLE = "sample_submission.csv"


def submit(file: Path, *, message: str, data: Path | None = None) -> str:
    """Check a submission and send it; gives what Kaggle answers.

    `data`: folder of the competition's tables; without it the sample is fetched. Raises InputError for a file with
    wrong rows, and what the client raises.
    """
    task = submission_task(file)
    if not task.competition:
        raise InputError(f"the task {task.name} is no competition on Kaggle", where=file, cure="send the files in its run's `predictions` to the benchmark")
    if data is not None:
        if simulated.is_simulated(data):
            raise InputError("holds simulated plates, which are no sample of the competition's wells", where=data, cure="name a folder of its tables, or leave --data out")
        check_file(file, sample=data / SAMPLE)
    else:
        with tempfile.TemporaryDirectory() as folder:
            check_file(file, sample=_sample(Path(folder), task))
    return client.submit(task.competition, file, message)


def _sample(folder: Path, task: Task) -> Path:
    """The competition's sample submission, as Kaggle has it."""
    fetched = client.download(task.competition, folder, SAMPLE)
    if fetched.suffix != ".zip":
        return fetched
    try:
        with zipfile.ZipFile(fetched) as archive:
            (folder / SAMPLE).write_bytes(archive.read(SAMPLE))
    except (zipfile.BadZipFile, KeyError) as error:
        raise StepFailed(f"Kaggle sent no {SAMPLE} ({error})") from None
    return folder / SAMPLE


def sample_folder(data: Path) -> Path | None:
    """The data folder of a recipe where its sample is the competition's: it may lie on Kaggle only, or hold simulated plates."""
    return data if (data / SAMPLE).is_file() and not simulated.is_simulated(data) else None


def submission_of_run(run: Path) -> Path:
    """The submission of a run; InputError when there is none, or none that the run as it is now left there."""
    if not (run / "submission.csv").is_file():
        raise InputError("there is no submission.csv", where=run, cure="run `cellsignal kaggle pull` or `cellsignal run` first")
    check_files(run, [run / "submission.csv", run / "recipe.json"])
    return run / "submission.csv"
