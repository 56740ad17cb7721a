"""The steps of a run, in the order in which they start."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from cellsignal import settings
from cellsignal.errors import InputError
from cellsignal.run.chain import notebooks
from cellsignal.run.chain.steps import Step
from cellsignal.run.network_names import ensemble_members, last_weights_name, phase_prefix, pretrained_weights_name
from cellsignal.run.recipe import Recipe
from cellsignal.tasks import TASKS

ALL = "all"  # the cell type of a network that serves all of them
READ_BY_CHAIN = {  # parameters that the chain itself reads
    "task", "data", "preset", "run", "seed", "machine.parallel_notebooks", "machine.html_pages", "machine.time_budget_minutes",
}  # fmt: skip


def check(recipe: Recipe, *, kernels: Path) -> None:
    """Raise InputError for a parameter that is set and that no step of the recipe's plan reads, such as one of another task.

    Defaults are accepted, because a file may name every parameter, and so are 0 and empty values, which ask for nothing.
    """
    steps = plan(recipe, [ALL], kernels=kernels)
    read = READ_BY_CHAIN.union(*(notebooks.parameters_read(path) for path in {step.notebook for step in steps if step.notebook}))
    for key, value in settings.flatten(recipe.model_dump()).items():
        if key not in read and value != settings.field(type(recipe), key).default and (value or value is False):
            what = f"{key} is {value!r}, and no step of the task {recipe.task} reads it"
            raise InputError(what, where=recipe.location(key), cure="leave it out")


def plan(recipe: Recipe, cell_types: Sequence[str], *, kernels: Path) -> list[Step]:
    """Every notebook step of a run, by the plan of its task. InputError when a notebook is missing."""
    return PLANS[TASKS[recipe.task].plan](recipe, cell_types, kernels)


def plan_by_cell_type(recipe: Recipe, cell_types: Sequence[str], kernels: Path) -> list[Step]:
    """One network per cell type, or one for all of them, then one prediction.

    A cell type's training follows its pretraining; with `cell_types` in order of size the slots stay busy to the
    end. EDA comes last, for slots that no training needs.
    """
    network, training = recipe.network, recipe.training
    trained_types = [ALL] if network.one_network else cell_types
    pretrained, final, networks = training.pretrain_epochs > 0, training.final_epochs > 0, ensemble_members(network.backbone, network.ensemble)
    trainings: list[Step] = []
    for cell_type in trained_types:
        for name, backbone in networks.items():
            trainings += [_pretraining(cell_type, name, backbone, kernels=kernels)] * pretrained
        for name, backbone in networks.items():
            trainings.append(_member_training(cell_type, name, backbone, pretrained=pretrained, final=final, kernels=kernels))
        if training.ablate_virtual_batch:
            trainings.append(_plain_training(cell_type, pretrained=pretrained, kernels=kernels))
    if not network.one_network:  # a network depends on its own cell type only
        trainings = [replace(step, overrides={**step.overrides, "wells.cell_types": []}) for step in trainings]
    eda = Step("1-eda", needs=("simulate",), extras=("eda/**/*",), notebook=_notebook(kernels, "1-eda"))
    return [*trainings, _prediction(trainings, kernels=kernels), *[eda] * recipe.machine.html_pages]


def plan_folds(recipe: Recipe, cell_types: Sequence[str], kernels: Path) -> list[Step]:
    """One network per fold, and the decision, in one notebook with the name of the task."""
    networks = [f"fold-{fold}" for fold in range(recipe.wells.folds)]
    return [
        Step(
            recipe.task,
            needs=("simulate",),
            outputs=(*(file for name in networks for file in _weights(name, ("model",))), "weights/thresholds.json", "submission.csv", "metrics.json"),
            extras=("scores/**/*", "eda/**/*"),
            notebook=_notebook(kernels, recipe.task),
            checkpoints=tuple(f"weights/{name}/model.checkpoint.json" for name in networks),
        )
    ]


# By the name of the plan in a task.
PLANS: dict[str, Callable[[Recipe, Sequence[str], Path], list[Step]]] = {"by cell type": plan_by_cell_type, "in folds": plan_folds}


def _pretraining(cell_type: str, network: str, backbone: str, *, kernels: Path) -> Step:
    """Pretraining of one network on the controls."""
    name = pretrained_weights_name(network)
    return Step(
        f"2-pretrain-controls@{cell_type}{_suffix(network)}",
        needs=("simulate",),
        outputs=_weights(cell_type, (name,)),
        notebook=_notebook(kernels, "2-pretrain-controls"),
        cell_type=cell_type,
        checkpoints=(f"weights/{cell_type}/{name}.checkpoint.json",),
        overrides=_member_overrides(network, backbone),
    )


def _member_training(cell_type: str, network: str, backbone: str, *, pretrained: bool, final: bool, kernels: Path) -> Step:
    """Training of one member of the ensemble, with `final` also on all labelled wells."""
    outputs = (network, *[last_weights_name(network, final=True)] * final)
    overrides = _member_overrides(network, backbone)
    return _training(cell_type, network, pretrained=pretrained, outputs=outputs, overrides=overrides, kernels=kernels)


def _plain_training(cell_type: str, *, pretrained: bool, kernels: Path) -> Step:
    """Training of a second network, without the virtual batch, for a rung of the ladder."""
    overrides = {"network_name": "plain", "training.virtual_batch": 0, "training.ablate_virtual_batch": False, "training.final_epochs": 0}
    return _training(cell_type, "plain", pretrained=pretrained, outputs=("plain",), overrides=overrides, kernels=kernels)


def _training(
    cell_type: str, network: str, *, pretrained: bool, outputs: Sequence[str], overrides: dict[str, object], kernels: Path
) -> Step:
    pretraining = f"2-pretrain-controls@{cell_type}{_suffix('model' if network == 'plain' else network)}"
    phases = [network, *(f"{phase_prefix(network)}{phase}" for phase in ("head", "final"))]
    return Step(
        f"3-train-cell-type@{cell_type}{_suffix(network)}",
        needs=("simulate", *[pretraining] * pretrained),
        outputs=_weights(cell_type, outputs),
        notebook=_notebook(kernels, "3-train-cell-type"),
        cell_type=cell_type,
        checkpoints=tuple(f"weights/{cell_type}/{name}.checkpoint.json" for name in phases),
        overrides=overrides,
    )


def _prediction(trainings: Sequence[Step], *, kernels: Path) -> Step:
    return Step(
        "4-predict-assign",
        needs=("simulate", *(step.name for step in trainings if step.name.startswith("3-"))),
        outputs=("submission.csv", "submission.confidence.csv", "metrics.json"),
        extras=("answers.csv", "scores/**/*"),
        notebook=_notebook(kernels, "4-predict-assign"),
    )


def _member_overrides(network: str, backbone: str) -> dict[str, object]:
    """The parameters in which a member of the ensemble differs from `model`."""
    return {"network_name": network, **({} if network == "model" else {"network.backbone": backbone})}


def _suffix(network: str) -> str:
    return "" if network == "model" else f"+{network}"


def _weights(cell_type: str, names: Iterable[str]) -> tuple[str, ...]:
    stems = [f"weights/{cell_type}/{name}" for name in names]
    return tuple(f"{stem}{suffix}" for stem in stems for suffix in (".safetensors", ".json"))


def _notebook(kernels: Path, name: str) -> Path:
    path = kernels / name / f"{name}.ipynb"
    if not path.is_file():
        raise InputError("no such notebook", where=path, cure="restore the folder `kernels` of the bundle")
    return path
