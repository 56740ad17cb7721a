"""A session's first and last act: what it takes up of attached runs, what it refuses, what it says it made."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cellsignal import TimeSpent, files
from cellsignal.errors import InputError
from cellsignal.receipts import Receipt
from cellsignal.run import environment
from cellsignal.run.recipe import Recipe
from cellsignal.run.record import step_receipts, session
from cellsignal.settings import flatten, keys, nest

TRAINING = {"run": "runs/tiny", "seed": 0, "preset": "demo", "cell_type": "U2OS"}
PRETRAIN = "2-pretrain-controls@U2OS"
Past = Callable[..., Path]


@pytest.fixture(autouse=True)
def kaggle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Kaggle's folders, empty."""
    monkeypatch.setattr(environment, "KAGGLE", tmp_path / "kaggle")
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    monkeypatch.delenv("CELLSIGNAL_CHAIN", raising=False)
    (tmp_path / "kaggle/working").mkdir(parents=True)
    return tmp_path / "kaggle"


@pytest.fixture
def past(kaggle: Path, monkeypatch: pytest.MonkeyPatch) -> Past:
    """past(mount, step, files, key=value) is a finished session, its output mounted; gives its run folder."""

    def make(mount: str, step: str, written: dict[str, str], *, complete: bool = True, **parameters: Any) -> Path:
        values = given(**parameters)
        room = kaggle / "input" / mount
        monkeypatch.setattr(environment, "KAGGLE", kaggle / "nowhere")
        one = session.start({**values, "run": str(room / values["run"])}, step)
        folder = one.folder
        environment.unlock_run_folder(folder)
        files.write_json(folder / "run.json", {"run": values["run"]})
        for name, text in written.items():
            files.write_text(folder / name, text)
        one.finish() if complete else one.end(TimeSpent("whole, epoch 1 of 2"))
        monkeypatch.setattr(environment, "KAGGLE", kaggle)
        return folder

    return make


def given(**parameters: Any) -> dict[str, Any]:
    """A notebook's variables; keys of groups by their last part."""
    names = {key.rpartition(".")[2]: key for key in keys(Recipe)}
    return nest({names.get(name, name): value for name, value in {**TRAINING, **parameters}.items()})


def start(step: str = "2-pretrain-controls", **parameters: Any) -> session.Session:
    one = session.start(given(**parameters), step)
    environment.unlock_run_folder(one.folder)
    return one


def begin(**parameters: Any) -> Path:
    return start(**parameters).folder


WEIGHTS = {"weights/U2OS/pretrain.safetensors": "weights", "weights/U2OS/pretrain.json": "card"}


@pytest.mark.parametrize("mount", ["cellsignal-tiny-2-pretrain", "notebooks/alice/Cellsignal-Tiny", "datasets/alice/kept"])
def test_what_an_earlier_step_made_is_taken_up_and_passed_on(past: Past, kaggle: Path, mount: str) -> None:
    past(mount, "2-pretrain-controls", {**WEIGHTS, "weights/U2OS/pretrain.checkpoint-1.safetensors": "old", "notes.txt": "mine"})
    one = start("3-train-cell-type", network_name="model")
    folder = one.folder
    assert folder == kaggle / "working/runs/tiny"
    assert {name: (folder / name).read_text() for name in WEIGHTS} == WEIGHTS
    assert not list(folder.glob("**/*checkpoint*")) and not (folder / "notes.txt").exists()
    files.write_text(folder / "weights/U2OS/model.json", "new")
    one.finish()
    written = step_receipts.read(folder, "3-train-cell-type@U2OS")
    assert set(written.outputs) == {"weights/U2OS/model.json"}
    assert set(written.details["attached_files"]) == {*WEIGHTS, f"receipts/{PRETRAIN}.json"}
    assert written.complete and flatten(written.details["parameters"]) == {**flatten(Recipe(run="runs/tiny", preset="demo").model_dump()), "cell_type": "U2OS", "network_name": "model"}
    everything = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name[0] != "."}
    assert everything == {*written.outputs, *written.details["attached_files"], "run.json", "receipts/3-train-cell-type@U2OS.json"}


def test_nothing_here_is_overwritten_and_the_own_run_comes_first(past: Past, kaggle: Path) -> None:
    past("notebooks/alice/other", "2-pretrain-controls", {**WEIGHTS, "weights/U2OS/pretrain.json": "other"}, run="runs/other")
    same = past("notebooks/alice/same", "2-pretrain-controls", WEIGHTS)
    here = kaggle / "working/runs/tiny/weights/U2OS/pretrain.safetensors"
    files.write_text(here, "mine")
    one = start()
    folder = one.folder
    assert here.read_text() == "mine"
    assert (folder / "weights/U2OS/pretrain.json").read_text() == "card"
    assert one.resume_folders("weights", "U2OS")[0] == same / "weights/U2OS"
    assert one.resume_folders("weights", "RPE") == []


def test_of_two_sessions_of_a_run_the_later_one_counts(past: Past) -> None:
    for mount, text in (("a-second", "first"), ("b-first", "second")):
        past(mount, "2-pretrain-controls", {**WEIGHTS, "weights/U2OS/pretrain.json": text})
    assert (begin() / "weights/U2OS/pretrain.json").read_text() == "second"


@pytest.mark.parametrize(
    "theirs, key, values",
    [({"seed": 1}, "seed", "0 here, and was 1"), ({"preset": ""}, "preset", "'demo' here, and was ''")],
)
def test_a_run_of_other_parameters_is_refused(past: Past, theirs: dict[str, Any], key: str, values: str) -> None:
    folder = past("notebooks/alice/other", "2-pretrain-controls", WEIGHTS, **theirs)
    with pytest.raises(InputError, match=f"^{folder}: {key} is {values} in {PRETRAIN} of this attached run; detach it"):
        begin()


def test_what_changes_no_training_may_differ(past: Past) -> None:
    same = {"virtual_batch": 128, "final_epochs": 3}
    past("one", "2-pretrain-controls", WEIGHTS, num_workers=4, device="cuda", cell_type="U2OS", **same)
    past("two", "3-train-cell-type", {"weights/RPE/plain.json": "card"}, cell_type="RPE", network_name="plain", virtual_batch=0)
    past("three", "4-predict-assign", {"submission.csv": "x"}, method="raw", run="runs/other", **same)
    folder = begin(method="exact", **same)
    assert (folder / "weights/RPE/plain.json").is_file()
    with pytest.raises(InputError, match="^.*two.*: training.virtual_batch is 128 here, and was 0 in 3-train-cell-type@RPE.plain"):
        begin(network_name="plain", virtual_batch=128)


def test_a_damaged_file_is_refused_and_leaves_nothing(past: Past, kaggle: Path) -> None:
    folder = past("one", "2-pretrain-controls", WEIGHTS)
    (folder / "weights/U2OS/pretrain.safetensors").write_text("weightz")
    with pytest.raises(InputError, match="pretrain.safetensors: not the file that the run's receipt names; attach"):
        begin()
    assert not list((kaggle / "working/runs/tiny").rglob("*.safetensors"))


@pytest.mark.parametrize("name", ["../../escaped", "/escaped", "weights/../../../escaped", "", "x" * 300])
def test_a_receipt_that_leads_out_of_its_folder_is_no_receipt(past: Past, kaggle: Path, name: str) -> None:
    folder = past("one", "2-pretrain-controls", WEIGHTS)
    place = step_receipts.receipt_path(folder, PRETRAIN)
    replace(Receipt.read(place), outputs={name: "0" * 64}).write()
    assert step_receipts.read(folder, PRETRAIN) is None
    begin()
    assert sorted(path.name for path in (kaggle / "working").rglob("*") if path.is_file()) == [".kernels.lock", "run.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"step": "2-pretrain-controls@U2OS"}', "null"])
def test_a_damaged_receipt_offers_nothing(past: Past, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = past("one", "2-pretrain-controls", WEIGHTS)
    step_receipts.receipt_path(folder, PRETRAIN).write_text(text)
    capsys.readouterr()
    assert not (begin() / "weights").exists()
    note = f"note: {step_receipts.receipt_path(folder, PRETRAIN)} is damaged, or of an earlier version; no file that it lists is taken up"
    assert capsys.readouterr().out.splitlines() == [note]


def test_a_link_out_of_the_attached_run_is_not_followed(past: Past, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("weights")
    folder = past("one", "2-pretrain-controls", WEIGHTS)
    (folder / "weights/U2OS/pretrain.safetensors").unlink()
    (folder / "weights/U2OS/pretrain.safetensors").symlink_to(tmp_path / "secret")
    assert not (begin() / "weights/U2OS/pretrain.safetensors").exists()


def test_more_than_kaggle_keeps_is_not_taken_up(past: Past, kaggle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    past("one", "2-pretrain-controls", {**WEIGHTS, "weights/U2OS/pretrain.safetensors": "x" * 2000})
    monkeypatch.setattr(environment, "WORKING_BYTES", 2500)
    files.write_text(kaggle / "working/mine.bin", "x" * 1000)
    with pytest.raises(InputError, match="one/runs/tiny: its 0.0 GB do not fit beside 0.0 GB of 0 GB; detach it"):
        begin()
    assert not list((kaggle / "working/runs/tiny").rglob("pretrain*"))


def test_under_a_chain_nothing_is_taken_up_but_checkpoints_are_found(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    attached = past("one", "2-pretrain-controls", WEIGHTS)
    monkeypatch.setenv("CELLSIGNAL_CHAIN", "1")
    one = start()
    assert not (one.folder / "weights").exists()
    assert one.resume_folders("weights", "U2OS") == [attached / "weights/U2OS"]


def test_an_unfinished_session_says_how_far_it_came_and_offers_its_finished_phases(past: Past) -> None:
    phases = {f"weights/U2OS/{name}.json": "card" for name in ("head", "plain-head", "plain", "pretrain")}
    folder = past("one", "3-train-cell-type", phases, complete=False, network_name="model")
    written = step_receipts.read(folder, "3-train-cell-type@U2OS")
    assert (written.complete, written.details["progress"]) == (False, "whole, epoch 1 of 2")
    assert set(written.outputs) == {"weights/U2OS/head.json"}
    folder = past("two", "3-train-cell-type", phases, complete=False, network_name="plain")
    written = step_receipts.read(folder, "3-train-cell-type@U2OS+plain")
    assert set(written.outputs) == {"weights/U2OS/plain.json", "weights/U2OS/plain-head.json"}


def test_the_chains_receipt_names_all_but_plates_and_checkpoints(past: Past) -> None:
    made = ["submission.csv", "receipts/report.json", "weights/U2OS/model.json", "notebooks/1-eda.html", "scores/a/b.parquet"]
    besides = ["data/train.csv", ".jupyter/x.json", "weights/U2OS/head.checkpoint.json", "run.json"]
    folder = past("one", "0-chain", {name: "x" for name in made + besides}, cell_type="")
    assert set(step_receipts.read(folder, "0-chain").outputs) == set(made)


def test_the_end_tells_what_kaggle_keeps(past: Past, capsys: pytest.CaptureFixture[str]) -> None:
    start().finish()
    assert f"{PRETRAIN}: complete. /kaggle/working holds 0.00 of 20 GB" in capsys.readouterr().out


def test_an_unfinished_kernel_says_how_the_next_session_finds_it(past: Past, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    one, spent = start("3-train-cell-type"), TimeSpent("whole, epoch 1 of 2")
    one.end(spent)
    assert "add this kernel's own OWNER/SLUG to kernel_sources" in capsys.readouterr().out
    one.finish()
    monkeypatch.setenv("CELLSIGNAL_CHAIN", "1")  # the chain's notebook will say it
    one.end(spent)
    monkeypatch.delenv("CELLSIGNAL_CHAIN")
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE")
    one.end(spent)
    assert "kernel_sources" not in capsys.readouterr().out


@pytest.mark.parametrize(("name", "value"), [("network_name", "../../../x"), ("network_name", ""), ("cell_type", "x/../../y"), ("cell_type", ".."), ("network_name", "a*"), ("network_name", 5), ("cell_type", ["U2OS"])])
def test_a_network_and_a_cell_type_are_plain_names(kaggle: Path, name: str, value: Any) -> None:
    with pytest.raises(InputError) as refused:
        begin(**{name: value})
    why = "it names a file: use letters, digits and any of _.+-, a letter or digit first" if isinstance(value, str) else "input should be a valid string"
    assert str(refused.value).startswith(f"parameters: {name} is {value!r}: {why}; write ")
    assert not list((kaggle / "working").iterdir())


def test_nothing_is_taken_up_through_a_link(past: Past, kaggle: Path, tmp_path: Path) -> None:
    past("one", "2-pretrain-controls", WEIGHTS)
    here = kaggle / "working/runs/tiny"
    here.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (here / "weights").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="runs/tiny/weights/U2OS/pretrain.* is a link that leads out of its folder, or lies behind one; put a folder"):
        begin()
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("change", [{"outputs": ["a"]}, {"outputs": {"a": None}}, {"complete": 1}, {"identity": []}, *(
    {"details": wrong} for wrong in ({"attached_files": None}, {"parameters": {"cell_type": ["U2OS"]}}, {"written": "now"}, {"seconds": "1"}))])  # fmt: skip
def test_a_receipt_of_another_shape_is_no_receipt(past: Past, change: dict[str, Any]) -> None:
    folder = past("one", "2-pretrain-controls", WEIGHTS)
    place = step_receipts.receipt_path(folder, PRETRAIN)
    written = Receipt.read(place)
    replace(written, **{key: {**written.details, **value} if key == "details" else value for key, value in change.items()}).write()
    assert step_receipts.read(folder, PRETRAIN) is None
    assert not (begin() / "weights").exists()


def test_results_of_an_earlier_run_do_not_outlive_a_session_that_ends_before(kaggle: Path) -> None:
    one = start("4-predict-assign")
    kept, gone = ("scores/model/adapted/a.parquet", "notes.csv"), ("submission.csv", "submission.confidence.csv", "submission.sets.parquet", "metrics.json", "answers.csv")
    for reason in (TimeSpent("scored 1 of 2 experiments with model"), session.Finished("scored HUVEC-01")):
        for name in (*kept, *gone):
            files.write_text(one.folder / name, "earlier")
        one.end(reason)
        written = step_receipts.read(one.folder, "4-predict-assign@U2OS")
        assert set(written.outputs) == {kept[0]} and not [name for name in gone if (one.folder / name).exists()]
        assert (written.complete, written.details["progress"], one.spent) == ((False, str(reason), str(reason)) if isinstance(reason, TimeSpent) else (True, "scored HUVEC-01", ""))
    for name in gone:
        files.write_text(one.folder / name, "ours")
    one.finish()
    assert set(step_receipts.read(one.folder, "4-predict-assign@U2OS").outputs) == {kept[0], *gone}


def test_a_notebook_that_nobody_knows_is_refused_before_anything_is_written(kaggle: Path) -> None:
    with pytest.raises(InputError, match="^cellsignal.start: unknown notebook '3-train'; name one of: 0-chain, 1-eda, "):
        start("3-train")
    assert not list((kaggle / "working").iterdir())
