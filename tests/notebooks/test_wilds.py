"""RxRx1-WILDS from a recipe to accuracies and predictions, as a chain and session by session."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from wilds_plates import write_wilds

from cellsignal.decide.commands import score_files
from cellsignal.errors import InputError
from cellsignal.files import read_json, sha256
from cellsignal.run import environment, recipe
from cellsignal.run.chain import plans, script
from cellsignal.run.record import step_receipts
from cellsignal.run.sweep.results import outcome
from cellsignal.show.report import write_report

ROOT = environment.repository()
NOTEBOOK = environment.kernels_folder() / "rxrx1-wilds/rxrx1-wilds.ipynb"
NETWORK = {"backbone": "resnet-small", "standardise": "image"}
TRAINING = {"batch_size": 32, "epochs": 1, "schedule": "cosine", "loss": "cross-entropy"}


@pytest.fixture(scope="module")
def wilds(tiny_plates: Path, once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """The simulated plates of preset tiny in the benchmark's layout."""
    return once("wilds-plates", lambda folder: write_wilds(tiny_plates, folder))


@pytest.mark.slow
@pytest.mark.ci
def test_a_recipe_goes_from_the_benchmark_s_folder_to_its_predictions(wilds: Path, tmp_path: Path) -> None:
    changes = [f"data={wilds}", "network.backbone=resnet-small", "network.pretrained=", "training.epochs=2", "training.warmup_epochs=1",
               "training.batch_size=32", "machine.num_workers=0"]
    command = [sys.executable, "-m", "cellsignal.cli.main", "run", str(ROOT / "papermill_params/wilds-adapted.yaml"), "--out", str(tmp_path / "run")]
    ended = subprocess.run([*command, *(part for change in changes for part in ("-p", change))], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    run, metrics = tmp_path / "run", read_json(tmp_path / "run/metrics.json")
    expected = [(split, kind) for split in ("val", "test", "id_test") for kind in ("running", "adapted")]
    assert [(row["split"], row["rung"]) for row in metrics["splits"]] == expected
    last = {row["split"]: row["accuracy"] for row in metrics["splits"]}
    assert score_files(run / "submission.csv", wilds / "metadata.csv")["by_split"] == pytest.approx(last)
    assert "test (OOD)" in ended.stdout and f"{100 * last['test']:.1f}" in ended.stdout
    table = pd.read_csv(wilds / "metadata.csv")
    lines = {split: len((run / f"predictions/rxrx1_split:{split}_seed:0_epoch:best_pred.csv").read_text().split()) for split in last}
    assert lines == {"val": (table["dataset"] == "val").sum(), "test": (table["dataset"] == "test").sum(), "id_test": (table["dataset"] == "train").sum() / 2}
    assert "test (ID)" in (run / "report.html").read_text()
    found = outcome(run)  # as a sweep has it
    assert (found["held_out_raw"], found["test_raw"]) == (last["val"], last["test"]) and found["weights"] > 100_000


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize(("scope", "statistics", "views"), [("mixed", "running", 1), ("plate", "adapted", 2)])
def test_sessions_that_are_too_short_end_with_the_same_answers(
    wilds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scope: str, statistics: str, views: int
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda: None)
    training, prediction = {**TRAINING, "batch_scope": scope}, {"statistics": statistics, "tta_views": views}

    def session(**changes: object) -> dict:
        values = {"run": "runs/wilds", "data": str(wilds), "network": NETWORK, "training": training, "prediction": prediction}
        return script.execute(NOTEBOOK, {**values, **changes})

    run = tmp_path / "runs/wilds"
    assert session(machine={"time_budget_minutes": 1e-9})["session"].spent == "whole, epoch 0 of 1" and not (run / "submission.csv").exists()
    session()
    assert step_receipts.read(run, "rxrx1-wilds").complete
    kinds = list(dict.fromkeys(("running", statistics, *["views"] * (views > 1))))
    assert sorted(path.name for path in (run / "scores/model").iterdir()) == sorted(kinds)
    assert len(list((run / f"scores/model/{kinds[-1]}").glob("*.parquet"))) == 6
    written = {path: sha256(path) for path in (run / "submission.csv", *run.glob("predictions/*"))}
    assert len(written) == 4 and "A training site of each cell type" in write_report(run).read_text()
    times = {path: path.stat().st_mtime_ns for path in run.glob("scores/*/*/*.parquet")}
    for path in written:
        path.unlink()
    (run / "weights/rxrx1-wilds/model.safetensors").rename(tmp_path / "away")
    session(start_from="scores")  # needs no weights
    (tmp_path / "away").rename(run / "weights/rxrx1-wilds/model.safetensors")
    assert {path: sha256(path) for path in written} == written and {path: path.stat().st_mtime_ns for path in times} == times
    for path in times:
        path.unlink()
    session(start_from="weights", training={**training, "epochs": 7})  # nothing is trained
    assert {path: sha256(path) for path in written} == written


@pytest.mark.parametrize("change", ["prediction.statistics=plate_with_controls", "prediction.statistics=auto", "network.standardise=plate"])
def test_settings_that_know_more_than_the_benchmark_allows_are_refused(change: str) -> None:
    chosen = recipe.load(ROOT / "papermill_params/wilds-adapted.yaml", [change])
    with pytest.raises(InputError, match=f"-p {change}: .* scores every site, controls too, without knowing others; write "):
        plans.plan(chosen, [], kernels=environment.kernels_folder())


def test_plate_groups_are_refused() -> None:
    chosen = recipe.load(ROOT / "papermill_params/wilds-adapted.yaml", ["assignment.method=exact"])
    with pytest.raises(InputError, match="assignment.method is 'exact', and no step of the task rxrx1-wilds reads it; leave it out"):
        plans.check(chosen, kernels=environment.kernels_folder())


def test_the_two_recipes_differ_in_their_batches_and_statistics_alone() -> None:
    erm, adapted = (recipe.load(ROOT / f"papermill_params/wilds-{name}.yaml").model_dump() for name in ("erm", "adapted"))
    assert erm["training"].pop("batch_scope") == "mixed" and adapted["training"].pop("batch_scope") == "plate"
    assert erm["prediction"].pop("statistics") == "running" and adapted["prediction"].pop("statistics") == "adapted"
    assert {**erm, "run": ""} == {**adapted, "run": ""}
