"""The steps of a run, what each needs and leaves, and when a step is whole."""

import glob
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from cellsignal import code_identity, files, settings
from cellsignal.data.images.folders import entries
from cellsignal.receipts import Receipt
from cellsignal.run.chain import notebooks
from cellsignal.run.chain.notebooks import StepFailed
from cellsignal.run.recipe import shortened
from cellsignal.run.record import manifest

PLATES = ("*/*/Plate*", "images/*/*/Plate*", "train", "test")  # where images may lie in a data set, plate by plate or all together
PAGES = ("[0-9]-*@*.ipynb", "[0-9]-*@*.html")  # of the steps that only some runs have
STAGES = ("weights", "scores", "submission")  # what a run makes, one from the other
PATHS_AND_SPEED = {  # parameters that change no result
    "run", "data", "machine.num_workers", "machine.parallel_notebooks", "machine.num_processes", "machine.gradient_checkpointing",
    "machine.html_pages", "machine.time_budget_minutes",
}  # fmt: skip


class Details(TypedDict):
    """What the receipt of any step says besides."""

    seconds: float


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


def identity(step: Step, *, parameters: Mapping[str, Any], done: Mapping[str, Receipt]) -> dict[str, Any]:
    """All that decides what a step makes: parameters, hashes of what it needs, and the code that it may use.

    `done` holds the receipts of the steps before it. Places are left out, so that a run folder can be moved.
    """
    return {
        "step": step.name,
        "parameters": without_speed(parameters),
        "inputs": {need: sorted(products(done[need]).values()) for need in step.needs},
        "code": step.code,
    }


def current(run: Path, step: Step, *, same: Mapping[str, Any]) -> Receipt | None:
    """The receipt of a step that is whole: same parameters, inputs and code, every file as it was."""
    found = read(run, step)
    if found is None or not found.is_current(same):
        return None
    return found if found.outputs == _hashes(run, [*found.outputs, *outputs(run, step), *step.pages]) else None


def other_code(run: Path, step: Step, *, same: Mapping[str, Any]) -> list[str]:
    """What of the code changed since the step was whole, from these parameters and inputs; nothing where these changed too."""
    found = read(run, step)
    if found is None or {**found.identity, "code": None} != {**same, "code": None}:
        return []
    return code_identity.changed(found.identity.get("code"), same["code"])


def write_receipt(run: Path, step: Step, *, identity: Mapping[str, Any], seconds: float) -> Receipt:
    """Say that a step is whole; the very last thing that is written of it. StepFailed when an output is missing.

    What its notebook said stays among the details.
    """
    missing = [name for name in step.outputs if not (run / name).is_file()]
    if missing:
        raise StepFailed(f"it ended without writing {', '.join(missing)}")
    said = manifest.read(run, step.name) if step.notebook else None
    made, details = (said.outputs, said.details) if said else ((), {})
    hashes = _hashes(run, [*made, *outputs(run, step), *step.pages])
    return Receipt(manifest.place(run, step.name), dict(identity), hashes, details={**details, "seconds": round(seconds, 2)}).write()


def products(receipt: Receipt) -> dict[str, str]:
    """SHA-256 by name of what a step made for others: all but its pages, which tell of times."""
    return {name: digest for name, digest in receipt.outputs.items() if not name.startswith("notebooks/")}


def forget(run: Path, step: Step) -> None:
    """Take back the receipt of a step that is about to run."""
    manifest.place(run, step.name).unlink(missing_ok=True)


def forget_others(run: Path, names: Collection[str]) -> None:
    """Remove the receipts and pages of steps that the chain once had and that `names` no longer holds.

    What they made stays: weights are work that a later run may take up. So do the receipts of notebooks that ran alone.
    """
    pages = [path for pattern in PAGES for path in (run / "notebooks").glob(pattern)]
    written = [path for path in (run / manifest.FOLDER).glob("*.json") if not _alone(Receipt.find(path))]
    for path in [*written, *pages]:
        if path.stem not in names:
            path.unlink(missing_ok=True)


def _alone(receipt: Receipt | None) -> bool:
    """Whether a notebook wrote a receipt, and no chain has taken it for a step's."""
    return receipt is not None and receipt.identity.keys() == {"step"}


def read(run: Path, step: Step) -> Receipt | None:
    """The receipt of a step as it was written, whatever became of the files; None when absent or damaged."""
    found = Receipt.find(manifest.place(run, step.name), Details)
    inside = found is not None and (step.plates or all(map(files.stays_inside, found.outputs)))  # plates may lie anywhere
    return found if inside else None


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
