"""Sending a submission: checked against the competition's own sample first, because a wrong one uses up a try."""

import tempfile
import zipfile
from pathlib import Path

from cellsignal.decide.commands import check_file, task_of
from cellsignal.errors import InputError, StepFailed
from cellsignal.publish import client
from cellsignal.tasks import Task

SAMPLE = "sample_submission.csv"


def submit(file: Path, *, message: str, data: Path | None = None) -> str:
    """Check a submission and send it; gives what Kaggle answers.

    `data`: folder of the competition's tables; without it the sample is fetched. Raises InputError for a file with
    wrong rows, and what the client raises.
    """
    task = task_of(file)
    if data is not None:
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


def file_of(run: Path) -> Path:
    """The submission of a run; InputError when there is none."""
    if not (run / "submission.csv").is_file():
        raise InputError("there is no submission.csv", where=run, cure="run `cellsignal kaggle pull` or `cellsignal run` first")
    return run / "submission.csv"
