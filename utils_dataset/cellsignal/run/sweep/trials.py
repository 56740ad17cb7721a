"""One trial of a sweep: a run in a process of its own, and the receipt that records how it ended."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from typing_extensions import NotRequired, TypedDict  # pydantic needs this one before Python 3.12

from cellsignal import files, settings
from cellsignal.errors import InputError
from cellsignal.receipts import Receipt
from cellsignal.run import environment
from cellsignal.run.chain import parent_watchdog, steps
from cellsignal.run.recipe import Recipe
from cellsignal.run.sweep.results import outcome

DONE, FAILED, PRUNED, UNFINISHED = "done", "failed", "pruned", "unfinished"
STATUS_BY_EXIT_CODE = {0: DONE, 3: UNFINISHED}  # of `cellsignal run`; every other code is a failure
BAD_INPUT = 2  # the exit code for that
ERROR_PREFIX = "cellsignal: error: "  # of the last line of a command that failed
GRACE_SECONDS = 20.0  # for a trial that is asked to end: its notebooks have ten
KILL_SECONDS = 30.0  # until a trial that was asked to end is killed


class TrialDetails(TypedDict):
    """Details of the receipt of a trial: how it ended."""

    variant: str
    seed: int
    changes: dict[str, Any]
    status: str
    error: str
    seconds: NotRequired[float]


def command(params: Path, run: Path) -> list[str]:
    """The command of one trial."""
    return [sys.executable, "-P", "-m", "cellsignal.cli.main", "run", str(params), "--out", str(run)]


def same_values(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two sets of parameters, by dotted key, are the same; a key that one of them does not have yet is at its default."""
    default = settings.flatten(Recipe().model_dump())
    known = {key: default[key] for key in (set(old) | set(new)) & set(default)}
    return {**known, **old} == {**known, **new}


@dataclass
class Trial:
    """A variant with a seed: `<folder>` is its run, `<folder>.yaml` its recipe, `<folder>.json` its receipt, `<folder>.log` its output."""

    variant: str
    seed: int
    folder: Path
    values: Mapping[str, Any]
    changes: Mapping[str, Any] = field(default_factory=dict)  # those of the values that its variant sets
    plates: str = ""  # a digest
    error: str = ""  # why it cannot start
    is_settled: bool = False  # it does not run again, however it ended
    process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.name

    def record(self) -> dict[str, Any] | None:
        """How it ended; None if it has not ended with these values."""
        receipt = Receipt.find(self._path(".json"), TrialDetails)
        return dict(receipt.details) if receipt and same_values(receipt.identity, self._identity()) else None

    def start(self, *, threads: int) -> None:
        """Start it, or go on with it."""
        self._path(".json").unlink(missing_ok=True)
        values = {key: value for key, value in self.values.items() if key != "run"}
        files.write_text(self._path(".yaml"), yaml.safe_dump(values, allow_unicode=True, sort_keys=False))
        with open(self._path(".log"), "wb") as log:
            self.process = subprocess.Popen(
                parent_watchdog.watched_command(command(self._path(".yaml"), self.folder), grace=GRACE_SECONDS),
                stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True, env=environment.child_environment(threads=threads),
            )  # fmt: skip

    def has_ended(self) -> bool:
        """Whether its process has ended."""
        return self.process is not None and self.process.poll() is not None

    @property
    def met_bad_input(self) -> bool:
        """Whether what the user gave made it fail, and no step."""
        return bool(self.error) or (self.process is not None and self.process.returncode == BAD_INPUT)

    def stop(self) -> None:
        """Ask it to end, by closing the pipe to it; `wait` waits for its end."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()

    def wait(self) -> None:
        """Wait for the end of a trial that was asked to end."""
        if self.process is not None:
            try:
                self.process.wait(timeout=KILL_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def close(self, *, pruned: bool = False) -> dict[str, Any]:
        """Write the record of a trial that has ended; one that was to be `pruned` may have been faster."""
        status = STATUS_BY_EXIT_CODE.get(self.process.returncode if self.process else None, PRUNED if pruned else FAILED)
        result = {"error": self._error_line()} if status == FAILED else {}
        try:
            result |= outcome(self.folder) if status == DONE else {}
        except InputError as error:
            status, result = FAILED, {"error": str(error)}
        self.stop()
        return self._write_record(status, result)

    def write_error(self) -> dict[str, Any]:
        """Write the record of a trial that could not start."""
        return self._write_record(FAILED, {"error": self.error})

    def _write_record(self, status: str, result: Mapping[str, Any]) -> dict[str, Any]:
        record = {"variant": self.variant, "seed": self.seed, "changes": dict(self.changes), "status": status, "error": "", **result}
        Receipt(self._path(".json"), self._identity(), complete=status == DONE, details=record).write()
        return record

    def _identity(self) -> dict[str, Any]:
        """The values and plates that decide its result."""
        return {**steps.without_paths_and_speed(self.values), "plates": self.plates}

    def _error_line(self) -> str:
        """The line of its output that says why it failed."""
        lines = [line.strip() for line in self._path(".log").read_text(errors="replace").splitlines() if line.strip()]
        error = next((line for line in reversed(lines) if line.startswith(ERROR_PREFIX)), "")
        return error.removeprefix(ERROR_PREFIX) or f"ended with {self.process.returncode}: {lines[-1] if lines else 'it said nothing'}"

    def _path(self, suffix: str) -> Path:
        return self.folder.with_name(self.folder.name + suffix)
