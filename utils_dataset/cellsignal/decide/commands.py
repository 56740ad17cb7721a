"""Assignment and scoring of files: the commands `cellsignal assign` and `cellsignal score`."""

import os
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import pandas as pd

from cellsignal.data.tables import headers
from cellsignal.data.tables.labelled_sites import read_labelled_solution, read_sample
from cellsignal.data.tables.wells import Tables, read_solution, read_tables
from cellsignal.decide.assign.assign import Decision, decide, plain_records, plate_design
from cellsignal.decide.assign.calibration import MIN_ERRORS
from cellsignal.decide.assign.estimated_accuracy import estimate_accuracy
from cellsignal.decide.assign.known_layouts import known_layouts as find_known_layouts
from cellsignal.decide.assign.temperature import decided_temperatures
from cellsignal.decide.evaluate.ladder import accuracy
from cellsignal.decide.evaluate.prediction_sets import held_out_levels, prediction_sets, write_prediction_sets
from cellsignal.decide.evaluate.split_accuracy import check_site_answers, score_site_answers
from cellsignal.decide.labels.multilabel import check_labelled_submission, read_labelled_submission, score_labels
from cellsignal.decide.scores.files import describe_paths, is_submission, list_score_files, read_all_scores
from cellsignal.decide.settings import AssignmentSettings
from cellsignal.decide.submission import check_ids, check_submission, confidence_path, read_submission, sets_path, write_submission
from cellsignal.errors import InputError
from cellsignal.files import atomic_paths, is_stream, output_file
from cellsignal.tasks import RXRX1, TASKS, Task

TABLE_FILES = ("train.csv", "train_controls.csv", "test.csv", "test_controls.csv", "metadata.csv",
          "sample_submission.csv", "solution.csv")  # fmt: skip
NON_CSV_SUFFIXES = (".gz", ".bz2", ".xz", ".zip", ".zst", ".parquet", ".npz")  # suffixes of formats that are not written


@dataclass(frozen=True)
class AssignmentResult:
    """Predicted siRNAs and their confidence, and how each experiment was decided."""

    predictions: pd.Series  # as in assign.Decision
    confidence: pd.Series
    experiments: pd.DataFrame  # as in assign.Decision, sorted, and `labelled`: the number of wells behind the temperature
    estimated_accuracy: pd.DataFrame  # of the best class of each well, as in estimated_accuracy.estimate_accuracy; empty without plate groups

    @property
    def records(self) -> dict[str, list[dict[str, Any]]]:
        """Both tables for JSON: plain values, None for missing ones."""
        return {"experiments": plain_records(self.experiments.reset_index()), "estimated_accuracy": plain_records(self.estimated_accuracy)}


def assign_files(
    scores: Sequence[Path], settings: AssignmentSettings = AssignmentSettings(), *, data: Path, out: Path, confidence: Path | None = None,
    sets: Path | None = None, probabilities: bool = False,
) -> AssignmentResult:
    """Read scores, choose one siRNA per test well, and write the submission `out` and the confidences.

    `scores`: files or folders for `scores.files.read_all_scores`; scores of controls are ignored. Scored treatment wells of
    training experiments calibrate the temperature of their cell type if at least MIN_ERRORS of them are wrong; they should be
    held out, because a network is overconfident on its training wells. `confidence`: the file of `id_code,sirna,confidence`,
    `<out without suffix>.confidence.csv` if None. `sets`: the file of prediction sets, none if None; those beside an earlier `out` are then
    removed.

    All of these files are written at the end, or none: links are followed, and devices and FIFOs are written in place. Raises InputError.
    """
    if confidence is None and is_stream(out):
        raise InputError("is a device or a FIFO, and needs another file for the confidences", where=out, cure="add --confidence CSV")
    out, confidence = output_file(out), output_file(confidence or confidence_path(out))
    sets = sets and output_file(sets)
    _check_output_paths(out, confidence, sets, scores=scores, data=data)
    tables = read_tables(data)
    design = plate_design(tables.wells, settings)
    if settings.plate_groups and not design["groups"]:
        raise InputError("no plate groups in the training table", where=data, cure="add --no-groups")
    table = read_all_scores(scores, probabilities=probabilities)
    table = table.loc[:, ~table.columns.isin(RXRX1.controls)]
    test_scores = _test_scores(table, tables, where=describe_paths(scores))
    labelled = _labelled_wells(table, tables.wells)
    temperatures = decided_temperatures(table, labelled, tables.wells, **design)
    layouts = find_known_layouts(tables.wells, test_scores) if settings.known_layouts else None
    decision = decide(test_scores, tables.wells, temperatures=temperatures, known_layouts=layouts, **design)
    with atomic_paths(out, confidence, *filter(None, [sets])) as temporaries:
        write_submission(temporaries[0], decision.predictions, decision.confidence, sample=tables.sample, confidence_file=temporaries[1])
        if sets is not None:
            held_out = decide(table.loc[labelled.index], tables.wells, temperatures=temperatures, **design) if len(labelled) else None
            levels = None if held_out is None else held_out_levels(held_out, labelled["sirna"])
            write_prediction_sets(temporaries[2], prediction_sets(decision, levels), order=tables.sample)
    if (earlier := sets_path(out)) != sets and is_submission(earlier):
        earlier.unlink()
    estimates = estimate_accuracy({"raw": test_scores.idxmax(axis=1)}, tables.wells, groups=design["groups"], choices=decision.choices, truth=tables.solution)
    return AssignmentResult(decision.predictions, decision.confidence, _experiment_table(decision, labelled, calibrated=temperatures), estimates)


def score_files(submission: Path, solution: Path) -> dict:
    """Score a submission against the true answers, by the metric of its task (`submission_task`).

    Returns accuracy overall, by cell type and by experiment, or macro F1 and F1 by class. Raises InputError.
    """
    task = submission_task(submission)
    return SUBMISSION_METRICS[task.metric].score(submission, solution, task)


def check_file(submission: Path, *, sample: Path) -> Task:
    """Check that Kaggle will score a submission correctly, and return its task; InputError names the first fault."""
    task = submission_task(submission)
    SUBMISSION_METRICS[task.metric].check(submission, sample, task)
    return task


def submission_task(submission: Path) -> Task:
    """The task with this header of submissions; RxRx1 for an unknown header, so that its faults are reported for that task."""
    return next((task for task in TASKS.values() if headers.has_columns(submission, *task.submission_columns)), RXRX1)


def _score_accuracy(submission: Path, solution: Path, task: Task) -> dict:
    truth = read_solution(solution)
    predictions = read_submission(submission)
    check_ids(predictions.index, list(truth.index), where=submission, reference=solution)
    return accuracy(predictions, truth, wells_of_id_codes(truth.index.to_list()))


def _score_macro_f1(submission: Path, solution: Path, task: Task) -> dict:
    truth = read_labelled_solution(solution, task)
    predictions = read_labelled_submission(submission, task)
    check_ids(predictions.index, list(truth.index), where=submission, reference=solution)
    return score_labels(predictions, truth, task)


def _check_labels(submission: Path, sample: Path, task: Task) -> int:
    return check_labelled_submission(submission, sample=read_sample(sample, task), task=task)


class SubmissionMetric(NamedTuple):
    """How submissions are scored, and how they are checked before an upload."""

    score: Callable[[Path, Path, Task], dict]
    check: Callable[[Path, Path, Task], int]


# By the metric of a task.
SUBMISSION_METRICS = {
    "accuracy": SubmissionMetric(_score_accuracy, lambda submission, sample, task: check_submission(submission, sample=sample)),
    "macro_f1": SubmissionMetric(_score_macro_f1, _check_labels),
    "split_accuracy": SubmissionMetric(score_site_answers, check_site_answers),
}


def experiments_of_id_codes(id_codes: pd.Index) -> pd.Index:
    """The experiment of each id_code (`HUVEC-01` of `HUVEC-01_1_B03`)."""
    return id_codes.str.rsplit("_", n=2).str[0]


def wells_of_id_codes(id_codes: list[str]) -> pd.DataFrame:
    """Experiment and cell type of each id_code (`HUVEC-01_1_B03`), as columns."""
    experiments = experiments_of_id_codes(pd.Index(id_codes)).to_series(index=range(len(id_codes)))
    cell_types = experiments.str.rsplit("-", n=1).str[0]
    return pd.DataFrame({"id_code": id_codes, "experiment": experiments, "cell_type": cell_types})


def _check_output_paths(out: Path, confidence: Path, sets: Path | None, *, scores: Sequence[Path], data: Path) -> None:
    """Refuse to overwrite inputs, and suffixes of formats that are not written."""
    if sets is not None and sets.suffix.lower() != ".parquet":
        raise InputError("prediction sets are written as Parquet", where=sets, cure="choose a name such as submission.sets.parquet")
    for path in filter(None, (out, confidence, sets)):
        if path != sets and path.suffix.lower() in NON_CSV_SUFFIXES:
            raise InputError(f"plain CSV is written, no {path.suffix}", where=path, cure="choose a name such as submission.csv")
        if any(_same_file(path, file) for file in list_score_files(scores)):
            raise InputError("would overwrite the scores", where=path, cure="choose another name")
        if _belongs_to_data_set(path, data):
            raise InputError("would overwrite a file of the data set", where=path, cure="choose another name")
        if path.is_file() and path.stat().st_size and not (is_submission(path) if path == sets else headers.has_columns(path, "id_code", "sirna")):
            raise InputError("is there, and is no submission, no confidences and no prediction sets", where=path, cure="remove it, or choose another name")
    if sets is not None and (_same_file(sets, out) or _same_file(sets, confidence)):
        raise InputError("prediction sets and another output in one file", where=sets, cure="choose another --sets")
    if _same_file(out, confidence):
        raise InputError("submission and confidences in one file", where=out, cure="choose another --confidence")


def _same_file(path: Path, other: Path) -> bool:
    """Whether two paths are the same file, also by links; neither needs to exist."""
    return os.path.realpath(path) == os.path.realpath(other) or (path.exists() and other.exists() and path.samefile(other))


def _belongs_to_data_set(path: Path, data: Path) -> bool:
    """Whether a path is one of the tables, existing or not, or another file below `data` that is no submission."""
    if any(_same_file(path, data / name) for name in TABLE_FILES):
        return True
    return path.exists() and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(data)) and not is_submission(path)


def _test_scores(table: pd.DataFrame, tables: Tables, *, where: str) -> pd.DataFrame:
    """The rows of all test wells, in the order of the sample submission; InputError if one is missing."""
    missing = pd.Index(tables.sample).difference(table.index)
    if len(missing) == len(tables.sample) or not len(table.columns):
        raise InputError("no test well or no treatment siRNA is scored", where=where,
                         cure=f"give the scores that belong to {tables.root}")
    if len(missing):
        raise InputError(f"well {missing[0]} is missing ({len(missing)} such)", where=where,
                         cure=f"score every test well of {tables.root}")
    return table.loc[tables.sample]


def _labelled_wells(table: pd.DataFrame, wells: pd.DataFrame) -> pd.DataFrame:
    """The scored treatment wells of training experiments: index id_code, columns cell_type and sirna."""
    labelled = (wells["dataset"] == "train") & (wells["well_type"] == "treatment")
    labelled &= wells["id_code"].isin(table.index) & wells["sirna"].isin(table.columns)
    return wells[labelled].set_index("id_code")[["cell_type", "sirna"]].astype({"sirna": "int64"})


def _experiment_table(decision: Decision, labelled: pd.DataFrame, *, calibrated: Container[str]) -> pd.DataFrame:
    """The table of experiments with the number of wells behind each temperature, or a note why it was not calibrated."""
    table, counts = decision.experiments.sort_index(), labelled["cell_type"].value_counts()
    num_labelled = [int(counts[name]) if name in calibrated else 0 for name in table["cell_type"]]
    uncalibrated = {name: f"fewer than {MIN_ERRORS} errors in {count:,} labelled wells, too few to calibrate on"
                    for name, count in counts.items() if name not in calibrated}  # fmt: skip
    notes = [", ".join(filter(None, pair)) for pair in zip(table["note"], map(uncalibrated.get, table["cell_type"]))]
    return table.assign(labelled=num_labelled, note=notes)


# How each experiment was decided, as text.


ROUTE_COLUMNS = ("experiment", "route", "groups", "group_posterior", "rotation", "surprise", "temperature", "labelled", "confidence")
RIGHT_ALIGNED = ("group_posterior", "surprise", "temperature", "labelled", "confidence")  # columns of numbers
LINE_WIDTH = 100


def routes_table(result: AssignmentResult) -> str:
    """How each experiment was decided: one line per experiment, then the notes.

    Columns: experiment; route; groups (the plate group on plates 1, 2, …); group_posterior (posterior probability of this
    permutation of groups); rotation (whether training experiments show it); surprise (bits by which the scores favour another
    permutation over every rotation); temperature; labelled (number of wells that calibrated it); confidence (mean over the
    wells). "-" where a value does not exist.
    """
    experiments = result.experiments
    confidence = result.confidence.groupby(experiments_of_id_codes(result.confidence.index)).mean()
    rows = [_route_row(str(name), row, confidence.get(name)) for name, row in experiments.iterrows()]
    return "\n".join([*_aligned_lines(rows, ROUTE_COLUMNS, right_aligned=RIGHT_ALIGNED), *_note_lines(experiments["note"])])


def accuracy_table(result: AssignmentResult) -> str:
    """The accuracy of the best class of each well without the plate groups, estimated without labels; "" if no groups fit the plates.

    One line for all wells, each cell type and each experiment. Columns: raw answers; wells; group_share (of the answers that lie in the
    groups of their plates); chance (the same of wrong answers); estimated_accuracy; standard_error; accuracy (true, where a solution is
    given). Then the notes.
    """
    table = result.estimated_accuracy
    if table.empty:
        return ""
    columns = ["group_share", "chance", "estimated_accuracy", "standard_error", "accuracy"]
    rows = [[str(row["name"]), f"{row['wells']:,}", *(_format_number(row[name], ".3f") for name in columns)] for _, row in table.iterrows()]
    lines = _aligned_lines(rows, ["raw answers", "wells", *columns], right_aligned=("wells", *columns))
    return "\n".join([*lines, *_note_lines(table.set_index("name")["note"])])


def _route_row(name: str, row: pd.Series, confidence: float | None) -> list[str]:
    groups = row["group_on_plate"]
    rotation = row["rotation"] if isinstance(groups, Sequence) else None
    return [
        name,
        str(row["route"]),
        " ".join(map(str, groups)) if isinstance(groups, Sequence) else "-",
        _format_number(row["group_posterior"], ".4f"),
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
    """Each note once, after the names of its experiments."""
    groups = notes[notes != ""].groupby(notes, sort=False).groups
    return [fill(f"{', '.join(map(str, names))}: {note}", LINE_WIDTH, subsequent_indent="  ") for note, names in groups.items()]


def _aligned_lines(rows: list[list[str]], columns: Sequence[str], *, right_aligned: Container[str]) -> list[str]:
    """A header and the rows, with text left-aligned and numbers right-aligned."""
    table = [list(columns), *rows]
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = (
        "  ".join(cell.rjust(width) if name in right_aligned else cell.ljust(width) for name, cell, width in zip(columns, line, widths))
        for line in table
    )
    return [line.rstrip() for line in lines]
