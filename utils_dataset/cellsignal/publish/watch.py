"""What a person sees of kernels on Kaggle: a live table in a terminal, else a line per event."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.live import Live
from rich.table import Table

from cellsignal.errors import InputError, StepFailed
from cellsignal.publish import outcomes
from cellsignal.publish.outcomes import Outcome
from cellsignal.publish.refusals import RateLimited, ServerError, Unreachable
from cellsignal.publish.state import State, Status

FORGIVEN = 5  # unanswered questions in a row: who waits for hours does not give up for a minute's trouble
ENDURED = 8  # the same where nobody sits and waits
_LONGEST = 15  # intervals between two of them at most
Answer = TypeVar("Answer")


class Board:
    """Events as lines, and inside a `with` block the state of every step as a live table, where there is a terminal."""

    def __init__(self) -> None:
        self.console = Console(force_jupyter=False, markup=False, highlight=False, soft_wrap=True)
        self.live = Live(console=self.console, auto_refresh=False, transient=True)

    def __enter__(self) -> "Board":
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


def row(step: str, state: State, outcome: Outcome | None = None) -> tuple[str, str, str, str]:
    """A step's line in the table, by the last look at it."""
    pushed = state.steps.get(step)
    if pushed is None:
        return step, "waiting", "", ""
    status = outcome.status if outcome else pushed.status
    detail = outcome.detail if outcome else pushed.progress or pushed.failure
    words = detail.lower() if status is Status.running and detail else " ".join(filter(None, [status.value, detail]))
    minutes = f"{(time.time() - pushed.pushed) / 60:.0f} min" if status is Status.running else ""
    return step, words, minutes, f"{pushed.slug} version {pushed.version}"


@dataclass
class Patience:
    """Asks again what Kaggle did not answer for reasons of its own: after `interval` seconds, then twice as many, and so on."""

    interval: float
    say: Callable[[str], None]
    forgiven: int = FORGIVEN
    _unanswered: int = field(default=0, init=False)

    def ask(self, question: Callable[[], Answer]) -> Answer:
        """The answer; the error itself when it comes `forgiven` times in a row."""
        while True:
            try:
                answer = question()
            except (RateLimited, ServerError, Unreachable) as error:
                self._unanswered += 1
                if self._unanswered >= self.forgiven:
                    self._unanswered = 0
                    raise
                self.say(f"asking again: {error}")
                time.sleep(self.interval * min(2 ** (self._unanswered - 1), _LONGEST))
            else:
                self._unanswered = 0
                return answer


@dataclass
class Clock:
    """Since when this call sees a session wait for its machine, or work."""

    since: float = field(default_factory=time.monotonic)
    queued: bool = True

    def look(self, said: str) -> None:
        """Begin anew when the session has come to work."""
        if self.queued and said != "QUEUED":
            self.since, self.queued = time.monotonic(), False

    @property
    def worked(self) -> float:
        """Seconds at work, as far as this call saw them."""
        return 0.0 if self.queued else time.monotonic() - self.since


def watch(state: State, *, interval: float, board: Board | None = None) -> dict[str, Outcome]:
    """Show what was pushed until no session runs any more; the last look at every step.

    Raises InputError when nothing was pushed, and what the client raises.
    """
    if not state.steps:
        raise InputError("nothing was pushed yet", where=state.path.parent.name, cure="start with `cellsignal kaggle push`")
    board = board or Board()
    patience = Patience(interval, board.say)
    seen: dict[str, Outcome] = {}
    with board:
        while True:
            for step, pushed in state.steps.items():
                if step not in seen or seen[step].status is Status.running:
                    seen[step] = _told(board, step, seen.get(step), patience.ask(lambda: outcomes.look(step, pushed, interval=interval)))
            board.show(row(step, state, seen.get(step)) for step in state.steps)
            if all(outcome.status is not Status.running for outcome in seen.values()):
                return seen
            time.sleep(interval)


def _told(board: Board, step: str, before: Outcome | None, now: Outcome) -> Outcome:
    """Say what is new of a step, and give it."""
    if now != before:
        board.say(": ".join(filter(None, [f"{step} {now.status.value}", now.detail])))
    return now


def refuse_failed(seen: dict[str, Outcome]) -> None:
    """StepFailed for the first step that failed."""
    for step, outcome in seen.items():
        if outcome.status is Status.failed:
            raise StepFailed(f"{step}: {outcome.detail}")
