"""Fetching what a run on Kaggle made: every file against the hash in its step's receipt, then into the run folder."""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cellsignal import files, settings
from cellsignal.errors import InputError, StepFailed
from cellsignal.kaggle import client, watch
from cellsignal.kaggle.kernel_folders import CHAIN
from cellsignal.kaggle.push_state import PushedKernel, PushState, Status
from cellsignal.receipts import Receipt
from cellsignal.run import environment, mounts
from cellsignal.run.chain import steps
from cellsignal.run.record import step_receipts

PREDICT_STEP, EDA_STEP = "4-predict-assign", "1-eda"  # the step that carries all that it took up, and the one that nobody mounts
PROVENANCE_KEYS = ("cellsignal", "code", "commit", "python", "platform", "image", "libraries")  # of a receipt's details, what made the run
RECEIPT = "pulled.json"  # in a run folder: what was fetched, so that it may be fetched again over itself


@dataclass(frozen=True)
class Pulled:
    """What was fetched."""

    run: Path
    files: int
    receipts: dict[str, Receipt]  # by step


def pull(state: PushState, run: Path) -> Pulled:
    """Fetch the outputs of a pushed recipe's last kernel, and of its look at the plates, into the run folder `run`.

    Nothing moves there before the SHA-256 of every file was checked. Raises InputError when nothing complete was
    pushed or `run` holds another run, StepFailed for a file that is missing, damaged or of another run; the same
    call again keeps what was fetched well.
    """
    chosen = _choose_kernels(state)
    _check_target(run)
    working_folder = run.with_name(f".pull-{run.name}")  # stays when we are interrupted, and is gone on with
    with _locked(run):
        fetched = [_fetch(step, pushed, working_folder / f"{step} {pushed.version}") for step, pushed in chosen.items()]
        receipts = {receipt.identity["step"]: receipt for source, _ in fetched for receipt in step_receipts.read_all(source)}
        moved_files = {name for source, digests in fetched for name in _move(source, run, digests)}
        Receipt(run / RECEIPT, {step: pushed.version_slug for step, pushed in chosen.items()}).write()
        if CHAIN not in chosen:  # which leaves these itself
            _describe(run, receipts)
        shutil.rmtree(working_folder)
    return Pulled(run, len(moved_files), receipts)


def _choose_kernels(state: PushState) -> dict[str, PushedKernel]:
    """The kernels to fetch from: of the whole chain or of its last step, whichever was pushed last."""
    complete = {step: pushed for step, pushed in state.steps.items() if pushed.status is Status.complete}
    last = max((step for step in (PREDICT_STEP, CHAIN) if step in complete), key=lambda step: complete[step].pushed, default=None)
    if last is None:
        states = ", ".join(f"{step} {pushed.status.value}" for step, pushed in state.steps.items()) or "nothing was pushed"
        raise InputError(f"{PREDICT_STEP} is not complete ({states})", cure="run `cellsignal kaggle push` until it is")
    return {step: complete[step] for step in ((last, EDA_STEP) if last == PREDICT_STEP else (CHAIN,)) if step in complete}


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
    client.output(pushed.version_slug, folder, f"^{re.escape(pushed.run)}/(?!{mounts.PACKED}/)", resume=True)  # without gigabytes of images
    run = folder / pushed.run
    receipt = step_receipts.read(run, step)
    fault = watch.output_differs(receipt, step, pushed)
    if receipt is None or fault:
        shutil.rmtree(folder)
        raise StepFailed(f"{step}: the output is of the wrong run: {fault}; see {pushed.url}")
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


def _move(source: Path, run: Path, digests: Mapping[str, str]) -> Iterator[str]:
    """Move what was checked, and the receipts; gives the names."""
    receipts = [path.relative_to(source).as_posix() for path in (source / step_receipts.RECEIPTS_FOLDER).glob("*.json")]
    for name in [*digests, *receipts, *[mounts.RUN_FILE] * (source / mounts.RUN_FILE).is_file()]:
        if (source / name).is_file():  # a receipt can stand among what was taken up
            target = files.inside(run, name, source=source)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source / name, target)
            yield name


def _describe(run: Path, receipts: Mapping[str, Receipt]) -> None:
    """Write recipe.json and seconds.json as a chain would have left them, and the report."""
    from cellsignal.show import report  # Matplotlib is slow to come

    parameters_by_step = [settings.flatten(parameters) for receipt in receipts.values() if (parameters := receipt.details["parameters"]).get("network_name", "model") == "model"]
    values = {key: value for parameters in parameters_by_step for key, value in parameters.items() if key not in step_receipts.NETWORK_PARAMETERS}
    cell_types = {parameters["cell_type"] for parameters in parameters_by_step if "cell_type" in parameters}
    provenance = {name: value for name, value in receipts[PREDICT_STEP].details.items() if name in PROVENANCE_KEYS}
    if (run / "metrics.json").is_file() and not files.read_json(run / "metrics.json").get("simulated", True):
        values["preset"] = ""  # attached plates won over it
    files.write_json(run / "recipe.json", {"parameters": settings.nest({**values, "wells.cell_types": sorted(cell_types)}), **provenance})
    files.write_json(run / "seconds.json", {step: receipt.details["seconds"] for step, receipt in receipts.items()})
    steps.write_receipt(run, steps.record_step(), identity={}, seconds=0.0)
    report.write_report(run)
