"""A prediction split into one step per experiment, which may run on different machines, and the merging of their scores."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cellsignal import files, json_schemas, settings
from cellsignal.data.settings import WellSettings
from cellsignal.data.tables.splits import TRAIN, split_sites
from cellsignal.decide.scores.cache import read_receipt
from cellsignal.decide.settings import AssignmentSettings
from cellsignal.errors import InputError
from cellsignal.receipts import Receipt
from cellsignal.run import inputs
from cellsignal.run.chain import notebooks
from cellsignal.run.chain.plans import ALL
from cellsignal.run.chain.steps import Step
from cellsignal.run.recipe import Recipe

PARAMETER = "scored"  # of the notebook that can score some experiments without a decision
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
    is_prediction = [bool(steps) and step.notebook == steps[0].notebook and "stored" not in step.overrides for step in plan]
    if not any(is_prediction):
        return list(plan)
    index = is_prediction.index(True)
    return [*plan[:index], *steps, replace(plan[index], after=tuple(step.name for step in steps)), *plan[index + 1 :]]


def _experiments(values: Mapping[str, Any]) -> dict[str, str]:
    """Cell type by name of the experiments that a prediction scores or, for prototypes, embeds; those with most wells first."""
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
        needs=("simulate", *networks),
        extras=(f"scores/*/*/{experiment}.parquet",),
        notebook=prediction.notebook,
        overrides={**prediction.overrides, **DECISION_DEFAULTS, PARAMETER: [experiment], "wells.cell_types": [cell_type]},
        experiment=experiment,
    )


def merge_scores(run: Path, experiment_run: Path, experiment: str) -> None:
    """Copy the scores of an experiment from the run folder of its step: the file of each kind, then the receipt that lists it."""
    for path in sorted(experiment_run.glob(f"scores/*/*/{experiment}.parquet")):
        source_receipt = Receipt.read(path.parent / METADATA, json_schemas.ScoreDetails)
        target = run / path.relative_to(experiment_run)
        receipt = read_receipt(target.parent)
        if path.name not in source_receipt.outputs:
            raise InputError(f"says nothing of {experiment}", where=source_receipt.path, cure=files.RUN_AGAIN)
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
