"""Fetching what a run on Kaggle made: every file against the hash in its step's receipt, then into the run folder."""

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cellsignal import files, settings
from cellsignal.errors import InputError, StepFailed
from cellsignal.kaggle import client, watch
from cellsignal.kaggle.kernel_folders import CHAIN
from cellsignal.kaggle.push_state import PushedKernel, PushState, Status
from cellsignal.receipts import Receipt
from cellsignal.run import environment, mounts
from cellsignal.run.chain import steps
from cellsignal.run.recipe import PATHS_AND_SPEED
from cellsignal.run.record import step_receipts
from cellsignal.tasks import TASKS

PREDICT_STEP, EDA_STEP = "4-predict-assign", "1-eda"  # the step that carries all that it took up, and the one that nobody mounts
LAST_STEPS = (PREDICT_STEP, CHAIN, *TASKS)  # with which a run ends; a task of a single notebook has a step of its own name
PROVENANCE_KEYS = ("cellsignal", "code", "commit", "python", "platform", "image", "libraries")  # of a receipt's details, what made the run
RECEIPT = "pulled.json"  # in a run folder: what was fetched, so that it may be fetched again over itself


@dataclass(frozen=True)
class Pulled:
    """What was fetched."""

    run: Path
    files: int
    receipts: dict[str, Receipt]  # by step
    left_out: str  # the step that is complete, and of other plates; "" for none


def pull(state: PushState, run: Path) -> Pulled:
    """Fetch the outputs of a pushed recipe's last kernel, and of its look at the plates, into the run folder `run`.

    Nothing moves there before the SHA-256 of every file was checked. Raises InputError when nothing complete was
    pushed or `run` holds another run, StepFailed for a file that is missing, damaged or of another run; the same
    call again keeps what was fetched well.
    """
    chosen, left_out = _choose_kernels(state)
    run = Path(os.path.realpath(run))  # where a link leads to: from the folder beside it files can be moved
    _check_target(run)
    working_folder = run.with_name(f".pull-{run.name}")  # stays when we are interrupted, and is gone on with
    with _locked(run):
        fetched = [_fetch(step, pushed, working_folder / f"{step} {pushed.version}") for step, pushed in chosen.items()]
        receipts = {receipt.identity["step"]: receipt for source, _ in fetched for receipt in step_receipts.read_all(source)}
        sources = {name: (source, digest) for source, digests in fetched for name, digest in _digests_to_move(source, digests).items()}
        digests = {name: digest for name, (_, digest) in sources.items()}
        before = Receipt.find(run / RECEIPT)
        earlier = before.outputs if before else {}
        record = Receipt(run / RECEIPT, {step: pushed.version_slug for step, pushed in chosen.items()}, digests)
        replace(record, outputs={**earlier, **digests}, complete=False).write()  # first: whoever is killed from here on may fetch again
        _move(run, {name: source for name, (source, _) in sources.items()})
        _remove_earlier(run, {name: digest for name, digest in earlier.items() if name not in digests})
        record.write()
        if CHAIN not in chosen:  # which leaves these itself
            _describe(run, receipts, last=next(iter(chosen)))
        shutil.rmtree(working_folder)
    return Pulled(run, len(digests), receipts, left_out)


def _choose_kernels(state: PushState) -> tuple[dict[str, PushedKernel], str]:
    """The kernels to fetch from: the one that a run ends with, of several the one pushed last, and the look at the same plates.

    And the look where it is of other plates, because it was pushed before these were chosen; "" where it is not.
    """
    complete = {step: pushed for step, pushed in state.steps.items() if pushed.status is Status.complete}
    last = max((step for step in LAST_STEPS if step in complete), key=lambda step: complete[step].pushed, default=None)
    if last is None:
        states = ", ".join(f"{step} {pushed.status.value}" for step, pushed in state.steps.items()) or "nothing was pushed"
        wanted = next((step for step in LAST_STEPS if step in state.steps), PREDICT_STEP)
        raise InputError(f"{wanted} is not complete ({states})", cure="run `cellsignal kaggle push` until it is")
    if last != PREDICT_STEP or EDA_STEP not in complete:
        return {last: complete[last]}, ""
    look, prediction = complete[EDA_STEP].parameters, complete[last].parameters
    if any(look[key] != prediction[key] for key in look.keys() & prediction.keys() - PATHS_AND_SPEED):  # preset, seed, cell types
        return {last: complete[last]}, EDA_STEP
    return {last: complete[last], EDA_STEP: complete[EDA_STEP]}, ""


def _check_target(run: Path) -> None:
    """Refuse a run folder with work that did not come from Kaggle."""
    existing = [name for name in ("receipts", "weights", "scores", "submission.csv") if (run / name).exists()]
    if existing and not (run / RECEIPT).is_file():
        raise InputError(f"another run's {existing[0]} is there", where=run, cure="add --out with a folder of its own")


@contextmanager
def _locked(run: Path) -> Iterator[None]:
    with files.locked(environment.locks_folder(run) / environment.CHAIN_LOCK, busy_message="a chain works in this folder"):
        yield


def _fetch(step: str, pushed: PushedKernel, folder: Path) -> tuple[Path, dict[str, str]]:
    """Bring a kernel's run folder below `folder`: where it lies, and SHA-256 by name of all that its receipt lists, checked."""
    # Without gigabytes of images, and without names that lead outside, which client 2.2.4 follows.
    client.output(pushed.version_slug, folder, rf"^{re.escape(pushed.run)}/(?!{mounts.PACKED}/)(?!(.*/)?\.\./)", resume=True)
    run = folder / pushed.run
    receipt = step_receipts.read(run, step)
    difference, lack = watch.output_differs(receipt, step, pushed), watch.output_lacks(receipt, pushed)
    if receipt is None or difference or lack:
        shutil.rmtree(folder)
        what = f"the output is of the wrong run: {difference}" if difference else f"it ended {lack}"
        raise StepFailed(f"{step}: {what}; see {pushed.url}")
    digests = {**receipt.details["attached_files"], **receipt.outputs}
    for name, digest in digests.items():
        _check_file(files.inside(run, name, source=pushed.url), digest, doing=f"{step}: {name}")
    return run, digests


def _check_file(path: Path, digest: str, *, doing: str) -> None:
    if not path.is_file():
        raise StepFailed(f"{doing} is missing among the outputs; run the same command again")
    if files.sha256(path) != digest:
        path.unlink()
        raise StepFailed(f"{doing} is not the file that its receipt names; run the same command again")


def _digests_to_move(source: Path, digests: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 by name of what was checked and is there, as a receipt can stand among what was taken up, and of all receipts."""
    names = [path.relative_to(source).as_posix() for path in (source / step_receipts.RECEIPTS_FOLDER).glob("*.json")]
    names += [mounts.RUN_FILE] * (source / mounts.RUN_FILE).is_file()
    return {**{name: digest for name, digest in digests.items() if (source / name).is_file()}, **{name: files.sha256(source / name) for name in names}}


def _move(run: Path, sources: Mapping[str, Path]) -> None:
    """Move files into the run folder; `sources`: where each lies now, by name."""
    for name, source in sources.items():
        target = files.inside(run, name, source=source)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source / name, target)


def _remove_earlier(run: Path, digests: Mapping[str, str]) -> None:
    """Remove what an earlier call brought and this one did not, such as the weights of a cell type that is left out now.

    Files that have changed since are not ours any more, and stay.
    """
    for name, digest in digests.items():
        path = files.inside(run, name, source=run / RECEIPT)
        if path.is_file() and files.sha256(path) == digest:
            path.unlink()
            _remove_empty(path.parents, above=run)


def _remove_empty(folders: Iterable[Path], *, above: Path) -> None:
    for folder in folders:
        if folder == above or any(folder.iterdir()):
            return
        folder.rmdir()


def _describe(run: Path, receipts: Mapping[str, Receipt], *, last: str) -> None:
    """Write recipe.json and seconds.json as a chain would have left them, and the report."""
    from cellsignal.show import report  # Matplotlib is slow to come

    parameters_by_step = [settings.flatten(parameters) for receipt in receipts.values() if (parameters := receipt.details["parameters"]).get("network_name", "model") == "model"]
    values = {key: value for parameters in parameters_by_step for key, value in parameters.items() if key not in step_receipts.NETWORK_PARAMETERS}
    cell_types = {parameters["cell_type"] for parameters in parameters_by_step if "cell_type" in parameters}
    provenance = {name: value for name, value in receipts[last].details.items() if name in PROVENANCE_KEYS}
    if (run / "metrics.json").is_file() and not files.read_json(run / "metrics.json").get("simulated", True):
        values["preset"] = ""  # attached plates won over it
    files.write_json(run / "recipe.json", {"parameters": settings.nest({**values, "wells.cell_types": sorted(cell_types)}), **provenance})
    files.write_json(run / "seconds.json", {step: receipt.details["seconds"] for step, receipt in receipts.items()})
    steps.write_receipt(run, steps.record_step(), identity={}, seconds=0.0)
    report.write_report(run)
