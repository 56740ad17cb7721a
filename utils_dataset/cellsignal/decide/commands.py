"""The decision alone, on anybody's scores: what `cellsignal assign` and `cellsignal score` do."""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import pandas as pd

from cellsignal.data.tables import headers
from cellsignal.data.tables.labelled_sites import read_labelled_solution, read_sample
from cellsignal.data.tables.wells import Tables, read_solution, read_tables
from cellsignal.decide.assign.assign import Decision, decide, plate_design
from cellsignal.decide.assign.calibration import MIN_ERRORS
from cellsignal.decide.assign.known_layouts import known_layouts as solve_known_layouts
from cellsignal.decide.assign.temperature import decided_temperatures
from cellsignal.decide.evaluate.ladder import accuracy
from cellsignal.decide.labels.multilabel import check_labelled_submission, read_labelled_submission, score_labels
from cellsignal.decide.scores.files import list_score_files, is_submission, describe_paths, read_all_scores
from cellsignal.decide.settings import AssignmentSettings
from cellsignal.decide.submission import check_ids, check_submission, confidence_path, read_submission, write_submission
from cellsignal.errors import InputError
from cellsignal.files import is_stream, output_file
from cellsignal.tasks import RXRX1, TASKS, Task

TABLE_FILES = ("train.csv", "train_controls.csv", "test.csv", "test_controls.csv", "metadata.csv",
          "sample_submission.csv", "solution.csv")  # fmt: skip
NON_CSV_SUFFIXES = (".gz", ".bz2", ".xz", ".zip", ".zst", ".parquet", ".npz")  # suffixes that promise another format than is written


@dataclass(frozen=True)
class AssignmentResult:
    """A decision about files, experiments sorted by name."""

    predictions: pd.Series  # as in assign.Decision
    confidence: pd.Series
    experiments: pd.DataFrame  # of assign.Decision, and `labelled`: the wells that its temperature was measured on


def assign_files(
    scores: Sequence[Path], settings: AssignmentSettings = AssignmentSettings(), *, data: Path, out: Path, confidence: Path | None = None,
    probabilities: bool = False,
) -> AssignmentResult:
    """Read scores, choose one siRNA per test well, and write the submission `out` and `confidence`.

    `scores`: files or folders that `scores.read_scores` reads; those of controls are no answers and
    do not count. Scored treatment wells of training experiments calibrate the temperature of their
    cell type, where at least ENOUGH of them are wrong: they should be held out, because a network is
    too sure of what it was trained on.
    `confidence`: `<out without suffix>.confidence.csv` when None; it holds `id_code,sirna,confidence`.

    Both files are written at the end, or neither: where a link leads, and to a device or a FIFO as they are. Raises InputError.
    """
    if confidence is None and is_stream(out):
        raise InputError("is a device or a FIFO, beside which no confidences can lie", where=out, cure="add --confidence CSV")
    out, confidence = output_file(out), output_file(confidence or confidence_path(out))
    _check_output_paths(out, confidence, scores=scores, data=data)
    tables = read_tables(data)
    design = plate_design(tables.wells, settings)
    if settings.plate_groups and not design["groups"]:
        raise InputError("no plate groups in the training table", where=data, cure="add --no-groups")
    table = read_all_scores(scores, probabilities=probabilities)
    table = table.loc[:, ~table.columns.isin(RXRX1.controls)]
    tests = _test_scores(table, tables, where=describe_paths(scores))
    labelled = _labelled_wells(table, tables.wells)
    temperatures = decided_temperatures(table, labelled, tables.wells, **design)
    known = solve_known_layouts(tables.wells, tests) if settings.known_layouts else None
    decision = decide(tests, tables.wells, temperatures=temperatures, known=known, **design)
    write_submission(out, decision.predictions, decision.confidence, sample=tables.sample, beside=confidence)
    return AssignmentResult(decision.predictions, decision.confidence, _experiment_table(decision, labelled, measured=temperatures))


def score_files(submission: Path, solution: Path) -> dict:
    """What a submission is worth against the true answers, by the metric of its task, which its header tells.

    Accuracy overall, by cell type and by experiment; or macro F1, and F1 by class. Raises InputError.
    """
    task = submission_task(submission)
    return SUBMISSION_METRICS[task.metric].score(submission, solution, task)


def check_file(submission: Path, *, sample: Path) -> Task:
    """Refuse a submission that Kaggle would score wrongly or not at all, and tell whose it is; InputError names its first fault."""
    task = submission_task(submission)
    SUBMISSION_METRICS[task.metric].check(submission, sample, task)
    return task


def submission_task(submission: Path) -> Task:
    """The task whose submissions have this header; RxRx1 for any other, so that its faults are told as that task's."""
    return next((task for task in TASKS.values() if headers.has_columns(submission, *task.submission_columns)), RXRX1)


def _score_accuracy(submission: Path, solution: Path, task: Task) -> dict:
    truth = read_solution(solution)
    predictions = read_submission(submission)
    check_ids(predictions.index, list(truth.index), where=submission)
    return accuracy(predictions, truth, wells_of_id_codes(truth.index.to_list()))


def _score_macro_f1(submission: Path, solution: Path, task: Task) -> dict:
    truth = read_labelled_solution(solution, task)
    predictions = read_labelled_submission(submission, task)
    check_ids(predictions.index, list(truth.index), where=submission)
    return score_labels(predictions, truth, task)


def _check_labels(submission: Path, sample: Path, task: Task) -> int:
    return check_labelled_submission(submission, sample=read_sample(sample, task), task=task)


class SubmissionMetric(NamedTuple):
    """How submissions are scored, and how they are checked before they are sent."""

    score: Callable[[Path, Path, Task], dict]
    check: Callable[[Path, Path, Task], int]


# By the metric that a task names.
SUBMISSION_METRICS = {
    "accuracy": SubmissionMetric(_score_accuracy, lambda submission, sample, task: check_submission(submission, sample=sample)),
    "macro_f1": SubmissionMetric(_score_macro_f1, _check_labels),
}


def experiments_of_id_codes(id_codes: pd.Index) -> pd.Index:
    """The experiment of each id_code (`HUVEC-01` of `HUVEC-01_1_B03`)."""
    return id_codes.str.rsplit("_", n=2).str[0]


def wells_of_id_codes(id_codes: list[str]) -> pd.DataFrame:
    """Experiment and cell type as the id_codes spell them (`HUVEC-01_1_B03`)."""
    experiments = experiments_of_id_codes(pd.Index(id_codes)).to_series(index=range(len(id_codes)))
    cell_types = experiments.str.rsplit("-", n=1).str[0]
    return pd.DataFrame({"id_code": id_codes, "experiment": experiments, "cell_type": cell_types})


def _check_output_paths(out: Path, confidence: Path, *, scores: Sequence[Path], data: Path) -> None:
    """Refuse to write over what is read, and under a name that promises another format."""
    for path in (out, confidence):
        if path.suffix.lower() in NON_CSV_SUFFIXES:
            raise InputError(f"plain CSV is written, no {path.suffix}", where=path, cure="choose a name such as submission.csv")
        if any(_same_file(path, file) for file in list_score_files(scores)):
            raise InputError("would overwrite the scores", where=path, cure="choose another name")
        if _belongs_to_data_set(path, data):
            raise InputError("would overwrite a file of the data set", where=path, cure="choose another name")
    if _same_file(out, confidence):
        raise InputError("submission and confidences in one file", where=out, cure="choose another --confidence")


def _same_file(path: Path, other: Path) -> bool:
    """Whether two paths are one file, by whatever name or hard link; neither needs to exist."""
    return path.resolve() == other.resolve() or (path.exists() and other.exists() and path.samefile(other))


def _belongs_to_data_set(path: Path, data: Path) -> bool:
    """Whether a path is one of the tables, there or not yet, or any other file below `data` but an old submission."""
    if any(_same_file(path, data / name) for name in TABLE_FILES):
        return True
    return path.exists() and path.resolve().is_relative_to(data.resolve()) and not is_submission(path)


def _test_scores(table: pd.DataFrame, tables: Tables, *, where: str) -> pd.DataFrame:
    """The rows of the test wells, every one of them, in the order of the sample submission."""
    wanted = pd.Index(tables.sample)
    missing = wanted.difference(table.index)
    if len(missing) == len(wanted) or not len(table.columns):
        raise InputError("no test well or no treatment siRNA is scored", where=where,
                         cure=f"give the scores that belong to {tables.root}")
    if len(missing):
        raise InputError(f"well {missing[0]} is missing ({len(missing)} such)", where=where,
                         cure="score every well of sample_submission.csv")
    return table.loc[tables.sample]


def _labelled_wells(table: pd.DataFrame, wells: pd.DataFrame) -> pd.DataFrame:
    """cell_type and sirna by id_code of the scored treatment wells of training experiments."""
    known = (wells["dataset"] == "train") & (wells["well_type"] == "treatment")
    known &= wells["id_code"].isin(table.index) & wells["sirna"].isin(table.columns)
    return wells[known].set_index("id_code")[["cell_type", "sirna"]].astype({"sirna": "int64"})


def _experiment_table(decision: Decision, labelled: pd.DataFrame, *, measured: Container[str]) -> pd.DataFrame:
    """The table of experiments with the number of wells behind each temperature, or a note why there is none."""
    table, counts = decision.experiments.sort_index(), labelled["cell_type"].value_counts()
    used = [int(counts[name]) if name in measured else 0 for name in table["cell_type"]]
    unused = {name: f"fewer than {MIN_ERRORS} errors in {count:,} labelled wells, too few to calibrate on"
              for name, count in counts.items() if name not in measured}  # fmt: skip
    notes = [", ".join(filter(None, pair)) for pair in zip(table["note"], map(unused.get, table["cell_type"]))]
    return table.assign(labelled=used, note=notes)


# The accuracy route of each experiment as text: what was used to decide, and how sure that was.


ROUTE_COLUMNS = ("experiment", "route", "groups", "certainty", "rotation", "surprise", "temperature", "labelled", "confidence")
RIGHT_ALIGNED = ("certainty", "surprise", "temperature", "labelled", "confidence")  # numbers
LINE_WIDTH = 100


def routes_table(assigned: AssignmentResult) -> str:
    """One line per experiment, then the notes.

    COLUMNS: experiment; route; groups (the plate group on plates 1, 2, …); certainty (posterior
    probability of this order of groups); rotation (whether training experiments show it); surprise
    (bits by which the scores like another order better than any rotation); temperature; labelled (wells
    that it was measured on before its own plates moved it, 0 where there were none); confidence (mean
    over the wells). "-" where there is no such thing.
    """
    experiments = assigned.experiments
    confidence = assigned.confidence.groupby(experiments_of_id_codes(assigned.confidence.index)).mean()
    rows = [_route_row(str(name), row, confidence.get(name)) for name, row in experiments.iterrows()]
    return "\n".join([*_aligned_lines(rows), *_note_lines(experiments["note"])])


def _route_row(name: str, row: pd.Series, confidence: float | None) -> list[str]:
    groups = row["group_on_plate"]
    rotation = row["rotation"] if isinstance(groups, Sequence) else None
    return [
        name,
        str(row["route"]),
        " ".join(map(str, groups)) if isinstance(groups, Sequence) else "-",
        _format_number(row["group_confidence"], ".4f"),
        "-" if _is_missing(rotation) else "yes" if rotation else "no",
        "-" if _is_missing(rotation) else _format_number(row["surprise_bits"], ".1f"),
        _format_number(row["temperature"], ".3f"),
        _format_number(row["labelled"], ",.0f"),
        _format_number(confidence, ".3f"),
    ]


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or value != value  # NaN differs from itself


def _format_number(value: Any, form: str) -> str:
    return "-" if _is_missing(value) else format(float(value), form)


def _note_lines(notes: pd.Series) -> list[str]:
    """Each note once, with the experiments it is about."""
    groups = notes[notes != ""].groupby(notes, sort=False).groups
    return [fill(f"{', '.join(map(str, names))}: {note}", LINE_WIDTH, subsequent_indent="  ") for note, names in groups.items()]


def _aligned_lines(rows: list[list[str]]) -> list[str]:
    """A header and the rows, text to the left and numbers to the right."""
    table = [list(ROUTE_COLUMNS), *rows]
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = (
        "  ".join(cell.rjust(width) if name in RIGHT_ALIGNED else cell.ljust(width) for name, cell, width in zip(ROUTE_COLUMNS, line, widths))
        for line in table
    )
    return [line.rstrip() for line in lines]
