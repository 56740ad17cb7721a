"""Several labels a site: macro F1, answers, baselines and the submission."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer.testing
from sklearn.metrics import f1_score

from cellsignal.cli.main import app
from cellsignal.data.tables.labelled_sites import read_site_tables
from cellsignal.data.tables.labelled_sites import multi_hot
from cellsignal.decide.commands import score_files
from cellsignal.decide.labels.multilabel import check_labelled_submission, apply_thresholds, f1_by_class, label_baselines, labels_by_id, macro_f1, read_labelled_submission, score_labels, write_labelled_submission
from cellsignal.decide.labels.thresholds import matching_thresholds
from cellsignal.errors import InputError
from cellsignal.tasks import PROTEIN_ATLAS

TASK = PROTEIN_ATLAS


def test_macro_f1_is_scikit_learns_on_a_thousand_random_matrices() -> None:
    generator = np.random.default_rng(0)
    for trial in range(1000):
        sites, classes = generator.integers(1, 40), generator.integers(2, 30)
        truth = generator.random((sites, classes)) < generator.random(classes) * generator.integers(0, 2, classes)
        answers = generator.random((sites, classes)) < generator.random(classes) * generator.integers(0, 2, classes)
        assert macro_f1(truth, answers) == f1_score(truth, answers, average="macro", zero_division=0)
        if trial < 50:
            assert (f1_by_class(truth, answers) == f1_score(truth, answers, average=None, zero_division=0)).all()


def test_no_answer_is_blank() -> None:
    probabilities = np.array([[0.9, 0.1, 0.2], [0.1, 0.09, 0.3], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    answers = apply_thresholds(probabilities, np.array([0.5, 0.1, 0.9]))
    assert answers.tolist() == [[True, True, False], [False, True, False], [False, True, False], [True, True, True]]
    assert (apply_thresholds(np.zeros((5, 3)), np.full(3, 2.0)).sum(axis=1) == 1).all()


def test_the_baselines_of_the_real_table_are_those_on_record(shared: Path) -> None:
    labels = [labels for labels in read_site_tables(shared / "hpa", TASK).sites["labels"] if labels]
    found = label_baselines(multi_hot(labels, 28), labels)
    assert [round(found[name], 4) for name in ("all labels", "most frequent label", "two most frequent labels")] == [0.0996, 0.0209, 0.0359]


def test_a_real_networks_scores_become_a_valid_submission(shared: Path, tmp_path: Path) -> None:
    tables = read_site_tables(shared / "hpa", TASK)
    scores = np.load(shared / "hpa/real_scores.npz")["scores"].astype(np.float64)
    wanted = multi_hot([labels for labels in tables.sites["labels"] if labels], 28).mean(axis=0)
    thresholds = matching_thresholds(scores, wanted)
    shares = (scores >= thresholds).mean(axis=0)
    # Within a site of the target, and half a tie more: float16 leaves up to a few sites with the same score.
    ties = [np.unique(column, return_counts=True) for column in scores.T]
    widest = [counts[np.abs(values - t).argsort()[:2]].max() for (values, counts), t in zip(ties, thresholds)]
    assert (abs(shares - wanted) * len(scores) <= np.maximum(1, np.array(widest) / 2 + 0.5)).all()
    assert (~(scores >= thresholds).any(axis=1)).sum() > 300  # what would have been blank
    answers = labels_by_id(apply_thresholds(scores, thresholds), tables.sample)
    path = write_labelled_submission(tmp_path / "submission.csv", answers, sample=tables.sample, task=TASK)
    assert check_labelled_submission(path, sample=tables.sample, task=TASK) == 11702
    assert read_labelled_submission(path, TASK).equals(answers.rename("labels"))
    assert path.read_text().startswith("Id,Predicted\n00008af0-bad0-11e8-b2b8-ac1f6b6435d0,")


@pytest.mark.parametrize(
    ("answers", "fault"),
    [
        ({"a": (0,)}, "b is missing"),
        ({"a": (0,), "b": (1,), "c": (2,)}, "c is no site of the test set"),
        ({"a": (0,), "b": ()}, "site b has no label"),
        ({"a": (0,), "b": (28,)}, "site b has the labels 28"),
    ],
)
def test_a_malformed_submission_is_not_written(tmp_path: Path, answers: dict[str, tuple[int, ...]], fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        write_labelled_submission(tmp_path / "submission.csv", pd.Series(answers), sample=["a", "b"], task=TASK)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("Id,Predicted\nb,1\na,0\n", r"submission.csv:2:Id: b stands where sample_submission.csv has a"),
        ("Id,Predicted\na,0\nb,28\n", r"submission.csv:3:Predicted: '28' is no label"),
        ("Id,Predicted\na,0\nb,\n", r"submission.csv:3:Predicted: '' is empty"),
        ("Id,Predicted,x\na,0,1\nb,1,1\n", r"submission.csv:1: there is a column 'x'"),
        ("Id,Predicted\na,0\na,0\nb,1\n", r"submission.csv:3:Id: 'a' stands in an earlier row"),
        ("Id,Target\na,0\nb,1\n", r"there is a column 'Target'"),
        *((f"Id,Predicted\na,0\nb,{cell}\n", rf"submission.csv:3:Predicted: '{cell}' is no label of this task") for cell in ("01", "1.0", "1_0", "16 07")),
        ("Id,Predicted\na,0\n b,1\n", r"submission.csv:3:Id: ' b' is no name of a file"),
        ("Id, Predicted\na,0\nb,1\n", r"submission.csv:1: there is a column ' Predicted'"),
    ],
)
def test_a_malformed_submission_is_refused(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "submission.csv").write_text(text)
    with pytest.raises(InputError, match=fault):
        check_labelled_submission(tmp_path / "submission.csv", sample=["a", "b"], task=TASK)


def test_a_site_without_an_answer_counts_as_none() -> None:
    truth = pd.Series({"a": (0,), "b": (1,)})
    found = score_labels(pd.Series({"a": (0,)}), truth, TASK)
    assert found["by_class"]["Nucleoplasm"] == 1 and found["macro_f1"] == pytest.approx(1 / 28) and found["sites"] == 2


def test_the_command_tells_macro_f1_and_f1_by_class(tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "solution.csv").write_text("Id,Target\na,0\nb,25 0\n")
    (tmp_path / "submission.csv").write_text("Id,Predicted\nb,0 25\na,0 1\n")
    found = score_files(tmp_path / "submission.csv", tmp_path / "solution.csv")
    assert found["macro_f1"] == pytest.approx(2 / 28) and found["by_class"]["Cytosol"] == 1
    told = typer.testing.CliRunner().invoke(app, ["score", str(tmp_path / "submission.csv"), str(tmp_path / "solution.csv")]).stdout
    assert told.splitlines()[0].split() == ["all", "0.0714"] and "Nucleoplasm                   1.0000" in told
    (tmp_path / "submission.csv").write_text("Id,Predicted\na,0 1\n")
    assert "b is missing" in refused("score", tmp_path / "submission.csv", tmp_path / "solution.csv")
