"""Finished run folders, read for a comparison: their answers, parameters and cost."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from cellsignal import files, json_schemas, settings
from cellsignal.data import simulated
from cellsignal.decide.evaluate.answers import ANSWERS_FILE, read_known_answers
from cellsignal.errors import InputError
from cellsignal.receipts import Receipt
from cellsignal.run import environment, mounts
from cellsignal.run.chain import rebuild, steps
from cellsignal.run.recipe import PATHS_AND_SPEED, Recipe
from cellsignal.run.record import step_receipts
from cellsignal.tasks import TASKS

if TYPE_CHECKING:
    from cellsignal.decide.evaluate.compare import RunResult

# Parameters in which runs of the same recipe may differ.
FREE_PARAMETERS = {*PATHS_AND_SPEED, *step_receipts.NETWORK_PARAMETERS, "seed", "machine.device", "preset"}
SCORE_RECEIPTS = "scores/*/*/metadata.json"  # they name the device of a prediction
TRAINING, PREDICTION = ("2-", "3-"), "4-predict-assign"
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # of batch normalisation: stored with the weights, and not learnt by steps


@dataclass(frozen=True)
class FinishedRun:
    """A run folder as it was read."""

    result: RunResult
    parameters: dict[str, Any]
    data: str  # digest of the plates' design
    simulated: bool


def read_results(
    runs: Sequence[str] = (), *, here: Path, cell_types: Collection[str] = (), experiments: Collection[str] = ()
) -> tuple[list[RunResult], pd.DataFrame]:
    """The runs, and a table of the parameters in which their recipes differ: one row a parameter, one column a recipe.

    `runs`: folders; none means all that are attached, else all in the folder of `here`, the run folder of the comparison.
    `cell_types`, `experiments`: only their wells, none means all. Runs that differ in nothing but seed, paths and
    speed are one recipe. Raises InputError when there are fewer than two, a run has no answers, or they
    are of different data or of different test wells.
    """
    folders = _run_folders(runs, here=here)
    finished = [_read_run(folder, name) for folder, name in zip(folders, _short_names(folders))]
    _check_same_data(finished)
    simulated.show(any(run.simulated for run in finished))
    chosen = [_select_wells(run, cell_types=cell_types, experiments=experiments) for run in finished]
    _check_same_wells(chosen)
    named = _name_recipes(chosen)
    return [run.result for run in named], _differing_parameters(named)


def _run_folders(runs: Sequence[str], *, here: Path) -> list[Path]:
    if runs:
        folders = [environment.run_folder(name) for name in runs]
    else:
        attached = [folder for folder in mounts.runs() if (folder / ANSWERS_FILE).is_file()]
        folders = attached or [folder for folder in sorted(here.parent.glob("*/")) if (folder / ANSWERS_FILE).is_file() and folder != here]
    duplicate = next((folder for number, folder in enumerate(folders) if folder in folders[:number]), None)
    if duplicate:
        raise InputError("this run is named twice", where=duplicate, cure="name each run once")
    if len(folders) < 2:
        what = f"{len(folders)} run{'s' * (len(folders) != 1)} with answers, and it takes two to compare"
        raise InputError(what, where="runs", cure=f"name run folders, such as runs/demo, or attach their outputs; each has {ANSWERS_FILE}")
    return folders


def _short_names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that are all different."""
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _read_run(folder: Path, name: str) -> FinishedRun:
    if not folder.is_dir():
        raise InputError("no such run folder", where=folder, cure="name one that `cellsignal run` wrote")
    parameters = read_parameters(folder)
    if parameters["task"] not in TASKS:
        raise InputError(f"no task {parameters['task']!r}", where=folder, cure=f"compare runs of {' or '.join(TASKS)}")
    task = TASKS[parameters["task"]]
    if not (folder / ANSWERS_FILE).exists() and task.metric != "accuracy":
        what = "a site has several labels there" if task.labels == "many" else "each site is answered alone there"
        raise InputError(what, where=folder, cure="name runs that give each well one siRNA")
    run_files = (folder / name for name in steps.record_step().outputs)
    check_files(folder, [folder / ANSWERS_FILE, folder / "metrics.json", *run_files, *folder.glob(SCORE_RECEIPTS)])
    answers = read_known_answers(folder / ANSWERS_FILE)
    metrics = files.read_json(folder / "metrics.json", json_schemas.Metrics)
    if "data" not in metrics:
        raise InputError("it does not say on which data", where=folder / "metrics.json", cure="run 4-predict-assign of that run again")
    check_files(folder, _last_weights(folder, parameters))
    seed = parameters.get("seed", 0)
    from cellsignal.decide.evaluate.compare import RunResult  # pulls in SciPy

    result = RunResult(name, name, seed, answers, metrics.get("plate_groups") or [], run_cost(folder, parameters))
    return FinishedRun(result, parameters, metrics["data"], metrics.get("simulated", simulated.is_simulated(folder / "data")))


def check_files(run: Path, paths: Iterable[Path]) -> None:
    """InputError for the first file that is not the one that a step of the run, or the run as a whole, wrote, or that is missing though one did."""
    recorded = rebuild.recorded_digests(run)
    cure = "run the command or the kernel that writes it again"
    for path in paths:
        digests = recorded.get(path.relative_to(run).as_posix(), ())
        if not path.is_file():
            if digests:
                raise InputError("is missing, and the run left it", where=path, cure=cure)
        elif files.sha256(path) not in digests:
            for receipt in sorted((run / step_receipts.RECEIPTS_FOLDER).glob("*.json")) if not digests else ():
                Receipt.read(receipt, cure=cure)  # a damaged one may have listed it
            what = "not as the run left it" if digests else "no finished step of the run left it"
            raise InputError(what, where=path, cure=cure)


def read_parameters(run: Path) -> dict[str, Any]:
    """A run's parameters by dotted key: of its recipe.json, or of the receipts where its kernels ran one by one.

    Those that are missing there, because an older version or no kernel of the run knew the key, have their defaults.
    """
    default = settings.flatten(Recipe().model_dump())
    if (run / "recipe.json").is_file():
        return default | settings.flatten(files.read_json(run / "recipe.json", json_schemas.Description)["parameters"])
    by_notebook = [settings.flatten(receipt.details["parameters"]) for receipt in step_receipts.read_all(run)]
    of_model = [values for values in by_notebook if values.get("network_name", "model") == "model"]
    return default | {key: value for values in of_model for key, value in values.items() if key not in step_receipts.NETWORK_PARAMETERS}


def run_cost(run: Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The cost of a run; None for what is not known.

    "weights": learnt numbers in all networks that answered; "training_seconds", "prediction_seconds" and "seconds", the sum over
    all steps, as the chain or else the receipts record them; "processes" of the training, "device" of the prediction.
    """
    if (run / "seconds.json").is_file():
        seconds = files.read_json(run / "seconds.json", json_schemas.Seconds)
    else:
        seconds = {receipt.identity["step"]: receipt.details["seconds"] for receipt in step_receipts.read_all(run)}
    training = [value for step, value in seconds.items() if step.startswith(TRAINING)]
    devices = [Receipt.read(path, json_schemas.ScoreDetails).details.get("device") for path in sorted(run.glob(SCORE_RECEIPTS))]
    return {
        "weights": sum(map(count_weights, _last_weights(run, parameters))) or None,
        "training_seconds": sum(training) if training else None,
        "prediction_seconds": seconds.get(PREDICTION),
        "seconds": sum(seconds.values()) if seconds else None,
        "processes": parameters.get("machine.num_processes") or None,
        "device": ", ".join(dict.fromkeys(filter(None, devices))) or None,
    }


def _last_weights(run: Path, parameters: Mapping[str, Any]) -> list[Path]:
    """The weights behind the last rung of the ladder: of each cell type, or of the one network for all."""
    folders = [folder for folder in (run / "weights").glob("*/") if (folder.name == "all") == bool(parameters.get("network.one_network"))]
    file_name = re.compile(rf"{'final' if parameters.get('training.final_epochs') else 'model'}(-\d+)?\.safetensors")
    return [path for folder in folders for path in sorted(folder.iterdir()) if file_name.fullmatch(path.name)]


def count_weights(path: Path) -> int:
    """The number of learnt numbers in a safetensors file, without BUFFERS. InputError for a damaged file."""
    from safetensors import SafetensorError, safe_open

    try:
        files.open_regular(path).close()  # a pipe would be waited for
        with safe_open(path, framework="numpy") as tensors:
            return sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys() if not name.endswith(BUFFERS))
    except (SafetensorError, OSError) as error:
        raise InputError(f"is no safetensors file ({error})", where=path, cure="run the training that wrote it again") from None


def _check_same_data(runs: Sequence[FinishedRun]) -> None:
    """Raise InputError for runs whose plates, or whose true siRNAs, are not the same."""
    first, *others = runs
    truth = first.result.answers.set_index("id_code")["sirna"]
    for other in others:
        other_truth = other.result.answers.set_index("id_code")["sirna"]
        common = truth.index.intersection(other_truth.index)
        if other.data != first.data or not truth[common].eq(other_truth[common]).all():
            raise InputError(f"its plates are not those of {first.result.name}", where=other.result.name,
                             cure="compare runs on the same data; simulated plates differ by preset and seed, so set `data` for all of them")
        truth = pd.concat([truth, other_truth.drop(common)])


def _select_wells(run: FinishedRun, *, cell_types: Collection[str], experiments: Collection[str]) -> FinishedRun:
    answers = run.result.answers
    for column, names in (("cell_type", cell_types), ("experiment", experiments)):
        unknown = sorted(set(names) - set(answers[column]))
        if unknown:
            raise InputError(f"no answers for {column} {unknown[0]}", where=run.result.name,
                             cure=f"choose from {', '.join(sorted(set(answers[column]))) or 'none'}")
        answers = answers[answers[column].isin(list(names))] if names else answers
    return replace(run, result=replace(run.result, answers=answers))


def _check_same_wells(runs: Sequence[FinishedRun]) -> None:
    """Raise InputError for runs that answered different test wells; held-out ones may differ, since the seed chooses them."""
    splits = [set(run.result.answers["split"]) for run in runs]
    if not set.intersection(*splits):
        without_answers = next((run.result.name for run, run_splits in zip(runs, splits) if not run_splits), runs[-1].result.name)
        raise InputError("no answer whose truth is known, of test or of held-out wells as in the other runs", where=without_answers,
                         cure="compare runs that held out experiments, or use data with a solution.csv")
    test_answers = {run.result.name: run.result.answers.loc[run.result.answers["split"] == "test"] for run in runs}
    (first, first_answers), *others = test_answers.items()
    for name, answers in others:
        if differing := sorted(set(first_answers["id_code"]) ^ set(answers["id_code"])):
            raise InputError(f"{len(differing)} test wells are answered by it or by {first} alone, such as {differing[0]}", where=name,
                             cure="set wells.cell_types or wells.experiments to those that every run has answered")


def _name_recipes(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """The runs with the name of their recipe: that of their folders without the number of the seed.

    A run whose parameters and seed another one has, as before and after a change of the code, is of a recipe of its own.
    """
    keys, seeds = [], Counter()
    for run in runs:
        parameters = json.dumps({key: value for key, value in run.parameters.items() if key not in FREE_PARAMETERS}, sort_keys=True)
        keys.append((parameters, seeds[parameters, run.result.seed]))
        seeds[parameters, run.result.seed] += 1
    run_names = {key: [run.result.name for run, other in zip(runs, keys) if other == key] for key in keys}
    short_names = {key: _without_seed(names) for key, names in run_names.items()}
    ambiguous = [name for name in short_names.values() if list(short_names.values()).count(name) > 1]
    names = {key: run_names[key][0] if name in ambiguous else name for key, name in short_names.items()}
    return [replace(run, result=replace(run.result, recipe=names[key])) for run, key in zip(runs, keys)]


def _without_seed(names: Sequence[str]) -> str:
    number = r"[-_. ]?(s|seed)?[-_. ]?\d+$" if len(names) > 1 else r"[-_. ]?seed[-_. ]?\d+$"  # of one run alone it may be a part of its name
    stems = {re.sub(number, "", name, flags=re.IGNORECASE) for name in names}
    return stems.pop() if len(stems) == 1 and "" not in stems else names[0]


def _differing_parameters(runs: Sequence[FinishedRun]) -> pd.DataFrame:
    """The parameters that are not the same in all recipes; unknown ones are empty."""
    recipes = {run.result.recipe: run.parameters for run in reversed(runs)}
    recipes = dict(reversed(recipes.items()))
    keys = sorted({key for parameters in recipes.values() for key in parameters} - FREE_PARAMETERS)
    rows = {key: {name: str(parameters.get(key, "")) for name, parameters in recipes.items()} for key in keys}
    return pd.DataFrame({key: row for key, row in rows.items() if len(set(row.values())) > 1}).T.reindex(columns=list(recipes))


def summary(run: Path) -> str:
    """The rungs of a finished run and the paths of its submission and report, as the command line prints them."""
    from cellsignal.decide.evaluate.tables import rungs_table  # pulls in pandas and SciPy

    metrics = files.read_json(run / "metrics.json", json_schemas.Metrics)
    ladder = rungs_table(metrics)
    text = "no answers are known for these plates, so there is no ladder"
    if len(ladder):
        text = ladder.to_string(float_format="{:.3f}".format, na_rep="")
    if note := metrics.get("statistics_note"):
        text += f"\n\n{note}"
    paths = {"submission": run / "submission.csv", "report": run / "report.html", "wells": run / "explore.html"}
    return f"{text}\n\n" + "\n".join(f"{name:11} {path}" for name, path in paths.items() if path.is_file())
