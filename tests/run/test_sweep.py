"""Sweeps of trials that only pretend to learn: tables, failures, kills, what is repeated and what is not."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import fake_trial
import yaml
from cellsignal import files
from cellsignal.errors import InputError, StepFailed
from cellsignal.receipts import Receipt
from cellsignal.run import recipe
from cellsignal.run.sweep import sweep, results as sweep_results
from cellsignal import TimeSpent

Run = Callable[..., Path]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """bench(space, ...) writes a file of things to try and sweeps."""
    return fake_trial.bench(tmp_path, monkeypatch)


def begun(folder: Path) -> list[str]:
    noted = folder / "trials/begun.txt"
    return sorted(noted.read_text().split()) if noted.exists() else []


def results(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "results.csv", dtype={"code": str})


def test_variants_with_seeds(bench: Run, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("data: nowhere\npreset: tiny\ntraining: {learning_rate: 0.01}\n")
    folder = bench({"variants": {"base": None, "faster rate": {"training.learning_rate": 1.0}, "other": {"recipe": "other.yaml"}}}, seeds=[0, 1])
    table = results(folder)
    assert table["variant"].tolist() == ["base", "faster rate", "other"] * 2 and set(table["status"]) == {"done"}
    assert table["held_out_raw"].tolist() == pytest.approx([0.6, 0.4, 0.8, 0.61, 0.41, 0.81])
    assert table["test_assigned"].tolist() == pytest.approx([0.69, 0.49, 0.89, 0.7, 0.5, 0.9])
    assert set(table["seconds"]) == {2.5} and set(table["weights"]) == {12}  # two networks of 2 x 3
    given = yaml.safe_load((folder / "trials/faster-rate-seed1.yaml").read_text())
    assert (given["training"]["learning_rate"], given["seed"], given["machine"]["html_pages"], given["preset"]) == (1.0, 1, False, "")
    assert given["data"] == str(tmp_path / "plates") and yaml.safe_load((folder / "trials/other-seed0.yaml").read_text())["data"] == given["data"]


def test_the_table_tells_differences_from_the_first_variant(bench: Run) -> None:
    folder = bench({"variants": {"base": {}, "best": {"training.learning_rate": 0.01}}}, seeds=[0, 1, 2])
    variants = pd.read_csv(folder / "variants.csv").set_index("variant")
    assert variants.loc["best", "held_out_raw_mean"] == pytest.approx(0.81)
    assert variants.loc["best", "held_out_raw_std"] == pytest.approx(0.01)
    assert variants.loc["best", "held_out_raw_difference"] == pytest.approx(0.2)
    assert variants.loc["best", "held_out_raw_error"] == pytest.approx(0, abs=1e-9)  # paired: the seeds' share cancels out
    assert "| best | 3 | 0.810 ± 0.010 | +0.200 ± 0.000 |" in (folder / "results.md").read_text()
    assert (folder / "sweep.png").stat().st_size


def test_the_best_is_a_recipe_that_says_where_it_comes_from(bench: Run, tmp_path: Path) -> None:
    folder = bench({"variants": {"base": {}, "best": {"training.learning_rate": 0.01}}, "measure": "assigned"}, overrides=["training.epochs=7"])
    text = (folder / "best.yaml").read_text()
    assert "the best of its variants on what was held out, best." in text and "accuracy, assigned: 0.9000 (seed 0)" in text
    found = recipe.load(folder / "best.yaml")
    assert (found.training.learning_rate, found.training.epochs, found.data, found.run) == (0.01, 7, "plates", "runs/best")


def test_a_trial_that_fails_leaves_its_reason_and_the_others_go_on(bench: Run) -> None:
    space = {"variants": {"broken": {"training.momentum": 0.13}, "killed": {"network.dropout": 0.5}, "whole": {}}}
    with pytest.raises(StepFailed, match="2 of 3 trials failed, such as broken, seed 0: the loss is nan; lower the learning rate; see"):
        bench(space)
    table = results(Path("out")).set_index("variant")
    assert table["status"].to_dict() == {"broken": "failed", "killed": "failed", "whole": "done"}
    assert table.loc["broken", "error"] == "the loss is nan; lower the learning rate"
    assert table.loc["killed", "error"] == "ended with 137: it said nothing"
    assert "whole" in Path("out/best.yaml").read_text()


def test_bad_input_in_all_trials_that_failed_is_bad_input(bench: Run) -> None:
    space = {"variants": {"damaged": {"training.momentum": 0.17}, "whole": {}}}
    with pytest.raises(InputError, match="^1 of 2 trials failed, such as damaged, seed 0: a.png: is cut short or damaged; copy the file again; see"):
        bench(space)
    with pytest.raises(StepFailed, match="^2 of 3 trials failed"):
        bench({"variants": space["variants"] | {"broken": {"training.momentum": 0.13}}})


def test_a_second_call_repeats_what_failed_and_what_changed(bench: Run) -> None:
    with pytest.raises(StepFailed):
        bench({"variants": {"broken": {"training.momentum": 0.13}, "whole": {}, "other": {"training.epochs": 3}}})
    folder = bench({"variants": {"broken": {"training.momentum": 0.2}, "whole": {}, "other": {"training.epochs": 4}, "new": {"training.ema_decay": 0.9}}}, jobs=1)
    assert begun(folder) == ["broken-seed0"] * 2 + ["new-seed0"] + ["other-seed0"] * 2 + ["whole-seed0"]
    assert set(results(folder)["status"]) == {"done"} and "The code changed" not in (folder / "results.md").read_text()
    record = Receipt.read(folder / "trials/whole-seed0.json")
    del record.identity["training.ema_decay"]  # as if that key had been invented since
    replace(record, details={**record.details, "code": "older"}).write()
    bench({"variants": {"whole": {}, "other": {"training.epochs": 5}}})
    assert "The code changed on the way: 2 versions ran these trials" in (folder / "results.md").read_text()


@pytest.mark.parametrize("drawn", [True, False])
def test_tables_of_simulated_plates_say_so(bench: Run, tmp_path: Path, drawn: bool) -> None:
    if drawn:
        Receipt(tmp_path / "plates/simulate.json", {"preset": "tiny", "seed": 0}).write()
    for _ in range(2):  # the second call runs no trial
        text = (bench({"variants": {"base": {}}}) / "results.md").read_text()
        assert text.endswith(" |\n\nSimulated data: a virtual microscope drew every image.\n") == drawn and ("imulated" in text) == drawn


def test_names_are_no_markup_in_the_table(bench: Run) -> None:
    names = {"<b>a</b>": "\\<b\\>a\\</b\\>", "$x_1$ *y*": "\\$x_1\\$ \\*y\\*", "`c` \\d": "\\`c\\` \\\\d", "_e_ [f](g)": "\\_e\\_ \\[f\\](g)", "learning_rate, größer": "learning_rate, größer"}
    out = bench({"variants": {name: {"training.epochs": number} for number, name in enumerate(names, 1)}})
    assert [row.split(" | ")[0].removeprefix("| ") for row in (out / "results.md").read_text().splitlines()[2:7]] == list(names.values())
    assert pd.read_csv(out / "results.csv")["variant"].tolist() == list(names)


def test_trials_on_other_plates_run_again(bench: Run, tmp_path: Path) -> None:
    """In another folder, or in the same one with other tables; a copy of the same ones is the same."""
    (tmp_path / "plates/train.csv").write_text("a\n")
    shutil.copytree(tmp_path / "plates", tmp_path / "copy")
    shutil.copytree(tmp_path / "plates", tmp_path / "others")
    (tmp_path / "others/train.csv").write_text("b\n")
    for number, data in enumerate(["plates", "copy", "others", "plates"]):
        folder = bench({"variants": {"base": {}}}, overrides=[f"data={data}"])
        assert begun(folder) == ["base-seed0"] * (1, 1, 2, 3)[number]
    (tmp_path / "plates/train.csv").write_text("c\n")
    bench({"variants": {"base": {}}})
    assert len(begun(folder)) == 4


def test_a_grid_is_every_combination(bench: Run) -> None:
    table = results(bench({"grid": {"training.learning_rate": [0.1, 0.01], "augmentation.progressive_sizes": [[], [32, 64]]}}))
    assert table["variant"].tolist() == ["learning_rate=0.1,progressive_sizes=", "learning_rate=0.1,progressive_sizes=32+64", "learning_rate=0.01,progressive_sizes=",
                                         "learning_rate=0.01,progressive_sizes=32+64"]
    assert table["training.learning_rate"].tolist() == [0.1, 0.1, 0.01, 0.01] and table["augmentation.progressive_sizes"].tolist() == ["[]", "[32, 64]"] * 2


def test_a_spent_budget_ends_the_sweep_and_the_next_call_goes_on(bench: Run) -> None:
    with pytest.raises(TimeSpent, match="time budget spent before base-seed0; give the same command again to continue"):
        bench({"variants": {"base": {}}}, overrides=["machine.time_budget_minutes=1.0e-9"])
    assert set(results(bench({"variants": {"base": {}}}))["status"]) == {"done"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_sweep_takes_its_trials_with_it_and_goes_on(bench: Run, tmp_path: Path, number: int) -> None:
    space = {"variants": {"quick": {}, "slow": {"training.weight_decay": 20.0}, "slower": {"training.weight_decay": 30.0}}}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))
    process = subprocess.Popen([sys.executable, fake_trial.__file__, "DRIVE", "out"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: (tmp_path / "out/results.csv").exists() and len(begun(tmp_path / "out")) == 3)
    process.send_signal(number)
    process.wait(timeout=20)
    wait_for(lambda: not working(tmp_path / "out"))
    space["variants"] |= {"slow": {}, "slower": {}}
    folder = bench(space)
    assert begun(folder).count("quick-seed0") == 1 and set(results(folder)["status"]) == {"done"}


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300  # far more than a busy machine takes
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def working(folder: Path) -> list[int]:
    """Processes that name the folder in their command."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            told = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        found += [int(pid)] * any(part.startswith(f"{folder}/") for part in told)
    return found


def test_two_sweeps_keep_apart(bench: Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with files.locked(tmp_path / "out" / sweep.LOCK), pytest.raises(InputError, match="another sweep works in this folder"):
        bench({"variants": {"base": {}}})


def test_macro_f1_takes_the_place_of_accuracy(tmp_path: Path) -> None:
    rungs = [{"rung": "every label", "kind": "floor", "split": "test", "macro_f1": 0.1}]
    rungs += [{"rung": method, "kind": "network", "split": split, "macro_f1": value + (split == "test") * 0.1, "method": method}
              for split in ("test", "held_out") for method, value in (("half", 0.2), ("fitted", 0.3), ("shares", 0.4))]
    files.write_json(tmp_path / "run/metrics.json", {"metric": "macro_f1", "rungs": rungs, "thresholds": "fitted"})
    files.write_json(tmp_path / "run/seconds.json", {"protein-atlas": 9.0})
    files.write_json(tmp_path / "run/recipe.json", {"parameters": {}, "code": "a" * 64})
    ended = {"variant": "base", "seed": 0, "status": "done", "changes": {}, **sweep_results.outcome(tmp_path / "run")}
    trials = sweep_results.trials_table([ended], kinds=sweep_results.RUNG_KINDS["macro_f1"])
    row = trials.iloc[0]
    assert (row["held_out_half"], row["held_out_thresholds"], row["test_thresholds"]) == pytest.approx((0.2, 0.3, 0.4))
    variants = sweep_results.variants_table(trials, order=["base"])
    assert "| held out, half | − first | held out, thresholds |" in sweep_results.as_markdown(variants)
    assert sweep_results.best_variant(variants, measure="thresholds", seeds=1)["variant"] == "base"


def test_a_sweep_is_of_one_task(bench: Run, tmp_path: Path) -> None:
    (tmp_path / "atlas.yaml").write_text("task: protein-atlas\n")
    with pytest.raises(InputError, match="other is of the task protein-atlas; leave only variants of rxrx1"):
        bench({"variants": {"base": {}, "other": {"recipe": "atlas.yaml"}}})


def test_cells_that_spreadsheets_would_calculate_are_text(bench: Run) -> None:
    out = bench({"variants": {"=1+1": {}, "@x": {"training.epochs": 7}, "a|b": {"training.epochs": 8}, "plain -1": {"training.epochs": 9}}})
    for name in ("results.csv", "variants.csv"):
        assert [line.partition(",")[0] for line in (out / name).read_text().splitlines()] == ["variant", "'=1+1", "'@x", "a|b", "plain -1"]
    table = pd.read_csv(out / "results.csv")
    assert table["seed"].tolist() == [0] * 4 and table["error"].isna().all()
    rows = (out / "results.md").read_text().splitlines()
    assert [row.split(" ")[1] for row in rows[2:6]] == ["=1+1", "@x", "a\\|b", "plain"]


def test_a_record_of_another_shape_is_no_record(bench: Run) -> None:
    out = bench({"variants": {"base": {}}})
    [record] = (out / "trials").glob("*.json")
    whole = Receipt.read(record)
    for change in ({"identity": []}, {"details": {**whole.details, "status": None}}, {"details": {**whole.details, "seed": "0"}}):
        replace(whole, **change).write()
        assert len(results(bench({"variants": {"base": {}}}))) == 1
        again = Receipt.read(record)
        assert again == replace(whole, details={**whole.details, "seconds": again.details["seconds"]})
