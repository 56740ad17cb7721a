"""What another machine does for a run: it executes one notebook, in the run folder or in a copy of what that needs."""

import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from cellsignal import files
from cellsignal.data import simulated
from cellsignal.errors import InputError, StepFailed, system_error
from cellsignal.run import environment as paths
from cellsignal.run.chain import notebooks, split_prediction, steps
from cellsignal.run.chain.plans import ALL
from cellsignal.run.chain.steps import Step
from cellsignal.run.cluster import shared_storage
from cellsignal.run.cluster.shared_storage import Storage, run_parallel
from cellsignal.run.record import manifest, provenance

ROOM = ".parts"  # in a run folder: the run folders of the parts of a prediction, while they are made
PATIENCE = 3600.0  # seconds to wait for another notebook of this machine that fetches the plates

Told = dict[str, Any]


@dataclass(frozen=True)
class Workspace:
    """Where a notebook works: its run folder, the folder of its plates, and the storage that both came from, if any."""

    folder: Path
    data: Path
    storage: Storage | None = None


def describe_job(step: Step, **more: Any) -> Told:
    """An errand in plain values, to be sent: what the step says, and `run`, `parameters`, `data`, `deadline`, `code` and more."""
    return {
        "step": step.name, "part": step.part, "outputs": list(step.outputs), "extras": list(step.extras),
        "checkpoints": list(step.checkpoints), "stem": step.notebook.stem, "notebook": step.notebook.read_text(encoding="utf-8"),
        **more,
    }  # fmt: skip


def run_job(told: Told) -> dict[str, Any]:
    """Do what `tell` told, on this machine; gives the notebook's receipt and where its files are, or the error in a line.

    Twice done it makes the same files.
    """
    try:
        if told["code"] != provenance.code_digest():
            raise InputError("another version of cellsignal", where=socket.gethostname(), cure="install the same one on every machine")
        with _apart(told) if told["storage"] else _beside(told) as desk:
            return _execute(told, desk)
    except (InputError, StepFailed) as error:
        return {"error": "InputError" if isinstance(error, InputError) else "StepFailed", "text": str(error), "notebook": getattr(error, "notebook", "")}
    except OSError as error:
        return {"error": "StepFailed", "text": f"on {socket.gethostname()}: {system_error(error)}", "notebook": ""}


def draw(function: Callable[[Any], Any], part: Any, *, send: bool) -> tuple[Any, dict[str, bytes]]:
    """Do a part of a work; to `send` the files is for one in the folder that stands last in the part, where nobody else sees that."""
    if not send:
        return function(part), {}
    with tempfile.TemporaryDirectory() as place:
        made = function((*part[:-1], Path(place)))
        pictures = {path.relative_to(place).as_posix(): path.read_bytes() for path in Path(place).rglob("*") if path.is_file()}
    return tuple(part[-1] if each == Path(place) else each for each in made), pictures


@contextmanager
def _beside(told: Told) -> Iterator[Workspace]:
    """In the run folder itself, which this machine sees; a part has a run folder of its own in it, which stays."""
    run = Path(told["run"])
    if not (run / manifest.RUN).is_file():
        cure = "share the folder between the machines, or name a storage that they all reach: --storage URL"
        raise InputError(f"{socket.gethostname()} does not see the run folder", where=run, cure=cure)
    if not told["part"]:
        yield Workspace(run, Path(told["data"]))
        return
    (run / ROOM).mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{told['part']}-", dir=run / ROOM))
    (folder / "weights").symlink_to(run / "weights")
    split_prediction.seed_cache(run, folder, told["part"])
    yield Workspace(folder, Path(told["data"]))


@contextmanager
def _apart(told: Told) -> Iterator[Workspace]:
    """In a folder of this machine, with what the notebook needs from the storage; what it made goes there, when it made it."""
    storage = Storage(told["storage"])
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cellsignal-")))
        storage.get_all(folder, told["taken"])
        shared_storage.download(storage, folder, told["checkpoints"])
        data = Path(told["data"]) if told["data"] else _plates(storage, told["plates"], told["place"])
        stack.enter_context(shared_storage.uploaded_checkpoint(storage, folder, told["checkpoints"]))
        yield Workspace(folder, data, storage)


def _plates(storage: Storage, digest: str, place: str) -> Path:
    """The folder of this machine with the tables, and the images of an experiment or a cell type; what is there is not fetched again."""
    root = Path(tempfile.gettempdir()) / f"cellsignal-{os.getuid()}" / digest / "data"
    root.mkdir(parents=True, exist_ok=True)
    listed = storage.read_receipt(f"data/{digest}.json")
    sizes: Mapping[str, int] = files.shaped(listed.details if listed else {}, dict[str, int], where=storage.url)
    wanted = [name for name in sizes if "/" not in name or place in ("", ALL) or any(_is_of(folder, place) for folder in name.split("/"))]
    with files.locked(root.with_name(".lock"), timeout=PATIENCE):
        places = {name: files.inside(root, name, source=storage.url) for name in wanted}
        absent = [name for name, path in places.items() if not path.is_file() or path.stat().st_size != sizes[name]]
        run_parallel(lambda name: storage.get(f"data/{digest}/{name}", places[name]), absent)
    return root


def _is_of(folder: str, place: str) -> bool:
    """Whether a folder, such as HUVEC-01, is that of an experiment, or of one of a cell type."""
    return place in (folder, folder.rpartition("-")[0])


def _execute(told: Told, desk: Workspace) -> dict[str, Any]:
    """Execute the notebook at a desk, and hand in what it made."""
    parameters = {**told["parameters"], "run": str(desk.folder), "data": str(desk.data)}
    target = desk.folder / f"notebooks/{told['step']}.ipynb"
    with tempfile.TemporaryDirectory() as place:  # an interpreter of this machine, and no other's, is named in it
        notebook = Path(place) / f"{told['stem']}.ipynb"
        files.write_text(notebook, told["notebook"])
        environment = paths.kernel_environment(Path(place), deadline=told["deadline"])
        try:
            notebooks.execute(notebook, target=target, parameters=parameters, environment=environment, stop=Event())
        except (InputError, StepFailed) as error:
            raise _told_at_home(error, told, desk, target) from None
    if told["page"]:
        with simulated.showing(simulated.is_simulated(desk.data)):
            notebooks.write_page(target)
    written = manifest.read(desk.folder, told["stem"] if told["part"] else told["step"])
    return {"receipt": written, "came": str(desk.folder), "files": _hand_in(told, desk, complete=bool(written and written.complete))}


def _told_at_home(error: Exception, told: Told, desk: Workspace, target: Path) -> Exception:
    """The error of a notebook, which names files as they will be called in the run folder; it carries the notebook."""
    same = type(error)(str(error).replace(str(desk.folder), told["run"]))
    same.notebook = target.read_text(encoding="utf-8") if target.is_file() else ""
    return same


def _hand_in(told: Told, desk: Workspace, *, complete: bool) -> dict[str, str]:
    """Store what a notebook made, checkpoints too while it is not complete; SHA-256 by name."""
    if desk.storage is None:
        return {}
    if told["part"]:
        found = [path.relative_to(desk.folder).as_posix() for path in desk.folder.glob("scores/*/*/*")]
        return desk.storage.put_all(desk.folder, found, under=f"parts/{told['part']}/")
    step = Step(told["step"], outputs=tuple(told["outputs"]), extras=tuple(told["extras"]))
    pages = (f"notebooks/{step.name}.ipynb", f"notebooks/{step.name}.html", f"{manifest.FOLDER}/{step.name}.json")
    made = {name for name in (*steps.outputs(desk.folder, step), *pages) if (desk.folder / name).is_file()}
    stored = desk.storage.put_all(desk.folder, made)
    if complete:
        shared_storage.delete(desk.storage, told["checkpoints"])
    else:
        shared_storage.upload(desk.storage, desk.folder, told["checkpoints"])
    return stored
