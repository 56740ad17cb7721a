"""A finished run made again: from its scores, from its weights, or from scratch, the three ways Kaggle asks of winners.

Kaggle's Winning Model Documentation Guidelines call them very fast prediction, ordinary prediction and retraining.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from cellsignal.errors import InputError
from cellsignal.receipts import Receipt
from cellsignal.run import inputs
from cellsignal.run.chain import steps
from cellsignal.run.chain.steps import STAGES, Step
from cellsignal.run.record import manifest

WAYS = {
    "scratch": "everything is made again",
    "weights": "predicted and decided again; nothing is trained",
    "scores": "decided again; nothing is trained or predicted, and no image is opened",
}
INSTEAD = {"weights": "start --from scratch, or without --from", "scores": "start --from weights, or without --from"}
NOTE = "rebuild.json"  # there while a rebuild is under way; complete when there is room for it
Receipts = dict[str, Receipt]  # by step


def check(run: Path, way: str) -> None:
    """Refuse at once a `way` whose beginning is not there at all."""
    if way in INSTEAD and not any((run / way).rglob("*.*")):
        raise InputError(f"no {way} to start from", where=run / way, cure=INSTEAD[way])


def begin(run: Path, plan: Sequence[Step], way: str, *, values: Mapping[str, Any]) -> tuple[list[Step], Receipts]:
    """The steps of `plan` that a way runs, after room was made for them, and the receipts of those it takes as they are.

    Says first what is overwritten. The same rebuild again, with parameters `values` of the same result, goes on where
    it stopped; without a way all steps run that are not whole. Raises InputError, with nothing removed, when what it
    starts from is not as the steps before left it.
    """
    if not way:
        ended(run)
        return list(plan), {}
    driven = [_told(step, way) for step in plan if way == "scratch" or set(step.makes) - set(_before(way))]
    same = {"way": way, "parameters": steps.without_speed(values)}
    note = Receipt.find(run / NOTE)
    note = note if note and replace(note, complete=True).is_current(same) else None
    taken = _taken(run, plan, way, known=_noted(run, note))
    if note and note.complete:
        print(f"--from {way}: goes on where it stopped", flush=True)
    else:
        for room in _rooms(way, driven):
            inputs.check_discard(run / room)
        _say(run, way, driven)
        note = Receipt(run / NOTE, same, complete=False, details={"taken": {name: receipt.facts for name, receipt in taken.items()}})
        note.write()
        _clear(run, way, driven)
        replace(note, complete=True).write()
    names = {step.name for step in driven}
    return driven, {name: receipt for name, receipt in taken.items() if name not in names}


def ended(run: Path) -> None:
    """Forget a rebuild, because it is whole or given up."""
    (run / NOTE).unlink(missing_ok=True)


def all_vouched(run: Path) -> dict[str, set[str]]:
    """SHA-256 of a run's files by name, as its receipts say that they were left."""
    found: dict[str, set[str]] = {}
    for receipt in filter(None, map(Receipt.find, (run / manifest.FOLDER).glob("*.json"))):
        for name, digest in (*receipt.outputs.items(), *receipt.details.get("taken_up", {}).items()):
            found.setdefault(name, set()).add(digest)
    return found


def _before(way: str) -> tuple[str, ...]:
    """The stages that a way leaves as they are."""
    return STAGES[: STAGES.index(way) + 1] if way in STAGES else ()


def _told(step: Step, way: str) -> Step:
    """A step that makes what it shall now take as it lies there has to be told so."""
    return replace(step, overrides={**step.overrides, "stored": way}) if way in step.makes else step


def _noted(run: Path, note: Receipt | None) -> Receipts:
    """The receipts of a note; InputError for one that another version wrote."""
    try:
        return {name: Receipt.of(manifest.place(run, name), facts) for name, facts in (note.details["taken"] if note else {}).items()}
    except (KeyError, AttributeError, ValueError):
        raise InputError("not of this version", where=run / NOTE, cure="delete it, and begin again") from None


def _taken(run: Path, plan: Iterable[Step], way: str, *, known: Receipts) -> Receipts:
    """By step, the receipt of what a way leaves as it is; every file that it starts from was looked at."""
    found = {}
    for step in plan if way != "scratch" else ():
        receipt = known.get(step.name) or steps.read(run, step) or Receipt(manifest.place(run, step.name), details={"seconds": 0.0})
        if way in step.makes and step.name not in known:
            _check_whole(run, step, receipt, way=way)
        found[step.name] = receipt
    return found


def _check_whole(run: Path, step: Step, receipt: Receipt, *, way: str) -> None:
    """InputError unless each file of the stage `way` is there, and is what the step left."""
    left = [name for name in receipt.outputs if steps.stage(name) == way]
    wanted = [name for name in step.outputs if steps.stage(name) == way]
    if not receipt.complete or not left or not set(wanted) <= set(left):
        if receipt.path.is_file():
            Receipt.read(receipt.path, cure=INSTEAD[way])  # which says what is wrong with it
        raise InputError(f"no whole {way} of {step.name}", where=run / way, cure=INSTEAD[way])
    receipt.check_outputs(run, left, made_by=step.name, cure=INSTEAD[way])


def _say(run: Path, way: str, driven: Sequence[Step]) -> None:
    """What a way does, overwrites and keeps, in words."""
    rooms = {room: sum(path.is_file() for path in (run / room).rglob("*")) for room in _rooms(way, driven)}
    made = {name for step in driven for name in (*steps.outputs(run, step), *step.pages)} | {"report.html"}
    emptied = {name for name in made if name.split("/")[0] in rooms}
    kept = {name for name in made if name.split("/")[0] in _before(way) and not is_fitted(name, made)}
    singles = sorted(name for name in made - emptied - kept if (run / name).is_file())
    told = [*(f"{room}/ ({count} files)" for room, count in rooms.items() if count), *singles]
    print(f"--from {way}: {WAYS[way]}")
    print(f"overwrites in {run}: {', '.join(told) or 'nothing, because nothing is there yet'}")
    print(f"keeps: {', '.join(['the plates', *(f'{stage}/' for stage in _before(way))])}", flush=True)


def is_fitted(name: str, others: Collection[str]) -> bool:
    """Whether a file among the weights was fitted by the decision: it is JSON, and describes none of the `others`."""
    path = PurePosixPath(name)
    return steps.stage(name) == "weights" and path.suffix == ".json" and path.with_suffix(".safetensors").as_posix() not in others


def _rooms(way: str, driven: Iterable[Step]) -> list[str]:
    """The folders that a way empties."""
    made = {stage for step in driven for stage in step.makes}
    return [room for room in INSTEAD if room in made and room not in _before(way)]


def _clear(run: Path, way: str, driven: Sequence[Step]) -> None:
    """Empty folders, and take back the word of the steps that make them."""
    for step in (*driven, steps.report([])):
        steps.forget(run, step)
    for room in _rooms(way, driven):
        inputs.discard(run / room)
