"""A recipe's images are packed once at a reduced size: by the first step, resumed and taken up where they are the same, and read by all others."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from building import recipe_of
from cellsignal import files
from cellsignal.budget import TimeSpent
from cellsignal.data.images.packed_store import open_store
from cellsignal.errors import InputError
from cellsignal.kaggle import kernel_folders
from cellsignal.receipts import Receipt
from cellsignal.run import environment, inputs, mounts
from cellsignal.run import recipe as recipes
from cellsignal.run.chain import chain, plans, steps
from cellsignal.run.chain.steps import notebook_parameters, parameters_read
from cellsignal.run.kernels.packing import ImagePacking
from cellsignal.run.record import session

ROOT = Path(__file__).parents[2]
Packing = Callable[..., ImagePacking]


@pytest.fixture
def packing(tmp_path: Path, tiny_plates: Path, monkeypatch: pytest.MonkeyPatch) -> Packing:
    """packing(key=value, run=...) is the work of the notebook in a run folder."""

    def made(*, run: str = "runs/one", **wells: Any) -> ImagePacking:
        monkeypatch.chdir(tmp_path)
        parameters = {"run": str(tmp_path / run), "data": str(tiny_plates), "preset": "", "wells": {"packed_size": 16, "experiments": experiments(tiny_plates), **wells}}
        one = session.start(parameters, "pack")
        environment.unlock_run_folder(one.folder)
        return ImagePacking(one)

    return made


def experiments(plates: Path) -> list[str]:
    return sorted({path.name for folder in ("train", "test") for path in (plates / folder).iterdir() if path.name.startswith("RPE")})[-2:]


def test_the_store_is_made_once_and_again_for_another_size_or_other_wells(packing: Packing, tmp_path: Path) -> None:
    run, first = tmp_path / "runs/one", packing()
    total = len(first.plan.shards)
    assert first.pack().endswith(f"{total} of them packed now") and packing().pack().endswith(" 0 of them packed now")
    root = inputs.packed_images(run, 16)
    assert root == run / "packed" and set(open_store(root).shapes) == {16}
    tables = inputs.open_tables("", run=run, packed_size=16)
    assert tables.root == root and len(tables.wells) > 0
    before = Receipt.read(run / "packed.json")
    assert packing(packed_size=24).pack().endswith(f"{total} of them packed now")
    with pytest.raises(InputError, match=r"packed: the images were not packed at 16 px; run the notebook `pack` first; on Kaggle attach its output"):
        inputs.packed_images(run, 16)
    assert Receipt.read(run / "packed.json") != before
    (run / "packed/test.csv").write_text("other")
    files.write_json(run / "packed.json", {})
    assert packing(packed_size=24).pack().endswith(f"{total} of them packed now"), "without a receipt nobody knows what made it"


def test_a_table_that_was_edited_in_the_store_is_refused_and_comes_again(packing: Packing, tmp_path: Path) -> None:
    work, table = packing(), tmp_path / "runs/one/packed/train.csv"
    work.pack()
    [step] = [step for step in plans.plan(work.session.recipe, ["RPE"], kernels=ROOT / "kernels") if step.name == plans.PACK]
    assert {"packed/train.csv", "packed/simulate.json"} <= {*steps.output_names(work.session.folder, step)}, "so that a chain notices"
    before = table.read_text()
    table.write_text(before.replace(",0\n", ",1\n"))
    with pytest.raises(InputError, match="train.csv: is not the table that the notebook `pack` put there; delete it, then give the whole command or run `pack` again"):
        inputs.open_tables("", run=tmp_path / "runs/one", packed_size=16)
    table.unlink()
    assert packing().pack().endswith(" 0 of them packed now") and table.read_text() == before
    assert inputs.packed_images(tmp_path / "runs/one", 16) == table.parent


def test_other_code_packs_again(packing: Packing, monkeypatch: pytest.MonkeyPatch) -> None:
    first = packing()
    first.pack()
    monkeypatch.setattr("cellsignal.run.kernels.packing.package_code", lambda room: {room: "other"})
    assert packing().pack().endswith(f"{len(first.plan.shards)} of them packed now")


def test_a_session_that_ends_goes_on_where_its_output_is_attached(packing: Packing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = packing()
    budget, total = first.session.time_budget, len(first.plan.shards)
    budget.deadline = time.time() + 100
    budget.record_part = lambda units, seconds: budget.stop("")  # after the first plates
    with pytest.raises(TimeSpent, match=rf"\d of {total} plates"):
        first.pack()
    assert not Receipt.read(tmp_path / "runs/one/packed.json").complete
    with pytest.raises(InputError, match="not packed at 16 px"):
        inputs.packed_images(tmp_path / "runs/one", 16)
    monkeypatch.setattr(mounts, "runs", lambda: [tmp_path / "runs/one"])
    second = packing(run="runs/two")
    done = total - int(second.pack().split(", ")[1].split()[0])
    assert 0 < done < total
    one, two = packing(run="runs/whole"), inputs.packed_images(tmp_path / "runs/two", 16)
    monkeypatch.setattr(mounts, "runs", list)
    one.pack()
    assert open_store(inputs.packed_images(tmp_path / "runs/whole", 16)).sha256 == open_store(two).sha256


def test_a_later_kernel_reads_the_store_of_the_very_receipt_that_it_took_up(packing: Packing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packing(run="in/right").pack()
    packing(run="in/other", experiments=[]).pack()
    monkeypatch.setattr(mounts, "runs", lambda: [tmp_path / "in/other", tmp_path / "in/right"])
    later = tmp_path / "runs/later"
    later.mkdir(parents=True)
    (later / "packed.json").write_bytes((tmp_path / "in/right/packed.json").read_bytes())  # as a session copies it
    assert inputs.packed_images(later, 16) == tmp_path / "in/right/packed"


def test_a_session_takes_up_what_was_packed_by_its_receipt_and_not_by_copying_images(packing: Packing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a chain wrote the receipt of the step, which lists the indices of the store."""
    work = packing()
    work.pack()
    work.session.finish()
    run = work.session.folder
    [step] = [step for step in plans.plan(work.session.recipe, ["RPE"], kernels=ROOT / "kernels") if step.name == plans.PACK]
    listed = steps.write_receipt(run, step, identity={"step": step.name}, seconds=1.0).outputs
    assert "packed/store.json" in listed and any(name.endswith("sites.json") for name in listed)
    monkeypatch.setattr(mounts, "runs", lambda: [run])
    later = session.start({**work.session.namespace, "run": str(tmp_path / "runs/later"), "cell_type": "RPE"}, "3-train-cell-type").folder
    environment.unlock_run_folder(later)
    assert (later / "packed.json").is_file() and not (later / "packed").exists()
    assert inputs.packed_images(later, 16) == run / "packed"
    again = packing(run="runs/later")
    assert again.pack().endswith(" 0 of them packed now") and inputs.packed_images(later, 16) == later / "packed", "a kernel that packs copies them"


def test_what_kaggle_cannot_hold_is_refused_with_a_size_that_fits(packing: Packing, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = packing(packed_size=32).plan
    monkeypatch.setattr(environment, "WORKING_BYTES", plan.bytes // 2)
    packing(packed_size=32)
    monkeypatch.setattr(environment, "platform", lambda: "kaggle")
    with pytest.raises(InputError, match=r"wells.packed_size: the images take about .* at this size, and /kaggle/working holds .*; write 16 or less"):
        packing(packed_size=32)
    with pytest.raises(InputError, match="wells.packed_size: no size to pack the images at"):
        packing(packed_size=0)


@pytest.mark.parametrize("name", ["kaggle-week", "kaggle-evening"])
def test_packing_is_the_first_kernel_without_a_gpu_and_the_others_mount_it(name: str) -> None:
    recipe = recipes.load(ROOT / f"papermill_params/{name}.yaml")
    planned = kernel_folders.plan_kernels(recipe, name=name, owner="alice", kernels=ROOT / "kernels")
    first, *others = planned.kernels
    assert (first.step, first.gpu, first.needs, first.resumable) == (plans.PACK, False, (), True)
    assert {kernel.step for kernel in others if plans.PACK not in kernel.needs} == {"1-eda"}
    assert [kernel.gpu for kernel in others if kernel.step != "1-eda"] == [True] * (len(others) - 1)
    smaller = recipes.load(ROOT / f"papermill_params/{name}.yaml", ["wells.packed_size=160"])
    other = kernel_folders.plan_kernels(smaller, name=name, owner="alice", kernels=ROOT / "kernels")
    one, two = kernel_folders.identities(planned), kernel_folders.identities(other)
    assert {step for step in one if one[step] == two[step]} == {"1-eda"}


def test_without_a_size_nothing_is_packed_and_the_plan_is_as_before() -> None:
    plain = plans.plan(recipe_of({}), ["U2OS"], kernels=ROOT / "kernels")
    assert plans.PACK not in {step.name for step in plain} | {need for step in plain for need in step.needs}
    packed = plans.plan(recipe_of({"packed_size": 64}), ["U2OS"], kernels=ROOT / "kernels")
    [pack] = [step for step in packed if step.name == plans.PACK]
    values = {**recipe_of({"packed_size": 64}).model_dump(), "run": "runs/x"}
    assert notebook_parameters(pack, values)["wells"] == {"packed_size": 64}
    assert {key for key in parameters_read(pack, values) if key.startswith("wells.")} == {"wells.packed_size", "wells.cell_types", "wells.experiments"}


def test_a_cluster_is_told_to_pack_first(tmp_path: Path) -> None:
    executor = chain.LocalExecutor()
    executor.splits_prediction = True
    with pytest.raises(InputError, match="do not share a run's packed images; pack them first with `cellsignal pack`"):
        chain.run_chain(recipe_of({"preset": "tiny", "packed_size": 16}), run=tmp_path / "run", kernels=ROOT / "kernels", executor=executor)
