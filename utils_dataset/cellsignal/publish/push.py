"""Pushing: each kernel when what it mounts is whole and a session is free, until all are done or their time is spent."""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from cellsignal.errors import InputError, StepFailed
from cellsignal.publish import client, earlier, outcomes, progress, quota
from cellsignal.publish.order import Kernel, Plan
from cellsignal.publish.outcomes import Outcome
from cellsignal.publish.refusals import Busy, Missing, QuotaSpent
from cellsignal.publish.send import Sender
from cellsignal.publish.state import State, Status
from cellsignal.publish.watch import ENDURED, FORGIVEN, Board, Clock, Patience, row

SESSIONS = {True: 2, False: 5}  # that Kaggle runs at once for one account, with and without a GPU
HOURS = 13.0  # after which we no longer wait for a session, of which Kaggle gives 12
QUEUE = 24.0  # hours that a session may wait for its machine


@dataclass(frozen=True)
class Waiting:
    """How long and how often."""

    patience: float = HOURS * 3600  # seconds for one session at work, or for a free one
    queue: float = QUEUE * 3600  # seconds in which a session has to come to work
    interval: float = 60.0  # seconds between two looks
    until_done: bool = False  # push again what ended for want of time


@dataclass
class Press:
    """One call of push: what waits, runs, is done, and has spent its time."""

    plan: Plan
    state: State
    upload: Callable[[], object]  # brings the package to Kaggle; called once, before the first push
    waiting_for: Waiting = field(default_factory=Waiting)
    board: Board = field(default_factory=Board)
    waiting: list[Kernel] = field(default_factory=list, init=False)
    running: dict[str, Clock] = field(default_factory=dict, init=False)
    former: dict[str, Clock] = field(default_factory=dict, init=False)  # steps whose last push is another's and still runs
    done: set[str] = field(default_factory=set, init=False)
    spent: dict[str, str] = field(default_factory=dict, init=False)  # step -> how far it came
    starved: dict[bool, float] = field(default_factory=dict, init=False)  # kind of session -> since when there is none

    def __post_init__(self) -> None:
        self.patience = Patience(self.waiting_for.interval, self.board.say, ENDURED if self.waiting_for.until_done else FORGIVEN)
        self.sender = Sender(self.plan, self.state, self.upload, self.patience, self.board)

    def drive(self, chosen: Collection[Kernel]) -> dict[str, str]:
        """Push the chosen kernels and wait for them; gives, by step, how far those came whose time was spent.

        Raises InputError for a kernel whose sources are not complete and not chosen either, StepFailed for the first
        kernel that fails, and what the client raises. The same call again goes on.
        """
        names = {kernel.step for kernel in chosen}
        with self.board:
            for kernel in self.plan.kernels:
                if kernel.step in names or any(kernel.step in other.needs for other in chosen):
                    self._look_back(kernel, chosen=kernel.step in names)
            while True:
                self._look()
                self._start()
                self.board.show(row(kernel.step, self.state) for kernel in self.plan.kernels if kernel.step in names)
                if not self.running and not self.former and not self._ready():
                    return self.spent
                time.sleep(self.waiting_for.interval)

    # What earlier calls left

    def _look_back(self, kernel: Kernel, *, chosen: bool) -> None:
        """Find out whether a step is done, runs, or waits to be pushed."""
        pushed = self.state.steps.get(kernel.step)
        if pushed is None or pushed.status is Status.failed:
            self._wait(kernel, chosen=chosen)
            return
        before, outcome = pushed.status, self._outcome(kernel.step)
        if pushed.identity != self.sender.identities[kernel.step]:
            self._wait(kernel, chosen=chosen)
            self._look_back_at_former(kernel.step, outcome)
        elif outcome.status is Status.failed and before is not Status.running:
            self._wait(kernel, chosen=chosen)
            self._settle(kernel.step, outcome)
        elif outcome.status is Status.running:
            self.running[kernel.step] = Clock()
            self.state.note(pushed, Status.running)
            self.board.say(f"{kernel.step} runs already")
        elif outcome.status is Status.incomplete:
            self._wait(kernel, chosen=chosen)
            self._note_spent(kernel.step, outcome)
        else:
            self._ended(kernel.step, outcome, said="kept" if before is Status.complete else "complete")

    def _look_back_at_former(self, step: str, outcome: Outcome) -> None:
        """A step was pushed with other parameters or code: a second session beside one that runs would have it unwatched."""
        if outcome.status is not Status.running:
            self._settle(step, outcome)
            return
        pushed, self.former[step] = self.state.steps[step], Clock()
        self.state.note(pushed, Status.running)
        self.board.say(f"{step}: waiting for its last push, which runs with other parameters or code; to go on at once delete it: {pushed.url}")

    def _settle(self, step: str, outcome: Outcome) -> None:
        """Note what became of a push that is to be made again: what it left can be gone on with, or is not there."""
        pushed = self.state.steps[step]
        kept = {"progress": outcome.detail, "best": progress.furthest(pushed.best, outcome.detail)} if outcome.status is Status.incomplete else {}
        if outcome.status is Status.failed:  # one that never came to Kaggle took nobody's place
            kept = {"failure": outcome.detail} | ({} if pushed.status in (Status.pushing, Status.running) else {"earlier": "", "best": {}})
        self.state.note(pushed, outcome.status, written=outcome.written, **kept)

    def _wait(self, kernel: Kernel, *, chosen: bool) -> None:
        if not chosen:
            what = "it is not complete on Kaggle, and others need it"
            raise InputError(what, where=kernel.step, cure="push it first, or leave --only and --cell-type away")
        self.waiting.append(kernel)

    # What runs

    def _outcome(self, step: str) -> Outcome:
        return self.patience.ask(lambda: outcomes.look(step, self.state.steps[step], interval=self.waiting_for.interval))

    def _look(self) -> None:
        """Look at every session that runs."""
        self._look_at_strays()
        self._look_at_former()
        for step, clock in list(self.running.items()):
            outcome = self._outcome(step)
            if outcome.status is Status.running:
                self._check_clock(step, clock, outcome.detail)
                continue
            del self.running[step]
            self._ended(step, outcome, said="complete")

    def _ended(self, step: str, outcome: Outcome, *, said: str) -> None:
        """Note how a session ended; StepFailed when it did so without its work."""
        pushed = self.state.steps[step]
        if outcome.status is Status.complete:
            self.state.note(pushed, Status.complete, written=outcome.written)
            self.done.add(step)
            self.board.say(": ".join(filter(None, [f"{step} {said}", outcome.detail])))
        elif outcome.status is Status.incomplete:
            self._out_of_time(step, outcome)
        elif earlier.MISSING in outcome.detail and pushed.earlier:
            self._not_mounted(step, outcome)
        else:
            self.state.note(pushed, Status.failed, failure=outcome.detail)
            raise StepFailed(f"{step}: {outcome.detail}")

    def _out_of_time(self, step: str, outcome: Outcome) -> None:
        """A session ended because its time was spent: push it again, or leave it for the next call."""
        pushed = self.state.steps[step]
        excused = pushed.slug == pushed.earlier
        advanced = self._note_spent(step, outcome)
        if not self.waiting_for.until_done:
            self.spent[step] = outcome.detail
        elif not advanced and not excused:
            minutes = f" of {pushed.minutes:g} minutes" if pushed.minutes else ""
            raise StepFailed(f"{step}: a whole session{minutes} brought it no further than {outcome.detail}; raise time_budget_minutes")
        else:
            self._again(step)

    def _note_spent(self, step: str, outcome: Outcome) -> bool:
        """Note what ended for want of time, and tell whether it came further than before.

        When not, Kaggle may not have mounted its earlier self: the next goes to the second slug, from which it will.
        """
        pushed = self.state.steps[step]
        fresh, itself = outcome.written > pushed.written, pushed.slug == pushed.earlier
        advanced = not fresh or progress.advanced(pushed.best, outcome.detail)
        best = progress.furthest(pushed.best, outcome.detail)
        self.state.note(pushed, Status.incomplete, progress=outcome.detail, best=best, written=outcome.written, earlier=pushed.slug)
        self.board.say(f"{step} incomplete: {outcome.detail}")
        if not advanced and itself:
            self.sender.use_two_slugs(step, why=f"no further than {outcome.detail} after a whole session")
        return advanced

    def _not_mounted(self, step: str, outcome: Outcome) -> None:
        """A session said at once that what it was to go on with is not there."""
        pushed = self.state.steps[step]
        if pushed.slug != pushed.earlier:
            self.sender.lost(step, pushed, why=outcome.detail)
        self.state.note(pushed, Status.failed, failure=outcome.detail)
        self.sender.use_two_slugs(step, why="Kaggle mounts no kernel in itself")
        self._again(step)

    def _again(self, step: str) -> None:
        self.waiting += [kernel for kernel in self.plan.kernels if kernel.step == step]

    def _look_at_former(self) -> None:
        """See which sessions of other parameters or code have ended."""
        for step, clock in list(self.former.items()):
            outcome = self._outcome(step)
            if outcome.status is Status.running:
                self._check_clock(step, clock, outcome.detail)
            else:
                del self.former[step]
                self._settle(step, outcome)

    def _look_at_strays(self) -> None:
        """See which sessions that we did not want have ended."""
        for pushed in self.state.steps.values():
            if pushed.stray and self._has_ended(pushed.stray):
                self.state.note(pushed, pushed.status, stray="")

    def _has_ended(self, slug: str) -> bool:
        try:
            return self.patience.ask(lambda: client.kernel_status(slug)) in client.ENDED
        except Missing:
            return True

    # What starts

    def _ready(self) -> list[Kernel]:
        return [kernel for kernel in self.waiting if kernel.step not in self.former and set(kernel.needs) <= self.done]

    def _start(self) -> None:
        """Push what is ready, as far as sessions are free and the week's hours suffice."""
        full, hours = set(), None
        for kernel in self._ready():
            if kernel.gpu in full or self._taken(gpu=kernel.gpu) >= SESSIONS[kernel.gpu]:
                continue
            self.sender.prepare()
            hours = quota.hours_left() if kernel.gpu and hours is None else hours
            minutes = self._minutes(kernel, hours)
            if minutes is None:
                full.add(kernel.gpu)
                self._starve(kernel.gpu, f"what runs may need the {hours:g} GPU hours that are left this week")
                continue
            try:
                pushed = self.sender.send(kernel, minutes=minutes)
                self.starved.pop(kernel.gpu, None)
            except Busy as error:
                full.add(kernel.gpu)
                self._starve(kernel.gpu, str(error))
                continue
            if pushed is not None:
                if minutes != kernel.parameters.get("time_budget_minutes", 0.0):
                    self.board.say(f"{kernel.step} works {minutes:g} minutes, because {hours:g} GPU hours are left this week")
                self.waiting.remove(kernel)
                self.running[kernel.step] = Clock()

    def _minutes(self, kernel: Kernel, hours: float | None) -> float | None:
        """Minutes of work for a kernel's session; None while those that run may need all that is left of the week.

        0 is for Kaggle's own limit. Raises QuotaSpent when nothing runs and too little is left.
        """
        asked = kernel.parameters.get("time_budget_minutes", 0.0)
        if hours is None or not kernel.gpu:
            return asked
        free = SESSIONS[True] - self._taken(gpu=True)
        starting = min(free, sum(other.gpu for other in self._ready()))
        left = quota.share(hours, running=self._reserved(), starting=starting)
        if left >= quota.wanted(asked):
            return asked
        if left >= quota.LEAST:
            return float(round(left))
        if self._taken(gpu=True):
            return None
        what = f"{kernel.step}: {hours:g} GPU hours are left this week, too little for a session"
        raise QuotaSpent(f"{what}; `kaggle quota` says when they are refilled, then the same command goes on")

    def _reserved(self) -> list[float]:
        """Minutes that each GPU session we know of may still take."""
        known = [(self.state.steps[step], clock.worked) for step, clock in {**self.running, **self.former}.items()]
        strays = [quota.wanted(0.0) for pushed in self.state.steps.values() if pushed.stray and pushed.gpu]
        return [max(0.0, quota.wanted(pushed.minutes) + quota.MARGIN - worked / 60) for pushed, worked in known if pushed.gpu] + strays

    def _taken(self, *, gpu: bool) -> int:
        """Sessions of this kind that we know to run."""
        strays = sum(bool(pushed.stray) and pushed.gpu == gpu for pushed in self.state.steps.values())
        return strays + sum(self.state.steps[step].gpu == gpu for step in (*self.running, *self.former))

    def _starve(self, gpu: bool, why: str) -> None:
        """Other work holds all sessions, or hours: wait for it to end."""
        if gpu not in self.starved:
            self.starved[gpu] = time.monotonic()
            self.board.say(f"waiting: {why}")
        self._check_patience(self.starved[gpu], self.waiting_for.patience, f"no free session: {why}", option="patience")

    def _check_clock(self, step: str, clock: Clock, said: str) -> None:
        """Raise StepFailed for a session that waits for its machine, or works, for too long."""
        clock.look(said)
        option, limit = ("queue", self.waiting_for.queue) if clock.queued else ("patience", self.waiting_for.patience)
        self._check_patience(clock.since, limit, f"{step}: still {said.lower()}", option=option, see=self.state.steps[step].url)

    def _check_patience(self, since: float, limit: float, what: str, *, option: str, see: str = "") -> None:
        if time.monotonic() - since > limit:
            where = f"; see {see}" if see else ""
            raise StepFailed(f"{what} after {limit / 3600:g} hours{where}; the same command waits on, --{option} says how long")
