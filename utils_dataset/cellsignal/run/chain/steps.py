"""The steps of a run, what each needs and leaves, and the markers that say a step is whole."""

import glob
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cellsignal import code_identity, files, receipts, settings, shapes
from cellsignal.data.images.folders import entries
from cellsignal.errors import InputError
from cellsignal.run.chain import notebooks
from cellsignal.run.chain.notebooks import StepFailed
from cellsignal.run.recipe import shortened

PLATES = ("*/*/Plate*", "images/*/*/Plate*", "train", "test")  # where images may lie in a data set, plate by plate or all together
PAGES = ("[0-9]-*@*.ipynb", "[0-9]-*@*.html")  # of the steps that only some runs have
STAGES = ("weights", "scores", "submission")  # what a run makes, one from the other
PATHS_AND_SPEED = {  # parameters that change no result
    "run", "data", "machine.num_workers", "machine.parallel_notebooks", "machine.num_processes", "machine.gradient_checkpointing",
    "machine.html_pages", "machine.time_budget_minutes",
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """A notebook, or a function of the package, and the files it leaves in the run folder."""

    name: str
    needs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()  # must be there afterwards
    extras: tuple[str, ...] = ()  # patterns of further files that are hashed with them
    plates: tuple[str, ...] = ()  # patterns of folders whose first image is hashed with them
    notebook: Path | None = None
    cell_type: str = ""
    checkpoints: tuple[str, ...] = ()  # the one written last tells phase, epoch and epochs
    overrides: Mapping[str, Any] = field(default_factory=dict)  # of the run's parameters, by dotted key, by this step
    entry: str = ""  # the import by which a step without notebook starts
    after: tuple[str, ...] = ()  # steps that come before it, and leave nothing that it would not make itself
    part: str = ""  # the experiment, of a step that does a part of another one's work

    @property
    def pages(self) -> tuple[str, ...]:
        """The executed notebook and its HTML, relative to the run folder; a part has none to keep."""
        return tuple(f"notebooks/{self.name}{suffix}" for suffix in (".ipynb", ".html")) if self.notebook and not self.part else ()

    @property
    def apart(self) -> bool:
        """Whether it is worth another machine: it trains, or predicts an experiment."""
        return bool(self.checkpoints or self.part)

    @property
    def makes(self) -> tuple[str, ...]:
        """The stages that its files belong to; none for a step that only looks."""
        return tuple(each for each in STAGES if each in map(stage, (*self.outputs, *self.extras)))

    @property
    def code(self) -> dict[str, str]:
        """The identity of all code that the step may use: its cells, or the import of its function, and the package's rooms."""
        cells = [self.entry] if self.notebook is None else [notebooks.source(cell) for cell in notebooks.code_cells(self.notebook)]
        rooms = set().union(*map(code_identity.rooms_of, cells))
        return {"notebook": code_identity.cells_digest(cells), **(code_identity.package_code(*rooms) if rooms else {})}


def stage(name: str) -> str:
    """What a file in the run folder belongs to: weights, scores, submission; "" for anything else."""
    first = re.split("[/.]", name, maxsplit=1)[0]
    return first if first in STAGES else ""


def simulate(*, data: str, preset: str) -> Step:
    """The plates: made by the virtual microscope when `preset` is set, else taken as they are.

    The tables and the first image of each plate stand for all images, which are too many to hash.
    `data` is relative to the run folder or absolute.
    """
    place = glob.escape(data)
    return Step(
        "simulate",
        extras=(f"{place}/*.csv", f"{place}/*.json"),
        plates=tuple(f"{place}/{pattern}" for pattern in PLATES),
        entry="from cellsignal.data.microscope import simulate" if preset else "",
    )


def report(others: Iterable[Step]) -> Step:
    """The page that links all."""
    needs = tuple(step.name for step in others)
    return Step("report", needs=needs, outputs=("report.html",), entry="from cellsignal.show import report")


def record() -> Step:
    """What a run leaves as a whole, when all its steps are: what it was made with, and what its steps took."""
    return Step("record", outputs=("recipe.json", "seconds.json"))


def parameters(step: Step, values: Mapping[str, Any]) -> dict[str, Any]:
    """What of a run's parameters the step's notebook is given: the names in its own parameters cell, of groups what is not the default."""
    if step.notebook is None:
        return {}
    given = shortened(_given(step, values))
    return {name: given[name] for name in notebooks.parameter_names(step.notebook) if name in given}


def decisive(step: Step, values: Mapping[str, Any]) -> dict[str, Any]:
    """What of a run's parameters the step's notebook reads, by dotted key."""
    read = notebooks.parameters_read(step.notebook) if step.notebook else set()
    return {key: value for key, value in settings.flat(_given(step, values)).items() if key in read}


def _given(step: Step, values: Mapping[str, Any]) -> dict[str, Any]:
    return settings.changed({**values, "cell_type": step.cell_type}, step.overrides)


def without_speed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters by dotted key, but for those that change no result."""
    return {key: value for key, value in settings.flat(values).items() if key not in PATHS_AND_SPEED}


def identity(step: Step, *, parameters: Mapping[str, Any], done: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides what a step makes: parameters, hashes of what it needs, and the code that it may use.

    `done` holds the markers of the steps before it. Places are left out, so that a run folder can be moved.
    """
    return {
        "step": step.name,
        "parameters": without_speed(parameters),
        "inputs": {need: sorted(done[need]["outputs"].values()) for need in step.needs},
        "code": step.code,
    }


def read_marker(run: Path, step: Step, *, same: Mapping[str, Any]) -> dict[str, Any] | None:
    """The marker of a step that is whole: same parameters, inputs and code, every file as it was."""
    marker = read_any(run, step)
    if marker is None or marker["identity"] != same:
        return None
    made = {**marker["outputs"], **marker["pages"]}
    return marker if made == _hashes(run, [*made, *outputs(run, step), *step.pages]) else None


def other_code(run: Path, step: Step, *, same: Mapping[str, Any]) -> list[str]:
    """What of the code changed since the step was whole, from these parameters and inputs; nothing where these changed too."""
    old = (read_any(run, step) or {}).get("identity")
    if not isinstance(old, dict) or {**old, "code": None} != {**same, "code": None}:
        return []
    return code_identity.changed(old.get("code"), same["code"])


def write_marker(run: Path, step: Step, *, identity: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Say that a step is whole; the very last thing that is written of it. StepFailed when an output is missing."""
    missing = [name for name in step.outputs if not (run / name).is_file()]
    if missing:
        raise StepFailed(f"it ended without writing {', '.join(missing)}")
    marker = {
        "identity": dict(identity),
        "outputs": _hashes(run, outputs(run, step)),
        "pages": _hashes(run, step.pages),
        "seconds": round(seconds, 2),
    }
    receipts.write(_place(run, step), marker)
    return marker


def forget(run: Path, step: Step) -> None:
    """Take back the marker of a step that is about to run."""
    _place(run, step).unlink(missing_ok=True)


def forget_others(run: Path, names: Collection[str]) -> None:
    """Remove the markers and pages of steps that the run once had and that `names` no longer holds.

    What they made stays: weights are work that a later run may take up.
    """
    pages = [path for pattern in PAGES for path in (run / "notebooks").glob(pattern)]
    for path in [*(run / "done").glob("*.json"), *pages]:
        if path.stem not in names:
            path.unlink(missing_ok=True)


def _place(run: Path, step: Step) -> Path:
    return run / "done" / f"{step.name}.json"


def read_any(run: Path, step: Step) -> dict[str, Any] | None:
    """A marker as it was written, whatever became of the files; None when absent or damaged."""
    try:
        marker = receipts.read(_place(run, step), shapes.Marker)
    except InputError:
        return None
    outside = step.plates or all(map(files.stays_inside, (*marker["outputs"], *marker["pages"])))  # plates may lie anywhere
    return marker if outside else None


def outputs(run: Path, step: Step) -> list[str]:
    """Names of the files that are a step's outputs now."""
    extras = [name for pattern in step.extras for name in glob.glob(pattern, root_dir=run, recursive=True)]
    plates = [name for pattern in step.plates for name in glob.glob(pattern, root_dir=run)]
    firsts = [_first_image(run, plate) for plate in plates if (run / plate).is_dir()]
    return [*step.outputs, *extras, *filter(None, firsts)]


def _first_image(run: Path, plate: str) -> str:
    """The first image of a plate's folder by name; "" when it has none."""
    name = min((entry.name for entry in entries(run / plate) if entry.name.endswith(".png")), default="")
    return name and f"{plate}/{name}"


def _hashes(run: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 by relative name of those that are files."""
    return {name: files.sha256(run / name) for name in sorted(set(names)) if (run / name).is_file()}
