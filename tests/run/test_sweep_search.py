"""Searches of trials that only pretend to learn: the best is found, weak ones are pruned, kills are survived."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import fake_trial
import yaml
from cellsignal import files
from cellsignal.errors import InputError, StepFailed
from cellsignal.receipts import Receipt
from cellsignal.run.sweep import search
from cellsignal import TimeSpent

optuna = pytest.importorskip("optuna")

RATE = {"training.learning_rate": {"low": 1.0e-4, "high": 1.0, "log": True}}
Run = Callable[..., Path]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """bench(search, ...) writes a file of ranges and sweeps."""
    return fake_trial.bench(tmp_path, monkeypatch, kind="search")


def results(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "results.csv")


def study(folder: Path) -> "optuna.Study":
    return optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder / search.STUDY}")


@pytest.mark.slow
@pytest.mark.ci
def test_a_search_finds_better_rates_and_writes_the_best(bench: Run) -> None:
    folder = bench(RATE, trials=8)
    table = results(folder)
    done = table[table["status"] == "done"]
    assert table["variant"].tolist() == [f"trial-{number:03d}" for number in range(8)]
    told = {trial.number: trial.value for trial in study(folder).trials if trial.state.name == "COMPLETE"}
    assert told == pytest.approx({int(row["variant"][-3:]): row["held_out_raw"] for _, row in done.iterrows()})
    best = done.loc[done["held_out_raw"].idxmax()]
    assert yaml.safe_load((folder / "best.yaml").read_text())["training"]["learning_rate"] == pytest.approx(best["training.learning_rate"])
    assert (folder / "results.md").read_text().startswith("| variant | training.learning_rate | seeds | held out, raw | held out, assigned |")


@pytest.mark.slow
@pytest.mark.ci
def test_a_weak_trial_is_pruned_and_its_processes_end(bench: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes after four at a good rate, and is slow, falls behind their median."""
    rates = iter([0.01, 0.01, 0.01, 0.01, 1.0e-4])
    monkeypatch.setattr(optuna.trial.Trial, "suggest_float", lambda self, name, low, high, **options: next(rates))
    monkeypatch.setattr(optuna.trial.Trial, "suggest_categorical", lambda self, name, choices: "2.0" if self.number == 4 else "0.0")
    folder = bench({**RATE, "training.weight_decay": {"choices": [0.0, 2.0]}}, trials=5, jobs=1)
    assert results(folder)["status"].tolist() == ["done"] * 4 + ["pruned"]
    assert [trial.state.name for trial in study(folder).trials] == ["COMPLETE"] * 4 + ["PRUNED"]
    run = folder / "trials/trial-004-seed0"
    assert 2 <= len(search.learning_curve(run)) < fake_trial.EPOCHS and not (run / "metrics.json").exists()


def test_every_seed_of_a_suggestion_counts(bench: Run) -> None:
    folder = bench({"training.learning_rate": {"choices": [0.01]}}, trials=2, seeds=[0, 1, 2])
    assert results(folder)["seed"].tolist() == [0, 0, 1, 1, 2, 2]
    assert [trial.value for trial in study(folder).trials] == pytest.approx([0.81, 0.81])


def test_what_does_not_fit_together_is_noted_and_the_search_goes_on(bench: Run) -> None:
    folder = bench({"training.batch_size": {"low": 8, "high": 64, "log": True}, "training.virtual_batch": {"choices": [32]}}, trials=6)
    table = results(folder)
    assert set(table["status"]) == {"done", "failed"}
    assert table.loc[table["status"] == "failed", "error"].str.contains("use at least the batch size").all()
    assert table["training.batch_size"].between(8, 64).all()
    with pytest.raises(StepFailed, match="2 of 2 trials failed"):
        (folder.parent / "out").rename(folder.parent / "old")
        bench({"training.momentum": {"choices": [0.13]}}, trials=2)


def test_a_killed_search_goes_on_with_the_very_trials_that_ran(bench: Run, tmp_path: Path) -> None:
    slow = {**RATE, "training.weight_decay": {"choices": [20.0]}}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({"search": slow}, sort_keys=False))
    process = subprocess.Popen([sys.executable, fake_trial.__file__, "DRIVE", "out"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while len(list((tmp_path / "out").glob("trials/*/recipe.json"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    before = [trial.params for trial in study(tmp_path / "out").trials]
    sweeping_quickly(tmp_path)
    folder = bench(slow, trials=3)
    assert [trial.params for trial in study(folder).trials][:2] == before
    assert set(results(folder)["status"]) == {"done"} and len(results(folder)) == 3
    assert results(bench(slow, trials=3)).equals(results(folder))  # nothing is left to do


def sweeping_quickly(folder: Path) -> None:
    """From now on no trial waits."""
    (folder / "out/trials/hurry").touch()


def test_another_search_keeps_out_of_a_study(bench: Run) -> None:
    bench(RATE, trials=1)
    with pytest.raises(InputError, match="holds a search of other ranges, seeds or parameters; choose another --out"):
        bench({"training.learning_rate": {"low": 1.0e-4, "high": 0.5, "log": True}}, trials=1)
    with pytest.raises(InputError, match="holds a search of other"):
        bench(RATE, trials=1, overrides=["training.epochs=7"])
    assert len(results(bench(RATE, trials=2))) == 2


def test_a_search_without_time_says_so(bench: Run) -> None:
    with pytest.raises(TimeSpent, match="time budget spent before trial-000-seed0"):
        bench(RATE, trials=2, overrides=["machine.time_budget_minutes=1.0e-9"])


def test_the_curve_of_several_cell_types_never_falls(tmp_path: Path) -> None:
    files.write_json(tmp_path / "recipe.json", {"parameters": {"wells": {"cell_types": ["HUVEC", "RPE"]}}})
    rows = [{"phase": "pretrain", "held_out_accuracy": 0.9}, {"phase": "whole", "held_out_accuracy": 0.4}, {"phase": "whole", "held_out_accuracy": 0.2}]
    Receipt(tmp_path / "weights/HUVEC/model.checkpoint.json", details={"epoch": 3, "rows": rows}).write()
    assert search.learning_curve(tmp_path) == pytest.approx([0.2, 0.2])
    Receipt(tmp_path / "weights/HUVEC/model.json", details={"history": rows}).write()
    Receipt(tmp_path / "weights/RPE/model.checkpoint.json", details={"epoch": 1, "rows": [{"phase": "whole", "held_out_macro_f1": 0.6}]}).write()
    assert search.learning_curve(tmp_path) == pytest.approx([0.2, 0.2, 0.5])
    (tmp_path / "weights/RPE/model.checkpoint.json").write_text(json.dumps({"rows": []})[:3])  # torn, or gone
    assert search.learning_curve(tmp_path) == pytest.approx([0.2, 0.2])


def test_the_curve_of_a_benchmark_is_that_of_its_one_network(tmp_path: Path) -> None:
    files.write_json(tmp_path / "recipe.json", {"parameters": {"task": "rxrx1-wilds", "wells": {"cell_types": [], "folds": 5}}})
    Receipt(tmp_path / "weights/rxrx1-wilds/model.checkpoint.json", details={"epoch": 1, "rows": [{"phase": "whole", "held_out_accuracy": 0.4}]}).write()
    assert search.learning_curve(tmp_path) == pytest.approx([0.4])
