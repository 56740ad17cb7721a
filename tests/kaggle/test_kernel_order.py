"""The kernels of a recipe: which there are, what they are called, what they mount."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cellsignal.errors import InputError
from cellsignal.kaggle import kernel_folders
from cellsignal.kaggle.kernel_folders import PushPlan
from cellsignal.learn.settings import TrainingSettings
from cellsignal.run import environment, recipe

ROOT = Path(__file__).resolve().parents[2]
Make = Callable[..., PushPlan]


@pytest.fixture
def plan() -> Make:
    """plan("tiny", "-p", …, datasets=…): the plan of one of the bundle's recipes, called by its own name or another."""

    def made(name: str, *overrides: str, called: str = "", **options: object) -> PushPlan:
        checked = recipe.load(ROOT / f"papermill_params/{name}.yaml", overrides)
        return kernel_folders.plan_kernels(checked, name=called or name, owner="alice", kernels=environment.kernels_folder(), **options)

    return made


def test_one_kernel_a_step_behind_those_it_needs(plan: Make) -> None:
    tiny = plan("tiny")
    assert {kernel.step: kernel.needs for kernel in tiny.kernels} == {
        "2-pretrain-controls@HUVEC": (),
        "3-train-cell-type@HUVEC": ("2-pretrain-controls@HUVEC",),
        "2-pretrain-controls@RPE": (),
        "3-train-cell-type@RPE": ("2-pretrain-controls@RPE",),
        "4-predict-assign": ("3-train-cell-type@HUVEC", "3-train-cell-type@RPE"),
        "1-eda": (),
    }
    assert [kernel.step for kernel in tiny.kernels if not kernel.gpu] == ["1-eda"]
    before: set[str] = set()
    for kernel in tiny.kernels:
        assert set(kernel.needs) <= before
        before.add(kernel.step)


def test_parameters_are_the_recipe_s_and_the_step_s(plan: Make) -> None:
    kernels = {kernel.step: kernel for kernel in plan("brodt-small").kernels}
    trained, plain = (kernels[f"3-train-cell-type@HUVEC{suffix}"].parameters for suffix in ("", "+plain"))
    assert trained["run"] == plain["run"] == "runs/brodt-small" and trained["data"] == ""
    shown = {"virtual_batch": TrainingSettings().virtual_batch}
    assert (trained["cell_type"], trained["network_name"], {**shown, **trained["training"]}["virtual_batch"]) == ("HUVEC", "model", 32)
    assert (plain["cell_type"], plain["network_name"], {**shown, **plain["training"]}["virtual_batch"]) == ("HUVEC", "plain", 0)
    assert set(kernels["4-predict-assign"].needs) == {"3-train-cell-type@HUVEC", "3-train-cell-type@HUVEC+plain"}


def test_a_competition_that_is_attached_wins_over_the_preset(plan: Make) -> None:
    tiny, attached = plan("tiny"), plan("tiny", competition=True)
    assert (tiny.competitions, attached.competitions) == ((), ("recursion-cellular-image-classification",))
    assert {kernel.parameters["preset"] for kernel in tiny.kernels} == {"tiny"}
    assert {kernel.parameters["preset"] for kernel in attached.kernels} == {""}
    assert {kernel.cell_type for kernel in attached.kernels} == {"", "HEPG2", "HUVEC", "RPE", "U2OS"}


def test_another_task_has_its_own_kernel_and_competition(plan: Make) -> None:
    atlas = plan("protein-atlas", "preset=", "wells.folds=2")
    assert [(kernel.step, kernel.gpu) for kernel in atlas.kernels] == [("protein-atlas", True)]
    assert atlas.competitions == ("human-protein-atlas-image-classification",)
    assert atlas.kernels[0].parameters["task"] == "protein-atlas" and "weights/fold-1/model.safetensors" in atlas.kernels[0].outputs
    with pytest.raises(InputError, match="^-p assignment.plate_groups=false: assignment.plate_groups is False, and no step of the task protein-atlas reads it; leave it out$"):
        plan("protein-atlas", "assignment.plate_groups=false")
    with pytest.raises(InputError, match="unknown preset 'demo'; use one of: atlas-demo, atlas-tiny"):
        plan("protein-atlas", "preset=demo")


def test_a_benchmark_mounts_the_user_s_data_set_and_no_competition(plan: Make) -> None:
    wilds = plan("wilds-adapted", datasets=["bob/wilds-rxrx1"])
    assert [(kernel.step, kernel.gpu) for kernel in wilds.kernels] == [("rxrx1-wilds", True)]
    assert (wilds.competitions, wilds.datasets[1:]) == ((), ("bob/wilds-rxrx1",))
    for options in ({}, {"competition": True}):
        with pytest.raises(InputError, match="task rxrx1-wilds are those of no competition; upload them as a data set and add --dataset OWNER/SLUG"):
            plan("wilds-adapted", **options)
    with pytest.raises(InputError, match="unknown preset 'tiny'"):
        plan("wilds-adapted", "preset=tiny")


def test_the_competition_is_attached_only_where_its_plates_are_wanted(plan: Make) -> None:
    assert plan("brodt").competitions == ("recursion-cellular-image-classification",)
    assert [kernel.cell_type for kernel in plan("brodt").kernels if kernel.step.startswith("3-")] == ["HUVEC", "HEPG2", "RPE", "U2OS"]
    assert plan("tiny").competitions == ()
    own = plan("brodt-128", datasets=["bob/plates"])
    assert own.competitions == () and own.datasets == ("alice/cellsignal-utils", "bob/plates")
    assert own.kernels[0].parameters["data"] == ""  # found by its sentinel, wherever it is mounted
    assert plan("brodt", datasets=["bob/plates"]).competitions == ()  # whose rules not everybody has accepted
    assert plan("brodt", datasets=["bob/weights"], competition=True).competitions == ("recursion-cellular-image-classification",)


def test_a_mounted_folder_of_plates_is_named_to_the_kernels(plan: Make) -> None:
    """Where two data sets with plates are attached."""
    place = "/kaggle/input/datasets/bob/plates/second"
    for kernel in plan("brodt", f"data={place}", "wells.cell_types=[U2OS]", datasets=["bob/plates"]).kernels:
        assert kernel.parameters["data"] == place


def test_a_recipe_for_the_cpu_asks_for_no_gpu(plan: Make) -> None:
    assert not [kernel for kernel in plan("tiny", "machine.device=cpu").kernels if kernel.gpu]


def test_the_whole_chain_is_one_kernel(plan: Make) -> None:
    [chain] = plan("tiny", as_one_kernel=True).kernels
    assert (chain.step, chain.needs, chain.gpu) == ("0-chain", (), True)
    assert chain.parameters["training"]["epochs"] == 2 and chain.parameters["preset"] == "tiny"


@pytest.mark.parametrize(
    "only, cell_type, steps",
    [
        ("3", "", ["3-train-cell-type@HUVEC", "3-train-cell-type@RPE"]),
        ("3-train-cell-type", "RPE", ["3-train-cell-type@RPE"]),
        ("3-train-cell-type@HUVEC", "", ["3-train-cell-type@HUVEC"]),
        ("", "RPE", ["2-pretrain-controls@RPE", "3-train-cell-type@RPE"]),
        ("1", "", ["1-eda"]),
    ],
)
def test_part_of_a_plan(plan: Make, only: str, cell_type: str, steps: list[str]) -> None:
    assert [kernel.step for kernel in kernel_folders.choose_kernels(plan("tiny"), only=only, cell_type=cell_type)] == steps


@pytest.mark.parametrize("only, cell_type", [("5", ""), ("3-train", ""), ("4", "RPE"), ("", "U2OS")])
def test_no_such_step(plan: Make, only: str, cell_type: str) -> None:
    with pytest.raises(InputError, match="no such step; choose from 2-pretrain-controls@HUVEC, "):
        kernel_folders.choose_kernels(plan("tiny"), only=only, cell_type=cell_type)


def test_experiments_choose_cell_types(plan: Make) -> None:
    steps = [kernel.step for kernel in plan("brodt", "wells.experiments=[U2OS-01, HUVEC-01, HUVEC-20]").kernels]
    assert [step for step in steps if step.startswith("2-")] == ["2-pretrain-controls@HUVEC", "2-pretrain-controls@U2OS"]


@pytest.mark.parametrize(
    "name, overrides, words",
    [
        ("real-small", [], "data: Kaggle cannot see the folder runs/real-small/data; upload it as a data set and add --dataset"),
        ("tiny", ["run=/kaggle/working/x"], "run: '/kaggle/working/x' is no folder below"),
        ("tiny", ["run=../x"], "run: '../x' is no folder below"),
        ("brodt", ["machine.time_budget_minutes=691"], "time_budget_minutes: 691 minutes, and Kaggle ends a session after 12 hours; write 690 or less"),
        ("tiny", ["preset=huge"], "preset: unknown preset 'huge'; use one of: demo"),
        ("tiny", ["wells.cell_types=[U2OS]"], "cell_types: no cell type U2OS; choose from HUVEC, RPE"),
        ("brodt", ["wells.cell_types=[MCF7]"], "cell_types: no cell type MCF7; choose from HUVEC, HEPG2"),
        ("brodt", ["wells.cell_types=[U2OS]", "wells.experiments=[HUVEC-01]"], "experiments: no experiment of U2OS is named"),
    ],
)
def test_what_cannot_run_on_kaggle(plan: Make, name: str, overrides: list[str], words: str) -> None:
    with pytest.raises(InputError) as refused:
        plan(name, *overrides)
    assert words in str(refused.value)


@pytest.mark.parametrize("name", ["plates", "a/b/c", "a/b c", "", "/x"])
def test_a_data_set_has_an_owner_and_a_slug(plan: Make, name: str) -> None:
    with pytest.raises(InputError, match="write OWNER/SLUG"):
        plan("tiny", datasets=[name])


NAMES = ["tiny", "Brodt, full size (2nd try)", "a-very-long-recipe-name-that-nobody-types-twice", "größer", "実験", "x" * 300]


@pytest.mark.parametrize("called", NAMES)
def test_slugs_are_what_kaggle_takes_and_leave_room_for_a_second_place(plan: Make, called: str) -> None:
    kernels = plan("brodt", "training.ablate_virtual_batch=true", called=called).kernels
    slugs = [kernel.slug for kernel in kernels]
    assert all(re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", slug) and 5 <= len(slug + kernel_folders.SECOND_SLUG_SUFFIX) <= 50 for slug in slugs)
    assert len({slug for slug in slugs}) == len(kernels)
    for kernel in kernels:  # the step is never cut
        assert kernel.slug.endswith("-" + re.sub("[^a-z0-9]+", "-", kernel.step.lower()))


def test_recipes_whose_names_are_cut_stay_apart() -> None:
    step = "3-train-cell-type@HUVEC+plain"
    assert kernel_folders.slug("brodt-small-1", step) != kernel_folders.slug("brodt-small-2", step)
    assert kernel_folders.slug("tiny", "1-eda") == "cellsignal-tiny-1-eda"


@pytest.mark.parametrize("one, other", [("a_b", "a-b"), ("実験", "測定"), ("größer", "grosser"), ("b\udcffd", "bd")])
def test_recipes_whose_names_have_other_letters_than_a_slug_stay_apart(one: str, other: str) -> None:
    assert kernel_folders.slug(one, "1-eda") != kernel_folders.slug(other, "1-eda")


def test_two_cell_types_that_kaggle_would_take_for_one(plan: Make) -> None:
    with pytest.raises(InputError, match=r"^wells.cell_types: .*@HeLa and .*@HeLa\+ would have one name on Kaggle, cellsignal-brodt-.*-hela; rename one"):
        plan("brodt", "wells.cell_types=[HeLa, HeLa+]", datasets=["alice/plates"])


def test_attached_plates_may_have_any_cell_types(plan: Make) -> None:
    kernels = plan("brodt", "wells.cell_types=[HeLa]", datasets=["alice/plates"]).kernels
    assert {kernel.cell_type for kernel in kernels} == {"", "HeLa"}
    with pytest.raises(InputError, match="no cell type HeLa; choose from HUVEC"):
        plan("brodt", "wells.cell_types=[HeLa]")


def test_a_run_folder_that_the_session_would_refuse(plan: Make) -> None:
    checked = recipe.load(ROOT / "papermill_params/tiny.yaml").model_copy(update={"run": "runs/b\udcffd"})
    with pytest.raises(InputError, match="is no name in UTF-8, as notebooks need it; rename"):
        kernel_folders.plan_kernels(checked, name="tiny", owner="alice", kernels=environment.kernels_folder())


def test_a_cell_type_with_too_long_a_name() -> None:
    with pytest.raises(InputError, match="too long for Kaggle; shorten the name of the cell type"):
        kernel_folders.slug("tiny", f"3-train-cell-type@{'X' * 30}")
