"""What a machine of a cluster does for a run: it executes one notebook, in the run folder or in a copy of the files that it needs."""

import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from cellsignal import files, provenance
from cellsignal.data import simulated
from cellsignal.errors import InputError, StepFailed, system_error
from cellsignal.receipts import Receipt
from cellsignal.run import environment, mounts
from cellsignal.run.chain import notebooks, plans, steps
from cellsignal.run.chain.notebook_server import NotebookServer
from cellsignal.run.chain.steps import Step
from cellsignal.run.cluster import shared_storage
from cellsignal.run.cluster.shared_storage import Storage, run_parallel
from cellsignal.run.recipe import ALL
from cellsignal.run.record import step_receipts

EXPERIMENT_RUNS = ".parts"  # in a run folder: the run folders of the steps of single experiments, while they run
LOCK_SECONDS = 3600.0  # to wait for another notebook of this machine that fetches the plates

JobDescription = dict[str, Any]


@dataclass(frozen=True)
class Workspace:
    """The folders in which a notebook works: its run folder and its plates, and the storage from which both came, if any."""

    run: Path
    data: Path
    storage: Storage | None = None


def describe_job(step: Step, **more: Any) -> JobDescription:
    """A job in plain values, which can be sent: those of the step, and `run`, `parameters`, `data`, `deadline`, `code` and more."""
    return {
        "step": step.name, "experiment": step.experiment, "outputs": list(step.outputs), "extras": list(step.extras),
        "checkpoints": list(step.checkpoints), "stem": step.notebook.stem, "notebook": step.notebook.read_text(encoding="utf-8"),
        **more,
    }  # fmt: skip


def run_job(job: JobDescription) -> dict[str, Any]:
    """Run a job of `describe_job` on this machine; returns the notebook's receipt and where its files are, or the error in a line.

    A repeated call makes the same files.
    """
    try:
        if job["code"] != provenance.code_digest():
            raise InputError("another version of cellsignal", where=socket.gethostname(), cure="install the same one on every machine")
        with _storage_workspace(job) if job["storage"] else _shared_workspace(job) as workspace:
            return _execute(job, workspace)
    except (InputError, StepFailed) as error:
        return {"error": "InputError" if isinstance(error, InputError) else "StepFailed", "text": str(error), "notebook": getattr(error, "notebook", "")}
    except OSError as error:
        return {"error": "StepFailed", "text": f"on {socket.gethostname()}: {system_error(error)}", "notebook": ""}


def run_part(function: Callable[[Any], Any], part: Any, *, send_files: bool) -> tuple[Any, dict[str, bytes]]:
    """The result of `function` for a part, whose last item is the folder that it writes to.

    `send_files`: write to a folder of this machine and return the files, because the others do not see the folder.
    """
    if not send_files:
        return function(part), {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = function((*part[:-1], folder))
        contents = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return tuple(part[-1] if item == folder else item for item in result), contents


@contextmanager
def _shared_workspace(job: JobDescription) -> Iterator[Workspace]:
    """The run folder itself, which this machine sees; a single experiment has a run folder of its own in it, which stays."""
    run = Path(job["run"])
    if not (run / mounts.RUN_FILE).is_file():
        cure = "share the folder between the machines, or name a storage that they all reach: --storage URL"
        raise InputError(f"{socket.gethostname()} does not see the run folder", where=run, cure=cure)
    if not job["experiment"]:
        yield Workspace(run, Path(job["data"]))
        return
    (run / EXPERIMENT_RUNS).mkdir(exist_ok=True)
    experiment_run = Path(tempfile.mkdtemp(prefix=f"{job['experiment']}-", dir=run / EXPERIMENT_RUNS))
    (experiment_run / "weights").symlink_to(run / "weights")
    plans.copy_scores(run, experiment_run, job["experiment"])
    yield Workspace(experiment_run, Path(job["data"]))


@contextmanager
def _storage_workspace(job: JobDescription) -> Iterator[Workspace]:
    """A folder of this machine with the files that the notebook needs from the storage, in which its checkpoints are stored too."""
    storage = Storage(job["storage"])
    with ExitStack() as stack:
        run = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cellsignal-")))
        storage.get_all(run, job["inputs"])
        shared_storage.download_checkpoints(storage, run, job["checkpoints"])
        data = Path(job["data"]) if job["data"] else _fetch_plates(storage, job["plates"], job["images_of"])
        stack.enter_context(shared_storage.uploading_checkpoints(storage, run, job["checkpoints"]))
        yield Workspace(run, data, storage)


def _fetch_plates(storage: Storage, digest: str, images_of: str) -> Path:
    """A folder of this machine with the tables, and the images of an experiment or a cell type; existing files are not fetched again."""
    root = Path(tempfile.gettempdir()) / f"cellsignal-{os.getuid()}" / digest / "data"
    root.mkdir(parents=True, exist_ok=True)
    receipt = storage.read_receipt(f"data/{digest}.json") or Receipt(root)
    sizes: Mapping[str, int] = files.validated(receipt.details, dict[str, int], where=storage.url)
    # A folder such as HUVEC-01 is that of an experiment, and of one of a cell type.
    needed = {name: content for name, content in receipt.outputs.items() if "/" not in name or images_of in ("", ALL)
              or any(images_of in (folder, folder.rpartition("-")[0]) for folder in name.split("/"))}
    with files.locked(root.with_name(".lock"), timeout=LOCK_SECONDS):
        paths = {name: files.inside(root, name, source=storage.url) for name in needed}

        def is_there(name: str) -> bool:  # images by their size, because they are too many to read again for each notebook
            path = paths[name]
            return path.is_file() and (path.stat().st_size == sizes.get(name) if "/" in name else files.sha256(path) == needed[name])

        run_parallel(lambda name: storage.get(f"data/{digest}/{name}", paths[name], digest=needed[name]), [name for name in needed if not is_there(name)])
    return root


def _execute(job: JobDescription, workspace: Workspace) -> dict[str, Any]:
    """Execute the notebook in a workspace, and store what it made."""
    parameters = {**job["parameters"], "run": str(workspace.run), "data": str(workspace.data)}
    target = workspace.run / f"notebooks/{job['step']}.ipynb"
    with tempfile.TemporaryDirectory() as folder:  # with the kernel specification, which names an interpreter of this machine
        notebook = Path(folder) / f"{job['stem']}.ipynb"
        files.write_text(notebook, job["notebook"])
        variables = environment.kernel_environment(Path(folder), deadline=job["deadline"])
        try:
            with NotebookServer(variables) as server:
                notebooks.execute(notebook, target=target, parameters=parameters, server=server, stop=Event())
        except (InputError, StepFailed) as error:
            # The paths as they will be in the run folder; the notebook travels with the error.
            sent = type(error)(str(error).replace(str(workspace.run), job["run"]))
            sent.notebook = target.read_text(encoding="utf-8") if target.is_file() else ""
            raise sent from None
    if job["write_page"]:
        with simulated.showing(simulated.is_simulated(workspace.data)):
            notebooks.write_page(target)
    receipt = step_receipts.read(workspace.run, job["stem"] if job["experiment"] else job["step"])
    stored = _store_outputs(job, workspace, complete=bool(receipt and receipt.complete))
    return {"receipt": receipt, "run": str(workspace.run), "files": stored}


def _store_outputs(job: JobDescription, workspace: Workspace, *, complete: bool) -> dict[str, str]:
    """Store what a notebook made, and its checkpoints unless it is complete; SHA-256 by name."""
    storage, run = workspace.storage, workspace.run
    if storage is None:
        return {}
    if job["experiment"]:
        names = [path.relative_to(run).as_posix() for path in run.glob("scores/*/*/*")]
        return storage.put_all(run, names, under=f"parts/{job['experiment']}/")
    step = Step(job["step"], outputs=tuple(job["outputs"]), extras=tuple(job["extras"]))
    pages = (f"notebooks/{step.name}.ipynb", f"notebooks/{step.name}.html", f"{step_receipts.RECEIPTS_FOLDER}/{step.name}.json")
    made = {name for name in (*steps.output_names(run, step), *pages) if (run / name).is_file()}
    stored = storage.put_all(run, made)
    if complete:
        shared_storage.delete_checkpoints(storage, job["checkpoints"])
    else:
        shared_storage.upload_checkpoints(storage, run, job["checkpoints"])
    return stored
