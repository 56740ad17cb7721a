"""The decision alone, on anybody's scores: what `cellsignal assign` and `cellsignal score` do."""

from pathlib import Path

import pandas as pd

from cellsignal.data.plates import plate_groups
from cellsignal.data.wells import read_solution, read_tables
from cellsignal.decide.assign import assign
from cellsignal.decide.metrics import accuracy
from cellsignal.decide.scores import read_all_scores
from cellsignal.decide.submit import check_ids, read_submission, write_submission
from cellsignal.errors import InputError
from cellsignal.tasks import RXRX1


def assign_files(scores: list[Path], *, data: Path, out: Path, method: str = "exact", groups: bool = True) -> Path:
    """Read scores, choose one siRNA per well and write the submission `out`.

    Only test wells and treatment siRNAs count: scores of controls are no answers.
    """
    if not out.name or out.is_dir():
        raise InputError("is a folder", where=out, cure="name a file, such as submission.csv")
    tables = read_tables(data)
    known = plate_groups(tables.wells) if groups else []
    if groups and not known:
        raise InputError("no plate groups in the training table", where=data, cure="add --no-groups")
    table = read_all_scores(scores)
    table = table.loc[table.index.isin(tables.sample), ~table.columns.isin(RXRX1.controls)]
    if table.empty:
        raise InputError("no test well or no treatment siRNA is scored", where=", ".join(map(str, scores)),
                         cure=f"give the scores that belong to {data}")
    predictions = assign(table, tables.wells, method=method, groups=known)
    return write_submission(out, predictions, sample=tables.sample)


def score_files(submission: Path, solution: Path) -> dict:
    """Accuracy of a submission against the true siRNAs, overall, by cell type and by experiment."""
    truth = read_solution(solution)
    predictions = read_submission(submission)
    check_ids(predictions.index, list(truth.index), where=submission)
    return accuracy(predictions, truth, places_of(truth.index.to_list()))


def places_of(id_codes: list[str]) -> pd.DataFrame:
    """Experiment and cell type as the id_codes spell them (`HUVEC-01_1_B03`)."""
    experiments = pd.Series(id_codes).str.rsplit("_", n=2).str[0]
    cell_types = experiments.str.rsplit("-", n=1).str[0]
    return pd.DataFrame({"id_code": id_codes, "experiment": experiments, "cell_type": cell_types})
