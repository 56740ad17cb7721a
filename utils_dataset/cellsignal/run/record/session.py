"""A notebook's first and last act: its run folder, what earlier sessions left, its time, its manifest."""

import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cellsignal import code_identity, files, settings
from cellsignal.budget import Budget, TimeSpent
from cellsignal.decide.settings import AssignmentSettings, PredictionSettings
from cellsignal.errors import InputError
from cellsignal.receipts import Receipt
from cellsignal.run import environment, mounts, parameters
from cellsignal.run.chain import steps
from cellsignal.run.recipe import Recipe, keys_read_by_cells
from cellsignal.run.record import manifest, provenance
from cellsignal.run.record.cells import CellWatch, Finished

# A prediction may be made otherwise than the networks were trained; `plain` and further networks have settings of their own.
PREDICTION = {
    "wells.cell_types", "training.ablate_virtual_batch", "machine.device", "network.ensemble", "network.one_network",
    *(f"prediction.{name}" for name in PredictionSettings.model_fields), *(f"assignment.{name}" for name in AssignmentSettings.model_fields),
}  # fmt: skip
OF_OTHERS = {"training.virtual_batch", "training.final_epochs", "network.backbone"}
# A kernel finds its earlier sessions only among its inputs, and cannot tell its own name.
GO_ON = (
    "To go on: add this kernel's own OWNER/SLUG to kernel_sources in its kernel-metadata.json and push it again, or attach "
    "the output of this version in the editor and save another; `cellsignal kaggle push --until-done` does so by itself."
)


@dataclass
class Session:
    """A notebook at work, from `start` to `finish`."""

    step: str  # the notebook's name, such as 1-eda
    folder: Path  # the run folder, absolute, ours while this process lives
    checked: parameters.Checked = field(repr=False)  # the parameters of the notebook
    time_budget: Budget  # counts from the start of the process
    namespace: Mapping[str, Any] = field(repr=False)  # the notebook's variables
    taken_up: dict[str, str] = field(default_factory=dict, repr=False)  # SHA-256 by name of what an attached run made
    began: float = field(default_factory=time.monotonic, repr=False)
    spent: str = ""  # how far the work came when the time was spent

    @property
    def recipe(self) -> Recipe:
        """The parameters of the run: those of the notebook, and the defaults of what it leaves out."""
        return self.checked.recipe

    def resume_folders(self, *parts: str) -> list[Path]:
        """Where attached runs may hold checkpoints: their folders of this name, read-only, those of the same run first."""
        places = [attached.joinpath(*parts) for attached in _attached(self.folder)]
        return [place for place in places if place.is_dir()]

    def finish(self) -> None:
        """Write the notebook's manifest, its last act, and say how things stand."""
        self._write(complete=True)

    def finish_early(self, done: str) -> None:
        """Finish with this cell, since what was `done` is all that was wanted: the cells that follow do nothing."""
        raise Finished(done)

    def end(self, reason: TimeSpent | Finished) -> None:
        """Finish where the work stopped; the results of an earlier run, which are none of this one's, are removed."""
        for name in manifest.RESULTS.get(self.step, ()):
            (self.folder / name).unlink(missing_ok=True)
        self.spent = str(reason) if isinstance(reason, TimeSpent) else ""
        self._write(complete=not self.spent, progress=str(reason))

    def _write(self, *, complete: bool, progress: str = "") -> None:
        seconds = time.monotonic() - self.began
        facts = {"complete": complete, "progress": progress, "seconds": seconds, "taken_up": self.taken_up}
        written = manifest.write(self.folder, self.step, _read(self.checked, self.namespace.get("In", ())), **facts)
        state = "complete" if complete else f"time budget spent: {progress}; another session goes on"
        print(f"{written.identity['step']}: {state}. {_sizes(self.folder)}")
        if not complete and environment.where() == "kaggle" and not environment.under_chain():
            print(GO_ON)


def start(namespace: Mapping[str, Any], step: str) -> Session:
    """Begin a notebook: check its parameters, claim its run folder and take up what attached runs hold.


    Raises InputError when a parameter breaks a rule of the recipe or is unknown, and when an attached run was made with
    other parameters, is damaged, or does not fit the disk.
    """
    if step not in manifest.OUTPUTS:
        raise InputError(f"unknown notebook {step!r}", where="cellsignal.start", cure=f"name one of: {', '.join(manifest.OUTPUTS)}")
    checked = parameters.check(namespace)
    code_identity.notebook.begin(namespace.get("In", ()))
    environment.configure_libraries()
    folder = environment.claim(checked.recipe.run)
    session = Session(step, folder, checked, Budget(environment.deadline(checked.recipe.machine.time_budget_minutes)), namespace)
    mark(folder)
    if not environment.under_chain() and "runs" not in namespace:  # who reads several runs goes on with none of them
        for attached in _attached(folder):
            _check(attached, {**checked.given, **checked.own})
            session.taken_up.update(_take_up(folder, attached, taken=session.taken_up))
    if "get_ipython" in namespace:  # IPython puts it there
        CellWatch(session.end).watch(namespace["get_ipython"]())
    return session


def mark(folder: Path) -> None:
    """Mark a run folder, so that later sessions find it among their inputs."""
    if not (folder / manifest.RUN).is_file():
        files.write_json(folder / manifest.RUN, {"run": environment.short(folder)})


def _read(checked: parameters.Checked, cells: Sequence[str]) -> dict[str, Any]:
    """A notebook's parameters, in groups: the plain ones, its own, and of groups what its cells read."""
    values = settings.flat(checked.recipe.model_dump())
    read = keys_read_by_cells(cells) if cells else set(values)
    own = {name: value for name, value in checked.own.items() if name in manifest.SPECIFIC}
    return settings.nested({key: value for key, value in values.items() if key in read or "." not in key}) | own


def _attached(folder: Path) -> list[Path]:
    """Attached run folders: those of the same name first, then the one that was written last."""
    mine = environment.short(folder)

    def rank(run: Path) -> tuple[bool, float]:
        return _name(run) != mine, -max((each.details["written"] for each in manifest.read_all(run)), default=0.0)

    return sorted((run for run in mounts.runs() if run != folder), key=rank)


def _name(run: Path) -> str | None:
    """The name by which a run marked its folder."""
    marked = files.read_json(run / manifest.RUN)
    return marked.get("run") if isinstance(marked, dict) else None


def _check(attached: Path, ours: Mapping[str, Any]) -> None:
    """Refuse a run that was trained with other parameters."""
    for found in manifest.read_all(attached):
        theirs = settings.flat(found.details["parameters"])
        free = PREDICTION | steps.PATHS_AND_SPEED | set(manifest.SPECIFIC)
        if theirs.get("network_name", "model") != ours.get("network_name", "model"):
            free = free | OF_OTHERS
        key = next((key for key in ours if key in theirs and key not in free and ours[key] != theirs[key]), None)
        if key is not None:
            what = f"{key} is {ours[key]!r} here, and was {theirs[key]!r} in {found.identity['step']} of this attached run"
            raise InputError(what, where=attached, cure="detach it, or set the parameter as it was")


def _take_up(folder: Path, attached: Path, *, taken: Mapping[str, str]) -> dict[str, str]:
    """Copy what a run's manifests list and is not here; SHA-256 by name of all that is here as it was there."""
    wanted = {name: digest for name, digest in _offers(attached) if name not in taken and _holds(attached, name)}
    absent = [name for name in wanted if not (folder / name).exists()]
    _check_room(attached, sum((attached / name).stat().st_size for name in absent))
    for name in absent:
        _copy(attached / name, files.inside(folder, name), digest=wanted[name])
    if absent:
        codes = {each.details["code"] for each in manifest.read_all(attached)}
        note = "" if codes == {provenance.code_digest()} else ", which other code of this package made"
        print(f"took up {len(absent)} files of {attached}{note}")
    return {name: digest for name, digest in wanted.items() if name in absent or files.sha256(folder / name) == digest}


def _offers(attached: Path) -> Iterator[tuple[str, str]]:
    """Names and SHA-256 of what a run's steps made, the last word last, and then of their manifests."""
    found = manifest.read_all(attached)
    for path in sorted((attached / manifest.FOLDER).glob("*.json")):
        written = Receipt.find(path)
        if written is None or ("parameters" in written.details and manifest.read(attached, path.stem) is None):
            print(f"note: {path} is damaged, or of an earlier version; nothing is taken up by its word")
    for each in found:
        yield from each.outputs.items()
    for each in found:
        path = manifest.place(attached, each.identity["step"])
        yield path.relative_to(attached).as_posix(), files.sha256(path)


def _holds(attached: Path, name: str) -> bool:
    """Whether a run has a file of this name, and not a link to one elsewhere."""
    try:
        return files.inside(attached, name).is_file()
    except InputError:
        return False


def _copy(source: Path, target: Path, *, digest: str) -> None:
    with files.atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
        if files.sha256(temporary) != digest:
            raise InputError("not the file that the run's manifest names", where=source, cure="attach the whole output again")


def _check_room(attached: Path, more: int) -> None:
    """Refuse before Kaggle ends the session for want of space."""
    there = _working_bytes()
    if there is not None and there + more > environment.WORKING_BYTES:
        what = f"its {more / 1e9:.1f} GB do not fit beside {there / 1e9:.1f} GB of {environment.WORKING_BYTES / 1e9:.0f} GB"
        raise InputError(what, where=attached, cure="detach it, or remove what you do not need from /kaggle/working")


def _working_bytes() -> int | None:
    """What Kaggle's working folder holds; None elsewhere."""
    return _bytes(_files(environment.base())) if environment.where() == "kaggle" else None


def _files(folder: Path) -> Iterator[Path]:
    return (Path(place) / name for place, _, names in os.walk(folder) for name in names)


def _bytes(found: Iterable[Path]) -> int:
    return sum(path.lstat().st_size for path in found if path.exists())


def _sizes(folder: Path) -> str:
    there = _working_bytes()
    if there is None:
        return f"Run folder: {folder}"
    return f"/kaggle/working holds {there / 1e9:.2f} of {environment.WORKING_BYTES / 1e9:.0f} GB"
