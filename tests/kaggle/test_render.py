"""Rendered kernels: what papermill would have made, nothing of this machine, every key said."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cellsignal import code_identity, files
from cellsignal.errors import InputError
from cellsignal.kaggle import kernel_folders, client
from cellsignal.kaggle.colab import write_links
from cellsignal.kaggle.kernel_folders import PushPlan
from cellsignal.run import environment, recipe

ROOT = Path(__file__).resolve().parents[2]
KEYS = set(json.loads((ROOT / "kernels/1-eda/kernel-metadata.json").read_text()))
Make = Callable[..., PushPlan]


@pytest.fixture
def plan() -> Make:
    """The plan of the tiny recipe with overrides."""

    def made(*overrides: str, **options: object) -> PushPlan:
        checked = recipe.load(ROOT / "papermill_params/tiny.yaml", overrides)
        return kernel_folders.plan_kernels(checked, name="tiny", owner="alice", kernels=environment.kernels_folder(), **options)

    return made


def of(plan: PushPlan, step: str) -> kernel_folders.Kernel:
    return next(kernel for kernel in plan.kernels if kernel.step == step)


def rendered(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The metadata and the notebook of a rendered kernel."""
    described = files.read_json(folder / "kernel-metadata.json")
    return described, files.read_json(folder / described["code_file"])


def test_metadata_say_every_key(plan: Make, tmp_path: Path) -> None:
    tiny = plan()
    for kernel in tiny.kernels:
        described, _ = rendered(kernel_folders.render(tmp_path / kernel.step, tiny, kernel))
        assert set(described) == KEYS
        assert client.check_kernel(tmp_path / kernel.step) == described  # title and slug, the notebook beside it
        assert described["is_private"] is True and described["enable_internet"] is False
        assert (described["enable_gpu"], described["machine_shape"]) == ((True, "NvidiaTeslaT4") if kernel.gpu else (False, ""))
        assert described["kernel_sources"] == [f"alice/{of(tiny, need).slug}" for need in kernel.needs]
        assert described["dataset_sources"] == ["alice/cellsignal-utils"]


def test_another_place_and_other_mounts(plan: Make, tmp_path: Path) -> None:
    tiny = plan()
    kernel = of(tiny, "3-train-cell-type@RPE")
    described, _ = rendered(kernel_folders.render(tmp_path, tiny, kernel, slug=kernel.slug + kernel_folders.SECOND_SLUG_SUFFIX, mounts=["one-b", kernel.slug]))
    assert described["id"] == f"alice/{kernel.slug}-b" and described["kernel_sources"] == ["alice/one-b", f"alice/{kernel.slug}"]
    assert client.check_kernel(tmp_path) == described


def test_a_pushed_kernel_has_no_badge_of_colab(plan: Make, tmp_path: Path) -> None:
    """Wherever the checkout says that it is published."""
    kernel = of(plan(), "1-eda")
    shutil.copytree(ROOT / "kernels", tmp_path / "kernels")
    (tmp_path / "README.md").touch()
    notebook = tmp_path / "kernels/1-eda/1-eda.ipynb"
    write_links(tmp_path, "somebody/cellsignal", "v2")
    assert "colab-badge" in notebook.read_text()
    first = json.loads(kernel_folders.notebook_text(notebook, kernel.parameters))["cells"][0]["source"]
    assert "colab" not in first and first.startswith("# Look at the plates\n\nBefore any training")


def test_parameters_stand_as_papermill_injects_them(plan: Make, tmp_path: Path) -> None:
    tiny = plan('wells.cell_types=[RPE]', "training.learning_rate=1.0e-05")
    kernel = of(tiny, "3-train-cell-type@RPE")
    values = {**kernel.parameters, "experiments": ["RPE-01", 'a "quoted" \\ name'], "preset": "ti\nny {brace} µ"}
    text = kernel_folders.notebook_text(kernel.notebook, values)
    given = yaml.safe_dump(values, allow_unicode=True)
    command = [sys.executable, "-m", "papermill", str(kernel.notebook), str(tmp_path / "theirs.ipynb"), "-y", given, "--prepare-only"]
    subprocess.run(command, check=True, capture_output=True)
    ours, theirs = json.loads(text)["cells"], files.read_json(tmp_path / "theirs.ipynb")["cells"]
    assert [cell["metadata"].get("tags", []) for cell in ours] == [cell["metadata"].get("tags", []) for cell in theirs]
    ran, expected = {}, {}
    place = [cell["metadata"].get("tags") for cell in ours].index(["injected-parameters"])
    exec(ours[place]["source"], ran)
    exec("".join(theirs[place]["source"]), expected)
    assert {name: ran[name] for name in values} == {name: expected[name] for name in values} == values
    assert ["".join(cell["source"]) for cell in ours[:place]] == ["".join(cell["source"]) for cell in theirs[:place]]


def test_a_kernel_that_goes_on_asks_for_its_earlier_self_as_soon_as_it_can(plan: Make, tmp_path: Path) -> None:
    tiny = plan()
    for kernel in (*tiny.kernels, *plan(as_one_kernel=True).kernels):
        described, notebook = rendered(kernel_folders.render(tmp_path / kernel.step, tiny, kernel, resumes=True))
        sources = ["".join(cell["source"]) for cell in notebook["cells"]]
        place = next(number for number, source in enumerate(sources) if "cellsignal.start(" in source)
        assert sources[place + 1] == kernel_folders.expect_cell(kernel.step)
        assert not [source for source in sources[:place] if source.startswith("from cellsignal")]


def test_nothing_of_an_execution_here_remains(plan: Make, tmp_path: Path) -> None:
    kernel = of(plan(), "1-eda")
    executed = files.read_json(kernel.notebook)
    executed["metadata"]["papermill"] = {"input_path": "/home/alice/x.ipynb", "output_path": "/home/alice/y.ipynb"}
    for number, cell in enumerate(executed["cells"]):
        cell["metadata"]["papermill"] = {"start_time": "now"}
        if cell["cell_type"] == "code":
            cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "/home/alice"}]
            cell["execution_count"] = number
    old = {"cell_type": "code", "source": "run = '/home/alice'", "metadata": {"tags": ["injected-parameters"]}, "outputs": [], "execution_count": 2}
    executed["cells"].insert(2, old)
    files.write_json(tmp_path / "x.ipynb", executed)
    text = kernel_folders.notebook_text(tmp_path / "x.ipynb", kernel.parameters)
    assert text == kernel_folders.notebook_text(kernel.notebook, kernel.parameters)
    assert "/home/alice" not in text and json.loads(text)["metadata"]["kernelspec"]["name"] == "python3"


def test_a_notebook_without_a_parameters_cell(tmp_path: Path) -> None:
    files.write_json(tmp_path / "x.ipynb", {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    with pytest.raises(InputError, match="no cell is tagged `parameters`"):
        kernel_folders.notebook_text(tmp_path / "x.ipynb", {})


def test_a_notebook_that_kaggle_would_refuse_for_its_size(plan: Make, tmp_path: Path) -> None:
    tiny = plan()
    kernel = of(tiny, "1-eda")
    big = files.read_json(kernel.notebook)
    big["cells"].append({"cell_type": "markdown", "id": "x", "metadata": {}, "source": "x" * kernel_folders.MAX_NOTEBOOK_BYTES})
    files.write_json(tmp_path / "1-eda.ipynb", big)
    with pytest.raises(InputError, match="more than 700,000 bytes"):
        kernel_folders.render(tmp_path / "out", tiny, replace(kernel, notebook=tmp_path / "1-eda.ipynb"))
    assert not (tmp_path / "out").exists()


def test_an_identity_is_of_all_that_decides_the_result(plan: Make) -> None:
    first = kernel_folders.identities(plan())
    assert kernel_folders.identities(plan("machine.num_workers=3", "machine.parallel_notebooks=1", "machine.time_budget_minutes=5.0")) == first
    seeded = kernel_folders.identities(plan("seed=1"))
    assert not [step for step in first if first[step] == seeded[step]]
    assigned = kernel_folders.identities(plan("assignment.method=exact"))
    assert {step for step in first if first[step] != assigned[step]} == {"4-predict-assign"}
    pretrained = kernel_folders.identities(plan("training.pretrain_epochs=3"))
    assert {step for step in first if first[step] == pretrained[step]} == {"1-eda"}  # all others stand on it
    assert kernel_folders.identities(plan(datasets=["bob/plates"])) != first


def test_the_same_work_has_the_same_parameters_whatever_the_code(plan: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    first, made = kernel_folders.work_identities(plan()), kernel_folders.identities(plan())
    mend(monkeypatch, "learn")
    assert kernel_folders.work_identities(plan("machine.num_workers=3")) == first and kernel_folders.identities(plan()) != made
    assert kernel_folders.work_identities(plan("seed=1")) != first and kernel_folders.work_identities(plan(datasets=["bob/plates"])) != first


def mend(monkeypatch: pytest.MonkeyPatch, room: str) -> None:
    """A room of the package says something else."""
    known = code_identity.package_code
    monkeypatch.setattr(code_identity, "package_code", lambda *rooms: {name: "mended" if name == room else digest for name, digest in known(*rooms).items()})


def test_rooms_that_a_notebook_does_not_use_change_nothing(plan: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    first = kernel_folders.identities(plan())
    for room, steps in (("kaggle", []), ("learn", list(first))):
        with monkeypatch.context() as patched:
            mend(patched, room)
            found = kernel_folders.identities(plan())
            assert [step for step in first if found[step] != first[step]] == steps


def test_the_chain_as_one_kernel_is_of_the_code_of_all_its_notebooks(plan: Make, tmp_path: Path) -> None:
    shutil.copytree(environment.kernels_folder(), tmp_path / "kernels")
    checked = recipe.load(ROOT / "papermill_params/tiny.yaml", [])
    made = [kernel_folders.identities(kernel_folders.plan_kernels(checked, name="tiny", owner="alice", kernels=tmp_path / "kernels", as_one_kernel=True))]
    training = tmp_path / "kernels/3-train-cell-type/3-train-cell-type.ipynb"
    for old, new in (("recipe = session.recipe", "recipe = session.recipe  # as checked"), ("augmentation_grid(train)", "augmentation_grid(held_out)")):
        text = training.read_text()
        assert old in text
        training.write_text(text.replace(old, new))
        made.append(kernel_folders.identities(kernel_folders.plan_kernels(checked, name="tiny", owner="alice", kernels=tmp_path / "kernels", as_one_kernel=True)))
    assert made[0] == made[1] != made[2], "a comment changes nothing"
