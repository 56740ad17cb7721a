"""A run made again in three ways, on toy notebooks that run in this process: what each keeps, overwrites and refuses."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from building import recipe_of
from cellsignal import files
from cellsignal.errors import InputError, StepFailed
from cellsignal.receipts import Receipt
from cellsignal.run import inputs
from cellsignal.run.chain import chain, rebuild, steps
from cellsignal.show import report

TRAININGS = ["2-pretrain-controls@U2OS", "3-train-cell-type@U2OS"]
ALL = ["1-eda", *TRAININGS, "4-predict-assign", "plates", "report"]
DECISION = ["4-predict-assign", "report"]
Run = Callable[..., list[str]]
pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def run(folder: Path, plates: Path, kernels: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """run(start_from, key=value) gives the names of the steps that started; what was said lies in run.said."""

    def go(start_from: str = "", **parameters: Any) -> list[str]:
        capsys.readouterr()
        try:
            chain.run_chain(recipe_of({"data": str(plates), **parameters}), run=folder, kernels=kernels, start_from=start_from)
        finally:
            go.said = capsys.readouterr().out.splitlines()
        return sorted(line.split()[0] for line in go.said if line.endswith("started"))

    return go


def test_each_way_runs_its_steps_and_says_first_what_it_overwrites(run: Run, folder: Path) -> None:
    assert run("scratch", seed=1) == ALL  # of a folder that is not there yet
    assert f"may overwrite in {folder}: nothing, because nothing is there yet" in run.said
    scores = folder / "scores/model/toy.parquet"
    (folder / "scores/old.parquet").write_text("an earlier network's")
    assert run("weights", seed=1) == DECISION
    said = "\n".join(run.said)
    assert said.index("--from weights: predicted and decided again; nothing is trained") < said.index("4-predict-assign started")
    assert f"may overwrite in {folder}: scores/ (2 files), metrics.json, notebooks/4-predict-assign.html" in said
    assert "keeps: the plates, weights/" in said and not (folder / "scores/old.parquet").exists()
    assert scores.read_text() == "1 375"

    scores.write_text("tampered")
    with pytest.raises(InputError, match="toy.parquet: not as 4-predict-assign left it; start --from weights"):
        run("scores", seed=1)
    scores.write_text("1 375")
    assert run("scores", seed=1, method="raw") == DECISION
    assert not any("scores/model" in line for line in run.said)
    assert "keeps: the plates, weights/, scores/" in run.said and "raw,0" in (folder / "submission.csv").read_text()

    (folder / "weights/U2OS/left.checkpoint.json").write_text("of a killed training")
    assert run("scratch", seed=1) == [step for step in ALL if step != "plates"]
    assert not (folder / "weights/U2OS/left.checkpoint.json").exists() and not (folder / rebuild.REBUILD_FILE).exists()
    assert run(seed=1) == []


def test_weights_are_taken_whatever_made_them(run: Run, folder: Path, kernels: Path, write_toy: Callable[..., Path]) -> None:
    run(seed=1)
    write_toy(kernels, "3-train-cell-type", body="1 / 0")
    shutil.rmtree(folder / "scores")
    assert run("weights", seed=2) == DECISION
    assert (folder / "scores/model/toy.parquet").read_text() == "1 375"
    notes = [f"{name} is kept as it was made, with seed 1 instead of 2" for name in TRAININGS]
    assert set(notes) <= set(run.said) and files.read_json(folder / "recipe.json")["notes"] == notes
    with pytest.raises(StepFailed, match="ZeroDivisionError"):  # a plain call trains what the other seed asks for
        run(seed=2)


def test_a_file_that_was_edited_is_named_before_its_step_writes_it_again(run: Run, folder: Path) -> None:
    run(seed=1)
    (folder / "submission.csv").write_text("by hand")
    assert "4-predict-assign" in run(seed=1)  # the report too, unless it took as many hundredths of a second as before
    assert "4-predict-assign: submission.csv was changed or removed since, so it runs again" in run.said
    assert files.read_json(folder / "recipe.json")["notes"] == []


def test_a_run_whose_kernels_ran_one_by_one_is_vouched_for_by_their_receipts(run: Run, folder: Path) -> None:
    def as_kernels_leave_it() -> None:
        for path in (folder / "receipts").glob("*.json"):
            written = Receipt.read(path)
            replace(written, identity={"step": path.stem}).write() if "parameters" in written.details else path.unlink()

    run()
    as_kernels_leave_it()
    assert run("weights") == sorted([*DECISION, "plates"])
    as_kernels_leave_it()
    assert run("scores") == sorted([*DECISION, "plates"])
    shutil.rmtree(folder / "receipts")
    with pytest.raises(InputError, match="no whole weights of 2-pretrain-controls@U2OS; start --from scratch"):
        run("weights")


@pytest.mark.parametrize("start_from", ["weights", "scores"])
def test_what_is_not_there_is_refused_and_nothing_is_written(run: Run, folder: Path, start_from: str) -> None:
    with pytest.raises(InputError, match=f"no {start_from} to start from; start --from "):
        run(start_from)
    assert not folder.exists()


def test_damaged_weights_are_refused_and_nothing_is_removed(run: Run, folder: Path) -> None:
    run()
    before = {path: path.read_bytes() for path in (folder / "scores").rglob("*.*")}
    (folder / "weights/U2OS/model.safetensors").write_text("damaged")
    with pytest.raises(InputError, match="model.safetensors: not as 3-train-cell-type@U2OS left it"):
        run("weights")
    assert before == {path: path.read_bytes() for path in (folder / "scores").rglob("*.*")}
    (folder / "weights/U2OS/model.safetensors").unlink()
    with pytest.raises(InputError, match="model.safetensors: is missing; start"):
        run("weights")
    (folder / "receipts/3-train-cell-type@U2OS.json").write_text("{")
    with pytest.raises(InputError, match="3-train-cell-type@U2OS.json: not readable as JSON .*; start --from scratch"):
        run("weights")


def test_a_rebuild_that_was_stopped_goes_on_and_another_begins_anew(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    def stopped(run: Path, data: Path) -> None:
        raise StepFailed("stopped")

    monkeypatch.setattr(report, "write_report", stopped)
    with pytest.raises(StepFailed, match="stopped"):
        run("weights")
    (folder / "scores/kept.parquet").write_text("of the rebuild so far")
    with pytest.raises(StepFailed, match="stopped"):
        run("weights", num_workers=1)  # changes no result
    assert "--from weights: goes on where it stopped" in run.said and (folder / "scores/kept.parquet").exists()
    with pytest.raises(StepFailed, match="stopped"):
        run("weights", seed=3)
    assert not (folder / "scores/kept.parquet").exists()
    (folder / "weights/U2OS/model.safetensors").write_text("swapped meanwhile")
    with pytest.raises(InputError, match="model.safetensors: not as 3-train-cell-type@U2OS left it; start --from scratch"):
        run("weights", seed=3)


def test_a_step_that_makes_all_three_is_told_what_to_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a kernel that trains folds, predicts and decides in one."""
    run, fitted = tmp_path / "run", "weights/thresholds.json"
    step = steps.Step("all", outputs=("weights/0.safetensors", "weights/0.json", fitted, "submission.csv"), extras=("scores/**/*",))
    assert step.stages == ("weights", "scores", "submission")
    for name in (*step.outputs, "scores/a.parquet"):
        files.write_text(run / name, name)
    steps.write_receipt(run, step, identity={}, seconds=1)
    for start_from, told in (("scores", "scores"), ("weights", "weights"), ("scratch", None)):
        [driven], taken = rebuild.begin_rebuild(run, [step], start_from, values={})
        assert driven.overrides.get("start_from") == told and taken == {}
        said = capsys.readouterr().out
        assert (f"submission.csv, {fitted}" in said) == (start_from != "scratch") and "0.safetensors" not in said
        assert steps.read_receipt(run, step) is None
        if start_from == "scores":  # killed here, after the decision wrote some: the note remembers what the step had left
            files.write_text(run / fitted, "another threshold")
            assert rebuild.begin_rebuild(run, [step], start_from, values={})[0] == [driven]
            steps.write_receipt(run, step, identity={}, seconds=1)
    assert not (run / "weights").exists() and not (run / "scores").exists()


@pytest.mark.parametrize("room", ["weights", "scores"])
def test_a_link_is_not_emptied(run: Run, folder: Path, tmp_path: Path, room: str) -> None:
    """It may lead to what other runs use."""
    run()
    (folder / room).rename(tmp_path / "elsewhere")
    (folder / room).symlink_to(tmp_path / "elsewhere")
    before = sorted((path, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file())
    with pytest.raises(InputError) as refused:
        run("scratch")
    cure = "empty it and put a folder here, or choose another run folder"
    assert str(refused.value) == f"{folder / room}: is a link to {tmp_path / 'elsewhere'}, and would have to be emptied; {cure}"
    assert run.said == [line for line in run.said if "kept" in line]
    after = sorted((path, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file())
    assert [each for each in after if each not in before and each[0].name not in ("recipe.json", "kernel.json")] == []
    assert (folder / room).is_symlink() and run() == []


def test_plates_behind_a_link_are_not_thrown_away(tmp_path: Path) -> None:
    for name in ("weights", "plates"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "kept").write_text("kept")
    (tmp_path / "data").symlink_to("plates")
    with pytest.raises(InputError, match="data: is a link to .*plates, and would have to be emptied; "):
        inputs.discard(tmp_path / "data")
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match="file: is no folder; remove it, or choose another run folder$"):
        inputs.discard(tmp_path / "file")
    inputs.discard(tmp_path / "weights")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "file", "plates"]
    assert (tmp_path / "plates/kept").read_text() == (tmp_path / "file").read_text() == "kept"
