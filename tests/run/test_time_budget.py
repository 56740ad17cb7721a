"""A chain whose time is spent: what runs ends, nothing new starts, the same call goes on."""

import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from building import recipe_of
from cellsignal import TimeSpent, files
from cellsignal.cli import main
from cellsignal.run import environment
from cellsignal.run.chain import chain
from cellsignal.run.record import step_receipts

TRAINING = "3-train-cell-type@U2OS"
IN_TWO_SESSIONS = """before = folder / f"weights/{cell_type}/model.checkpoint.json"
if before.exists():
    for suffix in ("safetensors", "json"):
        files.write_text(folder / f"weights/{cell_type}/model.{suffix}", "whole")
else:
    files.write_text(before, "{}")
    raise cellsignal.TimeSpent("whole, epoch 1 of 2")"""
Run = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path, plates: Path, kernels: Path) -> Run:
    """run(key=value) runs the chain and gives its folder."""

    def go(**parameters: Any) -> Path:
        checked = recipe_of({"data": str(plates), **parameters})
        return chain.run_chain(checked, run=tmp_path / "run", kernels=kernels)

    return go


def whole(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "receipts").glob("*.json") if files.read_json(path)["identity"].keys() != {"step"}}


@pytest.mark.slow
@pytest.mark.ci
def test_a_training_that_runs_out_of_time_ends_the_chain_and_is_gone_on_with(
    run: Run, tmp_path: Path, kernels: Path, write_toy: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write_toy(kernels, "3-train-cell-type", body=IN_TWO_SESSIONS)
    write_toy(kernels, "1-eda", body="import time\ntime.sleep(6)")  # still runs when the training stops
    line = f"^time budget spent in {TRAINING}: whole, epoch 1 of 2; give the same command again to continue$"
    with pytest.raises(TimeSpent, match=line):
        run()
    folder = tmp_path / "run"
    assert whole(folder) == {"plates", "2-pretrain-controls@U2OS", "1-eda"}
    assert not step_receipts.read(folder, TRAINING).complete
    assert f"{TRAINING} paused: whole, epoch 1 of 2" in capsys.readouterr().out
    assert run() == folder
    assert whole(folder) == {"plates", "2-pretrain-controls@U2OS", TRAINING, "4-predict-assign", "1-eda", "report", "record"}
    assert step_receipts.read(folder, TRAINING).complete


def test_after_the_deadline_nothing_starts_but_what_is_whole_is_kept(
    run: Run, tmp_path: Path, in_this_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    capsys.readouterr()
    with pytest.raises(TimeSpent, match="^time budget spent before 4-predict-assign; give the same command again to continue$"):
        run(method="raw", time_budget_minutes=1e-6)
    printed = capsys.readouterr().out
    assert f"{TRAINING} kept" in printed and "started" not in printed
    assert (tmp_path / "run/submission.csv").read_text() == "id_code,sirna\nexpected,0\n"
    run(time_budget_minutes=1e-6)  # nothing is left to do


def test_a_step_that_cannot_stop_is_begun_early_enough_or_first(
    run: Run, tmp_path: Path, kernels: Path, in_this_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, taken, folder = [time.time()], {"4-predict-assign": 646}, tmp_path / "run"  # of 660 minutes
    monkeypatch.setattr("cellsignal.budget.time.time", lambda: now[0])
    monkeypatch.setattr(environment, "deadline", lambda minutes: now[0] + 60 * minutes)
    with_budgets(kernels, "2-pretrain-controls", "3-train-cell-type", "4-predict-assign")
    really = chain.notebooks.execute

    def slow(notebook: Path, **options: Any) -> None:
        now[0] += 60 * taken.get(notebook.stem, 0)
        really(notebook, **options)

    monkeypatch.setattr(chain.notebooks, "execute", slow)
    with pytest.raises(TimeSpent, match="^time budget spent before 1-eda; give the same command again to continue$"):
        run(time_budget_minutes=660, parallel_notebooks=1)
    assert whole(folder) == {"plates", "2-pretrain-controls@U2OS", TRAINING, "4-predict-assign"}
    taken["1-eda"] = 650
    with pytest.raises(TimeSpent, match="^time budget spent before report; give the same command again to continue$"):
        run(time_budget_minutes=660, parallel_notebooks=1)  # EDA comes first, and has all the time there is
    assert "1-eda" in whole(folder)
    run(time_budget_minutes=10, parallel_notebooks=1)  # less than those 15 minutes, but this session has only begun
    assert "report" in whole(folder)
    taken.update({"4-predict-assign": 644, "1-eda": 0})
    (folder / "receipts/1-eda.json").unlink()
    run(method="raw", time_budget_minutes=660, parallel_notebooks=1)
    assert (folder / "submission.csv").read_text() == "id_code,sirna\nraw,0\n" and {"1-eda", "report"} < whole(folder)


def with_budgets(kernels: Path, *names: str) -> None:
    """Give toys the parameter of notebooks that keep their time themselves."""
    for path in (kernels / f"{name}/{name}.ipynb" for name in names):
        path.write_text(path.read_text().replace("recipe = session.recipe", "recipe, budget = session.recipe, session.time_budget", 1))


@pytest.mark.slow
@pytest.mark.ci
def test_notebooks_keep_the_time_of_their_chain(run: Run, kernels: Path, write_toy: Callable[..., Path]) -> None:
    write_toy(kernels, "1-eda", body='files.write_json(folder / "eda/deadline.json", [session.time_budget.deadline, recipe.machine.time_budget_minutes])')
    deadline, minutes = files.read_json(run(time_budget_minutes=100.0) / "eda/deadline.json")
    assert minutes == 100
    assert deadline == environment.deadline(100.0) and 0 < deadline - time.time() < 6000


def test_the_command_says_one_line_and_exits_with_3(
    plates: Path, kernels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environment, "kernels_folder", lambda: kernels)
    (tmp_path / "one.yaml").write_text(f"data: {plates}\nmachine: {{time_budget_minutes: 1.0e-6}}\n")
    monkeypatch.setattr(sys, "argv", ["cellsignal", "run", str(tmp_path / "one.yaml"), "--out", str(tmp_path / "run")])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.raises(SystemExit) as ended:
        main.main()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    printed = capsys.readouterr()
    assert ended.value.code == 3 and printed.err == ""
    first = "(2-pretrain-controls@U2OS|1-eda)"  # both are ready, side by side
    assert re.fullmatch(f"time budget spent before {first}; give the same command again to continue", printed.out.splitlines()[-1])


def test_a_notebook_without_a_receipt_has_not_ended(run: Run, kernels: Path, in_this_process: None) -> None:
    path = kernels / "1-eda/1-eda.ipynb"
    path.write_text(path.read_text().replace("session.finish()", "print()"))
    with pytest.raises(chain.StepFailed, match="^1-eda: it ended without writing its receipt$"):
        run()
