"""The steps of a run: what each needs and leaves, the identity of what it makes, and its receipt."""

import glob
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from typing_extensions import NotRequired, TypedDict  # pydantic needs this one before Python 3.12

from cellsignal import code_identity, files, settings
from cellsignal.receipts import Receipt
from cellsignal.run import environment
from cellsignal.run.chain import notebooks
from cellsignal.run.chain.notebooks import StepFailed
from cellsignal.run.recipe import PATHS_AND_SPEED, without_defaults
from cellsignal.run.record import step_receipts

# Where images may lie in a data set, plate by plate or all together, if not beside the tables.
IMAGE_FOLDERS = ("*/*/Plate*", "images/*/*/Plate*", "train", "test", "images/train", "images/test", "images")
OPTIONAL_PAGES = ("[0-9]-*@*.ipynb", "[0-9]-*@*.html")  # of the steps that only some runs have
REPORT_PAGES = ("report.html", "explore.html")  # the second only where wells have answers
PRETRAINED = "network.pretrained"  # the parameter that may name a file
STAGES = ("weights", "scores", "submission")  # what a run makes, one from the other
# Of a step's parameters: from where a rebuild began, and what recipe.json says as it was resolved.
_FREE_PARAMETERS = {"start_from", "preset", "wells.cell_types"}


class StepDetails(TypedDict):
    """The details that the receipt of every step has."""

    seconds: float
    user_modules: NotRequired[dict[str, str]]  # digests by file: the chain, which imports none of them, cannot find them by the cells


@dataclass(frozen=True)
class Step:
    """A notebook, or a function of the package, and the files it leaves in the run folder."""

    name: str
    needs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()  # must be there afterwards
    extras: tuple[str, ...] = ()  # patterns of further files that are hashed with them
    image_root: str = ""  # of a data set, whose folders of images are fingerprinted with the outputs
    notebook: Path | None = None
    cell_type: str = ""
    checkpoints: tuple[str, ...] = ()  # the one written last tells phase, epoch and epochs
    overrides: Mapping[str, Any] = field(default_factory=dict)  # what the step changes in the run's parameters, by dotted key
    import_line: str = ""  # of the function of a step without notebook
    after: tuple[str, ...] = ()  # steps that come before it although it could do without their outputs
    experiment: str = ""  # of a step that scores one experiment of a prediction

    @property
    def pages(self) -> tuple[str, ...]:
        """The executed notebook and its HTML, relative to the run folder; none for the step of one experiment."""
        return tuple(f"notebooks/{self.name}{suffix}" for suffix in (".ipynb", ".html")) if self.notebook and not self.experiment else ()

    @property
    def runs_remotely(self) -> bool:
        """Whether a cluster sends it to another machine: it trains, or scores an experiment."""
        return bool(self.checkpoints or self.experiment)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that its files belong to; none for EDA and report."""
        return tuple(name for name in STAGES if name in map(stage, (*self.outputs, *self.extras)))

    @property
    def code(self) -> dict[str, str]:
        """The identity of all code that the step may use: its cells or its import, and the rooms of the package that these import from."""
        cells = [self.import_line] if self.notebook is None else [notebooks.source(cell) for cell in notebooks.code_cells(self.notebook)]
        rooms = set().union(*map(code_identity.imported_rooms, code_identity.cell_trees(cells)))
        return {"notebook": code_identity.cells_digest(cells), **(code_identity.package_code(*rooms) if rooms else {})}


def stage(name: str) -> str:
    """The stage that a file in the run folder belongs to: weights, scores, submission; "" for any other file."""
    first = re.split("[/.]", name, maxsplit=1)[0]
    return first if first in STAGES else ""


def plates_step(*, data: str, preset: str) -> Step:
    """The plates: drawn by the virtual microscope when `preset` is set, else taken as they are.

    Of the images, names and sizes count, and the content of the first in each folder (`files.folder_fingerprint`).
    `data` is relative to the run folder or absolute.
    """
    folder = glob.escape(data)
    return Step(
        "plates",
        extras=(f"{folder}/*.csv", f"{folder}/*.json"),
        image_root=data,
        import_line="from cellsignal.data.microscope import simulate" if preset else "",
    )


def plates_digest(root: Path) -> str:
    """SHA-256 of what `plates_step` hashes of a data set, wherever it lies."""
    return hashlib.sha256(json.dumps(_digests(root, output_names(root, plates_step(data=".", preset="")))).encode()).hexdigest()


def report_step(other_steps: Iterable[Step]) -> Step:
    """The page with links to all others."""
    needs = tuple(step.name for step in other_steps)
    return Step("report", needs=needs, outputs=REPORT_PAGES[:1], extras=REPORT_PAGES[1:], import_line="from cellsignal.show import report")


def record_step() -> Step:
    """The files that a run writes when all its steps are complete: its provenance, and the seconds of its steps."""
    return Step("record", outputs=("recipe.json", "seconds.json"))


def notebook_parameters(step: Step, values: Mapping[str, Any]) -> dict[str, Any]:
    """The run's parameters that the step's notebook has in its parameters cell; of groups the keys that are not at their default."""
    if step.notebook is None:
        return {}
    parameters = without_defaults(_step_parameters(step, values))
    return {name: parameters[name] for name in notebooks.parameter_names(step.notebook) if name in parameters}


def parameters_read(step: Step, values: Mapping[str, Any]) -> dict[str, Any]:
    """The run's parameters that the step's notebook reads, by dotted key."""
    keys = notebooks.parameters_read(step.notebook) if step.notebook else set()
    return {key: value for key, value in settings.flatten(_step_parameters(step, values)).items() if key in keys}


def _step_parameters(step: Step, values: Mapping[str, Any]) -> dict[str, Any]:
    return settings.update({**values, "cell_type": step.cell_type}, step.overrides)


def without_paths_and_speed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters by dotted key, without those that change no result; a file of pretrained weights by its SHA-256, wherever it lies."""
    decisive = {key: value for key, value in settings.flatten(values).items() if key not in PATHS_AND_SPEED}
    if (source := decisive.get(PRETRAINED)) and (path := environment.data_folder(source)).is_file():
        decisive[PRETRAINED] = files.sha256(path)
    return decisive


def step_identity(step: Step, *, parameters: Mapping[str, Any], receipts: Mapping[str, Receipt]) -> dict[str, Any]:
    """All that decides what a step makes: parameters, names and hashes of what it needs, and the code that it may use.

    `receipts`: those of the steps before it. Paths are left out, so that a run folder can be moved.
    """
    return {
        "step": step.name,
        "parameters": without_paths_and_speed(parameters),
        "inputs": {need: placed_digests(receipts[need]) for need in step.needs},
        "code": step.code,
    }


# Receipts of steps.


def read_receipt(run: Path, step: Step) -> Receipt | None:
    """The receipt of a step as it was written, whether or not the files have changed since; None when it is absent or damaged."""
    receipt = Receipt.find(step_receipts.receipt_path(run, step.name), StepDetails)
    valid = receipt is not None and (step.image_root or all(map(files.stays_inside, receipt.outputs)))  # plates may lie anywhere
    return receipt if valid else None


def current_receipt(run: Path, step: Step, *, identity: Mapping[str, Any]) -> Receipt | None:
    """The receipt of a step that is complete: made from this identity, and every file as it was, the user's own modules too."""
    receipt = read_receipt(run, step)
    if receipt is None or not receipt.is_current(identity) or _changed_user_modules(receipt):
        return None
    return receipt if receipt.outputs == _digests(run, [*receipt.outputs, *output_names(run, step), *step.pages]) else None


def changed_code(run: Path, step: Step, *, identity: Mapping[str, Any]) -> list[str]:
    """The parts of the code that changed since the step was complete; none where its parameters or inputs changed too."""
    receipt = read_receipt(run, step)
    if receipt is None or {**receipt.identity, "code": None} != {**identity, "code": None}:
        return []
    return [*code_identity.changed_parts(receipt.identity.get("code"), identity["code"]), *_changed_user_modules(receipt)]


def altered_outputs(run: Path, step: Step, *, identity: Mapping[str, Any]) -> list[str]:
    """The files and folders of a step that were changed or removed after it was complete; none where it has to run for another reason."""
    receipt = read_receipt(run, step)
    if receipt is None or not receipt.is_current(identity):
        return []
    found = _digests(run, receipt.outputs)
    return [name for name, digest in receipt.outputs.items() if found.get(name) != digest]


def other_parameters(step: Step, receipt: Receipt, values: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What the step that left this receipt was given, and what the run's parameters `values` say now, by the key where they differ."""
    recorded = without_paths_and_speed(receipt.identity.get("parameters") or receipt.details.get("parameters", {}))  # the latter of a kernel that ran by itself
    asked = without_paths_and_speed(parameters_read(step, values))
    shared = [key for key in asked if key in recorded and key not in _FREE_PARAMETERS]
    return {key: (recorded[key], asked[key]) for key in shared if recorded[key] != asked[key]}


def _changed_user_modules(receipt: Receipt) -> list[str]:
    """The names of the files that a step's cells imported, neither installed nor this package's, and that are no longer as they were."""
    modules = {Path(name): digest for name, digest in receipt.details.get("user_modules", {}).items()}
    return sorted(path.name for path, digest in modules.items() if code_identity.file_digest(path) != digest)


def write_receipt(run: Path, step: Step, *, identity: Mapping[str, Any], seconds: float) -> Receipt:
    """Write the receipt of a step that is complete, after all its files; StepFailed when an output is missing.

    It keeps the details of the receipt that the step's notebook wrote.
    """
    missing = [name for name in step.outputs if not (run / name).is_file()]
    if missing:
        raise StepFailed(f"it ended without writing {', '.join(missing)}")
    by_notebook = step_receipts.read(run, step.name) if step.notebook else None
    written, details = (by_notebook.outputs, by_notebook.details) if by_notebook else ((), {})
    digests = _digests(run, [*written, *output_names(run, step), *step.pages])
    path = step_receipts.receipt_path(run, step.name)
    return Receipt(path, dict(identity), digests, details={**details, "seconds": round(seconds, 2)}).write()


def product_digests(receipt: Receipt) -> dict[str, str]:
    """SHA-256 by name of what a step made for other steps: all but its pages, which contain times."""
    return {name: digest for name, digest in receipt.outputs.items() if not name.startswith("notebooks/")}


def placed_digests(receipt: Receipt) -> dict[str, str]:
    """The digests of `product_digests` by name below the folder that holds all these files, wherever that lies: two files that change places are other data."""
    digests = product_digests(receipt)
    folder = os.path.commonpath([os.path.dirname(name) for name in digests]) if digests else ""
    return {PurePosixPath(name).relative_to(folder).as_posix(): digest for name, digest in digests.items()}


def remove_receipt(run: Path, step: Step) -> None:
    """Remove the receipt of a step that is about to run."""
    step_receipts.receipt_path(run, step.name).unlink(missing_ok=True)


def remove_other_receipts(run: Path, names: Collection[str]) -> None:
    """Remove the receipts and pages of steps that the chain once had and that are not among `names`.

    Their outputs stay: a later run may use the weights. So do the receipts of notebooks that ran without a chain.
    """
    pages = [path for pattern in OPTIONAL_PAGES for path in (run / "notebooks").glob(pattern)]
    receipts = []
    for path in (run / step_receipts.RECEIPTS_FOLDER).glob("*.json"):
        receipt = Receipt.find(path)
        if receipt is None or receipt.identity.keys() != {"step"}:  # with its name alone a notebook wrote it, and no chain
            receipts.append(path)
    for path in [*receipts, *pages]:
        if path.stem not in names:
            path.unlink(missing_ok=True)


def output_names(run: Path, step: Step) -> list[str]:
    """Names of the files that are a step's outputs now, and of the folders of images."""
    extras = [name for pattern in step.extras for name in glob.glob(pattern, root_dir=run, recursive=True) if not (run / name).is_dir()]
    return [*step.outputs, *extras, *(_image_folders(run, step.image_root) if step.image_root else [])]


def _image_folders(run: Path, root: str) -> list[str]:
    """The folders below a data folder that may hold images; itself where there are none."""
    names = [name for pattern in IMAGE_FOLDERS for name in glob.glob(f"{glob.escape(root)}/{pattern}", root_dir=run) if (run / name).is_dir()]
    return names or [f"{root}/."]


def _digests(run: Path, names: Iterable[str]) -> dict[str, str]:
    """By relative name, SHA-256 of those that are files, and the fingerprint of those that are folders of images."""
    digests = {name: _digest(run / name) for name in sorted(set(names))}
    return {name: digest for name, digest in digests.items() if digest}


def _digest(path: Path) -> str:
    if path.is_dir():
        return files.folder_fingerprint(path)
    return files.sha256(path) if path.is_file() else ""
