"""Finished run folders, read for a comparison: what they answered, with which parameters, at what cost."""

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from cellsignal import files, settings, shapes
from cellsignal.data import simulated
from cellsignal.decide.evaluate.answers import ANSWERS_FILE, read_known_answers
from cellsignal.decide.evaluate.compare import RunResult
from cellsignal.errors import InputError
from cellsignal.receipts import Receipt
from cellsignal.run import environment, mounts
from cellsignal.run.chain import rebuild, steps
from cellsignal.run.recipe import Recipe
from cellsignal.run.record import manifest
from cellsignal.run.record.weight_files import count_weights
from cellsignal.tasks import TASKS

FREE = {*steps.PATHS_AND_SPEED, *manifest.SPECIFIC, "seed", "machine.device", "preset"}  # parameters in which runs of one recipe may differ
SCORED = "scores/*/*/metadata.json"  # what tells the device of a prediction
TRAINING, PREDICTION = ("2-", "3-"), "4-predict-assign"


@dataclass(frozen=True)
class FoundRun:
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
    places = _places(runs, here=here)
    found = [_read(place, name) for place, name in zip(places, _names(places))]
    _same_data(found)
    simulated.show(any(each.simulated for each in found))
    chosen = [_select(each, cell_types=cell_types, experiments=experiments) for each in found]
    _same_wells(chosen)
    named = _recipes(chosen)
    return [each.result for each in named], _parameters(named)


def _places(runs: Sequence[str], *, here: Path) -> list[Path]:
    if runs:
        places = [environment.default_run(name) for name in runs]
    else:
        attached = [place for place in mounts.runs() if (place / ANSWERS_FILE).is_file()]
        places = attached or [place for place in sorted(here.parent.glob("*/")) if (place / ANSWERS_FILE).is_file() and place != here]
    twice = next((place for number, place in enumerate(places) if place in places[:number]), None)
    if twice:
        raise InputError("this run is named twice", where=twice, cure="name each run once")
    if len(places) < 2:
        what = f"{len(places)} run{'s' * (len(places) != 1)} with answers, and it takes two to compare"
        raise InputError(what, where="runs", cure=f"name run folders, such as runs/demo, or attach their outputs; each has {ANSWERS_FILE}")
    return places


def _names(places: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths by which the runs can be told apart."""
    for depth in range(1, max(len(place.parts) for place in places) + 1):
        names = ["/".join(place.parts[-depth:]) for place in places]
        if len(set(names)) == len(names):
            return names
    return [str(place) for place in places]


def _read(place: Path, name: str) -> FoundRun:
    if not place.is_dir():
        raise InputError("no such run folder", where=place, cure="name one that `cellsignal run` wrote")
    values = parameters(place)
    if values["task"] not in TASKS:
        raise InputError(f"no task {values['task']!r}", where=place, cure=f"compare runs of {' or '.join(TASKS)}")
    if not (place / ANSWERS_FILE).exists() and TASKS[values["task"]].metric != "accuracy":
        raise InputError("a site has several labels there", where=place, cure="name runs that give each well one siRNA")
    _check(place, [place / ANSWERS_FILE, place / "metrics.json", *(place / name for name in steps.record().outputs), *place.glob(SCORED)])
    answers = read_known_answers(place / ANSWERS_FILE)
    metrics = files.read_json(place / "metrics.json", shapes.Metrics)
    if "data" not in metrics:
        raise InputError("it does not say on which data", where=place / "metrics.json", cure="run 4-predict-assign of that run again")
    _check(place, _networks(place, values))
    seed = values.get("seed", 0)
    result = RunResult(name, name, seed, answers, metrics.get("plate_groups") or [], cost(place, values))
    return FoundRun(result, values, metrics["data"], metrics.get("simulated", simulated.is_simulated(place / "data")))


def _check(run: Path, found: Iterable[Path]) -> None:
    """InputError for the first file that is there and is not as a step of the run, or the run as a whole, left it."""
    vouched = rebuild.all_vouched(run)
    for path in filter(Path.is_file, found):
        digests = vouched.get(path.relative_to(run).as_posix(), ())
        if files.sha256(path) not in digests:
            cure = "run the command or the kernel that writes it again"
            for receipt in sorted((run / manifest.FOLDER).glob("*.json")) if not digests else ():
                Receipt.read(receipt, cure=cure)  # a damaged one may have been about it
            what = "not as the run left it" if digests else "no finished step of the run left it"
            raise InputError(what, where=path, cure=cure)


def parameters(run: Path) -> dict[str, Any]:
    """A run's parameters by dotted key: of its recipe.json, or of the receipts where its kernels ran one by one.

    What it does not tell, because an older version or no kernel of it knew the key, has its default.
    """
    default = settings.flat(Recipe().model_dump())
    if (run / "recipe.json").is_file():
        return default | settings.flat(files.read_json(run / "recipe.json", shapes.Description)["parameters"])
    given = [settings.flat(each.details["parameters"]) for each in manifest.read_all(run)]
    told = [values for values in given if values.get("network_name", "model") == "model"]
    return default | {key: value for values in told for key, value in values.items() if key not in manifest.SPECIFIC}


def cost(run: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """What a run took.

    "weights": learnt numbers in all networks that answered; "training_seconds", "prediction_seconds" and "seconds", all
    steps together, as the chain or else the receipts tell them; "processes" of training, "device" of prediction. None: not known.
    """
    seconds = _seconds(run)
    training = [value for step, value in seconds.items() if step.startswith(TRAINING)]
    return {
        "weights": sum(map(count_weights, _networks(run, values))) or None,
        "training_seconds": sum(training) if training else None,
        "prediction_seconds": seconds.get(PREDICTION),
        "seconds": sum(seconds.values()) if seconds else None,
        "processes": values.get("machine.num_processes") or None,
        "device": _device(run),
    }


def _networks(run: Path, values: Mapping[str, Any]) -> list[Path]:
    """The weights that the last rung rests on: of each cell type, or of the one network for all."""
    folders = [place for place in (run / "weights").glob("*/") if (place.name == "all") == bool(values.get("network.one_network"))]
    wanted = re.compile(rf"{'final' if values.get('training.final_epochs') else 'model'}(-\d+)?\.safetensors")
    return [path for folder in folders for path in sorted(folder.iterdir()) if wanted.fullmatch(path.name)]


def _seconds(run: Path) -> dict[str, float]:
    if (run / "seconds.json").is_file():
        return files.read_json(run / "seconds.json", shapes.Seconds)
    return {each.identity["step"]: each.details["seconds"] for each in manifest.read_all(run)}


def _device(run: Path) -> str | None:
    told = [Receipt.read(path, shapes.ScoreDetails).details.get("device") for path in sorted(run.glob(SCORED))]
    return ", ".join(dict.fromkeys(filter(None, told))) or None


def _same_data(found: Sequence[FoundRun]) -> None:
    """Refuse runs whose plates, or whose true siRNAs, are not the same."""
    first, *others = found
    truth = first.result.answers.set_index("id_code")["sirna"]
    for other in others:
        theirs = other.result.answers.set_index("id_code")["sirna"]
        common = truth.index.intersection(theirs.index)
        if other.data != first.data or not truth[common].eq(theirs[common]).all():
            raise InputError(f"its plates are not those of {first.result.name}", where=other.result.name,
                             cure="compare runs on the same data; simulated plates differ by preset and seed, so set `data` for all of them")
        truth = pd.concat([truth, theirs.drop(common)])


def _select(found: FoundRun, *, cell_types: Collection[str], experiments: Collection[str]) -> FoundRun:
    table = found.result.answers
    for column, wanted in (("cell_type", cell_types), ("experiment", experiments)):
        unknown = sorted(set(wanted) - set(table[column]))
        if unknown:
            raise InputError(f"no answers for {column} {unknown[0]}", where=found.result.name,
                             cure=f"choose from {', '.join(sorted(set(table[column]))) or 'none'}")
        table = table[table[column].isin(list(wanted))] if wanted else table
    return replace(found, result=replace(found.result, answers=table))


def _same_wells(found: Sequence[FoundRun]) -> None:
    """Refuse runs that answered different test wells; held-out ones may differ, since the seed chooses them."""
    splits = [set(each.result.answers["split"]) for each in found]
    if not set.intersection(*splits):
        lacking = next((each.result.name for each, its in zip(found, splits) if not its), found[-1].result.name)
        raise InputError("no answer whose truth is known, of test or of held-out wells as in the other runs", where=lacking,
                         cure="compare runs that held out experiments, or use data with a solution.csv")
    tests = {each.result.name: each.result.answers.loc[each.result.answers["split"] == "test"] for each in found}
    (first, table), *others = tests.items()
    for name, other in others:
        if odd := sorted(set(table["id_code"]) ^ set(other["id_code"])):
            raise InputError(f"{len(odd)} test wells are answered by it or by {first} alone, such as {odd[0]}", where=name,
                             cure="set wells.cell_types or wells.experiments to those that every run has answered")


def _recipes(found: Sequence[FoundRun]) -> list[FoundRun]:
    """The runs with the name of their recipe: what their folders are called without a number for the seed."""
    keys = [_key(each.parameters) for each in found]
    groups = {key: [each.result.name for each, other in zip(found, keys) if other == key] for key in keys}
    short = {key: _without_seed(names) for key, names in groups.items()}
    clash = [name for name in short.values() if list(short.values()).count(name) > 1]
    names = {key: groups[key][0] if short[key] in clash else short[key] for key in groups}
    return [replace(each, result=replace(each.result, recipe=names[key])) for each, key in zip(found, keys)]


def _key(values: Mapping[str, Any]) -> str:
    return json.dumps({key: value for key, value in values.items() if key not in FREE}, sort_keys=True)


def _without_seed(names: Sequence[str]) -> str:
    number = r"[-_. ]?(s|seed)?[-_. ]?\d+$" if len(names) > 1 else r"[-_. ]?seed[-_. ]?\d+$"  # of one alone it may be a part of its name
    stems = {re.sub(number, "", name, flags=re.IGNORECASE) for name in names}
    return stems.pop() if len(stems) == 1 and "" not in stems else names[0]


def _parameters(found: Sequence[FoundRun]) -> pd.DataFrame:
    """The parameters that are not the same in all recipes; what a run does not tell stays empty."""
    recipes = {each.result.recipe: each.parameters for each in reversed(found)}
    recipes = dict(reversed(recipes.items()))
    keys = sorted({key for values in recipes.values() for key in values} - FREE)
    told = {key: {name: str(values.get(key, "")) for name, values in recipes.items()} for key in keys}
    return pd.DataFrame({key: row for key, row in told.items() if len(set(row.values())) > 1}).T.reindex(columns=list(recipes))


# What a run says when it has ended.


def summary(run: Path) -> str:
    """The rungs of a finished run and where its submission and report lie."""
    from cellsignal.decide.evaluate.tables import rungs_table  # pulls in pandas and SciPy

    metrics = files.read_json(run / "metrics.json", shapes.Metrics)
    ladder = rungs_table(metrics)
    text = "no answers are known for these plates, so there is no ladder"
    if len(ladder):
        text = ladder.to_string(float_format="{:.3f}".format, na_rep="")
    if note := metrics.get("statistics_note"):
        text += f"\n\n{note}"
    written = {"submission": run / "submission.csv", "report": run / "report.html"}
    return f"{text}\n\n" + "\n".join(f"{name:11} {path}" for name, path in written.items() if path.is_file())
