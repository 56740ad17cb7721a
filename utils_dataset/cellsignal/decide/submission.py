"""Reading, checking and writing submissions."""

from pathlib import Path

import pandas as pd
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from cellsignal.data.tables import headers, schema
from cellsignal.data.tables.wells import read_solution
from cellsignal.errors import InputError, Problem, raise_if_any
from cellsignal.files import atomic_paths
from cellsignal.tasks import RXRX1


class AnswerRow(TypedDict):
    """A row of submission.csv."""

    id_code: schema.Text
    sirna: schema.Treatment


def read_submission(path: Path, *, sample: list[str] | None = None) -> pd.Series:
    """Read a submission, siRNA by id_code, and check it against the wells of the sample if given."""
    submission = read_solution(path)
    if sample is not None:
        check_ids(submission.index, sample, where=path)
    return submission


def check_submission(path: Path, *, sample: Path) -> int:
    """Check that Kaggle will score a submission correctly; returns the number of its wells.

    `path` must hold the columns `id_code,sirna` alone, and one treatment siRNA (0 to 1107) for each well of `sample`, in any
    order. Raises InputError with file, line and column of the first wrong row, and the number of wrong rows.
    """
    answers, problems = schema.read_rows(path, AnswerRow, exact=True)
    raise_if_any(problems or _unexpected_columns(path))
    expected, problems = schema.read_rows(sample, schema.SampleRow)
    raise_if_any(problems)
    ids = answers["id_code"]
    duplicated = schema.flag(answers, ids.duplicated(), "id_code", "stands twice", "keep one row per well")
    unknown = schema.flag(answers, ~ids.isin(expected["id_code"]), "id_code", "is no test well", f"keep the wells of {sample.name}")
    present = set(ids)
    missing = [f"{name} is missing" for name in expected["id_code"] if name not in present]
    raise_if_any(duplicated + unknown + [Problem(str(path), what, f"answer every well of {sample.name}") for what in missing])
    return len(answers)


def _unexpected_columns(path: Path) -> list[Problem]:
    extra = [name for name in headers.read_header(path, exact=True).names if name not in RXRX1.submission_columns]
    where, cure = f"{path}:1", f"keep only {','.join(RXRX1.submission_columns)}"
    return [Problem(where, f"there is a column {extra[0]!r}", cure)] if extra else []


def check_ids(ids: pd.Index, expected: list[str], *, where: object, reference: object = "sample_submission.csv") -> None:
    """Raise InputError unless `ids` are exactly the expected wells, those of `reference`, each once."""
    duplicated = ids[ids.duplicated()]
    if len(duplicated):
        raise InputError(f"well {duplicated[0]} stands twice", where=where, cure="keep one row per well")
    for names, fault in ((pd.Index(expected).difference(ids), "is missing"), (ids.difference(expected), f"is not in {reference}")):
        if len(names):
            raise InputError(f"well {names[0]} {fault} ({len(names)} such)", where=where,
                             cure=f"the submission must hold exactly the wells of {reference}")


def confidence_path(submission: Path) -> Path:
    """The file of the confidences of a submission: submission.confidence.csv beside submission.csv."""
    return submission.with_name(f"{submission.stem}.confidence.csv")


def sets_path(submission: Path) -> Path:
    """The file of the prediction sets of a submission: submission.sets.parquet beside submission.csv."""
    return submission.with_name(f"{submission.stem}.sets.parquet")


def write_submission(path: Path, predictions: pd.Series, confidence: pd.Series, *, sample: list[str],
                     confidence_file: Path | None = None) -> Path:
    """Write the submission in the order of the sample, and `id_code,sirna,confidence` into `confidence_file`; both or neither.

    `predictions`: siRNA by id_code; `confidence`: the probability that it is right; `confidence_file`: `confidence_path(path)`
    if None. Raises InputError if a well of the sample has no prediction, a predicted well is not in the sample, or a siRNA is a
    control.
    """
    check_ids(predictions.index, sample, where=path)
    controls = predictions.index[predictions.isin(RXRX1.controls)]
    if len(controls):
        raise InputError(f"well {controls[0]} is given a control, siRNA {predictions[controls[0]]}", where=path, cure="score treatment siRNAs only")
    table = pd.DataFrame({"sirna": predictions, "confidence": confidence}).reindex(sample).rename_axis("id_code")
    texts = table["sirna"].astype(int).to_csv(lineterminator="\n"), table.to_csv(float_format="%.6f", lineterminator="\n")
    with atomic_paths(path, confidence_file or confidence_path(path)) as temporaries:
        for temporary, text in zip(temporaries, texts):
            temporary.write_text(text, encoding="utf-8")
    return path


def remove_submission(path: Path) -> None:
    """Remove the submission of an earlier run, its confidences and its prediction sets, which are no results of this run."""
    for file in (path, confidence_path(path), sets_path(path)):
        file.unlink(missing_ok=True)
