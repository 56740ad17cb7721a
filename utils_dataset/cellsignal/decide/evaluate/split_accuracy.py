"""The measure of RxRx1-WILDS, accuracy of single sites by split, and its files of predictions."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from cellsignal.data.tables import headers, schema
from cellsignal.data.tables.wells import EVALUATED_SPLITS, SPLIT_NAMES, read_benchmark_sites
from cellsignal.decide.evaluate.ladder import accuracy
from cellsignal.errors import InputError, raise_if_any
from cellsignal.files import write_text
from cellsignal.tasks import Task


def evaluate_splits(scores: pd.DataFrame, sites: pd.DataFrame, *, rung: str) -> list[dict]:
    """Accuracy of each split of the benchmark that `sites` has, a row each.

    `scores`: log-probabilities, index id_code of sites; `sites`: as `read_benchmark_sites` gives them. "accuracy" is the benchmark's: the
    share of sites, each answered alone, with the right class, controls included; "worst_cell_type" is its worst-group accuracy.
    "well_accuracy" is ours, and not the benchmark's: the log-probabilities of a well's sites in the split are averaged first.
    """
    rows, answers = [], scores.idxmax(axis=1)
    for split, part in _by_split(sites).items():
        measured = accuracy(answers, part.set_index("id_code")["sirna"], part)
        wells = part.drop_duplicates("well_id").set_index("well_id")["sirna"]
        well_answers = scores.reindex(part["id_code"]).groupby(part["well_id"].to_numpy(), sort=False).mean().idxmax(axis=1)
        rows.append({"rung": rung, "split": split, "accuracy": measured["accuracy"], "worst_cell_type": min(measured["by_cell_type"].values()),
                     "sites": len(part), "well_accuracy": float((well_answers == wells).mean()), "wells": len(wells),
                     "by_cell_type": measured["by_cell_type"], "by_experiment": measured["by_experiment"]})
    return rows


def split_table(rows: list[dict]) -> pd.DataFrame:
    """The rows of `evaluate_splits` as a table: by split and rung, in per cent."""
    columns = {"accuracy": "accuracy %", "worst_cell_type": "worst cell type %", "sites": "sites", "well_accuracy": "by well %", "wells": "wells"}
    cells = [{"split": SPLIT_NAMES[row["split"]], "rung": row["rung"],
              **{title: row[name] if name in ("sites", "wells") else 100 * row[name] for name, title in columns.items()}} for row in rows]
    return pd.DataFrame(cells, columns=["split", "rung", *columns.values()]).set_index(["split", "rung"])


def _by_split(sites: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {split: part for split in EVALUATED_SPLITS if len(part := sites[sites["split"] == split])}


# Answers as files: one table of all sites, and the benchmark's own file for each split.


def write_site_answers(path: Path, answers: pd.Series, *, sites: pd.DataFrame, task: Task) -> Path:
    """Write the answers to the sites of all evaluated splits as `site_id,sirna_id`, in the order of metadata.csv."""
    ids = sites.loc[sites["split"].isin(EVALUATED_SPLITS), "id_code"]
    write_text(path, answers.loc[ids].rename(task.answer_column).rename_axis(task.id_column).to_csv(lineterminator="\n"))
    return path


def write_predictions(folder: Path, answers: pd.Series, *, sites: pd.DataFrame, seed: int) -> list[Path]:
    """Write what the benchmark's leaderboard and its `evaluate.py` read: for each split a file with one class number a line, in order."""
    paths = []
    for split, part in _by_split(sites).items():
        paths.append(folder / f"rxrx1_split:{split}_seed:{seed}_epoch:best_pred.csv")
        write_text(paths[-1], "".join(f"{answer}\n" for answer in answers.loc[part["id_code"]]))
    return paths


def read_site_answers(path: Path, *, sites: pd.DataFrame, task: Task) -> pd.Series:
    """The class of each evaluated site, by id_code; InputError for a fault of the file, and unless it has each of these sites once."""
    if extra := [name for name in headers.read_header(path, exact=True).names if name not in task.submission_columns]:
        raise InputError(f"there is a column {extra[0]!r}", where=f"{path}:1", cure=f"keep only {','.join(task.submission_columns)}")
    frame, problems = schema.read_rows(path, schema.SiteAnswerRow, exact=True)
    repeated = "stands in an earlier row too", "keep one of the rows"
    raise_if_any(problems or schema.flag(frame, frame["site_id"].duplicated(), "site_id", *repeated))
    answers = frame.set_index("site_id")["sirna_id"].astype("int64").rename_axis("id_code")
    expected = pd.Index(sites.loc[sites["split"].isin(EVALUATED_SPLITS), "id_code"])
    for names, fault in ((expected.difference(answers.index), "is missing"), (answers.index.difference(expected), "is no site of val, test or id_test")):
        if len(names):
            raise InputError(f"{names[0]} {fault} ({len(names)} such)", where=path, cure="answer every site of these splits once, and no other")
    return answers


def score_site_answers(path: Path, solution: Path, task: Task) -> dict:
    """Accuracy of a file of answers: of all evaluated sites, by split and by cell type; `solution`: the benchmark's metadata.csv, or its folder."""
    sites = read_benchmark_sites(solution if solution.is_dir() else solution.parent)
    sites = sites[sites["split"].isin(EVALUATED_SPLITS)]
    answers, truth = read_site_answers(path, sites=sites, task=task), sites.set_index("id_code")["sirna"]
    by_split: Mapping[str, float] = (answers.reindex(truth.index) == truth).groupby(sites["split"].to_numpy()).mean()
    whole = accuracy(answers, truth, sites)
    return {"accuracy": whole["accuracy"], "by_split": {split: float(by_split[split]) for split in _by_split(sites)}, "by_cell_type": whole["by_cell_type"]}


def check_site_answers(path: Path, sample: Path, task: Task) -> int:
    """Check a file of answers against the benchmark's metadata.csv in the folder of `sample`; returns the number of its sites."""
    return len(read_site_answers(path, sites=read_benchmark_sites(sample.parent), task=task))
