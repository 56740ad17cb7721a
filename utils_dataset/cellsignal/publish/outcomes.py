"""What became of a pushed step: its session's state and, once that ended well, whose work it left."""

import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from cellsignal.errors import InputError, StepFailed
from cellsignal.files import parse_json
from cellsignal.publish import client, utilities
from cellsignal.publish.refusals import Missing, quote
from cellsignal.publish.state import Pushed, Status
from cellsignal.run import manifest
from cellsignal.run.manifest import Manifest
from cellsignal.run.steps import PATHS_AND_SPEED

LATE = 5  # further looks at the files of a session that ended
NEWER = "made by newer code, because another push has brought the package to Kaggle since"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Outcome:
    """A look at a pushed step."""

    status: Status  # running, complete, incomplete or failed
    detail: str = ""  # QUEUED or RUNNING; how far it came; why it failed; of what is complete, what is to be known
    written: float = 0.0  # when its manifest was, by the clock of its session


def look(step: str, pushed: Pushed, *, interval: float = 0.0) -> Outcome:
    """Ask Kaggle what became of a step, and its manifest whether it is the work that was pushed.

    `interval`: seconds between looks at the files of a session that ended, until they are its own. Raises what the
    client raises when Kaggle does not answer.
    """
    try:
        said = client.kernel_status(pushed.place)
    except Missing:
        return Outcome(Status.failed, f"{pushed.slug} is not on Kaggle (any more)")
    if said not in client.ENDED:
        return Outcome(Status.running, said)
    if said != "COMPLETE":
        return Outcome(Status.failed, f"it ended with {said}{_reason(pushed)}; see {pushed.url}")
    found = _newest(step, pushed, interval)
    fault = differs(found, step, pushed)
    if found is None or fault:
        return Outcome(Status.failed, f"the output is of the wrong run: {fault}; see {pushed.url}")
    if found["complete"] and (absent := sorted(set(pushed.outputs) - {*found["outputs"], *found["taken_up"]})):
        return Outcome(Status.failed, f"it ended without {', '.join(absent)}; see {pushed.url}")
    if found["complete"]:
        return Outcome(Status.complete, "" if found["code"] == pushed.code else NEWER, found["written"])
    return Outcome(Status.incomplete, found["progress"], found["written"])


def _newest(step: str, pushed: Pushed, interval: float) -> Manifest | None:
    """The manifest of a session that ended well; for a while Kaggle lists none, or that of the session before."""
    found = read_manifest(step, pushed)
    for _ in range(LATE if pushed.status is not Status.pushing else 0):  # else there may be no session to wait for
        if found is not None and found["written"] > pushed.seen:
            break
        time.sleep(interval)
        found = read_manifest(step, pushed)
    return found


def read_manifest(step: str, pushed: Pushed) -> Manifest | None:
    """The manifest of a session that ended well; None when it left none, or a damaged one."""
    with tempfile.TemporaryDirectory() as folder:
        place = manifest.place(Path(pushed.run), step).as_posix()
        client.output(pushed.place, Path(folder), f"^{re.escape(place)}$")
        return manifest.read(Path(folder) / pushed.run, step)


def differs(found: Manifest | None, step: str, pushed: Pushed) -> str:
    """In what a manifest is not of the work that was pushed as `step`; "" when it is."""
    if found is None:
        return f"there is no manifest of {step} in {pushed.run}"
    if found["written"] <= pushed.seen:
        return "its manifest is that of the session before"
    theirs = found["parameters"]
    for name, value in pushed.parameters.items():
        if name not in PATHS_AND_SPEED and theirs.get(name) != value:
            return f"its {name} is {theirs.get(name)!r} and not {value!r}"
    if found["code"] not in (pushed.code, *utilities.codes_after(pushed.code)):
        return "it was made by other code, so the data set of the package was another"
    return ""


def _reason(pushed: Pushed) -> str:
    """Why a session failed, as far as Kaggle or the session's log say."""
    try:
        said = client.kernel_failure(pushed.place)
        last = _last_error(pushed)
    except (StepFailed, InputError):  # that it failed is known, and must be told in any case
        return ""
    told = " and ".join(filter(None, [quote(said), quote(last)]))
    return f" ({told})" if told else ""


def _last_error(pushed: Pushed) -> str:
    """The last line of a session's log that names an exception; "" without one."""
    with tempfile.TemporaryDirectory() as folder:
        fetched = client.output(pushed.place, Path(folder), "^$")  # nothing but the log
        logs = [path for path in fetched if path.suffix == ".log"]
        text = logs[0].read_text(encoding="utf-8", errors="replace") if logs else ""
    lines = _COLOURS.sub("", _plain(text)).splitlines()
    named = [line.strip() for line in lines if re.match(r"\s*[\w.]*(Error|Exception|Failed|Interrupt)\b: ", line)]
    return named[-1] if named else ""


def _plain(log: str) -> str:
    """The text of a log, which Kaggle gives as a JSON list of pieces."""
    try:
        return "".join(str(piece.get("data", "")) for piece in parse_json(log))
    except (ValueError, AttributeError, TypeError):
        return log
