"""The decision on anybody's scores: whatever the format, a valid submission, its confidences and its route."""

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import log_softmax

from cellsignal.decide.settings import AssignmentSettings
from cellsignal.data.microscope.layout import draw_design
from cellsignal.data.microscope.simulate import PRESETS
from cellsignal.data.tables.wells import read_tables
from small_experiment import METHODS
from cellsignal.decide.commands import assign_files, confidence_path, score_files
from cellsignal.decide.evaluate.ladder import accuracy
from cellsignal.decide.commands import accuracy_table, routes_table
from cellsignal.decide.submission import read_submission
from cellsignal.errors import InputError


def lay_out(folder: Path, **options: object) -> Path:
    """Tables of a simulated screen, without its pictures."""
    wells = draw_design(0, **options)
    columns = ["id_code", "experiment", "plate", "well", "sirna"]
    treated, asked = wells["well_type"] == "treatment", wells["dataset"] == "test"
    folder.mkdir(parents=True)
    wells[treated & ~asked][columns].to_csv(folder / "train.csv", index=False)
    wells[treated & asked][columns[:-1]].to_csv(folder / "test.csv", index=False)
    wells[~treated & ~asked][[*columns, "well_type"]].to_csv(folder / "train_controls.csv", index=False)
    wells[~treated & asked][[*columns, "well_type"]].to_csv(folder / "test_controls.csv", index=False)
    wells[treated & asked][["id_code", "sirna"]].iloc[::-1].to_csv(folder / "solution.csv", index=False)
    wells[treated & asked][["id_code"]].iloc[::-1].assign(sirna=0).to_csv(folder / "sample_submission.csv", index=False)
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cell types, 48 siRNAs, 2 + 2 experiments each; HUVEC-04 repeats the layout of RPE-01."""
    return lay_out(tmp_path_factory.mktemp("screen") / "data", cell_types=("HUVEC", "RPE"), classes=48, train=2, test=2,
                   repeats=(("HUVEC-04", "RPE-01"),), missing=3)


def scored(data: Path, *, signal: float = 2.5, sharpness: float = 1.0, seed: int = 0, trained: bool = True) -> pd.DataFrame:
    """Log-probabilities of every treatment well: a Gaussian each, higher by `signal` for the true siRNA.

    Their temperature is `sharpness`: they are calibrated when it is 1.
    """
    tables = read_tables(data)
    wells = tables.wells[tables.wells["well_type"] == "treatment"].set_index("id_code")
    truth = wells["sirna"].fillna(tables.solution.reindex(wells.index)).astype(int)
    truth = truth if trained else truth[tables.sample]
    classes = sorted(truth.unique())
    logits = np.random.default_rng(seed).normal(size=(len(truth), len(classes)))
    logits[np.arange(len(truth)), np.searchsorted(classes, truth)] += signal
    # The likelihood ratio of a class is exp(signal * logit): this makes them probabilities.
    return pd.DataFrame(log_softmax(sharpness * signal * logits, axis=1).astype(np.float32), index=truth.index, columns=classes)


def save(scores: pd.DataFrame, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, id_code=scores.index.to_numpy().astype(str), scores=scores.to_numpy(), class_numbers=scores.columns)
    elif path.suffix == ".parquet":
        scores.rename(columns=str).to_parquet(path)
    else:
        scores.to_csv(path)
    return path


@pytest.fixture(scope="session")
def scores(data: Path) -> Path:
    """A file of scores beside `data`."""
    return save(scored(data), data.parent / "scores.parquet")


def right(out: Path, data: Path) -> float:
    return score_files(out, data / "solution.csv")["accuracy"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("groups", [True, False])
def test_what_is_written_is_valid_and_says_the_same_twice(data: Path, scores: Path, tmp_path: Path, method: str, groups: bool) -> None:
    out = tmp_path / "deep/submission.csv"
    decision = assign_files([scores], settings=AssignmentSettings(method=method, plate_groups=groups), data=data, out=out)
    sample = read_tables(data).sample
    table = pd.read_csv(tmp_path / "deep/submission.confidence.csv")
    assert table.columns.tolist() == ["id_code", "sirna", "confidence"] and table["id_code"].tolist() == sample
    written = read_submission(out, sample=sample)
    assert written.index.tolist() == sample and table["sirna"].tolist() == written.tolist()
    assert written.to_dict() == decision.predictions.to_dict() and table["confidence"].between(0, 1).all()
    assert sorted(path.name for path in out.parent.iterdir()) == ["submission.confidence.csv", "submission.csv"]
    routes = decision.experiments["route"]
    assert routes.index.tolist() == ["HUVEC-03", "HUVEC-04", "RPE-03", "RPE-04"]
    assert set(routes) == {"groups" if groups else "raw" if method == "raw" else "one-to-one"}


def test_the_format_does_not_matter(data: Path, tmp_path: Path) -> None:
    table = scored(data)
    for suffix in (".parquet", ".csv", ".csv.gz", ".npz"):
        assign_files([save(table, tmp_path / f"scores{suffix}")], data=data, out=tmp_path / f"from{suffix}/submission.csv")
    probable = np.exp(table.astype(float)) * 0.7
    for suffix in (".parquet", ".csv", ".npz"):
        path = save(probable, tmp_path / f"probable{suffix}")
        assign_files([path], data=data, out=tmp_path / f"likely{suffix}/submission.csv", probabilities=True)
    assert len({path.read_text() for path in tmp_path.glob("*/submission.csv")}) == 1
    first, *others = (pd.read_csv(path)["confidence"] for path in tmp_path.glob("*/submission.confidence.csv"))
    assert len(others) == 6 and all(np.allclose(first, other, atol=1e-4) for other in others)


def test_scores_are_told_of_packed_files_too(data: Path, scores: Path, tmp_path: Path) -> None:
    assign_files([scores], data=data, out=tmp_path / "submission.csv")
    pairs = []
    for path in (tmp_path / "submission.csv", data / "solution.csv"):
        packed = tmp_path / f"{path.name}.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        pairs.append((path, packed))
    plain = score_files(pairs[0][0], pairs[1][0])
    assert 0 < plain["accuracy"] < 1
    assert all(score_files(submission, solution) == plain for submission in pairs[0] for solution in pairs[1])
    known = tmp_path / "some.csv"
    pd.read_csv(data / "solution.csv").iloc[1:].to_csv(known, index=False)
    with pytest.raises(InputError, match=r"well \S+ is not in \S+some.csv \(1 such\); the submission must hold exactly the wells of \S+some.csv"):
        score_files(pairs[0][0], known)


def test_neither_the_order_nor_a_constant_per_well_matters(data: Path, scores: Path, tmp_path: Path) -> None:
    table, rng = scored(data), np.random.default_rng(1)
    logits = table.sample(frac=1, random_state=1, axis=0).sample(frac=1, random_state=1, axis=1)
    logits = logits.add(rng.uniform(0, 20, len(logits)), axis=0)
    for name, part in (("a", logits.iloc[::2]), ("b", logits.iloc[1::2])):
        save(part, tmp_path / f"parts/{name}.csv")
    assign_files([tmp_path / "parts"], data=data, out=tmp_path / "logits.csv")
    assign_files([scores], data=data, out=tmp_path / "scores.csv")
    assert (tmp_path / "logits.csv").read_text() == (tmp_path / "scores.csv").read_text()


def test_the_tiny_screen_is_solved_by_clear_scores(tmp_path: Path) -> None:
    tiny = PRESETS["tiny"]
    data = lay_out(tmp_path / "tiny", cell_types=tiny.cell_types, classes=tiny.classes, train=tiny.train, test=tiny.test,
                   repeats=tiny.repeats, missing=tiny.missing)
    path = save(scored(data, signal=8), tmp_path / "scores.npz")
    for method in METHODS:
        assign_files([path], settings=AssignmentSettings(method=method), data=data, out=tmp_path / "submission.csv")
        assert right(tmp_path / "submission.csv", data) == 1, method


def test_labelled_wells_calibrate_their_cell_type_and_no_other(data: Path, tmp_path: Path) -> None:
    table = scored(data, signal=2.0, sharpness=2.5)
    path = save(table[~table.index.str.startswith(("RPE-01", "RPE-02"))], tmp_path / "scores.npz")
    experiments = assign_files([path], data=data, out=tmp_path / "submission.csv").experiments
    labelled = read_tables(data).wells.query("experiment in ['HUVEC-01', 'HUVEC-02'] and well_type == 'treatment'")
    assert experiments["labelled"].tolist() == [len(labelled), len(labelled), 0, 0] and len(labelled) > 90
    assert experiments.loc[["HUVEC-03", "HUVEC-04"], "temperature"].between(1.8, 3.5).all()


def test_labelled_wells_without_errors_tell_no_temperature(data: Path, tmp_path: Path) -> None:
    """So it is when somebody gives the scores of the wells that the network was trained on."""
    table, trained = scored(data, signal=1.5), scored(data, signal=8)
    asked = table.index.isin(read_tables(data).sample)
    path = save(pd.concat([trained[~asked], table[asked]]), tmp_path / "scores.npz")
    decision = assign_files([path], data=data, out=tmp_path / "submission.csv")
    assert decision.experiments["labelled"].eq(0).all()
    notes = routes_table(decision).splitlines()[5:]
    assert [note.split(": ")[0] for note in notes] == ["HUVEC-03, HUVEC-04", "RPE-03, RPE-04"]
    assert all("labelled wells, too few to calibrate on" in note and len(note) <= 100 for note in notes)
    held_out = assign_files([save(table, tmp_path / "scores.npz")], data=data, out=tmp_path / "submission.csv")
    assert held_out.experiments["labelled"].gt(90).all() and held_out.experiments["note"].tolist() == [""] * 4


def test_scores_of_controls_are_no_answers(data: Path, scores: Path, tmp_path: Path) -> None:
    save(scored(data).assign(**{"1108": 0.0, "1138": 0.0}).rename(columns=int), tmp_path / "with.npz")
    for name, path in (("with", tmp_path / "with.npz"), ("without", scores)):
        assign_files([path], settings=AssignmentSettings(method="raw", plate_groups=False), data=data, out=tmp_path / f"{name}.csv")
    assert (tmp_path / "with.csv").read_text() == (tmp_path / "without.csv").read_text()


def test_a_known_layout_is_copied_when_asked(data: Path, tmp_path: Path) -> None:
    path = save(scored(data, signal=1.0, trained=False), tmp_path / "scores.csv.gz")
    usual = assign_files([path], data=data, out=tmp_path / "usual.csv").experiments["route"]
    assert "known layout" not in set(usual)
    decision = assign_files([path], settings=AssignmentSettings(known_layouts=True), data=data, out=tmp_path / "known.csv")
    routes = decision.experiments["route"]
    assert routes["HUVEC-04"] == "known layout" and routes.drop("HUVEC-04").equals(usual.drop("HUVEC-04"))
    tables = read_tables(data)
    found = accuracy(read_submission(tmp_path / "known.csv"), tables.solution, tables.wells)["by_experiment"]
    assert found["HUVEC-04"] == 1 and found["RPE-03"] < 0.9


def test_the_table_of_routes_is_short_and_tells_all(data: Path, scores: Path, tmp_path: Path) -> None:
    lines = routes_table(assign_files([scores], data=data, out=tmp_path / "submission.csv")).splitlines()
    assert lines[0].split() == ["experiment", "route", "groups", "group_posterior", "rotation", "surprise", "temperature",
                                "labelled", "confidence"]
    assert [line.split()[0] for line in lines[1:]] == ["HUVEC-03", "HUVEC-04", "RPE-03", "RPE-04"]
    assert max(map(len, lines)) <= 100 and len(set(map(len, lines))) == 1
    assert lines[1].split()[1] == "groups" and sorted(lines[1].split()[2:6]) == list("1234")
    decision = assign_files([scores], settings=AssignmentSettings(plate_groups=False), data=data, out=tmp_path / "submission.csv")
    decision.experiments.loc["RPE-04", "note"] = "two of a kind"
    lines = routes_table(decision).splitlines()
    assert lines[1].split()[:6] == ["HUVEC-03", "one-to-one", "-", "-", "-", "-"] and lines[-1] == "RPE-04: two of a kind"


def test_the_accuracy_of_raw_answers_is_estimated_and_beside_it_stands_the_true_one(data: Path, scores: Path, tmp_path: Path) -> None:
    result = assign_files([scores], data=data, out=tmp_path / "submission.csv")
    lines = accuracy_table(result).splitlines()
    assert lines[0].split() == ["raw", "answers", "wells", "group_share", "chance", "estimated_accuracy", "standard_error", "accuracy"]
    assert [line.split()[0] for line in lines[1:]] == ["all", "HUVEC", "RPE", "HUVEC-03", "HUVEC-04", "RPE-03", "RPE-04"]
    row = result.estimated_accuracy.iloc[0]
    raw = read_tables(data).solution.eq(scored(data).idxmax(axis=1)[read_tables(data).solution.index]).mean()
    assert row["accuracy"] == pytest.approx(raw) and abs(row["estimated_accuracy"] - raw) < 4 * row["standard_error"]
    assert json.loads(json.dumps(result.records, allow_nan=False))["estimated_accuracy"][0]["rung"] == "raw"
    ungrouped = assign_files([scores], settings=AssignmentSettings(plate_groups=False), data=data, out=tmp_path / "submission.csv")
    assert accuracy_table(ungrouped) == "" and ungrouped.records["estimated_accuracy"] == []


BAD: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], list[str], str]] = {
    "half the wells": (lambda table: table.iloc[::2], [], "is missing ("),
    "another screen": (lambda table: table.set_axis("A549-01_" + table.index.rename("id_code")), [], "no test well"),
    "controls only": (lambda table: table.iloc[:, :1].set_axis([1138], axis=1), [], "no treatment siRNA is scored"),
    "undeclared probabilities": (lambda table: np.exp(table), [], "add --probabilities"),
    "declared logarithms": (lambda table: table, ["--probabilities"], "drop --probabilities"),
    "a well of zeros": (lambda table: np.exp(table) * (table.index != table.index[7])[:, None], ["--probabilities"],
                        "every class has probability 0"),
    "no such method": (lambda table: table, ["--method", "best"], "'best' is not one of"),
    "a prior above 1": (lambda table: table, ["--rotation-prior", "1.5"], "'--rotation-prior'"),
    "a posterior that is text": (lambda table: table, ["--min-group-posterior", "sure"], "'--min-group-posterior'"),
    "both in one file": (lambda table: table, ["--confidence", "new/submission.csv"], "in one file"),
    "over the scores": (lambda table: table, ["--confidence", "scores/scores.csv"], "would overwrite the scores"),
    "over a table": (lambda table: table, ["--confidence", "data/train.csv"], "would overwrite a file of the data set"),
    "over the sample": (lambda table: table, ["--confidence", "link/sample_submission.csv"], "would overwrite a file of the data set"),
    "as a table to come": (lambda table: table, ["--confidence", "data/metadata.csv"], "would overwrite a file of the data set"),
    "over a picture": (lambda table: table, ["--confidence", "data/train/picture.png"], "would overwrite a file of the data set"),
    "over a table by a hard link": (lambda table: table, ["--confidence", "hard.csv"], "would overwrite a file of the data set"),
    "over the scores by a hard link": (lambda table: table, ["--confidence", "twin.csv"], "would overwrite the scores"),
    "packed": (lambda table: table, ["--confidence", "new/confidence.csv.gz"], "plain CSV is written, no .gz"),
    "sets over the scores": (lambda table: table, ["--sets", "scores/scores.csv"], "prediction sets are written as Parquet"),
    "sets as a table": (lambda table: table, ["--sets", "new/sets.csv"], "choose a name such as submission.sets.parquet"),
    "sets over a picture": (lambda table: table, ["--sets", "data/train/picture.parquet"], "would overwrite a file of the data set"),
    "over a file of another kind": (lambda table: table, ["--confidence", "notes.csv"], "is there, and is no submission, no confidences and"),
    "below a file": (lambda table: table, ["--confidence", "notes.csv/new/confidence.csv"], "notes.csv: is a file, and no folder"),
    "into a folder": (lambda table: table, ["--confidence", "scores"], "is a folder"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_input_is_one_line_and_writes_neither_file(
    data: Path, tmp_path: Path, fault: str, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    change, options, message = BAD[fault]
    monkeypatch.chdir(tmp_path)
    save(change(scored(data)).rename_axis("id_code"), tmp_path / "scores/scores.csv")
    shutil.copytree(data, "data")
    (tmp_path / "data/train").mkdir()
    for name in ("picture.png", "picture.parquet"):
        (tmp_path / "data/train" / name).write_bytes(b"pixels")
    (tmp_path / "notes.csv").write_text("day,note\n1,mine\n")
    (tmp_path / "link").symlink_to("data")
    (tmp_path / "hard.csv").hardlink_to("data/solution.csv")
    (tmp_path / "twin.csv").hardlink_to("scores/scores.csv")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert message in refused("assign", "scores", "--data", "data", "--out", "new/submission.csv", *options)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_submission_may_lie_in_the_data_set_and_be_written_again(data: Path, scores: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    for method in ("raw", "exact"):
        assign_files([scores], settings=AssignmentSettings(method=method), data=tmp_path / "data", out=tmp_path / "data/submission.csv")
    assert read_tables(tmp_path / "data").sample == read_submission(tmp_path / "data/submission.csv").index.tolist()


def test_scores_of_few_siRNAs_are_answered_and_the_table_says_how(data: Path, tmp_path: Path) -> None:
    path = save(scored(data).iloc[:, :5].rename_axis("id_code"), tmp_path / "scores.csv")
    assigned = assign_files([path], settings=AssignmentSettings(plate_groups=False), data=data, out=tmp_path / "submission.csv")
    assert assigned.experiments["route"].eq("raw").all()
    assert assigned.experiments["note"].str.contains("wells share 5 siRNAs: each well its best").all()


def test_groups_that_the_design_does_not_have_are_refused(tmp_path: Path, data: Path, scores: Path) -> None:
    for name in ("train.csv", "test.csv", "train_controls.csv", "test_controls.csv"):
        table = pd.read_csv(data / name)
        table[~table["experiment"].isin(["HUVEC-02", "RPE-02", "RPE-01"])].to_csv(tmp_path / name, index=False)
    with pytest.raises(InputError, match="no plate groups in the training table; add --no-groups"):
        assign_files([scores], data=tmp_path, out=tmp_path / "submission.csv")
    assign_files([scores], settings=AssignmentSettings(plate_groups=False), data=tmp_path, out=tmp_path / "submission.csv")


def test_a_submission_that_cannot_be_written_leaves_no_confidences(data: Path, scores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr("cellsignal.files.check_can_write", lambda path: None)  # as if it came in the way after the check
    with pytest.raises(OSError):
        assign_files([scores], data=data, out=tmp_path / "file/submission.csv", confidence=tmp_path / "confidence.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_sets_that_cannot_be_written_leave_the_earlier_submission(data: Path, scores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = {"out": tmp_path / "submission.csv", "sets": tmp_path / "submission.sets.parquet"}
    assign_files([scores], data=data, **outputs)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    rename = os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: rename("/nowhere", new) if new == outputs["sets"] else rename(old, new))
    with pytest.raises(OSError):
        assign_files([scores], AssignmentSettings(method="raw"), data=data, **outputs)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def votes_as_scores(votes: pd.DataFrame, *, classes: int = 1108, doubt: float = 0.05) -> pd.DataFrame:
    """Log-probabilities of a well: the share of networks that chose a siRNA, mixed with `doubt`."""
    shares = np.zeros((len(votes), classes))
    for network in votes:
        shares[np.arange(len(votes)), votes[network]] += 1 / votes.shape[1]
    return pd.DataFrame(np.log((1 - doubt) * shares + doubt / classes), index=votes.index, columns=range(classes))


@pytest.mark.slow
@pytest.mark.ci
def test_real_votes_make_a_valid_submission(shared: Path, tmp_path: Path) -> None:
    """HUVEC-18 repeats a training layout, so we know its truth: 0.54 of its most voted siRNAs are right."""
    votes = pd.read_csv(shared / "rxrx1/real_predictions.csv.gz", index_col="id_code")
    path = save(votes_as_scores(votes).astype(np.float32), tmp_path / "votes.npz")
    decision = assign_files([path], data=shared / "rxrx1", out=tmp_path / "submission.csv")
    sample = pd.read_csv(shared / "rxrx1/sample_submission.csv")["id_code"].tolist()
    assert len(read_submission(tmp_path / "submission.csv", sample=sample)) == 19_897
    assert len(decision.experiments) == 18 and set(decision.experiments["route"]) <= {"groups", "one-to-one"}
    per_experiment = decision.predictions.groupby(decision.predictions.index.str.rsplit("_", n=2).str[0])
    assert per_experiment.apply(lambda sirnas: sirnas.is_unique).all()
    assert max(map(len, routes_table(decision).splitlines())) <= 100
    known = assign_files([path], settings=AssignmentSettings(known_layouts=True), data=shared / "rxrx1", out=tmp_path / "known.csv")
    truth = known.predictions[known.predictions.index.str.startswith("HUVEC-18")]
    assert known.experiments["route"]["HUVEC-18"] == "known layout" and known.confidence[truth.index].between(0.9999, 1).all()
    assert decision.predictions[truth.index].eq(truth).mean() > 0.7


def test_prediction_sets_are_written_if_asked_for_and_are_no_scores(data: Path, tmp_path: Path) -> None:
    path, solution = save(scored(data), tmp_path / "scores.parquet"), read_tables(data).solution
    for _ in range(2):  # the second time they lie in the folder of the scores
        assign_files([tmp_path], data=data, out=tmp_path / "new/submission.csv", sets=tmp_path / "sets.parquet")
    sets = pd.read_parquet(tmp_path / "sets.parquet")
    assert path.is_file() and sets.columns.tolist() == ["id_code", "coverage", "size", "sirnas"]
    assert sets["id_code"].tolist() == [name for name in read_tables(data).sample for _ in range(3)]
    assert sets["sirnas"].map(len).equals(sets["size"].astype("int64")) and sets["size"].min() == 1
    covered = pd.Series([solution[name] in some for name, some in zip(sets["id_code"], sets["sirnas"])])
    assert (covered.groupby(sets["coverage"]).mean() >= [0.74, 0.84, 0.9]).all()  # two standard deviations of 190 wells and more


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".npz"])
def test_a_folder_whose_name_is_no_text_may_hold_scores_and_sets(data: Path, tmp_path: Path, suffix: str) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xfcll"))
    folder.mkdir()
    path = save(scored(data), tmp_path / f"scores{suffix}").rename(folder / f"scores{suffix}")
    for _ in range(2):  # the second time the sets lie beside the scores
        assign_files([folder], data=data, out=tmp_path / "submission.csv", sets=folder / "sets.parquet")
    assert sorted(each.name for each in folder.iterdir()) == [path.name, "sets.parquet"]


def test_prediction_sets_of_an_earlier_submission_do_not_stay(data: Path, scores: Path, tmp_path: Path) -> None:
    out, sets = tmp_path / "submission.csv", tmp_path / "submission.sets.parquet"
    assign_files([scores], data=data, out=out, sets=sets)
    assert sets.is_file()
    assign_files([scores], data=data, out=out)
    assert not sets.exists()
    assign_files([scores], data=data, out=out, sets=sets)
    assign_files([scores], data=data, out=out, sets=tmp_path / "other.parquet")
    assert not sets.exists() and (tmp_path / "other.parquet").is_file()


def test_paths_of_the_second_file() -> None:
    assert confidence_path(Path("runs/a.b.csv")) == Path("runs/a.b.confidence.csv")
    assert confidence_path(Path("submission")) == Path("submission.confidence.csv")
