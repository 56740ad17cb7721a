"""Steps: their order, and what makes one stale."""

import importlib
import shutil
from collections.abc import Callable
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cellsignal import code_identity
from cellsignal.receipts import Receipt
from cellsignal.learn.settings import TrainingSettings
from cellsignal.run import environment
from cellsignal.run.chain import plans, steps
from cellsignal.run.recipe import Recipe
from cellsignal.run.record import step_receipts

DONE = {"plates": Receipt(Path("plates.json"), outputs={"data/train.csv": "aa"})}


def test_trainings_come_first_and_largest_first(kernels: Path) -> None:
    plan = plans.plan(Recipe(), ["HUVEC", "RPE"], kernels=kernels)
    assert [step.name for step in plan] == [
        "2-pretrain-controls@HUVEC",
        "3-train-cell-type@HUVEC",
        "2-pretrain-controls@RPE",
        "3-train-cell-type@RPE",
        "4-predict-assign",
        "1-eda",
    ]
    needs = {step.name: set(step.needs) for step in plan}
    assert needs["3-train-cell-type@RPE"] == {"plates", "2-pretrain-controls@RPE"}
    assert needs["4-predict-assign"] == {"plates", "3-train-cell-type@HUVEC", "3-train-cell-type@RPE"}


def test_a_second_network_without_the_virtual_batch_follows_the_same_pretraining() -> None:
    plan = {step.name: step for step in plans.plan(Recipe(training=TrainingSettings(virtual_batch=128, ablate_virtual_batch=True, final_epochs=1)), ["RPE"], kernels=environment.kernels_folder())}
    model, plain = plan["3-train-cell-type@RPE"], plan["3-train-cell-type@RPE+plain"]
    assert model.needs == plain.needs == ("plates", "2-pretrain-controls@RPE")
    assert {model.name, plain.name} <= set(plan["4-predict-assign"].needs)
    assert [Path(name).name for name in model.outputs] == [
        "model.safetensors", "model.json", "final.safetensors", "final.json"]
    assert [Path(name).name for name in plain.outputs] == ["plain.safetensors", "plain.json"]
    values = Recipe(training=TrainingSettings(virtual_batch=128, ablate_virtual_batch=True, final_epochs=5, epochs=3)).model_dump()
    given, own = steps.notebook_parameters(plain, values), steps.parameters_read(plain, values)
    assert (given["cell_type"], given["network_name"], given["training"], given["wells"]) == ("RPE", "plain", {"epochs": 3}, {})
    assert (own["training.virtual_batch"], own["training.final_epochs"], own["training.epochs"], own["wells.cell_types"]) == (0, 0, 3, [])
    assert steps.parameters_read(model, values)["training.virtual_batch"] == 128 and "training.ablate_virtual_batch" not in own


def test_a_notebook_takes_the_parameters_it_names(kernels: Path) -> None:
    step = plans.plan(Recipe(), ["RPE"], kernels=kernels)[0]
    values = Recipe(run="/r", seed=3, training=TrainingSettings(pretrain_epochs=1, epochs=2)).model_dump()
    assert steps.parameters_read(step, values) == {"run": "/r", "seed": 3, "cell_type": "RPE", "training.pretrain_epochs": 1}
    given = steps.notebook_parameters(step, values)
    assert given["training"] == {"pretrain_epochs": 1, "epochs": 2} and set(given) == {*Recipe.model_fields, "cell_type"}, "whole groups, without defaults"


@pytest.mark.parametrize("cell", [
    "%%time\nnetwork_name, recipe.training.head_epochs", "%matplotlib inline\nx = %time (network_name, recipe.training.head_epochs)\n!ls",
    "get_ipython().run_cell_magic('time', '', 'network_name, recipe.training.head_epochs\\n')\n",  # as IPython keeps the first
])  # fmt: skip
def test_a_cell_with_magic_is_read_too(kernels: Path, write_toy: Callable[..., Path], cell: str) -> None:
    def read() -> set[str]:
        step = next(step for step in plans.plan(Recipe(), ["RPE"], kernels=kernels) if step.name == "3-train-cell-type@RPE")
        assert set(step.code) == {"notebook"}
        return {*steps.parameters_read(step, Recipe().model_dump())}

    before = read()
    write_toy(kernels, "3-train-cell-type", body=cell)
    assert read() == before | {"training.head_epochs"}
    write_toy(kernels, "3-train-cell-type", body=f"%%bash\n{cell}")
    assert read() == before


def test_identity_knows_tables_but_not_places(kernels: Path) -> None:
    step = plans.plan(Recipe(), ["RPE"], kernels=kernels)[0]

    def identity(folder: str, table: str, **parameters: object) -> dict:
        receipts = {"plates": Receipt(Path("plates.json"), outputs={f"{folder}/train.csv": table})}
        return steps.step_identity(step, parameters={"run": folder, "machine.num_workers": 0, **parameters}, receipts=receipts)

    first = identity("/here", "aa", seed=0)
    assert identity("/there", "aa", seed=0, data="x", **{"machine.num_workers": 4}) == first
    assert identity("/here", "bb", seed=0) != first
    assert identity("/here", "aa", seed=1) != first


def test_a_receipt_holds_while_every_file_is_as_it_was(tmp_path: Path, kernels: Path) -> None:
    step = steps.report_step([])
    identity = steps.step_identity(step, parameters={}, receipts={})
    page = tmp_path / "report.html"
    page.write_text("whole")
    written = steps.write_receipt(tmp_path, step, identity=identity, seconds=1.0)
    assert steps.current_receipt(tmp_path, step, identity=identity) == written
    assert steps.current_receipt(tmp_path, step, identity={**identity, "parameters": {"seed": 1}}) is None
    for damage in (lambda: page.write_text("other"), page.unlink):
        damage()
        assert steps.current_receipt(tmp_path, step, identity=identity) is None
    (tmp_path / "receipts/report.json").write_text("{}")
    assert steps.current_receipt(tmp_path, step, identity=identity) is None


def test_a_step_whose_cells_import_a_users_module_runs_again_when_that_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, step = tmp_path / "mine_of_steps.py", steps.Step("1-eda", notebook=Path("1-eda.ipynb"))
    module.write_text("SHARE = 0.5\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, module.stem, importlib.import_module(module.stem))
    monkeypatch.setattr(code_identity, "notebook", code_identity.Notebook([f"from {module.stem} import SHARE"]))
    identity = {"step": "1-eda", "code": {}}
    step_receipts.write(tmp_path, "1-eda", {}, complete=True, progress="", seconds=1.0, attached_files={})
    written = steps.write_receipt(tmp_path, step, identity=identity, seconds=1.0)
    assert steps.current_receipt(tmp_path, step, identity=identity) == written
    module.write_text("SHARE = 0.5  # of the pictures\n")
    assert steps.changed_code(tmp_path, step, identity=identity) == []
    for change in (lambda: module.write_text("SHARE = 0.6\n"), module.unlink):
        change()
        assert steps.current_receipt(tmp_path, step, identity=identity) is None
        assert steps.changed_code(tmp_path, step, identity=identity) == ["mine_of_steps.py"]


@pytest.mark.parametrize("number", [1, 4])
def test_other_plates_under_the_same_tables_are_other_plates(tmp_path: Path, plates: Path, number: int) -> None:
    def simulated(data: Path) -> Receipt | None:
        return steps.current_receipt(tmp_path, steps.plates_step(data=str(data), preset=""), identity={})

    plate, image = "train/U2OS-01/Plate1", f"train/U2OS-01/Plate1/B02_s1_w{number}.png"
    for folder, content in (("mine", "one"), ("others", "another")):
        shutil.copytree(plates, tmp_path / folder)
        (tmp_path / folder / plate).mkdir(parents=True)
        for channel in range(1, 7):
            (tmp_path / folder / plate / f"B02_s1_w{channel}.png").write_text("same")
        (tmp_path / folder / image).write_text(content)
    mine = steps.write_receipt(tmp_path, steps.plates_step(data=str(tmp_path / "mine"), preset=""), identity={}, seconds=0)
    assert len(mine.outputs) == 5
    assert simulated(tmp_path / "mine") == mine
    assert simulated(tmp_path / "others") is None
    (tmp_path / "mine" / image).write_text("retouched")
    assert simulated(tmp_path / "mine") is None


LAYOUTS = ["train/RPE-01/Plate1", "images/RPE-01/Plate2", "train", "test", "images/train", "images/test", "images", "."]  # RxRx1, WILDS, Protein Atlas


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_of_every_layout_are_noticed(tmp_path: Path, layout: str) -> None:
    data = tmp_path / "data"
    (data / layout).mkdir(parents=True)
    for name in ("a_red.png", "b_red.png"):
        (data / layout / name).write_text("red")
    (data / "train.csv").write_text("Id,Target\n")
    if layout.startswith("train/"):
        (data / f"{layout}.tar").write_text("an archive is no folder of images")
    step, digest = steps.plates_step(data="data", preset=""), steps.plates_digest(data)
    receipt = steps.write_receipt(tmp_path, step, identity={}, seconds=0)
    assert {Path(name) for name in receipt.outputs} == {Path("data/train.csv"), Path("data", layout)}
    assert {"train.csv", layout} == steps.placed_digests(receipt).keys()
    assert steps.current_receipt(tmp_path, step, identity={}) == receipt and steps.plates_digest(data) == digest
    (data / layout / "b_red.png").write_text("blue")
    assert steps.altered_outputs(tmp_path, step, identity={}) == [name for name in receipt.outputs if Path(name) == Path("data", layout)]
    assert steps.current_receipt(tmp_path, step, identity={}) is None and steps.plates_digest(data) != digest


def test_a_picture_beside_the_tables_is_no_image_of_plates(tmp_path: Path) -> None:
    (tmp_path / "data/train/RPE-01/Plate1").mkdir(parents=True)
    (tmp_path / "data/train/RPE-01/Plate1/B02_s1_w1.png").write_text("cells")
    receipt = steps.write_receipt(tmp_path, step := steps.plates_step(data="data", preset=""), identity={}, seconds=0)
    (tmp_path / "data/overview.png").write_text("drawn by hand")
    assert steps.current_receipt(tmp_path, step, identity={}) == receipt


@pytest.mark.parametrize("change", [{"outputs": ["a"]}, {"outputs": {"a": 1}}, {"identity": []}, {"complete": 1}, {"details": {"seconds": "9"}}, {"outputs": {"../a": "0" * 64}}, {"outputs": {"/a": "0"}}])
def test_a_receipt_of_another_shape_is_none(tmp_path: Path, change: dict) -> None:
    step = steps.Step("1-eda", outputs=("a",))
    (tmp_path / "a").write_text("a")
    receipt = steps.write_receipt(tmp_path, step, identity={}, seconds=1.0)
    assert steps.read_receipt(tmp_path, step) == receipt
    replace(receipt, **change).write()
    assert steps.read_receipt(tmp_path, step) is None
