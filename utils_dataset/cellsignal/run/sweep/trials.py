"""One trial of a sweep: a run of its own on a leash, and the record that says how it ended."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cellsignal import files, settings, shapes
from cellsignal.errors import InputError
from cellsignal.receipts import Receipt
from cellsignal.run import environment
from cellsignal.run.chain import leash, steps
from cellsignal.run.recipe import Recipe
from cellsignal.run.sweep.results import outcome

DONE, FAILED, PRUNED, UNFINISHED = "done", "failed", "pruned", "unfinished"
CODES = {0: DONE, 3: UNFINISHED}  # exit codes of `cellsignal run`; every other one is a failure
ERROR = "cellsignal: error: "  # so begins the last line of a command that failed
GRACE = 20.0  # seconds for a trial that shall end: its notebooks have ten
ENDS = 30.0  # seconds until a trial that was told to end is given up


def command(params: Path, run: Path) -> list[str]:
    """The command of one trial."""
    return [sys.executable, "-P", "-m", "cellsignal.cli.main", "run", str(params), "--out", str(run)]


def unchanged(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two sets of parameters, by dotted key, say the same; one from before a key was invented has its default."""
    default = settings.flat(Recipe().model_dump())
    keys = set(old) | set(new)
    given = [{**{key: default[key] for key in keys & set(default)}, **values} for values in (old, new)]
    return given[0] == given[1]


@dataclass
class Trial:
    """A variant with a seed: `<folder>` its run, `<folder>.yaml` its recipe, `<folder>.json` its receipt, `<folder>.log` its words."""

    variant: str
    seed: int
    folder: Path
    values: Mapping[str, Any]
    changes: Mapping[str, Any] = field(default_factory=dict)  # of these, what its variant sets
    fault: str = ""  # why it cannot even begin
    settled: bool = False  # its record stands, however it ended
    process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.name

    def record(self) -> dict[str, Any] | None:
        """How it ended, if it did and with these very values; None else."""
        found = Receipt.find(self._beside(".json"), shapes.Trial)
        return dict(found.details) if found and unchanged(found.identity, self._decisive()) else None

    def start(self, *, threads: int) -> None:
        """Begin it, or go on with it."""
        self._beside(".json").unlink(missing_ok=True)
        given = {key: value for key, value in self.values.items() if key != "run"}
        files.write_text(self._beside(".yaml"), yaml.safe_dump(given, allow_unicode=True, sort_keys=False))
        with open(self._beside(".log"), "wb") as log:
            self.process = subprocess.Popen(
                leash.command(command(self._beside(".yaml"), self.folder), grace=GRACE),
                stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True, env=environment.child_environment(threads=threads),
            )  # fmt: skip

    def ended(self) -> bool:
        """Whether its process has ended."""
        return self.process is not None and self.process.poll() is not None

    def stop(self) -> None:
        """Ask it to end; `wait` for that."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()

    def wait(self) -> None:
        """Wait for the end of a trial that was told to end."""
        if self.process is not None:
            try:
                self.process.wait(timeout=ENDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def close(self, *, pruned: bool = False) -> dict[str, Any]:
        """Write down how it ended; one that was to be `pruned` may have been faster."""
        status = CODES.get(self.process.returncode if self.process else None, PRUNED if pruned else FAILED)
        told = {"error": self._last_words()} if status == FAILED else {}
        try:
            told |= outcome(self.folder) if status == DONE else {}
        except InputError as damaged:
            status, told = FAILED, {"error": str(damaged)}
        self.stop()
        return self._write(status, told)

    def refuse(self) -> dict[str, Any]:
        """Write down that it could not begin."""
        return self._write(FAILED, {"error": self.fault})

    def _write(self, status: str, told: Mapping[str, Any]) -> dict[str, Any]:
        about = {"variant": self.variant, "seed": self.seed, "changes": dict(self.changes)}
        written = {**about, "status": status, "error": "", **told}
        Receipt(self._beside(".json"), self._decisive(), complete=status == DONE, details=written).write()
        return written

    def _decisive(self) -> dict[str, Any]:
        """What of its values decides its result, as JSON has them."""
        return steps.without_speed(self.values)

    def _last_words(self) -> str:
        """The line that says why it failed."""
        lines = [line.strip() for line in self._beside(".log").read_text(errors="replace").splitlines() if line.strip()]
        said = next((line for line in reversed(lines) if line.startswith(ERROR)), "")
        return said.removeprefix(ERROR) or f"ended with {self.process.returncode}: {lines[-1] if lines else 'it said nothing'}"

    def _beside(self, suffix: str) -> Path:
        return self.folder.with_name(self.folder.name + suffix)
