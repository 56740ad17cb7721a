"""The chain on toy notebooks: what runs, what is kept, what is refused."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from building import recipe_of
from cellsignal import files
from cellsignal.errors import InputError
from cellsignal.run import environment
from cellsignal.run.chain import chain, notebook_server
from cellsignal.run.chain.notebooks import StepFailed

TRAININGS = ["2-pretrain-controls@U2OS", "3-train-cell-type@U2OS"]
ALL = ["1-eda", *TRAININGS, "4-predict-assign", "plates", "report"]


@pytest.fixture
def run(tmp_path: Path, plates: Path, kernels: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """run(key=value) runs the chain and gives the names of the steps that were not kept."""

    def steps(**parameters: Any) -> list[str]:
        capsys.readouterr()
        checked = recipe_of({"data": str(plates), **parameters})
        chain.run_chain(checked, run=tmp_path / "run", kernels=kernels)
        lines = capsys.readouterr().out.splitlines()
        return sorted(line.split()[0] for line in lines if line.endswith("started"))

    return steps


def test_everything_once_then_only_what_depends_on_a_change(
    run: Callable[..., list[str]], tmp_path: Path, kernels: Path, write_toy: Callable[..., Path], in_this_process: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def notebooks_of(**parameters: Any) -> list[str]:
        """Without the report, which is made again if a step takes a hundredth of a second more or less."""
        return [name for name in run(**parameters) if name != "report"]

    folder = tmp_path / "run"
    assert run() == ALL
    assert sorted(path.stem for path in (folder / "receipts").iterdir()) == sorted([*ALL, "record"])
    assert set(files.read_json(folder / "seconds.json")) == {*ALL} - {"report"}
    assert files.read_json(folder / "recipe.json")["parameters"]["wells"]["cell_types"] == ["U2OS"]
    assert run() == []
    assert run(method="raw", num_workers=1, parallel_notebooks=1) == ["4-predict-assign", "report"]
    assert (folder / "submission.csv").read_text() == "id_code,sirna\nraw,0\n"

    (folder / "weights/U2OS/model.json").write_text("damaged")
    assert notebooks_of(method="raw") == ["3-train-cell-type@U2OS"]  # same weights: the prediction stands

    write_toy(kernels, "1-eda", body="print('other code')")
    assert notebooks_of(method="raw") == ["1-eda"]

    capsys.readouterr()
    receipt = files.read_json(folder / "receipts/3-train-cell-type@U2OS.json")
    write_toy(kernels, "3-train-cell-type", body="raise KeyError('stopped')")
    with pytest.raises(StepFailed, match="stopped"):
        run(method="raw")
    assert ("3-train-cell-type@U2OS: made by other code (notebook), so it runs again; the weights are then made again too; "
            "to keep them, stop now and use --from weights") in capsys.readouterr().out.splitlines()
    assert files.read_json(folder / "receipts/3-train-cell-type@U2OS.json") == receipt, "so that --from weights finds what it left"
    write_toy(kernels, "3-train-cell-type")
    assert notebooks_of(method="raw") == ["3-train-cell-type@U2OS"]  # its page is that of the failure

    (folder / "receipts/report.json").write_text("{")
    (folder / ".partial-1-orphan.csv").write_text("half")
    assert run(method="raw") == ["report"]
    assert not (folder / ".partial-1-orphan.csv").exists()


def test_plates_that_change_places_are_other_plates(run: Callable[..., list[str]], tmp_path: Path, plates: Path, in_this_process: None) -> None:
    for name in ("U2OS-01", "U2OS-02"):
        files.write_text(plates / f"train/{name}/Plate1/B02_s1_w1.png", name)
    assert run() == ALL
    shutil.move(plates, tmp_path / "moved")
    assert not {*run(data=str(tmp_path / "moved"))} & {*TRAININGS, "4-predict-assign"}, "the same plates elsewhere"
    for old, new in (("U2OS-01", "aside"), ("U2OS-02", "U2OS-01"), ("aside", "U2OS-02")):
        (tmp_path / "moved/train" / old).rename(tmp_path / "moved/train" / new)
    assert {*run(data=str(tmp_path / "moved"))} >= {*TRAININGS, "4-predict-assign"}


def test_a_file_of_pretrained_weights_counts_by_its_content(
    run: Callable[..., list[str]], tmp_path: Path, kernels: Path, write_toy: Callable[..., Path], in_this_process: None
) -> None:
    write_toy(kernels, "2-pretrain-controls", reads="recipe.training.pretrain_epochs, recipe.network.pretrained, recipe.network.backbone")
    first, moved = tmp_path / "first.safetensors", tmp_path / "moved.safetensors"
    first.write_text("weights")
    assert run(pretrained=str(first)) == ALL
    first.rename(moved)
    assert TRAININGS[0] not in run(pretrained=str(moved))
    moved.write_text("other weights")
    assert TRAININGS[0] in run(pretrained=str(moved))


def test_steps_that_the_run_no_longer_has_leave_no_receipt_and_no_page(
    run: Callable[..., list[str]], tmp_path: Path, in_this_process: None
) -> None:
    def traces() -> list[str]:
        return sorted(path.name for room in ("receipts", "notebooks") for path in (tmp_path / "run" / room).iterdir())

    assert run() == ALL
    without = traces()
    assert "3-train-cell-type@U2OS+plain" in run(virtual_batch=32, ablate_virtual_batch=True)
    weights = tmp_path / "run/weights/U2OS/plain.json"
    plain = [f"3-train-cell-type@U2OS+plain{suffix}" for suffix in (".html", ".ipynb", ".json")]
    assert traces() == sorted([*without, *plain]) and weights.is_file()
    (tmp_path / "run/notebooks/mine.ipynb").write_text("not the chain's")
    run()
    assert traces() == sorted([*without, "mine.ipynb"]) and weights.is_file()


@pytest.mark.slow
@pytest.mark.ci
def test_a_failed_step_stops_the_chain_and_is_tried_again(
    run: Callable[..., list[str]], tmp_path: Path, kernels: Path, write_toy: Callable[..., Path], request: pytest.FixtureRequest
) -> None:
    write_toy(kernels, "1-eda", body="import time\ntime.sleep(900)")
    write_toy(kernels, "2-pretrain-controls", body="1 / 0")
    began = time.monotonic()
    with pytest.raises(StepFailed, match="^2-pretrain-controls@U2OS: ZeroDivisionError: division by zero; see "):
        run()
    assert time.monotonic() - began < 300
    assert [path.stem for path in (tmp_path / "run/receipts").iterdir()] == ["plates"]
    write_toy(kernels, "2-pretrain-controls", body="print('nothing')")
    with pytest.raises(StepFailed, match="ended without writing weights/U2OS/pretrain.safetensors"):
        run()
    write_toy(kernels, "1-eda")
    write_toy(kernels, "2-pretrain-controls")
    request.getfixturevalue("in_this_process")
    assert run() == [step for step in ALL if step != "plates"]


def test_what_the_system_refuses_in_a_step_names_step_and_path(
    run: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_way = tmp_path / "run/notebooks/1-eda.ipynb"
    in_the_way.mkdir(parents=True)
    with pytest.raises(InputError, match=f"^1-eda: {in_the_way}: Is a directory; name a file$"):
        run()
    in_the_way.rmdir()

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(notebook_server.subprocess, "Popen", refuse)
    with pytest.raises(InputError, match=r"^(1-eda|2-pretrain-controls@U2OS): too many open files \(a process may have [\d,]+\); raise the limit"):
        run()


@pytest.mark.parametrize("name", ["weights", "scores", "eda", "notebooks", "receipts", ""])
@pytest.mark.parametrize("is_link", [False, True])
def test_what_lies_in_the_place_of_a_folder_is_told_before_anything_runs(run: Callable[..., list[str]], tmp_path: Path, name: str, is_link: bool) -> None:
    path = tmp_path / "run" / name
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(tmp_path / "nowhere") if is_link else path.write_text("in the way")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError) as refused:
        run()
    assert str(refused.value) == f"{path}: is {'a link to nowhere' if is_link else 'no folder'}; remove it, or choose another run folder"
    assert sorted(tmp_path.rglob("*")) == before


def test_too_few_open_files_are_told_before_anything_runs(run: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain.resource, "getrlimit", lambda kind: (127, 4096))
    with pytest.raises(InputError, match="^ulimit -n: a process may have 127 open files, and a notebook needs 128; raise the limit, such as with ulimit -n 4096$"):
        run()
    assert not (tmp_path / "run").exists()


def test_one_chain_at_a_time(run: Callable[..., list[str]], tmp_path: Path) -> None:
    with files.locked(tmp_path / "run" / environment.CHAIN_LOCK), pytest.raises(InputError, match="another chain works"):
        run()


def test_an_open_notebook_is_waited_for_and_then_named(
    run: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "LOCK_SECONDS", 0.3)
    code = f"from cellsignal.run import environment as paths; paths.lock_run_folder({str(tmp_path / 'run')!r}); print('held', flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        with pytest.raises(InputError, match="a notebook still works in this folder"):
            run()
    finally:
        process.kill()
        process.communicate()


def test_a_missing_notebook_is_named(run: Callable[..., list[str]], kernels: Path) -> None:
    (kernels / "1-eda/1-eda.ipynb").unlink()
    with pytest.raises(InputError, match="1-eda.ipynb: no such notebook"):
        run()


def test_unknown_cell_types_are_named(run: Callable[..., list[str]]) -> None:
    with pytest.raises(InputError, match="U2OS"):
        run(cell_types=["HELA"])


@pytest.mark.parametrize(
    "experiments, message",
    [(["U2OS-01"], "no test wells among these experiments; "), (["U2OS-03"], "U2OS has test wells and no training wells; ")],
)
def test_what_cannot_be_predicted_is_refused_before_training(
    run: Callable[..., list[str]], tmp_path: Path, experiments: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(experiments=experiments)
    assert not (tmp_path / "run/weights").exists()


@pytest.mark.slow
@pytest.mark.ci
def test_killed_it_goes_on(run: Callable[..., list[str]], tmp_path: Path, plates: Path, kernels: Path) -> None:
    code = f"""if __name__ == "__main__":
    from pathlib import Path
    from cellsignal.run.chain import chain; from cellsignal.run import recipe
    chain.run_chain(recipe.check({{"data": {str(plates)!r}}}), run={str(tmp_path / "run")!r}, kernels=Path({str(kernels)!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.DEVNULL)
    time.sleep(3)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    whole = {path.stem for path in (tmp_path / "run/receipts").glob("[!.]*.json") if files.read_json(path)["identity"].keys() != {"step"}}
    assert set(run()) == set(ALL) - whole
