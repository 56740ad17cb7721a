"""Which steps a run has, in the order in which free slots take them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from cellsignal import settings
from cellsignal.errors import InputError
from cellsignal.run.chain import notebooks
from cellsignal.run.chain.steps import Step
from cellsignal.run.members import last_name, members, prefix, pretrained_name
from cellsignal.run.recipe import Recipe
from cellsignal.tasks import TASKS

ALL = "all"  # the cell type of a network that serves all of them
# Whatever the notebooks read.
READ_BY_CHAIN = {
    "task", "data", "preset", "run", "seed", "machine.parallel_notebooks", "machine.html_pages", "machine.time_budget_minutes",
}  # fmt: skip


def check(recipe: Recipe, *, kernels: Path) -> None:
    """Refuse a parameter that is set and that no step of the recipe's plan reads, such as one of another task.

    The default is accepted, because a file may name every parameter, and so is what asks for nothing (0, no text, no names).
    """
    steps = plan(recipe, [ALL], kernels=kernels)
    read = READ_BY_CHAIN.union(*(notebooks.parameters_read(path) for path in {step.notebook for step in steps if step.notebook}))
    for key, value in settings.flat(recipe.model_dump()).items():
        if key not in read and value != settings.field(type(recipe), key).default and (value or value is False):
            what = f"{key} is {value!r}, and no step of the task {recipe.task} reads it"
            raise InputError(what, where=recipe.place(key), cure="leave it out")


def plan(recipe: Recipe, cell_types: Sequence[str], *, kernels: Path) -> list[Step]:
    """Every notebook step of a run; the task says by which plan. InputError when a notebook is missing."""
    return PLANS[TASKS[recipe.task].plan](recipe, cell_types, kernels)


def plan_by_cell_type(recipe: Recipe, cell_types: Sequence[str], kernels: Path) -> list[Step]:
    """Networks per cell type, or one for all of them, then one prediction.

    A cell type's training follows its pretraining; `cell_types` in order of size keeps all slots busy to the
    end. EDA comes last and so fills slots that no training wants.
    """
    network, training = recipe.network, recipe.training
    trained = [ALL] if network.one_network else cell_types
    pretrained, final, networks = training.pretrain_epochs > 0, training.final_epochs > 0, members(network.backbone, network.ensemble)
    trainings = []
    for cell_type in trained:
        for name, backbone in networks.items():
            trainings += [_pretraining(cell_type, name, backbone, kernels=kernels)] * pretrained
        for name, backbone in networks.items():
            trainings.append(_training(cell_type, name, backbone, pretrained=pretrained, final=final, kernels=kernels))
        if training.ablate_virtual_batch:
            trainings.append(_plain(cell_type, pretrained=pretrained, kernels=kernels))
    if not network.one_network:  # one network each: which others there are does not count
        trainings = [replace(step, overrides={**step.overrides, "wells.cell_types": []}) for step in trainings]
    eda = Step("1-eda", needs=("simulate",), extras=("eda/**/*",), notebook=_notebook(kernels, "1-eda"))
    return [*trainings, _prediction(trainings, kernels=kernels), *[eda] * recipe.machine.html_pages]


def plan_folds(recipe: Recipe, cell_types: Sequence[str], kernels: Path) -> list[Step]:
    """A network per fold, and the decision, in one notebook that is called as the task is."""
    networks = [f"fold-{fold}" for fold in range(recipe.wells.folds)]
    return [
        Step(
            recipe.task,
            needs=("simulate",),
            outputs=(*(f for name in networks for f in _weights(name, ("model",))), "weights/thresholds.json", "submission.csv", "metrics.json"),
            extras=("scores/**/*", "eda/**/*"),
            notebook=_notebook(kernels, recipe.task),
            checkpoints=tuple(f"weights/{name}/model.checkpoint.json" for name in networks),
        )
    ]


# By the plan that a task names.
PLANS: dict[str, Callable[[Recipe, Sequence[str], Path], list[Step]]] = {"by cell type": plan_by_cell_type, "in folds": plan_folds}


def _pretraining(cell_type: str, network: str, backbone: str, *, kernels: Path) -> Step:
    """Pretraining of one network on the controls."""
    name = pretrained_name(network)
    return Step(
        f"2-pretrain-controls@{cell_type}{_suffix(network)}",
        needs=("simulate",),
        outputs=_weights(cell_type, (name,)),
        notebook=_notebook(kernels, "2-pretrain-controls"),
        cell_type=cell_type,
        checkpoints=(f"weights/{cell_type}/{name}.checkpoint.json",),
        overrides=_own(network, backbone),
    )


def _training(cell_type: str, network: str, backbone: str, *, pretrained: bool, final: bool, kernels: Path) -> Step:
    """Training of one network, which also leaves the weights of its last epochs on all labelled wells."""
    outputs = (network, *[last_name(network, final=True)] * final)
    overrides = _own(network, backbone)
    return _trained(cell_type, network, pretrained=pretrained, outputs=outputs, overrides=overrides, kernels=kernels)


def _plain(cell_type: str, *, pretrained: bool, kernels: Path) -> Step:
    """A second network, without the virtual batch, for its rung of the ladder."""
    overrides = {"network_name": "plain", "training.virtual_batch": 0, "training.ablate_virtual_batch": False, "training.final_epochs": 0}
    return _trained(cell_type, "plain", pretrained=pretrained, outputs=("plain",), overrides=overrides, kernels=kernels)


def _trained(
    cell_type: str, network: str, *, pretrained: bool, outputs: Sequence[str], overrides: dict[str, object], kernels: Path
) -> Step:
    phases = [network, *(f"{prefix(network)}{phase}" for phase in ("head", "final"))]
    return Step(
        f"3-train-cell-type@{cell_type}{_suffix(network)}",
        needs=("simulate", *[_before(cell_type, network)] * pretrained),
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


def _own(network: str, backbone: str) -> dict[str, object]:
    """What sets a member of the ensemble apart from `model`."""
    return {"network_name": network, **({} if network == "model" else {"network.backbone": backbone})}


def _before(cell_type: str, network: str) -> str:
    """The pretraining that a training goes on from."""
    return f"2-pretrain-controls@{cell_type}{_suffix('model' if network == 'plain' else network)}"


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
