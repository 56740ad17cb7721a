"""A prediction in parts: one per experiment, each made wherever there is room, and their scores put together."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cellsignal import files, settings, shapes
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

PARAMETER = "scored"  # of the notebook that scores some experiments alone when it is told so
METADATA = "metadata.json"
# A part decides nothing: whatever the decision is told, it is told the same, and stays as good as it was.
DECISION = {key: settings.field(Recipe, key).default for key in (*(f"assignment.{name}" for name in AssignmentSettings.model_fields), "prediction.prototype_scale")}


def experiment_steps(plan: Sequence[Step], values: Mapping[str, Any]) -> list[Step]:
    """The steps that score one experiment each, for a plan whose prediction can be divided; `values`: the run's parameters."""
    whole = next((step for step in plan if step.notebook and PARAMETER in notebooks.parameter_names(step.notebook)), None)
    return [_piece(whole, plan, experiment, cell_type) for experiment, cell_type in _experiments(values).items()] if whole else []


def with_experiment_steps(plan: Sequence[Step], parts: Sequence[Step]) -> list[Step]:
    """A plan with these parts before the step that puts them together, if it is one that predicts."""
    whole = next((step for step in plan if parts and step.notebook == parts[0].notebook and "stored" not in step.overrides), None)
    if whole is None:
        return list(plan)
    at = list(plan).index(whole)
    return [*plan[:at], *parts, replace(whole, after=tuple(part.name for part in parts)), *plan[at + 1 :]]


def _experiments(values: Mapping[str, Any]) -> dict[str, str]:
    """Cell type by name of the experiments that a prediction scores or, for prototypes, embeds; those with most wells first."""
    chosen = WellSettings(**values["wells"])
    which = {name: values[name] for name in ("run", "preset", "seed")}
    wells = inputs.open_tables(values["data"], **which, experiments=chosen.experiments).wells
    split = split_sites(wells, wells, chosen, seed=values["seed"])
    asked = wells[(split != TRAIN) | (values["prediction"]["prototype_weight"] > 0)]
    named = asked[asked["cell_type"].isin(chosen.cell_types or asked["cell_type"].unique())]
    sizes = named.groupby(["experiment", "cell_type"]).size().sort_values(ascending=False, kind="stable")
    return dict(sizes.index)


def _piece(whole: Step, plan: Sequence[Step], experiment: str, cell_type: str) -> Step:
    networks = [step.name for step in plan if step.name in whole.needs and step.cell_type in (cell_type, ALL)]
    return Step(
        f"{whole.name}@{experiment}",
        needs=("simulate", *networks),
        extras=(f"scores/*/*/{experiment}.parquet",),
        notebook=whole.notebook,
        overrides={**whole.overrides, **DECISION, PARAMETER: [experiment], "wells.cell_types": [cell_type]},
        part=experiment,
    )


def merge_scores(run: Path, came: Path, experiment: str) -> None:
    """Take the scores of an experiment from the run folder `came` of its part: the file of each kind, then the note that vouches for it."""
    for path in sorted(came.glob(f"scores/*/*/{experiment}.parquet")):
        theirs = Receipt.read(path.parent / METADATA, shapes.ScoreDetails)
        target = run / path.relative_to(came)
        ours = read_receipt(target.parent)
        if path.name not in theirs.outputs:
            raise InputError(f"says nothing of {experiment}", where=theirs.path, cure=files.RUN_AGAIN)
        same = all(getattr(ours, kind).get(name) == getattr(theirs, kind).get(name) for kind, name in (("identity", experiment), ("outputs", path.name)))
        if same and target.is_file() and files.sha256(target) == files.sha256(path):
            continue  # a prediction of an earlier run, kept
        with files.atomic_path(target) as temporary:
            shutil.copyfile(path, temporary)
        details = {**theirs.details, "experiments": {**ours.details["experiments"], **theirs.details["experiments"]}}
        Receipt(ours.path, {**ours.identity, **theirs.identity}, {**ours.outputs, **theirs.outputs}, details=details).write()


def seed_cache(run: Path, place: Path, experiment: str) -> None:
    """Copy the scores of an experiment that a run holds to the run folder `place` of its part, which keeps what is still good."""
    for path in run.glob(f"scores/*/*/{experiment}.parquet"):
        target = place / path.parent.relative_to(run)
        target.mkdir(parents=True)
        for name in (path.name, METADATA):
            if (path.parent / name).is_file():
                shutil.copyfile(path.parent / name, target / name)

