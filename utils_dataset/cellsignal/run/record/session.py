"""The session of a notebook: its run folder, the files of earlier sessions, its time budget, its receipt, and how its cells end."""

import ast
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from cellsignal import code_identity, files, provenance, settings
from cellsignal.budget import Budget, TimeSpent
from cellsignal.decide.settings import AssignmentSettings, PredictionSettings
from cellsignal.errors import InputError
from cellsignal.receipts import Receipt
from cellsignal.run import environment, mounts, parameters
from cellsignal.run.recipe import PATHS_AND_SPEED, Recipe, keys_read_by_cells
from cellsignal.run.record import step_receipts
from cellsignal.tasks import TASKS

# What may differ between an attached run and this one: a prediction may use other settings than the training did, and `plain` and
# further networks have settings of their own.
PREDICTION_PARAMETERS = {
    "wells.cell_types", "training.ablate_virtual_batch", "machine.device", "network.ensemble", "network.one_network",
    *(f"prediction.{name}" for name in PredictionSettings.model_fields), *(f"assignment.{name}" for name in AssignmentSettings.model_fields),
}  # fmt: skip
READERS = {  # of the notebooks that one kind of tables can go through: `reader` of a task
    "1-eda": "wells", "2-pretrain-controls": "wells", "3-train-cell-type": "wells", "4-predict-assign": "wells",
    "protein-atlas": "sites", "rxrx1-wilds": "splits",
}  # fmt: skip
OTHER_NETWORK_PARAMETERS = {"training.virtual_batch", "training.final_epochs", "network.backbone"}
# A kernel finds its earlier sessions only among its inputs, and does not know its own name.
RESUME_ADVICE = (
    "To go on: add this kernel's own OWNER/SLUG to kernel_sources in its kernel-metadata.json and push it again, or attach "
    "the output of this version in the editor and save another; `cellsignal kaggle push --until-done` does so by itself."
)
WATCH_VARIABLE = "_cellsignal_cell"  # the name of the CellWatch among a notebook's variables


class Finished(Exception):
    """The notebook's work is complete before its last cell; the message says what was done."""


@dataclass
class Session:
    """A notebook at work, from `start` to `finish`."""

    notebook: str  # its name, such as 1-eda
    folder: Path  # the run folder, absolute; locked while this process lives
    checked: parameters.CheckedParameters = field(repr=False)
    time_budget: Budget  # counts from the start of the process
    namespace: Mapping[str, Any] = field(repr=False)  # the notebook's variables
    attached_files: dict[str, str] = field(default_factory=dict, repr=False)  # SHA-256 by name of the files of attached runs
    start_time: float = field(default_factory=time.monotonic, repr=False)
    spent: str = ""  # the progress when the time budget was spent

    @property
    def recipe(self) -> Recipe:
        """The parameters of the run: those of the notebook, and the defaults of what it leaves out."""
        return self.checked.recipe

    def resume_folders(self, *parts: str) -> list[Path]:
        """The folders of attached runs that may hold checkpoints, `parts` below each run; read-only, those of the same run first."""
        folders = [attached.joinpath(*parts) for attached in _attached_runs(self.folder)]
        return [folder for folder in folders if folder.is_dir()]

    def finish(self) -> None:
        """Write the notebook's receipt and print the state of its work; the last call of every notebook."""
        self._write_receipt(complete=True)

    def finish_early(self, done: str) -> None:
        """Finish with this cell because all that was asked for is `done`; the cells that follow do nothing."""
        raise Finished(done)

    def end(self, reason: TimeSpent | Finished) -> None:
        """Finish where the work stopped, and remove the results of an earlier run."""
        for name in step_receipts.RESULT_FILES.get(self.notebook, ()):
            (self.folder / name).unlink(missing_ok=True)
        self.spent = str(reason) if isinstance(reason, TimeSpent) else ""
        self._write_receipt(complete=not self.spent, progress=str(reason))

    def _write_receipt(self, *, complete: bool, progress: str = "") -> None:
        receipt = step_receipts.write(
            self.folder, self.notebook, _parameters_read(self.checked, self.namespace.get("In", ())),
            complete=complete, progress=progress, seconds=time.monotonic() - self.start_time, attached_files=self.attached_files)
        state = "complete" if complete else f"time budget spent: {progress}; another session goes on"
        used = _working_bytes()
        disk = f"Run folder: {self.folder}"
        if used is not None:
            disk = f"/kaggle/working holds {used / 1e9:.2f} of {environment.WORKING_BYTES / 1e9:.0f} GB"
        print(f"{receipt.identity['step']}: {state}. {disk}")
        if not complete and environment.platform() == "kaggle" and not environment.under_chain():
            print(RESUME_ADVICE)


def start(namespace: Mapping[str, Any], notebook: str) -> Session:
    """Start the session of a notebook: check its parameters, lock its run folder and copy the files of attached runs.

    Raises InputError when a parameter breaks a rule of the recipe or is unknown, and when an attached run was made with
    other parameters, is damaged, or does not fit the disk.
    """
    if notebook not in step_receipts.OUTPUT_PATTERNS:
        raise InputError(f"unknown notebook {notebook!r}", where="cellsignal.start", cure=f"name one of: {', '.join(step_receipts.OUTPUT_PATTERNS)}")
    checked = parameters.check(namespace)
    _check_task(notebook, checked.recipe.task)
    code_identity.notebook.begin(namespace.get("In", ()))
    environment.configure_libraries()
    folder = environment.lock_run_folder(checked.recipe.run)
    session = Session(notebook, folder, checked, Budget(environment.deadline(checked.recipe.machine.time_budget_minutes)), namespace)
    write_run_file(folder)
    if not environment.under_chain() and not {"runs", "table"} & {*namespace}:  # a notebook that only reads runs resumes none of them
        for attached in _attached_runs(folder):
            _check_parameters(attached, {**checked.given, **checked.notebook_only})
            session.attached_files.update(_copy_outputs(attached, folder, already_copied=session.attached_files))
    if "get_ipython" in namespace:  # IPython defines it
        CellWatch(session.end).watch(namespace["get_ipython"]())
    return session


def _check_task(notebook: str, task: str) -> None:
    """InputError for a task whose tables the notebook would not read: it would take those of its own task, as if nothing had been said."""
    if (reader := READERS.get(notebook, TASKS[task].reader)) != TASKS[task].reader:
        tasks = " or ".join(name for name, known in TASKS.items() if known.reader == reader)
        raise InputError(f"task is {task!r}, and {notebook} is a notebook of the task {tasks}", where=parameters.WHERE,
                         cure=f"leave the task out, or run the notebooks of {task}")


def write_run_file(folder: Path) -> None:
    """Write run.json, by which later sessions recognise a run folder among their inputs."""
    if not (folder / mounts.RUN_FILE).is_file():
        files.write_json(folder / mounts.RUN_FILE, {"run": environment.short_name(folder)})


def _parameters_read(checked: parameters.CheckedParameters, cells: Sequence[str]) -> dict[str, Any]:
    """A notebook's parameters, in groups: the plain ones, its network's, and those of the groups that its cells read."""
    values = settings.flatten(checked.recipe.model_dump())
    read = keys_read_by_cells(cells) if cells else set(values)
    network = {name: value for name, value in checked.notebook_only.items() if name in step_receipts.NETWORK_PARAMETERS}
    return settings.nest({key: value for key, value in values.items() if key in read or "." not in key}) | network


# Attached runs.


def _attached_runs(folder: Path) -> list[Path]:
    """Attached run folders: those of the same name first, then the most recent."""
    name = environment.short_name(folder)

    def rank(run: Path) -> tuple[bool, float]:
        content = files.read_json(run / mounts.RUN_FILE)
        same_name = isinstance(content, dict) and content.get("run") == name
        return not same_name, -max((receipt.details["written"] for receipt in step_receipts.read_all(run)), default=0.0)

    return sorted((run for run in mounts.runs() if run != folder), key=rank)


def _check_parameters(attached: Path, values: Mapping[str, Any]) -> None:
    """Raise InputError for an attached run that was trained with other parameters than `values`."""
    for receipt in step_receipts.read_all(attached):
        attached_values = settings.flatten(receipt.details["parameters"])
        may_differ = PREDICTION_PARAMETERS | PATHS_AND_SPEED | set(step_receipts.NETWORK_PARAMETERS)
        if attached_values.get("network_name", "model") != values.get("network_name", "model"):
            may_differ = may_differ | OTHER_NETWORK_PARAMETERS
        key = next((key for key in values if key in attached_values and key not in may_differ and values[key] != attached_values[key]), None)
        if key is not None:
            what = f"{key} is {values[key]!r} here, and was {attached_values[key]!r} in {receipt.identity['step']} of this attached run"
            raise InputError(what, where=attached, cure="detach it, or set the parameter as it was")


def _copy_outputs(attached: Path, folder: Path, *, already_copied: Mapping[str, str]) -> dict[str, str]:
    """Copy the files that an attached run's receipts list and that are not in `folder`; SHA-256 by name of all that are now the same."""
    digests = {name: digest for name, digest in _listed_files(attached) if name not in already_copied and _has_file(attached, name)}
    missing = [name for name in digests if not (folder / name).exists()]
    used, size = _working_bytes(), sum((attached / name).stat().st_size for name in missing)
    if used is not None and used + size > environment.WORKING_BYTES:  # Kaggle would end the session
        what = f"its {size / 1e9:.1f} GB do not fit beside {used / 1e9:.1f} GB of {environment.WORKING_BYTES / 1e9:.0f} GB"
        raise InputError(what, where=attached, cure="detach it, or remove what you do not need from /kaggle/working")
    for name in missing:
        with files.atomic_path(files.inside(folder, name)) as temporary:
            shutil.copyfile(attached / name, temporary)
            if files.sha256(temporary) != digests[name]:
                raise InputError("not the file that the run's receipt names", where=attached / name, cure="attach the whole output again")
    if missing:
        codes = {receipt.details["code"] for receipt in step_receipts.read_all(attached)}
        note = "" if codes == {provenance.code_digest()} else ", made by another version of this package"
        print(f"reused {len(missing)} files of {attached}{note}")
    return {name: digest for name, digest in digests.items() if name in missing or files.sha256(folder / name) == digest}


def _listed_files(attached: Path) -> Iterator[tuple[str, str]]:
    """Name and SHA-256 of each output of a run's notebooks, the most recent last, and then of their receipts; packed images are read where they are."""
    receipts = step_receipts.read_all(attached)
    for path in sorted((attached / step_receipts.RECEIPTS_FOLDER).glob("*.json")):
        receipt = Receipt.find(path)
        if receipt is None or ("parameters" in receipt.details and step_receipts.read(attached, path.stem) is None):
            print(f"note: {path} is damaged, or of an earlier version; no file that it lists is taken up")
    for receipt in receipts:
        yield from ((name, digest) for name, digest in receipt.outputs.items() if not name.startswith(f"{mounts.PACKED}/"))
    for receipt in receipts:
        yield receipt.path.relative_to(attached).as_posix(), files.sha256(receipt.path)


def _has_file(attached: Path, name: str) -> bool:
    """Whether a run has a file of this name, and not a link that leads out of its folder."""
    try:
        return files.inside(attached, name).is_file()
    except InputError:
        return False


def _working_bytes() -> int | None:
    """The size of what lies in Kaggle's working folder; None elsewhere."""
    if environment.platform() != "kaggle":
        return None
    paths = (Path(folder) / name for folder, _, names in os.walk(environment.base_folder()) for name in names)
    return sum(path.lstat().st_size for path in paths if path.exists())


class CellWatch(ast.NodeTransformer):
    """Ends a session when a cell raises TimeSpent or Finished: that cell succeeds, and the cells that follow do nothing.

    IPython hands its exceptions to handlers (`set_custom_exc`) and still counts the cell as failed, so papermill and
    Kaggle would stop with an error. As one of IPython's `ast_transformers` this puts each cell's statements into a
    `with` block, which lets all other errors pass.
    """

    def __init__(self, end: Callable[[TimeSpent | Finished], None]) -> None:
        self.end, self.ended, self.value = end, False, None

    def watch(self, shell: Any) -> None:
        """Watch the cells that follow in an IPython shell, in place of a watch that an earlier call set up."""
        shell.ast_transformers[:] = [transformer for transformer in shell.ast_transformers if not isinstance(transformer, CellWatch)]
        shell.ast_transformers.append(self)
        shell.user_ns[WATCH_VARIABLE] = self

    def visit_Module(self, cell: ast.Module) -> ast.Module:
        """The cell in a `with` block, its last value after it where IPython looks for it; an empty cell once the session has ended."""
        future_imports = [node for node in cell.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]  # always first
        statements = cell.body[len(future_imports) :]
        if self.ended or not statements:
            cell.body = []
            return cell
        last_value: list[ast.stmt] = []
        if isinstance(statements[-1], ast.Expr):
            target = ast.Attribute(ast.Name(WATCH_VARIABLE, ast.Load()), "value", ast.Store())
            statements[-1] = ast.copy_location(ast.Assign([target], statements[-1].value), statements[-1])
            last_value = ast.parse(f"{WATCH_VARIABLE}.value").body
        with_block = ast.With([ast.withitem(ast.Name(WATCH_VARIABLE, ast.Load()))], statements)
        cell.body = [*future_imports, ast.copy_location(with_block, statements[0]), *last_value]
        return ast.fix_missing_locations(cell)

    def __enter__(self) -> None:
        self.value = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if not isinstance(error, TimeSpent | Finished):
            return False
        self.ended = True
        self.end(error)
        return True
