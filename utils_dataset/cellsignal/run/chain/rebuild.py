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
from cellsignal.run.chain.plans import PACK
from cellsignal.run.chain.steps import STAGES, Step
from cellsignal.run.record import step_receipts

STARTING_POINTS = {
    "scratch": "everything is made again",
    "weights": "predicted and decided again; nothing is trained",
    "scores": "decided again; nothing is trained or predicted, and no image is opened",
}
CURES = {"weights": "start --from scratch, or without --from", "scores": "start --from weights, or without --from"}
REBUILD_FILE = "rebuild.json"  # the receipt of a rebuild under way; complete when the files that it replaces are removed
Receipts = dict[str, Receipt]  # by step


def check_starting_point(run: Path, start_from: str) -> None:
    """Raise InputError when the run has no file at all of the stage `start_from`."""
    if start_from in CURES and not any((run / start_from).rglob("*.*")):
        raise InputError(f"no {start_from} to start from", where=run / start_from, cure=CURES[start_from])


def begin_rebuild(run: Path, plan: Sequence[Step], start_from: str, *, values: Mapping[str, Any]) -> tuple[list[Step], Receipts]:
    """The steps of `plan` that run again, after the files that they replace were removed, and the receipts of the steps that do not.

    Prints first what is overwritten. The same rebuild again, with parameters `values` of the same result, goes on where
    it stopped; without `start_from` all steps run that are not complete. Raises InputError, with nothing removed, when a file
    that it starts from is not as its step left it.
    """
    if not start_from:
        end_rebuild(run)
        return list(plan), {}
    rerun = [_with_start(step, start_from) for step in plan if start_from == "scratch" or set(step.stages) - set(_kept_stages(start_from))
             or (step.name == PACK and start_from != "scores")]  # it keeps what is packed; an archive comes without
    identity = {"start_from": start_from, "parameters": steps.without_paths_and_speed(values)}
    rebuild = Receipt.find(run / REBUILD_FILE)
    rebuild = rebuild if rebuild and replace(rebuild, complete=True).is_current(identity) else None
    kept_receipts = _kept_receipts(run, plan, start_from, recorded=_recorded_receipts(run, rebuild))
    if rebuild and rebuild.complete:
        print(f"--from {start_from}: goes on where it stopped", flush=True)
    else:
        for folder in _emptied_folders(start_from, rerun):
            inputs.check_discard(run / folder)
        _print_changes(run, start_from, rerun)
        rebuild = Receipt(run / REBUILD_FILE, identity, complete=False, details={"taken": {name: receipt.fields for name, receipt in kept_receipts.items()}})
        rebuild.write()
        for step in (*rerun, steps.report_step([])):
            steps.remove_receipt(run, step)
        for folder in _emptied_folders(start_from, rerun):
            inputs.discard(run / folder)
        replace(rebuild, complete=True).write()
    names = {step.name for step in rerun}
    return rerun, {name: receipt for name, receipt in kept_receipts.items() if name not in names}


def notes_on_kept_steps(plan: Iterable[Step], kept_receipts: Receipts, *, values: Mapping[str, Any]) -> list[str]:
    """A sentence for each step whose weights or scores a rebuild keeps although they were made with other parameters than the run has now."""
    notes = []
    for step in (step for step in plan if step.stages and step.name in kept_receipts):
        if other := steps.other_parameters(step, kept_receipts[step.name], values):
            differences = ", ".join(f"{key} {recorded!r} instead of {asked!r}" for key, (recorded, asked) in other.items())
            notes.append(f"{step.name} is kept as it was made, with {differences}")
    return notes


def end_rebuild(run: Path) -> None:
    """Remove the receipt of a rebuild, because it is complete or given up."""
    (run / REBUILD_FILE).unlink(missing_ok=True)


def recorded_digests(run: Path) -> dict[str, set[str]]:
    """SHA-256 of a run's files by name, as its receipts record them."""
    digests: dict[str, set[str]] = {}
    for receipt in filter(None, map(Receipt.find, (run / step_receipts.RECEIPTS_FOLDER).glob("*.json"))):
        for name, digest in (*receipt.outputs.items(), *receipt.details.get("attached_files", {}).items()):
            digests.setdefault(name, set()).add(digest)
    return digests


def _kept_stages(start_from: str) -> tuple[str, ...]:
    return STAGES[: STAGES.index(start_from) + 1] if start_from in STAGES else ()


def _with_start(step: Step, start_from: str) -> Step:
    """The step with the parameter `start_from`, if it would otherwise make the files that the rebuild starts from."""
    return replace(step, overrides={**step.overrides, "start_from": start_from}) if start_from in step.stages else step


def _recorded_receipts(run: Path, rebuild: Receipt | None) -> Receipts:
    """The receipts that a rebuild under way has recorded; InputError for a rebuild of another version."""
    try:
        recorded = rebuild.details["taken"] if rebuild else {}
        return {name: Receipt.of(step_receipts.receipt_path(run, name), facts) for name, facts in recorded.items()}
    except (KeyError, AttributeError, ValueError):
        raise InputError("not of this version", where=run / REBUILD_FILE, cure="delete it, and begin again") from None


def _kept_receipts(run: Path, plan: Iterable[Step], start_from: str, *, recorded: Receipts) -> Receipts:
    """The receipts of steps whose files stay, by step, after a check of every file that the rebuild starts from."""
    kept_receipts = {}
    for step in plan if start_from != "scratch" else ():
        missing = Receipt(step_receipts.receipt_path(run, step.name), details={"seconds": 0.0})
        receipt = recorded.get(step.name) or steps.read_receipt(run, step) or missing
        if start_from in step.stages:
            _check_complete(run, step, receipt, start_from, begun=step.name in recorded)
        kept_receipts[step.name] = receipt
    return kept_receipts


def _check_complete(run: Path, step: Step, receipt: Receipt, start_from: str, *, begun: bool) -> None:
    """InputError unless each file of the stage `start_from` is there, and is as the step left it; a rebuild that has begun may have fitted some anew."""
    written = [name for name in receipt.outputs if steps.stage(name) == start_from]
    needed = [name for name in step.outputs if steps.stage(name) == start_from]
    if not receipt.complete or not written or not set(needed) <= set(written):
        if receipt.path.is_file():
            Receipt.read(receipt.path, cure=CURES[start_from])  # raises what is wrong with it
        raise InputError(f"no whole {start_from} of {step.name}", where=run / start_from, cure=CURES[start_from])
    checked = [name for name in written if not (begun and is_fitted(name, written))]
    receipt.check_outputs(run, checked, made_by=step.name, cure=CURES[start_from])


def _print_changes(run: Path, start_from: str, rerun: Sequence[Step]) -> None:
    """Print what a rebuild does, overwrites and keeps."""
    folders = {folder: sum(path.is_file() for path in (run / folder).rglob("*")) for folder in _emptied_folders(start_from, rerun)}
    made = {name for step in rerun for name in (*steps.output_names(run, step), *step.pages)} | {*steps.REPORT_PAGES}
    emptied = {name for name in made if name.split("/")[0] in folders}
    kept_names = {name for name in made if name.split("/")[0] in _kept_stages(start_from) and not is_fitted(name, made)}
    single_files = sorted(name for name in made - emptied - kept_names if (run / name).is_file())
    overwritten = [*(f"{folder}/ ({count} files)" for folder, count in folders.items() if count), *single_files]
    print(f"--from {start_from}: {STARTING_POINTS[start_from]}")
    print(f"may overwrite in {run}: {', '.join(overwritten) or 'nothing, because nothing is there yet'}")
    print(f"keeps: {', '.join(['the plates', *(f'{name}/' for name in _kept_stages(start_from))])}", flush=True)


def is_fitted(name: str, other_names: Collection[str]) -> bool:
    """Whether a file among the weights was fitted by the decision: a JSON file that describes none of the other files."""
    path = PurePosixPath(name)
    return steps.stage(name) == "weights" and path.suffix == ".json" and path.with_suffix(".safetensors").as_posix() not in other_names


def _emptied_folders(start_from: str, rerun: Iterable[Step]) -> list[str]:
    made = {stage for step in rerun for stage in step.stages}
    return [folder for folder in CURES if folder in made and folder not in _kept_stages(start_from)]
