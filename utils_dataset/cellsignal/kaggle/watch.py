"""What a person sees of kernels on Kaggle: a live table in a terminal, else a line per event."""

import re
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.live import Live
from rich.table import Table

from cellsignal import settings
from cellsignal.errors import InputError, StepFailed
from cellsignal.files import parse_json
from cellsignal.kaggle import client, utility_dataset
from cellsignal.kaggle.errors import Missing, RateLimited, ServerError, Unreachable, redact
from cellsignal.kaggle.push_state import PushedKernel, PushState, Status
from cellsignal.receipts import Receipt
from cellsignal.run.recipe import PATHS_AND_SPEED
from cellsignal.run.record import step_receipts

# What became of a pushed step: its session's state and, once that ended well, whose work it left.


EXTRA_LOOKS = 5  # further looks at the files of a session that ended
NEWER_CODE_NOTE = "made by newer code, because another push has brought the package to Kaggle since"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Outcome:
    """A look at a pushed step."""

    status: Status  # running, complete, incomplete or failed
    detail: str = ""  # QUEUED or RUNNING; how far it came; why it failed; of what is complete, what is to be known
    written: float = 0.0  # when its receipt was, by the clock of its session


def look_at_kernel(step: str, pushed: PushedKernel, *, interval: float = 0.0) -> Outcome:
    """Ask Kaggle what became of a step, and its receipt whether it is the work that was pushed.

    `interval`: seconds between looks at the files of a session that ended, until they are its own. Raises what the
    client raises when Kaggle does not answer.
    """
    try:
        state = client.kernel_status(pushed.version_slug)
    except Missing:
        return Outcome(Status.failed, f"{pushed.slug} is not on Kaggle (any more)")
    if state not in client.FINISHED_STATES:
        return Outcome(Status.running, state)
    if state != "COMPLETE":
        return Outcome(Status.failed, f"it ended with {state}{_reason(pushed)}; see {pushed.url}")
    receipt = _newest(step, pushed, interval)
    difference = output_differs(receipt, step, pushed)
    if receipt is None or difference:
        written = receipt.details["written"] if receipt else 0.0
        return Outcome(Status.failed, f"the output is of the wrong run: {difference}; see {pushed.url}", written)
    if receipt.complete and (lack := output_lacks(receipt, pushed)):
        return Outcome(Status.failed, f"it ended {lack}; see {pushed.url}", receipt.details["written"])
    if receipt.complete:
        return Outcome(Status.complete, "" if receipt.details["code"] == pushed.code else NEWER_CODE_NOTE, receipt.details["written"])
    return Outcome(Status.incomplete, receipt.details["progress"], receipt.details["written"])


def _newest(step: str, pushed: PushedKernel, interval: float) -> Receipt | None:
    """The receipt of a session that ended well; for a while Kaggle lists none, or that of the session before."""
    receipt = read_receipt(step, pushed)
    for _ in range(EXTRA_LOOKS if pushed.status is not Status.pushing else 0):  # else there may be no session to wait for
        if receipt is not None and receipt.details["written"] > pushed.seen:
            break
        time.sleep(interval)
        receipt = read_receipt(step, pushed)
    return receipt


def read_receipt(step: str, pushed: PushedKernel) -> Receipt | None:
    """The receipt of a session that ended well; None when it left none, or a damaged one."""
    with tempfile.TemporaryDirectory() as folder:
        path = step_receipts.receipt_path(Path(pushed.run), step).as_posix()
        client.output(pushed.version_slug, Path(folder), f"^{re.escape(path)}$")
        return step_receipts.read(Path(folder) / pushed.run, step)


def output_differs(receipt: Receipt | None, step: str, pushed: PushedKernel) -> str:
    """In what a receipt is not of the work that was pushed as `step`; "" when it is."""
    if receipt is None:
        return f"there is no receipt of {step} in {pushed.run}"
    if receipt.details["written"] <= pushed.seen:
        return "its receipt is that of the session before"
    parameters = settings.flatten(receipt.details["parameters"])
    for name, value in pushed.parameters.items():
        unread = not receipt.complete and name not in parameters  # by the cells before the one that ended the session
        if name not in PATHS_AND_SPEED and not unread and parameters.get(name) != value:
            return f"its {name} is {parameters.get(name)!r} and not {value!r}"
    if receipt.details["code"] not in (pushed.code, *utility_dataset.codes_after(pushed.code)):
        return "it was made by other code, so the data set of the package was another"
    return ""


def output_lacks(receipt: Receipt | None, pushed: PushedKernel) -> str:
    """What is missing of a step that has to be complete; "" when nothing is."""
    if receipt is None or not receipt.complete:
        return "before it was complete"
    missing = sorted(set(pushed.outputs) - {*receipt.outputs, *receipt.details["attached_files"]})
    return f"without {', '.join(missing)}" if missing else ""


def _reason(pushed: PushedKernel) -> str:
    """Why a session failed, as far as Kaggle or the session's log say."""
    try:
        kaggle_message = client.kernel_failure(pushed.version_slug)
        log_error = _last_error(pushed)
    except (StepFailed, InputError):  # that it failed is known, and must be told in any case
        return ""
    reasons = " and ".join(filter(None, [redact(kaggle_message), redact(log_error)]))
    return f" ({reasons})" if reasons else ""


def _last_error(pushed: PushedKernel) -> str:
    """The last line of a session's log that names an exception; "" without one."""
    with tempfile.TemporaryDirectory() as folder:
        fetched = client.output(pushed.version_slug, Path(folder), "^$")  # nothing but the log
        logs = [path for path in fetched if path.suffix == ".log"]
        text = logs[0].read_text(encoding="utf-8", errors="replace") if logs else ""
    lines = _COLOURS.sub("", _log_text(text)).splitlines()
    errors = [line.strip() for line in lines if re.match(r"\s*[\w.]*(Error|Exception|Failed|Interrupt)\b: ", line)]
    return errors[-1] if errors else ""


def _log_text(log: str) -> str:
    """The text of a log, which Kaggle gives as a JSON list of pieces."""
    try:
        return "".join(str(piece.get("data", "")) for piece in parse_json(log))
    except (ValueError, AttributeError, TypeError):
        return log


RETRIES = 5  # unanswered questions in a row: who waits for hours does not give up for a minute's trouble
UNATTENDED_RETRIES = 8  # the same where nobody sits and waits
_MAX_PAUSE = 15  # intervals between two of them at most
Answer = TypeVar("Answer")


class StatusView:
    """Events as lines, and inside a `with` block the state of every step as a live table, where there is a terminal."""

    def __init__(self) -> None:
        self.console = Console(force_jupyter=False, markup=False, highlight=False, soft_wrap=True)
        self.live = Live(console=self.console, auto_refresh=False, transient=True)

    def __enter__(self) -> "StatusView":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.live.stop()

    def say(self, event: str) -> None:
        """One line that stays."""
        self.console.print(event)

    def show(self, rows: Iterable[tuple[str, ...]]) -> None:
        """Bring the live table up to date."""
        if self.console.is_terminal:
            self.live.update(table(rows), refresh=True)


def table(rows: Iterable[tuple[str, ...]]) -> Table:
    """Step, state, time and place of every step."""
    grid = Table("step", "state", "time", "kernel", box=None, pad_edge=False)
    for row in rows:
        grid.add_row(*row)
    return grid


def row(step: str, state: PushState, outcome: Outcome | None = None) -> tuple[str, str, str, str]:
    """A step's line in the table, by the last look at it."""
    pushed = state.steps.get(step)
    if pushed is None:
        return step, "waiting", "", ""
    status = outcome.status if outcome else pushed.status
    detail = outcome.detail if outcome else pushed.progress or pushed.failure
    status_text = detail.lower() if status is Status.running and detail else " ".join(filter(None, [status.value, detail]))
    minutes = f"{(time.time() - pushed.pushed) / 60:.0f} min" if status is Status.running else ""
    return step, status_text, minutes, f"{pushed.slug} version {pushed.version}"


@dataclass
class Retrying:
    """Asks again what Kaggle did not answer for reasons of its own: after `interval` seconds, then twice as many, and so on."""

    interval: float
    say: Callable[[str], None]
    retries: int = RETRIES
    _unanswered: int = field(default=0, init=False)

    def ask(self, question: Callable[[], Answer]) -> Answer:
        """The answer; the error itself when it comes `retries` times in a row."""
        while True:
            try:
                answer = question()
            except (RateLimited, ServerError, Unreachable) as error:
                self._unanswered += 1
                if self._unanswered >= self.retries:
                    self._unanswered = 0
                    raise
                self.say(f"asking again: {error}")
                time.sleep(self.interval * min(2 ** (self._unanswered - 1), _MAX_PAUSE))
            else:
                self._unanswered = 0
                return answer


@dataclass
class PollClock:
    """Since when this call sees a session wait for its machine, or work."""

    since: float = field(default_factory=time.monotonic)
    queued: bool = True

    def look(self, state: str) -> None:
        """Begin anew when the session has come to work."""
        if self.queued and state != "QUEUED":
            self.since, self.queued = time.monotonic(), False

    @property
    def worked(self) -> float:
        """Seconds at work, as far as this call saw them."""
        return 0.0 if self.queued else time.monotonic() - self.since


def watch(state: PushState, *, interval: float, board: StatusView | None = None) -> dict[str, Outcome]:
    """Show what was pushed until no session runs any more; the last look at every step.

    Raises InputError when nothing was pushed, and what the client raises.
    """
    if not state.steps:
        raise InputError("nothing was pushed yet", where=state.path.parent.name, cure="start with `cellsignal kaggle push`")
    board = board or StatusView()
    retries = Retrying(interval, board.say)
    outcomes: dict[str, Outcome] = {}
    with board:
        while True:
            for step, pushed in state.steps.items():
                if step not in outcomes or outcomes[step].status is Status.running:
                    outcomes[step] = _report_change(board, step, outcomes.get(step), retries.ask(lambda: look_at_kernel(step, pushed, interval=interval)))
            board.show(row(step, state, outcomes.get(step)) for step in state.steps)
            if all(outcome.status is not Status.running for outcome in outcomes.values()):
                return outcomes
            time.sleep(interval)


def _report_change(board: StatusView, step: str, previous: Outcome | None, outcome: Outcome) -> Outcome:
    """Say what is new of a step, and give it."""
    if outcome != previous:
        board.say(": ".join(filter(None, [f"{step} {outcome.status.value}", outcome.detail])))
    return outcome


def refuse_failed(outcomes: dict[str, Outcome]) -> None:
    """StepFailed for the first step that failed."""
    for step, outcome in outcomes.items():
        if outcome.status is Status.failed:
            raise StepFailed(f"{step}: {outcome.detail}")
