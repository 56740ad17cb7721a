"""Pushing: each kernel when what it mounts is whole and a session is free, until all are done or their time is spent."""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from cellsignal import provenance, settings
from cellsignal.errors import InputError, StepFailed
from cellsignal.kaggle import client, kernel_folders, push_state, watch
from cellsignal.kaggle.errors import Busy, InvalidSource, Missing, QuotaSpent, RateLimited, Refused, ServerError, Unreachable
from cellsignal.kaggle.kernel_folders import SECOND_SLUG_SUFFIX, Kernel, PushPlan
from cellsignal.kaggle.push_state import PushedKernel, PushState, Status
from cellsignal.kaggle.watch import RETRIES, UNATTENDED_RETRIES, Outcome, PollClock, Retrying, StatusView, row
from cellsignal.run import environment

# Sending one kernel: rendered, pushed once though Kaggle may not answer, noted before and after.


_RESUMABLE = (Status.complete, Status.incomplete)


@dataclass
class Sender:
    """Brings the package to Kaggle before the first kernel, and then kernels, each with its earlier self among its mounts."""

    plan: PushPlan
    state: PushState
    upload: Callable[[], object]
    retries: Retrying
    board: StatusView
    code: str = field(default="", init=False)  # of the package that was uploaded

    def __post_init__(self) -> None:
        self.identities, self.work_identities = kernel_folders.identities(self.plan), kernel_folders.work_identities(self.plan)

    def prepare(self) -> None:
        """Upload the package, once: who edits it while we wait changes nothing on Kaggle."""
        if not self.code:
            code = provenance.code_digest()
            self.retries.ask(self.upload)
            self.code = code

    def send(self, kernel: Kernel, *, minutes: float) -> PushedKernel | None:
        """Push a kernel whose session may work so many `minutes`; the state says so before and after.

        None when Kaggle does not take it as its own source: the same call again pushes it under its second slug.
        Raises Busy, QuotaSpent and what else the client raises, with the state as it was before, but for an answer that
        never came.
        """
        previous = self.state.steps.get(kernel.step)
        pushed = self._pushed_kernel(kernel, previous, minutes)
        folder = self._render(kernel, pushed)
        self.state.steps[kernel.step] = pushed
        self.state.save()
        try:
            version = self.retries.ask(self._push_once(kernel.step, pushed, folder))
        except InvalidSource as error:
            self._handle_refused_source(kernel, previous, pushed, error)
            return None
        except (ServerError, Unreachable):
            raise  # whether it arrived is not known: the next call asks
        except (StepFailed, InputError) as error:
            self._restore(kernel, previous)
            if not isinstance(error, Refused) or isinstance(error, Busy | QuotaSpent | RateLimited) or not _mounts_itself(pushed):
                raise
            self.use_two_slugs(kernel.step, why=str(error))
            return None
        self.state.note(pushed, Status.running, version=version)
        self.board.say(f"{kernel.step} pushed: {pushed.url} " + (f"version {version}" if version else "(of which no answer came)"))
        return pushed

    def use_two_slugs(self, step: str, *, why: str) -> None:
        """Let steps go on under their other slugs."""
        self.state.two_slugs = True
        self.state.save()
        self.board.say(f"{step}: {why}; it goes on under a second slug")

    def _push_once(self, step: str, pushed: PushedKernel, folder: Path) -> Callable[[], int]:
        """A push that may be tried again: it gives the version, 0 for one that had arrived without an answer."""
        unanswered = False

        def push() -> int:
            nonlocal unanswered
            if unanswered and watch.look_at_kernel(step, pushed).status is not Status.failed:
                return 0
            unanswered = False
            try:
                return client.push(folder)
            except (ServerError, Unreachable):
                unanswered = True
                raise

        return push

    def _pushed_kernel(self, kernel: Kernel, previous: PushedKernel | None, minutes: float) -> PushedKernel:
        """A push to come; one of work that an earlier session began mounts what that one left."""
        work, first_slug = self.work_identities[kernel.step], f"{self.plan.owner}/{kernel.slug}"
        same_work = previous if previous is not None and previous.work == work else None
        resumable = same_work is not None and same_work.status in _RESUMABLE
        earlier = (same_work.slug if resumable else same_work.earlier) if same_work and kernel.resumable else ""
        return PushedKernel(
            identity=self.identities[kernel.step],
            work=work,
            slug=first_slug + SECOND_SLUG_SUFFIX * (self.state.two_slugs and earlier == first_slug),
            gpu=kernel.gpu,
            run=self.plan.run,
            parameters=kernel.decisive,
            outputs=list(kernel.outputs),
            code=self.code,
            progress=same_work.progress if same_work else "",
            best=same_work.best if same_work else {},
            pushed=round(time.time(), 1),
            minutes=minutes,
            seen=max(previous.written, previous.seen) if previous else 0.0,
            earlier=earlier,
            stray=previous.stray if previous else "",
        )

    def _render(self, kernel: Kernel, pushed: PushedKernel) -> Path:
        mounts = [self.state.steps[need].slug for need in kernel.needs] + [pushed.earlier] * bool(pushed.earlier)
        if kernel.decisive.get(MINUTES, 0.0) != pushed.minutes and MINUTES in kernel.decisive:
            kernel = replace(kernel, parameters=settings.update(kernel.parameters, {MINUTES: pushed.minutes}))
        options = {"slug": _without_owner(pushed.slug), "mounts": list(map(_without_owner, mounts)), "resumes": bool(pushed.earlier)}
        return kernel_folders.render(self.state.path.parent / kernel.step, self.plan, kernel, **options)

    def _handle_refused_source(self, kernel: Kernel, previous: PushedKernel | None, pushed: PushedKernel, error: InvalidSource) -> None:
        """A kernel that may not mount its earlier self goes on under its other slug; any other source is missed."""
        if previous is None or set(error.sources) != {pushed.earlier}:
            self.state.note(pushed, Status.failed, failure=str(error))
            raise StepFailed(f"{kernel.step}: {error}") from None
        previous.stray = pushed.slug  # it was saved, and runs from the beginning
        self._restore(kernel, previous)
        if not _mounts_itself(pushed):
            self.begin_anew(kernel.step, previous, why=str(error))
        self.use_two_slugs(kernel.step, why="Kaggle takes no kernel as its own source")

    def begin_anew(self, step: str, pushed: PushedKernel, *, why: str) -> None:
        """What an earlier session left cannot be mounted under either slug: StepFailed, and the next call begins anew."""
        self.state.note(pushed, Status.failed, failure=why, earlier="", best={}, progress="")
        raise StepFailed(f"{step}: {why}; give the same command again to start it over")

    def _restore(self, kernel: Kernel, previous: PushedKernel | None) -> None:
        """Have the state as it was before a push that did not happen."""
        if previous is None:
            del self.state.steps[kernel.step]
        else:
            self.state.steps[kernel.step] = previous
        self.state.save()


def _mounts_itself(pushed: PushedKernel) -> bool:
    """Whether a push has its own slug among its sources."""
    return bool(pushed.earlier) and pushed.slug == pushed.earlier


def _without_owner(slug: str) -> str:
    """A slug without its owner."""
    return slug.rpartition("/")[2]


# The week's GPU hours: how many of them a session may have, so that it ends by itself and not with the quota.


OVERHEAD_MINUTES = 20.0  # minutes of a session beside its work: it starts, reads, saves
MIN_MINUTES = 30.0  # minutes of work that are worth a session


def hours_left() -> float | None:
    """The GPU hours that are left this week; None when Kaggle does not tell, and then there is nothing to share."""
    try:
        return client.gpu_hours()
    except (StepFailed, InputError):  # the push itself will say what is wrong
        return None


def session_minutes(hours: float, *, running: Collection[float], starting: int) -> float:
    """Minutes of work for the next of `starting` sessions; `running`: minutes that others may still take.

    Where not all could do something worth a session, it has what is left alone.
    """
    remaining = 60 * hours - sum(running)
    share = remaining / starting - OVERHEAD_MINUTES
    return share if share >= MIN_MINUTES else remaining - OVERHEAD_MINUTES


def work_minutes(budget: float) -> float:
    """Minutes of work that a session has when the quota is no limit; `budget` is the recipe's machine.time_budget_minutes."""
    return budget or environment.SESSION_MINUTES


MINUTES = "machine.time_budget_minutes"
MAX_SESSIONS = {True: 2, False: 5}  # that Kaggle runs at once for one account, with and without a GPU
SESSION_HOURS = 13.0  # after which we no longer wait for a session, of which Kaggle gives 12
QUEUE_HOURS = 24.0  # hours that a session may wait for its machine


@dataclass(frozen=True)
class Waiting:
    """How long and how often."""

    session_timeout: float = SESSION_HOURS * 3600  # seconds for one session at work, or for a free one
    queue_timeout: float = QUEUE_HOURS * 3600  # seconds in which a session has to come to work
    interval: float = 60.0  # seconds between two looks
    until_done: bool = False  # push again what ended for want of time


@dataclass
class PushRunner:
    """One call of push: what waits, runs, is done, and is out of time."""

    plan: PushPlan
    state: PushState
    upload: Callable[[], object]  # brings the package to Kaggle; called once, before the first push
    waiting_for: Waiting = field(default_factory=Waiting)
    board: StatusView = field(default_factory=StatusView)
    waiting: list[Kernel] = field(default_factory=list, init=False)
    running: dict[str, PollClock] = field(default_factory=dict, init=False)
    former: dict[str, PollClock] = field(default_factory=dict, init=False)  # steps whose last push is another's and still runs
    done: set[str] = field(default_factory=set, init=False)
    out_of_time: dict[str, str] = field(default_factory=dict, init=False)  # step -> how far it came
    waiting_since: dict[bool, float] = field(default_factory=dict, init=False)  # kind of session -> since when there is none

    def __post_init__(self) -> None:
        self.retries = Retrying(self.waiting_for.interval, self.board.say, UNATTENDED_RETRIES if self.waiting_for.until_done else RETRIES)
        # Their versions decide what is made, too: Kaggle attaches the newest.
        versions = tuple(self.retries.ask(partial(client.dataset_status, slug))[1] for slug in self.plan.datasets[1:])
        self.plan = replace(self.plan, dataset_versions=versions)
        self.sender = Sender(self.plan, self.state, self.upload, self.retries, self.board)

    def drive(self, chosen: Collection[Kernel]) -> dict[str, str]:
        """Push the chosen kernels and wait for them; gives, by step, how far those came whose time was spent.

        Raises InputError for a kernel whose sources are not complete and not chosen either, StepFailed for the first
        kernel that fails, and what the client raises. The same call again goes on.
        """
        steps = {kernel.step for kernel in chosen}
        with self.board:
            for kernel in self.plan.kernels:
                if kernel.step in steps or any(kernel.step in other.needs for other in chosen):
                    self._check_earlier_push(kernel, chosen=kernel.step in steps)
            while True:
                self._poll_all()
                self._start()
                self.board.show(row(kernel.step, self.state) for kernel in self.plan.kernels if kernel.step in steps)
                if not self.running and not self.former and not self._ready():
                    return self.out_of_time
                time.sleep(self.waiting_for.interval)

    # What earlier calls left

    def _check_earlier_push(self, kernel: Kernel, *, chosen: bool) -> None:
        """Find out whether a step is done, runs, or waits to be pushed."""
        pushed = self.state.steps.get(kernel.step)
        if pushed is None or pushed.status is Status.failed:
            self._wait(kernel, chosen=chosen)
            return
        previous_status, outcome = pushed.status, self._outcome(kernel.step)
        if pushed.identity != self.sender.identities[kernel.step]:
            self._wait(kernel, chosen=chosen)
            self._check_former_push(kernel.step, outcome)
        elif outcome.status is Status.failed and previous_status is not Status.running:
            self._wait(kernel, chosen=chosen)
            self._record_outcome(kernel.step, outcome)
        elif outcome.status is Status.running:
            self.running[kernel.step] = PollClock()
            self.state.note(pushed, Status.running)
            self.board.say(f"{kernel.step} runs already")
        elif outcome.status is Status.incomplete:
            self._wait(kernel, chosen=chosen)
            self._note_spent(kernel.step, outcome)
        else:
            self._ended(kernel.step, outcome, label="kept" if previous_status is Status.complete else "complete")

    def _check_former_push(self, step: str, outcome: Outcome) -> None:
        """A step was pushed with other parameters or code: a second session beside one that runs would have it unwatched."""
        if outcome.status is not Status.running:
            self._record_outcome(step, outcome)
            return
        pushed, self.former[step] = self.state.steps[step], PollClock()
        self.state.note(pushed, Status.running)
        self.board.say(f"{step}: waiting for its last push, which runs with other parameters or code; to go on at once delete it: {pushed.url}")

    def _record_outcome(self, step: str, outcome: Outcome) -> None:
        """Note what became of a push that is to be made again: what it left can be gone on with, or is not there."""
        pushed = self.state.steps[step]
        changes = {"progress": outcome.detail, "best": push_state.furthest(pushed.best, outcome.detail)} if outcome.status is Status.incomplete else {}
        if outcome.status is Status.failed:  # one that never came to Kaggle took nobody's place
            changes = {"failure": outcome.detail} | ({} if pushed.status in (Status.pushing, Status.running) else {"earlier": "", "best": {}})
        self.state.note(pushed, outcome.status, written=max(pushed.written, outcome.written), **changes)

    def _wait(self, kernel: Kernel, *, chosen: bool) -> None:
        if not chosen:
            what = "it is not complete on Kaggle, and others need it"
            raise InputError(what, where=kernel.step, cure="push it first, or leave --only and --cell-type away")
        self.waiting.append(kernel)

    # What runs

    def _outcome(self, step: str) -> Outcome:
        return self.retries.ask(lambda: watch.look_at_kernel(step, self.state.steps[step], interval=self.waiting_for.interval))

    def _poll_all(self) -> None:
        """Look at every session that runs."""
        self._poll_strays()
        self._poll_former()
        for step, clock in list(self.running.items()):
            outcome = self._outcome(step)
            if outcome.status is Status.running:
                self._check_clock(step, clock, outcome.detail)
                continue
            del self.running[step]
            self._ended(step, outcome, label="complete")

    def _ended(self, step: str, outcome: Outcome, *, label: str) -> None:
        """Note how a session ended; StepFailed when it did so without its work."""
        pushed = self.state.steps[step]
        if outcome.status is Status.complete:
            self.state.note(pushed, Status.complete, written=outcome.written)
            self.done.add(step)
            self.board.say(": ".join(filter(None, [f"{step} {label}", outcome.detail])))
        elif outcome.status is Status.incomplete:
            self._out_of_time(step, outcome)
        elif kernel_folders.NOT_MOUNTED in outcome.detail and pushed.earlier:
            self._not_mounted(step, outcome)
        else:
            self.state.note(pushed, Status.failed, failure=outcome.detail, written=max(pushed.written, outcome.written))
            raise StepFailed(f"{step}: {outcome.detail}")

    def _out_of_time(self, step: str, outcome: Outcome) -> None:
        """A session ended because its time was spent: push it again, or leave it for the next call."""
        pushed = self.state.steps[step]
        mounted_itself = pushed.slug == pushed.earlier
        advanced = self._note_spent(step, outcome)
        if not self.waiting_for.until_done:
            self.out_of_time[step] = outcome.detail
        elif not advanced and not mounted_itself:
            minutes = f" of {pushed.minutes:g} minutes" if pushed.minutes else ""
            raise StepFailed(f"{step}: a whole session{minutes} brought it no further than {outcome.detail}; raise machine.time_budget_minutes")
        else:
            self._push_again(step)

    def _note_spent(self, step: str, outcome: Outcome) -> bool:
        """Note what ended for want of time, and tell whether it came further than before.

        When not, Kaggle may not have mounted its earlier self: the next goes to the second slug, from which it will.
        """
        pushed = self.state.steps[step]
        new, mounted_itself = outcome.written > pushed.written, pushed.slug == pushed.earlier
        advanced = not new or push_state.advanced(pushed.best, outcome.detail)
        best = push_state.furthest(pushed.best, outcome.detail)
        self.state.note(pushed, Status.incomplete, progress=outcome.detail, best=best, written=outcome.written, earlier=pushed.slug)
        self.board.say(f"{step} incomplete: {outcome.detail}")
        if not advanced and mounted_itself:
            self.sender.use_two_slugs(step, why=f"no further than {outcome.detail} after a whole session")
        return advanced

    def _not_mounted(self, step: str, outcome: Outcome) -> None:
        """A session said at once that what it was to go on with is not there."""
        pushed = self.state.steps[step]
        if pushed.slug != pushed.earlier:
            self.sender.begin_anew(step, pushed, why=outcome.detail)
        self.state.note(pushed, Status.failed, failure=outcome.detail)
        self.sender.use_two_slugs(step, why="Kaggle mounts no kernel in itself")
        self._push_again(step)

    def _push_again(self, step: str) -> None:
        self.waiting += [kernel for kernel in self.plan.kernels if kernel.step == step]

    def _poll_former(self) -> None:
        """See which sessions of other parameters or code have ended."""
        for step, clock in list(self.former.items()):
            outcome = self._outcome(step)
            if outcome.status is Status.running:
                self._check_clock(step, clock, outcome.detail)
            else:
                del self.former[step]
                self._record_outcome(step, outcome)

    def _poll_strays(self) -> None:
        """See which sessions that we did not want have ended."""
        for pushed in self.state.steps.values():
            if pushed.stray and self._has_ended(pushed.stray):
                self.state.note(pushed, pushed.status, stray="")

    def _has_ended(self, slug: str) -> bool:
        try:
            return self.retries.ask(lambda: client.kernel_status(slug)) in client.FINISHED_STATES
        except Missing:
            return True

    # What starts

    def _ready(self) -> list[Kernel]:
        return [kernel for kernel in self.waiting if kernel.step not in self.former and set(kernel.needs) <= self.done]

    def _start(self) -> None:
        """Push what is ready, as far as sessions are free and the week's hours suffice."""
        no_session, hours = set(), None
        for kernel in self._ready():
            if kernel.gpu in no_session or self._sessions_in_use(gpu=kernel.gpu) >= MAX_SESSIONS[kernel.gpu]:
                continue
            self.sender.prepare()
            hours = hours_left() if kernel.gpu and hours is None else hours
            minutes = self._minutes(kernel, hours)
            if minutes is None:
                no_session.add(kernel.gpu)
                self._wait_for_session(kernel.gpu, f"what runs may need the {hours:g} GPU hours that are left this week")
                continue
            try:
                pushed = self.sender.send(kernel, minutes=minutes)
                self.waiting_since.pop(kernel.gpu, None)
            except Busy as error:
                no_session.add(kernel.gpu)
                self._wait_for_session(kernel.gpu, str(error))
                continue
            if pushed is not None:
                if minutes != kernel.decisive.get(MINUTES, 0.0):
                    self.board.say(f"{kernel.step} works {minutes:g} minutes, because {hours:g} GPU hours are left this week")
                self.waiting.remove(kernel)
                self.running[kernel.step] = PollClock()

    def _minutes(self, kernel: Kernel, hours: float | None) -> float | None:
        """Minutes of work for a kernel's session; None while those that run may need all that is left of the week.

        0 is for Kaggle's own limit. Raises QuotaSpent when nothing runs and too little is left.
        """
        budget = kernel.decisive.get(MINUTES, 0.0)
        if hours is None or not kernel.gpu:
            return budget
        free_sessions = MAX_SESSIONS[True] - self._sessions_in_use(gpu=True)
        sessions = min(free_sessions, sum(other.gpu for other in self._ready()))
        available = session_minutes(hours, running=self._reserved(), starting=sessions)
        if available >= work_minutes(budget):
            return budget
        if available >= MIN_MINUTES:
            return float(round(available))
        if self._sessions_in_use(gpu=True):
            return None
        what = f"{kernel.step}: {hours:g} GPU hours are left this week, too little for a session"
        raise QuotaSpent(f"{what}; `kaggle quota` says when they are refilled, then give the same command again to continue")

    def _reserved(self) -> list[float]:
        """Minutes that each GPU session we know of may still take."""
        session_seconds = [(self.state.steps[step], clock.worked) for step, clock in {**self.running, **self.former}.items()]
        strays = [work_minutes(0.0) for pushed in self.state.steps.values() if pushed.stray and pushed.gpu]
        return [max(0.0, work_minutes(pushed.minutes) + OVERHEAD_MINUTES - worked / 60) for pushed, worked in session_seconds if pushed.gpu] + strays

    def _sessions_in_use(self, *, gpu: bool) -> int:
        """Sessions of this kind that we know to run."""
        strays = sum(bool(pushed.stray) and pushed.gpu == gpu for pushed in self.state.steps.values())
        return strays + sum(self.state.steps[step].gpu == gpu for step in (*self.running, *self.former))

    def _wait_for_session(self, gpu: bool, why: str) -> None:
        """Other work holds all sessions, or hours: wait for it to end."""
        if gpu not in self.waiting_since:
            self.waiting_since[gpu] = time.monotonic()
            self.board.say(f"waiting: {why}")
        self._check_timeout(self.waiting_since[gpu], self.waiting_for.session_timeout, f"no free session: {why}", option="session-timeout")

    def _check_clock(self, step: str, clock: PollClock, state: str) -> None:
        """Raise StepFailed for a session that waits for its machine, or works, for too long."""
        clock.look(state)
        option, limit = ("queue-timeout", self.waiting_for.queue_timeout) if clock.queued else ("session-timeout", self.waiting_for.session_timeout)
        self._check_timeout(clock.since, limit, f"{step}: still {state.lower()}", option=option, see=self.state.steps[step].url)

    def _check_timeout(self, since: float, limit: float, what: str, *, option: str, see: str = "") -> None:
        if time.monotonic() - since > limit:
            where = f"; see {see}" if see else ""
            raise StepFailed(f"{what} after {limit / 3600:g} hours{where}; give the same command again to wait longer, or a longer --{option}")
