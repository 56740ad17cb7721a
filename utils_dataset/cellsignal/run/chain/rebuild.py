"""A finished run made again: from its scores, from its weights, or from scratch, the three ways Kaggle asks of winners.

Kaggle's Winning Model Documentation Guidelines call them very fast prediction, ordinary prediction and retraining.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from cellsignal import receipts, shapes
from cellsignal.errors import InputError
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
NOTE = "rebuild.json"  # there while a rebuild is under way
Marker = dict[str, Any]
Markers = dict[str, Marker]


def check(run: Path, way: str) -> None:
    """Refuse at once a `way` whose beginning is not there at all."""
    if way in INSTEAD and not any((run / way).rglob("*.*")):
        raise InputError(f"no {way} to start from", where=run / way, cure=INSTEAD[way])


def begin(run: Path, plan: Sequence[Step], way: str, *, values: Mapping[str, Any]) -> tuple[list[Step], Markers]:
    """The steps of `plan` that a way runs, after room was made for them, and the markers of those it takes as they are.

    Says first what is overwritten. The same rebuild again, with parameters `values` of the same result, goes on where
    it stopped; without a way all steps run that are not whole. Raises InputError, with nothing removed, when what it
    starts from is not as the steps before left it.
    """
    if not way:
        ended(run)
        return list(plan), {}
    driven = [_told(step, way) for step in plan if way == "scratch" or set(step.makes) - set(_before(way))]
    same = _digest(way, values)
    note = _read_note(run, same)
    taken = _taken(run, plan, way, known=note.get("taken", {}))
    if note.get("cleared"):
        print(f"--from {way}: goes on where it stopped", flush=True)
    else:
        for room in _rooms(way, driven):
            inputs.check_discard(run / room)
        _say(run, way, driven)
        note = {"same": same, "taken": taken, "cleared": False}
        receipts.write(run / NOTE, note)
        _clear(run, way, driven)
        receipts.write(run / NOTE, {**note, "cleared": True})
    names = {step.name for step in driven}
    return driven, {name: marker for name, marker in taken.items() if name not in names}


def ended(run: Path) -> None:
    """Forget a rebuild, because it is whole or given up."""
    (run / NOTE).unlink(missing_ok=True)


def recorded_outputs(run: Path, step: Step) -> Marker | None:
    """What a step says that it made: its marker, or its manifest where a run came without markers; None without both."""
    if (marker := steps.read_any(run, step)) is not None:
        return marker
    written = manifest.read(run, step.name)
    if written is None or not written["complete"]:
        return None
    return {"identity": {}, "outputs": written["outputs"], "pages": {}, "seconds": written.get("seconds", 0.0)}


def all_vouched(run: Path) -> dict[str, set[str]]:
    """SHA-256 of a run's files by name, as its markers and manifests say that they were left."""
    told = [each[what] for each in manifest.read_all(run) for what in ("taken_up", "outputs")]
    told += [marker["outputs"] for path in (run / "done").glob("*.json") if (marker := steps.read_any(run, Step(path.stem)))]
    found: dict[str, set[str]] = {}
    for name, digest in (item for each in told for item in each.items()):
        found.setdefault(name, set()).add(digest)
    return found


def _before(way: str) -> tuple[str, ...]:
    """The stages that a way leaves as they are."""
    return STAGES[: STAGES.index(way) + 1] if way in STAGES else ()


def _told(step: Step, way: str) -> Step:
    """A step that makes what it shall now take as it lies there has to be told so."""
    return replace(step, overrides={**step.overrides, "stored": way}) if way in step.makes else step


def _digest(way: str, values: Mapping[str, Any]) -> str:
    """SHA-256 over a way and the parameters that change a result."""
    return hashlib.sha256(json.dumps([way, steps.without_speed(values)], sort_keys=True).encode()).hexdigest()


def _read_note(run: Path, same: str) -> dict[str, Any]:
    """The note of this very rebuild when it is under way, else nothing."""
    try:
        note = receipts.read(run / NOTE, shapes.Rebuild)
    except InputError:
        return {}
    return note if note["same"] == same else {}


def _taken(run: Path, plan: Iterable[Step], way: str, *, known: Markers) -> Markers:
    """By step, the marker of what a way leaves as it is; every file that it starts from was looked at."""
    found = {}
    for step in plan if way != "scratch" else ():
        marker = known.get(step.name) or recorded_outputs(run, step)
        if way in step.makes and step.name not in known:
            marker = _whole(run, step, marker, way=way)
        found[step.name] = marker or {"identity": {}, "outputs": {}, "pages": {}, "seconds": 0.0}
    return found


def _whole(run: Path, step: Step, marker: Marker | None, *, way: str) -> Marker:
    """A step's marker; InputError unless each file of the stage `way` is there, and is what the step left."""
    left = {name: digest for name, digest in (marker or {"outputs": {}})["outputs"].items() if steps.stage(name) == way}
    wanted = [name for name in step.outputs if steps.stage(name) == way]
    if not left or not set(wanted) <= set(left):
        raise InputError(f"no whole {way} of {step.name}", where=run / way, cure=INSTEAD[way])
    receipts.check(run, left, made_by=step.name, cure=INSTEAD[way])
    return marker


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
        manifest.place(run, step.name).unlink(missing_ok=True)
    for room in _rooms(way, driven):
        inputs.discard(run / room)
