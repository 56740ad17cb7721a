"""The steps of a run, in the order in which they start; and a prediction split into one step per experiment."""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cellsignal import files, json_schemas, settings
from cellsignal.data.images import packed_store
from cellsignal.data.settings import WellSettings
from cellsignal.decide.settings import AssignmentSettings
from cellsignal.errors import InputError
from cellsignal.receipts import Receipt
from cellsignal.run import inputs, mounts
from cellsignal.run.chain import notebooks
from cellsignal.run.chain.steps import Step
from cellsignal.run.recipe import ALL, Recipe, ensemble_members, last_weights_name, phase_prefix, pretrained_weights_name
from cellsignal.tasks import TASKS

PACK = "pack"  # the step that packs reduced images, where a recipe asks for it
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
    eda = Step("1-eda", needs=("plates",), extras=("eda/**/*",), notebook=_notebook(kernels, "1-eda"))
    steps = [*trainings, _prediction(trainings, kernels=kernels)]
    if recipe.wells.packed_size:
        steps = [_packing(kernels=kernels), *(replace(step, needs=(*step.needs, PACK)) for step in steps)]
    return [*steps, *[eda] * recipe.machine.html_pages]


def plan_folds(recipe: Recipe, cell_types: Sequence[str], kernels: Path) -> list[Step]:
    """One network per fold, and the decision, in one notebook with the name of the task."""
    networks = [f"fold-{fold}" for fold in range(recipe.wells.folds)]
    return [
        Step(
            recipe.task,
            needs=("plates",),
            outputs=(*(file for name in networks for file in _weights(name, ("model",))), "weights/thresholds.json", "submission.csv", "metrics.json"),
            extras=("scores/**/*", "eda/**/*"),
            notebook=_notebook(kernels, recipe.task),
            checkpoints=tuple(f"weights/{name}/model.checkpoint.json" for name in networks),
        )
    ]


def plan_one_network(recipe: Recipe, cell_types: Sequence[str], kernels: Path) -> list[Step]:
    """One network for all sites, and its scores, in one notebook with the name of the task."""
    inputs.check_one_network(recipe.prediction.statistics, recipe.network.standardise, location=recipe.location)
    return [
        Step(
            recipe.task,
            needs=("plates",),
            outputs=(*_weights(recipe.task, ("model",)), "submission.csv", "metrics.json"),
            extras=("scores/**/*", "eda/**/*", "predictions/*"),
            notebook=_notebook(kernels, recipe.task),
            checkpoints=(f"weights/{recipe.task}/model.checkpoint.json",),
        )
    ]


# By the name of the plan in a task.
PLANS: dict[str, Callable[[Recipe, Sequence[str], Path], list[Step]]] = {
    "by cell type": plan_by_cell_type, "in folds": plan_folds, "one network": plan_one_network,
}


def _packing(*, kernels: Path) -> Step:
    """The reduced images and their tables; the indices are hashed for all pixels, whose checksums they hold."""
    return Step(
        PACK,
        needs=("plates",),
        outputs=(mounts.PACKED_RECEIPT,),
        extras=(f"{mounts.PACKED}/*.csv", f"{mounts.PACKED}/*.json", f"{mounts.PACKED}/**/{packed_store.INDEX}"),
        notebook=_notebook(kernels, PACK),
    )


def _pretraining(cell_type: str, network: str, backbone: str, *, kernels: Path) -> Step:
    """Pretraining of one network on the controls."""
    name = pretrained_weights_name(network)
    return Step(
        f"2-pretrain-controls@{cell_type}{_suffix(network)}",
        needs=("plates",),
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
        needs=("plates", *[pretraining] * pretrained),
        outputs=_weights(cell_type, outputs),
        notebook=_notebook(kernels, "3-train-cell-type"),
        cell_type=cell_type,
        checkpoints=tuple(f"weights/{cell_type}/{name}.checkpoint.json" for name in phases),
        overrides=overrides,
    )


def _prediction(trainings: Sequence[Step], *, kernels: Path) -> Step:
    return Step(
        "4-predict-assign",
        needs=("plates", *(step.name for step in trainings if step.name.startswith("3-"))),
        outputs=("submission.csv", "submission.confidence.csv", "submission.sets.parquet", "metrics.json"),
        extras=("answers.csv", "embeddings.parquet*", "scores/**/*"),
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


# A prediction split into one step per experiment, which may run on different machines, and the merging of their scores.

PARAMETER = "score_only"  # of the notebook that can score some experiments without a decision
METADATA = "metadata.json"
# The parameters of the decision, which an experiment's step does not make: at their defaults they change nothing in its identity.
DECISION_DEFAULTS = {
    key: settings.field(Recipe, key).default
    for key in (*(f"assignment.{name}" for name in AssignmentSettings.model_fields), "prediction.prototype_scale")
}


def experiment_steps(plan: Sequence[Step], values: Mapping[str, Any]) -> list[Step]:
    """The steps that score one experiment each; none for a plan whose prediction cannot be split. `values`: the run's parameters."""
    prediction = next((step for step in plan if step.notebook and PARAMETER in notebooks.parameter_names(step.notebook)), None)
    if prediction is None:
        return []
    return [_experiment_step(prediction, plan, experiment, cell_type) for experiment, cell_type in _experiments(values).items()]


def with_experiment_steps(plan: Sequence[Step], steps: Sequence[Step]) -> list[Step]:
    """A plan with the steps of the experiments before the prediction that needs their scores; unchanged if it does not predict."""
    is_prediction = [bool(steps) and step.notebook == steps[0].notebook and "start_from" not in step.overrides for step in plan]
    if not any(is_prediction):
        return list(plan)
    index = is_prediction.index(True)
    return [*plan[:index], *steps, replace(plan[index], after=tuple(step.name for step in steps)), *plan[index + 1 :]]


def _experiments(values: Mapping[str, Any]) -> dict[str, str]:
    """Cell type by name of the experiments that a prediction scores or, for prototypes, embeds; those with most wells first."""
    from cellsignal.data.tables.splits import TRAIN, split_sites  # here, because few runs split their prediction

    well_settings = WellSettings(**values["wells"])
    options = {name: values[name] for name in ("run", "preset", "seed")}
    wells = inputs.open_tables(values["data"], **options, experiments=well_settings.experiments).wells
    split = split_sites(wells, wells, well_settings, seed=values["seed"])
    chosen = wells[(split != TRAIN) | (values["prediction"]["prototype_weight"] > 0)]
    chosen = chosen[chosen["cell_type"].isin(well_settings.cell_types or chosen["cell_type"].unique())]
    sizes = chosen.groupby(["experiment", "cell_type"]).size().sort_values(ascending=False, kind="stable")
    return dict(sizes.index)


def _experiment_step(prediction: Step, plan: Sequence[Step], experiment: str, cell_type: str) -> Step:
    networks = [step.name for step in plan if step.name in prediction.needs and step.cell_type in (cell_type, ALL)]
    return Step(
        f"{prediction.name}@{experiment}",
        needs=("plates", *networks),
        extras=(f"scores/*/*/{experiment}.parquet",),
        notebook=prediction.notebook,
        overrides={**prediction.overrides, **DECISION_DEFAULTS, PARAMETER: [experiment], "wells.cell_types": [cell_type]},
        experiment=experiment,
    )


def merge_scores(run: Path, experiment_run: Path, experiment: str) -> None:
    """Copy the scores of an experiment from the run folder of its step: the file of each kind, then the receipt that lists it."""
    from cellsignal.decide.scores.cache import read_receipt

    for path in sorted(experiment_run.glob(f"scores/*/*/{experiment}.parquet")):
        source_receipt = Receipt.read(path.parent / METADATA, json_schemas.ScoreDetails)
        target = run / path.relative_to(experiment_run)
        receipt = read_receipt(target.parent)
        if path.name not in source_receipt.outputs:
            raise InputError(f"says nothing of {experiment}", where=source_receipt.path, cure=files.RERUN_STEP)
        same_identity = receipt.identity.get(experiment) == source_receipt.identity.get(experiment)
        same_digest = receipt.outputs.get(path.name) == source_receipt.outputs.get(path.name)
        if same_identity and same_digest and target.is_file() and files.sha256(target) == files.sha256(path):
            continue  # of an earlier run
        with files.atomic_path(target) as temporary:
            shutil.copyfile(path, temporary)
        experiments = {**receipt.details["experiments"], **source_receipt.details["experiments"]}
        Receipt(
            receipt.path, {**receipt.identity, **source_receipt.identity}, {**receipt.outputs, **source_receipt.outputs},
            details={**source_receipt.details, "experiments": experiments},
        ).write()  # fmt: skip


def copy_scores(run: Path, experiment_run: Path, experiment: str) -> None:
    """Copy the scores of an experiment that a run has to the run folder of its step, which keeps those that are still current."""
    for path in run.glob(f"scores/*/*/{experiment}.parquet"):
        target = experiment_run / path.parent.relative_to(run)
        target.mkdir(parents=True)
        for name in (path.name, METADATA):
            if (path.parent / name).is_file():
                shutil.copyfile(path.parent / name, target / name)
