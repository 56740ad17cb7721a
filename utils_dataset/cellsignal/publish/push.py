"""Pushing: each kernel when what it mounts is whole and a session is free, until all are done or their time is spent."""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from cellsignal.errors import InputError, StepFailed
from cellsignal.publish import client, outcomes, render
from cellsignal.publish.order import SECOND, Kernel, Plan
from cellsignal.publish.refusals import Busy, InvalidSource, Missing, ServerError, Unreachable
from cellsignal.publish.state import Pushed, State, Status
from cellsignal.publish.watch import Board, Patience, row
from cellsignal.run import provenance

SESSIONS = {True: 2, False: 5}  # that Kaggle runs at once for one account, with and without a GPU
HOURS = 13.0  # after which we no longer wait for a session, of which Kaggle gives 12


@dataclass(frozen=True)
class Waiting:
    """How long and how often."""

    patience: float = HOURS * 3600  # seconds for one session, in the queue and at work, or for a free one
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
    running: dict[str, float] = field(default_factory=dict, init=False)  # step -> since when this call sees it run
    done: set[str] = field(default_factory=set, init=False)
    spent: dict[str, str] = field(default_factory=dict, init=False)  # step -> how far it came
    starved: dict[bool, float] = field(default_factory=dict, init=False)  # kind of session -> since when there is none

    def __post_init__(self) -> None:
        self.identities = render.identities(self.plan)
        self.patience = Patience(self.waiting_for.interval, self.board.say)
        self.code = ""  # of the package that was uploaded

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
                if not self.running and not self._ready():
                    return self.spent
                time.sleep(self.waiting_for.interval)

    # What earlier calls left

    def _look_back(self, kernel: Kernel, *, chosen: bool) -> None:
        """Find out whether a step is done, runs, or waits to be pushed."""
        pushed = self.state.steps.get(kernel.step)
        if pushed is None or pushed.identity != self.identities[kernel.step] or pushed.status is Status.failed:
            self._wait(kernel, chosen=chosen)
            return
        before = pushed.status
        outcome = self.patience.ask(lambda: outcomes.look(kernel.step, pushed))
        if outcome.status is Status.failed and before is not Status.running:
            self._wait(kernel, chosen=chosen)  # it never came to Kaggle, or another run took its place
        elif outcome.status is Status.running:
            self.running[kernel.step] = time.monotonic()
            self._note(pushed, Status.running)
            self.board.say(f"{kernel.step} runs already")
        elif outcome.status is Status.incomplete:
            self._note(pushed, Status.incomplete, progress=outcome.detail, earlier=pushed.slug)
            self._wait(kernel, chosen=chosen)
        else:
            self._ended(kernel.step, outcome, said="kept" if before is Status.complete else "complete")

    def _wait(self, kernel: Kernel, *, chosen: bool) -> None:
        if not chosen:
            what = "it is not complete on Kaggle, and others need it"
            raise InputError(what, where=kernel.step, cure="push it first, or leave --only and --cell-type away")
        self.waiting.append(kernel)

    # What runs

    def _look(self) -> None:
        """Look at every session that runs."""
        self._look_at_strays()
        for step, since in list(self.running.items()):
            pushed = self.state.steps[step]
            outcome = self.patience.ask(lambda: outcomes.look(step, pushed))
            if outcome.status is Status.running:
                self._check_patience(since, f"{step}: still {outcome.detail.lower()}", see=pushed.url)
                continue
            del self.running[step]
            self._ended(step, outcome, said="complete")

    def _ended(self, step: str, outcome: outcomes.Outcome, *, said: str) -> None:
        """Note how a session ended; StepFailed when it did so without its work."""
        pushed = self.state.steps[step]
        if outcome.status is Status.complete:
            self._note(pushed, Status.complete)
            self.done.add(step)
            self.board.say(f"{step} {said}")
        elif outcome.status is Status.incomplete:
            self._out_of_time(step, pushed, outcome.detail)
        else:
            self._note(pushed, Status.failed, failure=outcome.detail)
            raise StepFailed(f"{step}: {outcome.detail}")

    def _out_of_time(self, step: str, pushed: Pushed, progress: str) -> None:
        """A session ended because its time was spent: push it again, or leave it for the next call."""
        stands_still = bool(progress) and progress == pushed.progress
        self._note(pushed, Status.incomplete, progress=progress, earlier=pushed.slug)
        self.board.say(f"{step} incomplete: {progress}")
        if not self.waiting_for.until_done:
            self.spent[step] = progress
        elif stands_still:
            raise StepFailed(f"{step}: a whole session brought it no further than {progress}; raise time_budget_minutes")
        else:
            self.waiting += [kernel for kernel in self.plan.kernels if kernel.step == step]

    def _look_at_strays(self) -> None:
        """See which sessions that we did not want have ended."""
        for pushed in self.state.steps.values():
            if pushed.stray and self._has_ended(pushed.stray):
                self._note(pushed, pushed.status, stray="")

    def _has_ended(self, slug: str) -> bool:
        try:
            return self.patience.ask(lambda: client.kernel_status(slug)) in client.ENDED
        except Missing:
            return True

    # What starts

    def _ready(self) -> list[Kernel]:
        return [kernel for kernel in self.waiting if set(kernel.needs) <= self.done]

    def _start(self) -> None:
        """Push what is ready, as far as sessions are free."""
        full = set()
        for kernel in self._ready():
            if kernel.gpu in full or self._taken(gpu=kernel.gpu) >= SESSIONS[kernel.gpu]:
                continue
            if not self.code:
                code = provenance.code_digest()  # once: who edits the package while we wait changes nothing on Kaggle
                self.upload()
                self.code = code
            try:
                self._push(kernel)
                self.starved.pop(kernel.gpu, None)
            except Busy as error:
                full.add(kernel.gpu)
                self._starve(kernel.gpu, error)

    def _taken(self, *, gpu: bool) -> int:
        """Sessions of this kind that we know to run."""
        strays = sum(bool(pushed.stray) and pushed.gpu == gpu for pushed in self.state.steps.values())
        return strays + sum(self.state.steps[step].gpu == gpu for step in self.running)

    def _starve(self, gpu: bool, error: Busy) -> None:
        """Other work of this account holds all sessions: wait for one of them."""
        if gpu not in self.starved:
            self.starved[gpu] = time.monotonic()
            self.board.say(f"waiting: {error}")
        self._check_patience(self.starved[gpu], f"no free session: {error}")

    def _check_patience(self, since: float, what: str, *, see: str = "") -> None:
        if time.monotonic() - since > self.waiting_for.patience:
            hours = f"{self.waiting_for.patience / 3600:g} hours"
            where = f"; see {see}" if see else ""
            raise StepFailed(f"{what} after {hours}{where}; the same command waits on, --patience says how long")

    def _push(self, kernel: Kernel) -> None:
        """Render and push one kernel; the state says so before and after."""
        before = self.state.steps.get(kernel.step)
        pushed = self._planned(kernel, before)
        mounts = [self.state.steps[need].slug for need in kernel.needs] + [pushed.earlier] * bool(pushed.earlier)
        folder = render.render(self._folder(kernel), self.plan, kernel, slug=_bare(pushed.slug), mounts=list(map(_bare, mounts)))
        self.state.steps[kernel.step] = pushed
        self.state.save()
        try:
            version = client.push(folder)
        except InvalidSource as error:
            self._refused_source(kernel, before, pushed, error)
            return
        except (ServerError, Unreachable):
            raise  # whether it arrived is not known: the next call asks
        except (StepFailed, InputError):
            self._forget(kernel, before)
            raise
        self._note(pushed, Status.running, version=version)
        self.waiting.remove(kernel)
        self.running[kernel.step] = time.monotonic()
        self.board.say(f"{kernel.step} pushed: {pushed.url} version {version}")

    def _planned(self, kernel: Kernel, before: Pushed | None) -> Pushed:
        """A push to come; one that goes on mounts its earlier self."""
        identity = self.identities[kernel.step]
        again = before if before is not None and before.identity == identity else None
        earlier = again.earlier if again else ""
        first = f"{self.plan.owner}/{kernel.slug}"
        return Pushed(
            identity=identity,
            slug=first + SECOND * (self.state.two_slugs and earlier == first),
            gpu=kernel.gpu,
            run=self.plan.run,
            parameters=kernel.parameters,
            code=self.code,
            progress=again.progress if again else "",
            pushed=round(time.time(), 1),
            earlier=earlier,
            stray=before.stray if before else "",
        )

    def _refused_source(self, kernel: Kernel, before: Pushed | None, pushed: Pushed, error: InvalidSource) -> None:
        """A kernel that may not mount its earlier self goes on under its other slug; any other source is missed."""
        if before is None or set(error.sources) != {pushed.earlier} or pushed.slug != pushed.earlier:
            self._note(pushed, Status.failed, failure=str(error))
            raise StepFailed(f"{kernel.step}: {error}") from None
        before.stray = pushed.slug
        self.state.two_slugs = True
        self._forget(kernel, before)
        self.board.say(f"{kernel.step}: Kaggle takes no kernel as its own source; it goes on under a second slug")

    def _forget(self, kernel: Kernel, before: Pushed | None) -> None:
        """Have the state as it was before a push that did not happen."""
        if before is None:
            del self.state.steps[kernel.step]
        else:
            self.state.steps[kernel.step] = before
        self.state.save()

    def _note(self, pushed: Pushed, status: Status, **changes: object) -> None:
        pushed.status = status
        for name, value in changes.items():
            setattr(pushed, name, value)
        self.state.save()

    def _folder(self, kernel: Kernel) -> Path:
        return self.state.path.parent / kernel.step


def _bare(slug: str) -> str:
    """A slug without its owner."""
    return slug.rpartition("/")[2]
