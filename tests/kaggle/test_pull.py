"""Pulling with the real clients: every file as its receipt says, or nothing."""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fake_kaggle import FakeKaggle

from cellsignal import files
from cellsignal.errors import InputError, StepFailed
from cellsignal.kaggle import client as kaggle
from cellsignal.kaggle import kernel_folders, pull
from cellsignal.kaggle.push_state import PushedKernel, PushState, Status
from cellsignal.receipts import Receipt
from cellsignal.run import environment, recipe
from cellsignal import provenance

ROOT = Path(__file__).resolve().parents[2]
LAST = "alice/cellsignal-tiny-4-predict-assign"


@pytest.fixture(autouse=True)
def same_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the package's files hold is no matter here."""
    monkeypatch.setattr(provenance, "code_digest", lambda *package: "code")


@pytest.fixture
def pushed(server: FakeKaggle, tmp_path: Path) -> Callable[..., PushState]:
    """pushed("0-chain"): the state after all kernels of the tiny recipe, or its chain, have ended on Kaggle; `name`: of another recipe."""

    def made(only: str = "", *overrides: str, name: str = "tiny") -> PushState:
        checked = recipe.load(ROOT / f"papermill_params/{name}.yaml", overrides)
        plan = kernel_folders.plan_kernels(checked, name=name, owner="alice", kernels=environment.kernels_folder(), as_one_kernel=only == "0-chain")
        state = PushState(tmp_path / "build/state.json")
        for number, kernel in enumerate(plan.kernels):
            described = kernel_folders.metadata(plan, kernel, slug=kernel.slug, mounts=kernel_folders.first_slugs(plan, kernel))
            text = kernel_folders.notebook_text(kernel.notebook, kernel.parameters)
            body = {"slug": described["id"], "newTitle": described["title"], "text": text, "kernelDataSources": described["kernel_sources"]}
            version = server.save_kernel(body)["versionNumber"]
            server.wait()
            state.steps[kernel.step] = PushedKernel(
                identity="i", slug=described["id"], gpu=False, run=plan.run, parameters=kernel.decisive, code="code",
                status=Status.complete, version=version, pushed=float(number),
            )  # fmt: skip
        return state

    return made


def left(server: FakeKaggle, slug: str = LAST) -> Path:
    """The run folder that a kernel's last session left."""
    return server.kernels[slug][-1].outcome.folder / "runs/tiny"


def test_all_that_a_run_made_arrives(
    server: FakeKaggle, pushed: Callable[..., PushState], tmp_path: Path, client: Path, connect: Callable[..., dict[str, str]]
) -> None:
    connect(server, client)
    state = pushed()
    pulled = pull.pull(state, tmp_path / "tiny")
    there = {path.relative_to(tmp_path / "tiny").as_posix() for path in (tmp_path / "tiny").rglob("*") if path.is_file()}
    weights = {f"weights/{name}/{network}{end}" for name in ("HUVEC", "RPE") for network in ("pretrain", "model") for end in (".json", ".safetensors")}
    theirs = {f"receipts/{step}.json" for step in state.steps}
    ours = {"recipe.json", "seconds.json", "report.html", "pulled.json", "receipts/record.json"}
    assert there - {".chain.lock"} == weights | theirs | ours | {"submission.csv", "submission.confidence.csv", "submission.sets.parquet", "metrics.json", "eda/wells.png", "run.json"}
    assert pulled.files == len(weights) + len(theirs) + 6 and set(pulled.receipts) == set(state.steps)
    source = left(server)
    assert all((tmp_path / "tiny" / name).read_bytes() == (source / name).read_bytes() for name in weights)
    described = files.read_json(tmp_path / "tiny/recipe.json")
    assert described["parameters"]["training"]["epochs"] == 2 and described["parameters"]["wells"]["cell_types"] == ["HUVEC", "RPE"]
    assert "cell_type" not in described["parameters"] and described["code"] == "code" and "torch" in described["libraries"]
    assert set(files.read_json(tmp_path / "tiny/seconds.json")) == set(state.steps)
    assert not list(tmp_path.glob(".pull-*"))
    assert pull.pull(state, tmp_path / "tiny").files == pulled.files  # over itself


@pytest.mark.parametrize("drawn, preset", [(True, "tiny"), (False, "")])
def test_a_preset_that_drew_nothing_is_not_on_record(
    server: FakeKaggle, pushed: Callable[..., PushState], tmp_path: Path, drawn: bool, preset: str
) -> None:
    """Attached plates won over it, and an archive of the run must not say that it was drawn."""
    state = pushed()
    source = left(server)
    files.write_json(source / "metrics.json", {"simulated": drawn})
    written = Receipt.read(source / "receipts/4-predict-assign.json")
    replace(written, outputs={**written.outputs, "metrics.json": files.sha256(source / "metrics.json")}).write()
    pull.pull(state, tmp_path / "tiny")
    assert files.read_json(tmp_path / "tiny/recipe.json")["parameters"]["preset"] == preset


def test_the_whole_chain_arrives(server: FakeKaggle, pushed: Callable[..., PushState], tmp_path: Path) -> None:
    pull.pull(pushed("0-chain"), tmp_path / "tiny")
    assert (tmp_path / "tiny/submission.csv").read_bytes() == (left(server, "alice/cellsignal-tiny-0-chain") / "submission.csv").read_bytes()


@pytest.mark.parametrize("name", ["submission.csv", "weights/RPE/model.safetensors", "receipts/2-pretrain-controls@RPE.json"])
@pytest.mark.parametrize("fault", ["missing", "damaged"])
def test_a_file_that_is_not_what_its_receipt_names(
    server: FakeKaggle, pushed: Callable[..., PushState], tmp_path: Path, name: str, fault: str
) -> None:
    state = pushed()
    path = left(server) / name
    whole = path.read_bytes()
    path.unlink() if fault == "missing" else path.write_bytes(whole[:-3] + b"???")
    words = "is missing among the outputs" if fault == "missing" else "is not the file that its receipt names"
    with pytest.raises(StepFailed) as refused:
        pull.pull(state, tmp_path / "tiny")
    assert str(refused.value) == f"4-predict-assign: {name} {words}; run the same command again"
    assert [path.name for path in (tmp_path / "tiny").iterdir()] == [".chain.lock"]
    path.write_bytes(whole)
    server.requests.clear()
    pull.pull(state, tmp_path / "tiny")
    assert (tmp_path / "tiny" / name).read_bytes() == whole
    fetched = [Path(request.path).name for request in server.requests if request.call == "GET"]
    assert fetched.count(Path(name).name) >= 1


def test_the_output_of_another_run(server: FakeKaggle, pushed: Callable[..., PushState], tmp_path: Path) -> None:
    state = pushed()
    state.steps["4-predict-assign"].parameters["seed"] = 4
    with pytest.raises(StepFailed, match="^4-predict-assign: the output is of the wrong run: its seed is 0 and not 4; see https"):
        pull.pull(state, tmp_path / "tiny")
    assert not (tmp_path / "tiny/submission.csv").exists()


def test_a_receipt_that_leads_outside(server: FakeKaggle, pushed: Callable[..., PushState], tmp_path: Path) -> None:
    state = pushed()
    path = left(server) / "receipts/4-predict-assign.json"
    found = Receipt.read(path)
    replace(found, outputs={**found.outputs, "../../escaped.csv": "0" * 64}).write()
    with pytest.raises(StepFailed, match="there is no receipt of 4-predict-assign"):
        pull.pull(state, tmp_path / "tiny")


def test_what_lies_there_already_is_not_written_over(pushed: Callable[..., PushState], server: FakeKaggle, tmp_path: Path) -> None:
    (tmp_path / "tiny/weights").mkdir(parents=True)
    with pytest.raises(InputError, match="another run's weights is there; add --out"):
        pull.pull(pushed(), tmp_path / "tiny")
    assert not server.sent("ListKernelSessionOutput")


def test_nothing_to_fetch_yet(pushed: Callable[..., PushState], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^4-predict-assign is not complete \(nothing was pushed\)"):
        pull.pull(PushState(tmp_path / "state.json"), tmp_path / "tiny")
    state = pushed()
    state.steps["4-predict-assign"].status = Status.running
    with pytest.raises(InputError, match="4-predict-assign running"):
        pull.pull(state, tmp_path / "tiny")


def test_an_interrupted_pull_fetches_the_rest(server: FakeKaggle, pushed: Callable[..., PushState], tmp_path: Path) -> None:
    state = pushed()
    hidden = left(server) / "weights"
    os.rename(hidden, tmp_path / "away")
    with pytest.raises(StepFailed, match="missing"):
        pull.pull(state, tmp_path / "tiny")
    os.rename(tmp_path / "away", hidden)
    pull.pull(state, tmp_path / "tiny")
    assert (tmp_path / "tiny/weights/RPE/model.json").is_file()


def test_nothing_arrives_through_a_link(server: FakeKaggle, pushed: Callable[..., PushState], tmp_path: Path) -> None:
    state = pushed()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "tiny").mkdir()
    files.write_json(tmp_path / "tiny" / pull.RECEIPT, {})
    (tmp_path / "tiny/weights").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="tiny/weights/.* is a link that leads out of its folder, or lies behind one; put a folder"):
        pull.pull(state, tmp_path / "tiny")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_task_of_one_notebook_arrives_too(server: FakeKaggle, pushed: Callable[..., PushState], tmp_path: Path) -> None:
    state = pushed(name="protein-atlas")
    assert list(state.steps) == ["protein-atlas"]
    pull.pull(state, tmp_path / "atlas")
    assert (tmp_path / "atlas/submission.csv").is_file() and (tmp_path / "atlas/report.html").is_file()
    assert set(files.read_json(tmp_path / "atlas/seconds.json")) == {"protein-atlas"}
    assert files.read_json(tmp_path / "atlas/recipe.json")["parameters"]["task"] == "protein-atlas"
    state.steps["protein-atlas"].status = Status.running
    with pytest.raises(InputError, match=r"^protein-atlas is not complete \(protein-atlas running\)"):
        pull.pull(state, tmp_path / "atlas")


def test_a_pull_that_was_killed_while_it_moved_goes_on(
    server: FakeKaggle, pushed: Callable[..., PushState], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, moved = pushed(), []

    def replace_two(source: Path, target: Path) -> None:
        if Path(source).name.endswith(".safetensors"):
            if len(moved) == 2:
                raise KeyboardInterrupt
            moved.append(target)
        os.rename(source, target)

    with monkeypatch.context() as killed:
        killed.setattr(pull.os, "replace", replace_two)
        with pytest.raises(KeyboardInterrupt):
            pull.pull(state, tmp_path / "tiny")
    assert all(path.is_file() for path in moved) and not (tmp_path / "tiny/report.html").exists()
    pull.pull(state, tmp_path / "tiny")
    assert (tmp_path / "tiny/report.html").is_file() and len(list((tmp_path / "tiny").rglob("*.safetensors"))) == 4


def test_what_an_earlier_pull_brought_and_the_run_has_no_more_is_removed(server: FakeKaggle, pushed: Callable[..., PushState], tmp_path: Path) -> None:
    pull.pull(pushed(), tmp_path / "tiny")
    (tmp_path / "tiny/receipts/3-train-cell-type@HUVEC.json").write_text("changed here")
    (tmp_path / "tiny/notes.txt").write_text("ours")
    pull.pull(pushed("", "wells.cell_types=[RPE]"), tmp_path / "tiny")
    names = {path.relative_to(tmp_path / "tiny").as_posix() for path in (tmp_path / "tiny").rglob("*")}
    assert {name for name in names if "HUVEC" in name} == {"receipts/3-train-cell-type@HUVEC.json"}
    assert {"notes.txt", "weights/RPE/model.safetensors", "submission.csv", "eda/wells.png"} <= names
    assert files.read_json(tmp_path / "tiny/recipe.json")["parameters"]["wells"]["cell_types"] == ["RPE"]


def test_a_look_at_other_plates_is_left_out(server: FakeKaggle, pushed: Callable[..., PushState], tmp_path: Path) -> None:
    state, other = pushed(), pushed("", "seed=1")
    state.steps["4-predict-assign"] = other.steps["4-predict-assign"]
    pulled = pull.pull(state, tmp_path / "tiny")
    assert pulled.left_out == "1-eda" and not (tmp_path / "tiny/eda").exists()
    pulled = pull.pull(other, tmp_path / "tiny")
    assert pulled.left_out == "" and (tmp_path / "tiny/eda/wells.png").is_file()


def test_a_later_session_that_is_not_complete(server: FakeKaggle, pushed: Callable[..., PushState], tmp_path: Path) -> None:
    """Client 2.2.4 gives the last version, whichever was ours."""
    state = pushed()
    path = left(server) / "receipts/4-predict-assign.json"
    replace(Receipt.read(path), complete=False).write()
    with pytest.raises(StepFailed, match="^4-predict-assign: it ended before it was complete; see https"):
        pull.pull(state, tmp_path / "tiny")
    replace(Receipt.read(path), complete=True).write()
    state.steps["4-predict-assign"].outputs = ["submission.csv", "other.csv"]
    with pytest.raises(StepFailed, match="^4-predict-assign: it ended without other.csv; see https"):
        pull.pull(state, tmp_path / "tiny")


def test_files_come_beside_the_folder_that_a_link_leads_to_and_none_from_above_the_run(
    server: FakeKaggle, pushed: Callable[..., PushState], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From beside the link they could not be moved to another disk."""
    output, asked = kaggle.output, []

    def noted(slug: str, folder: Path, pattern: str = "", **options: bool) -> list[Path]:
        asked.append((folder.parents[1], pattern))
        return output(slug, folder, pattern, **options)

    monkeypatch.setattr(kaggle, "output", noted)
    (tmp_path / "disk/tiny").mkdir(parents=True)
    (tmp_path / "tiny").symlink_to(tmp_path / "disk/tiny")
    pull.pull(pushed(), tmp_path / "tiny")
    assert (tmp_path / "disk/tiny/submission.csv").is_file() and {folder for folder, _ in asked} == {tmp_path / "disk"}
    pattern = asked[0][1]
    names = ["runs/tiny/a..b", "runs/tiny/scores/x", "runs/tiny/../../x", "runs/tiny/scores/../../../../x", "runs/tiny/packed/x"]
    assert [name for name in names if re.search(pattern, name)] == names[:2]
