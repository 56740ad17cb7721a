"""Tasks are data: nobody asks which one it is, and a third one needs no line outside of this file."""

import ast
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from cellsignal.data.settings import WellSettings
from cellsignal.learn.settings import AugmentationSettings
from cellsignal.run.recipe import Recipe
from building import make_network, make_phase, train_phase
from cellsignal.decide.settings import PredictionSettings
from cellsignal import tasks
from cellsignal.data.tables.labelled_sites import read_site_tables
from cellsignal.data.tables.labelled_sites import split_of, stratified_folds
from cellsignal.data.tables.labelled_sites import multi_hot
from cellsignal.decide.labels.ladder import label_ladder_table, evaluate_label_ladder
from cellsignal.decide.labels.predict import LabelledSites, LabelScores, score_folds, stored_label_scores, fold_name
from cellsignal.decide.labels.multilabel import (
    check_labelled_submission, apply_thresholds, labels_by_id, macro_f1, read_labelled_submission, score_labels, write_labelled_submission,
)
from cellsignal.decide.labels.thresholds import THRESHOLD_METHODS
from cellsignal.errors import InputError
from cellsignal.learn.batches.augment import build_augmentation
from cellsignal.learn.batches.dataset import make_train_held_out
from cellsignal.budget import Budget, TimeSpent
from cellsignal.learn.networks.classifier import read_config
from cellsignal.receipts import Receipt
from cellsignal.run import inputs, environment
from cellsignal.run.chain import plans

FILES = sorted(environment.PACKAGE.rglob("*.py"))
TOY = tasks.Task(
    name="stripes",
    competition="stripes-and-dots",
    channels=("paper", "ink"),
    suffixes=("-paper.png", "-ink.png"),
    colours=((255, 255, 255), (0, 0, 255)),
    id_column="picture",
    label_column="shows",
    answer_column="answer",
    labels="many",
    classes=3,  # horizontal stripes, vertical stripes, a bright paper
    identifying_tables=(("train.csv", "shows"),),
    reader="sites",
    metric="macro_f1",
    plan="in folds",
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(environment.PACKAGE).as_posix())
def test_nothing_asks_which_task_it_is(path: Path) -> None:
    """No comparison with a task's name or its competition's: what differs is data, or a function that a task names."""
    words = {word for task in tasks.TASKS.values() for word in (task.name, task.competition) if word}
    names = {f"{name}{what}" for name in ("RXRX1", "PROTEIN_ATLAS", "RXRX1_WILDS") for what in ("", ".name", ".competition")}
    for node in ast.walk(ast.parse(path.read_text())):
        sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else [node] if isinstance(node, ast.match_case) else []
        assert not {ast.unparse(side) for side in sides} & names, node.lineno
        assert not {each.value for side in sides for each in ast.walk(side) if isinstance(each, ast.Constant)} & words, node.lineno


def draw(folder: Path, name: str, labels: tuple[int, ...], rng: np.random.Generator) -> None:
    y, x = np.mgrid[:32, :32]
    ink = 20 + 90 * (0 in labels) * (y % 8 < 4) + 90 * (1 in labels) * (x % 8 < 4) + rng.normal(0, 8, (32, 32))
    paper = (150 if 2 in labels else 60) + rng.normal(0, 8, (32, 32))
    for suffix, picture in zip(TOY.suffixes, (paper, ink)):
        cv2.imwrite(str(folder / f"{name}{suffix}"), np.clip(picture, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of the third task: 48 labelled pictures and 30 that are asked for, with their truth."""
    root, rng = tmp_path_factory.mktemp("stripes"), np.random.default_rng(0)
    sets = [(0,), (1,), (0, 1), (0, 2), (1, 2), (2,)]
    for kind, count, name, column in (("train", 48, "train.csv", "shows"), ("test", 30, "solution.csv", "shows")):
        (root / kind).mkdir()
        rows = [(f"{kind}-{k}", sets[k % 6]) for k in range(count)]
        for each, labels in rows:
            draw(root / kind, each, labels, rng)
        lines = [f"{each},{' '.join(map(str, labels))}" for each, labels in rows]
        (root / name).write_text("\n".join([f"picture,{column}", *lines]) + "\n")
    (root / "sample_submission.csv").write_text("\n".join(["picture,answer", *(f"test-{k},0" for k in range(30))]) + "\n")
    return root


@pytest.fixture(scope="module")
def asked(toy: Path) -> LabelledSites:
    sites = read_site_tables(toy, TOY).sites
    labelled, test = (sites[sites["dataset"] == kind].reset_index(drop=True) for kind in ("train", "test"))
    return LabelledSites(toy, labelled, test, stratified_folds(labelled["labels"].tolist(), folds=2, classes=3), TOY.suffixes)


@pytest.fixture(scope="module")
def weights(asked: LabelledSites, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network for each of two folds."""
    folder = tmp_path_factory.mktemp("networks")
    for fold in range(2):
        parts = asked.labelled.assign(split=split_of(asked.folds, fold))
        train, watch = make_train_held_out(asked.root, parts, augment=build_augmentation(AugmentationSettings(symmetries="none"), seed=0), channels=TOY.suffixes, class_numbers=range(3))
        phase = make_phase("whole", 8, 8, 4e-3, batch_scope="mixed", keep="last", schedule="cosine", loss="bce")
        model = make_network("densenet-small", channels=2, classes=3, seed=fold)
        history = train_phase(model, train, held_out=watch, phase=phase, weights=folder / fold_name(fold) / "model.safetensors", task=TOY.name)
        assert history[-1]["held_out_macro_f1"] > history[0]["held_out_macro_f1"]
    return folder


@pytest.fixture(scope="module")
def scores(asked: LabelledSites, weights: Path) -> LabelScores:
    found = score_folds(asked, weights=weights, out=weights / "scores")
    assert found is not None
    return found


def test_a_third_task_goes_from_tables_to_a_submission(
    toy: Path, asked: LabelledSites, weights: Path, scores: LabelScores, tmp_path: Path
) -> None:
    tables = read_site_tables(toy, TOY)
    truth = multi_hot(asked.labelled["labels"].tolist(), 3).astype(bool)
    values = THRESHOLD_METHODS["fitted"](scores.held_out, truth, scores.test)
    answers = labels_by_id(apply_thresholds(scores.test, values), asked.test["id_code"].tolist())
    path = write_labelled_submission(tmp_path / "submission.csv", answers, sample=tables.sample, task=TOY)
    assert path.read_text().startswith("picture,answer\ntest-0,")
    assert check_labelled_submission(path, sample=tables.sample, task=TOY) == 30
    assert score_labels(read_labelled_submission(path, TOY), tables.solution, TOY)["macro_f1"] > 0.9
    assert read_config(weights / "fold-0/model.safetensors").task == "stripes"


def test_the_rungs_stand_on_their_baselines(toy: Path, asked: LabelledSites, scores: LabelScores) -> None:
    labels, solution = asked.labelled["labels"].tolist(), read_site_tables(toy, TOY).solution
    test = multi_hot(solution.loc[asked.test["id_code"]].tolist(), 3).astype(bool)
    rungs = evaluate_label_ladder(scores, multi_hot(labels, 3).astype(bool), train_labels=labels, test=test)
    best = {(row["split"], row["kind"]): row["macro_f1"] for row in sorted(rungs, key=lambda row: row["macro_f1"])}
    assert best["test", "network"] > best["test", "floor"] + 0.2 and best["held_out", "network"] > best["held_out", "floor"] + 0.2
    assert label_ladder_table(rungs).shape == (6, 2)
    known = np.arange(len(test)) % 3 > 0  # the solution may lack sites
    fewer = evaluate_label_ladder(scores, multi_hot(labels, 3).astype(bool), train_labels=labels, test=test[known], known=known)
    row, whole = (next(row for row in some if row["split"] == "test" and row.get("method") == "shares") for some in (fewer, rungs))
    answers = apply_thresholds(scores.test, THRESHOLD_METHODS["shares"](scores.held_out, multi_hot(labels, 3).astype(bool), scores.test))
    assert row["sites"] == known.sum() < whole["sites"] and row["macro_f1"] == pytest.approx(macro_f1(test[known], answers[known]))


def test_scores_are_kept_until_what_made_them_changes(asked: LabelledSites, weights: Path, scores: LabelScores) -> None:
    out = weights / "scores"
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert len(times) == 4
    again = score_folds(asked, weights=weights, out=out)
    assert (again.test == scores.test).all() and times == {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    stored = stored_label_scores(out, asked.labelled, asked.test)
    assert (stored.test == scores.test).all() and (stored.held_out == scores.held_out).all() and (stored.folds == asked.folds).all()
    with pytest.raises(TimeSpent, match="^scored 0 of 4 parts$"):
        score_folds(asked, settings=PredictionSettings(tta_views=2), weights=weights, out=out, budget=Budget(0.0))
    assert not list(out.glob("*.parquet"))  # those of one view have given way
    with pytest.raises(InputError, match="no scores of 48 sites"):
        stored_label_scores(out, asked.labelled, asked.test)


def test_scores_are_made_again_where_an_image_or_the_channels_changed(asked: LabelledSites, weights: Path, tmp_path: Path) -> None:
    here, out = replace(asked, root=shutil.copytree(asked.root, tmp_path / "here")), tmp_path / "out"
    def made(sites: LabelledSites) -> set[str]:
        before = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
        score_folds(sites, weights=weights, out=out)
        return {path.stem for path in out.glob("*.parquet") if path.stat().st_mtime_ns != before.get(path)}
    parts = {"fold-0-held-out", "fold-0-test", "fold-1-held-out", "fold-1-test"}
    assert made(here) == parts and made(here) == made(asked) == set()
    draw(here.root / "test", "test-7", (0, 1, 2), np.random.default_rng(1))
    assert made(here) == {"fold-0-test", "fold-1-test"} and made(here) == set()
    assert made(replace(here, suffixes=here.suffixes[::-1])) == parts


@pytest.mark.parametrize("name", ["../fold-0-held-out", "held-out", "fold-x-test", "fold-0-train"])
def test_stored_scores_of_another_name_are_refused(asked: LabelledSites, tmp_path: Path, name: str) -> None:
    Receipt(tmp_path / "metadata.json", outputs={f"{name}.parquet": ""}, details={"experiments": {}}).write()
    with pytest.raises(InputError, match=f"metadata.json: names '{name}', which is no part of a prediction; start --from weights"):
        stored_label_scores(tmp_path, asked.labelled, asked.test)


def test_views_are_averaged_or_the_largest_counts(asked: LabelledSites, weights: Path, tmp_path: Path) -> None:
    mean, largest = (score_folds(asked, settings=PredictionSettings(tta_views=4, combine=how), weights=weights, out=tmp_path / how) for how in ("mean", "max"))
    assert (largest.test >= mean.test - 1e-6).all() and (largest.test > mean.test).any()


def test_its_data_set_is_found_among_others(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    monkeypatch.setattr(environment, "KAGGLE", tmp_path)
    for name, header in (("other", "id_code,experiment,plate,well,sirna"), ("stripes", "picture,shows")):
        (tmp_path / "input" / name).mkdir(parents=True)
        (tmp_path / "input" / name / "train.csv").write_text(f"{header}\n")
    assert inputs.resolve("", run="runs/x", task=TOY) == (tmp_path / "input/stripes", "")
    with pytest.raises(InputError, match="unknown preset 'atlas-tiny'"):
        inputs.resolve("", run="runs/x", preset="atlas-tiny")


def test_a_plan_in_folds_has_one_notebook_and_a_network_a_fold() -> None:
    [step] = plans.plan(Recipe(task="protein-atlas", wells=WellSettings(folds=2)), [], kernels=environment.kernels_folder())
    assert step.name == "protein-atlas" and "weights/fold-1/model.safetensors" in step.outputs
    assert step.stages == ("weights", "scores", "submission")
