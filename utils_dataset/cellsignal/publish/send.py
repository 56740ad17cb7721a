"""Sending one kernel: rendered, pushed once though Kaggle may not answer, noted before and after."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from cellsignal.errors import InputError, StepFailed
from cellsignal.publish import client, outcomes, render
from cellsignal.publish.order import CPU_STEPS, SECOND, Kernel, Plan
from cellsignal.publish.refusals import Busy, InvalidSource, QuotaSpent, RateLimited, Refused, ServerError, Unreachable
from cellsignal.publish.state import Pushed, State, Status
from cellsignal.publish.watch import Board, Patience
from cellsignal.run import provenance

_SAVED = (Status.complete, Status.incomplete)


@dataclass
class Sender:
    """Brings the package to Kaggle before the first kernel, and then kernels, each with its earlier self among its mounts."""

    plan: Plan
    state: State
    upload: Callable[[], object]
    patience: Patience
    board: Board
    code: str = field(default="", init=False)  # of the package that was uploaded

    def __post_init__(self) -> None:
        self.identities, self.works = render.identities(self.plan), render.works(self.plan)

    def prepare(self) -> None:
        """Upload the package, once: who edits it while we wait changes nothing on Kaggle."""
        if not self.code:
            code = provenance.code_digest()
            self.patience.ask(self.upload)
            self.code = code

    def send(self, kernel: Kernel, *, minutes: float) -> Pushed | None:
        """Push a kernel whose session may work so many `minutes`; the state says so before and after.

        None when Kaggle does not take it as its own source: the same call again pushes it under its second slug.
        Raises Busy, QuotaSpent and what else the client raises, with the state as it was before, but for an answer that
        never came.
        """
        before = self.state.steps.get(kernel.step)
        pushed = self._planned(kernel, before, minutes)
        folder = self._render(kernel, pushed)
        self.state.steps[kernel.step] = pushed
        self.state.save()
        try:
            version = self.patience.ask(self._once(kernel.step, pushed, folder))
        except InvalidSource as error:
            self._refused_source(kernel, before, pushed, error)
            return None
        except (ServerError, Unreachable):
            raise  # whether it arrived is not known: the next call asks
        except (StepFailed, InputError) as error:
            self._forget(kernel, before)
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

    def _once(self, step: str, pushed: Pushed, folder: Path) -> Callable[[], int]:
        """A push that may be tried again: it gives the version, 0 for one that had arrived without an answer."""
        tried = False

        def push() -> int:
            nonlocal tried
            if tried and outcomes.look(step, pushed).status is not Status.failed:
                return 0
            tried = False
            try:
                return client.push(folder)
            except (ServerError, Unreachable):
                tried = True
                raise

        return push

    def _planned(self, kernel: Kernel, before: Pushed | None, minutes: float) -> Pushed:
        """A push to come; one of work that an earlier session began mounts what that one left."""
        work, first = self.works[kernel.step], f"{self.plan.owner}/{kernel.slug}"
        again = before if before is not None and before.work == work else None
        saved = again is not None and again.status in _SAVED
        earlier = (again.slug if saved else again.earlier) if again and kernel.step not in CPU_STEPS else ""
        return Pushed(
            identity=self.identities[kernel.step],
            work=work,
            slug=first + SECOND * (self.state.two_slugs and earlier == first),
            gpu=kernel.gpu,
            run=self.plan.run,
            parameters=kernel.parameters,
            outputs=list(kernel.outputs),
            code=self.code,
            progress=again.progress if again else "",
            best=again.best if again else {},
            pushed=round(time.time(), 1),
            minutes=minutes,
            seen=max(before.written, before.seen) if before else 0.0,
            earlier=earlier,
            stray=before.stray if before else "",
        )

    def _render(self, kernel: Kernel, pushed: Pushed) -> Path:
        mounts = [self.state.steps[need].slug for need in kernel.needs] + [pushed.earlier] * bool(pushed.earlier)
        if kernel.parameters.get("time_budget_minutes", 0.0) != pushed.minutes and "time_budget_minutes" in kernel.parameters:
            kernel = replace(kernel, parameters={**kernel.parameters, "time_budget_minutes": pushed.minutes})
        how = {"slug": _bare(pushed.slug), "mounts": list(map(_bare, mounts)), "goes_on": bool(pushed.earlier)}
        return render.render(self.state.path.parent / kernel.step, self.plan, kernel, **how)

    def _refused_source(self, kernel: Kernel, before: Pushed | None, pushed: Pushed, error: InvalidSource) -> None:
        """A kernel that may not mount its earlier self goes on under its other slug; any other source is missed."""
        if before is None or set(error.sources) != {pushed.earlier}:
            self.state.note(pushed, Status.failed, failure=str(error))
            raise StepFailed(f"{kernel.step}: {error}") from None
        before.stray = pushed.slug  # it was saved, and runs from the beginning
        self._forget(kernel, before)
        if not _mounts_itself(pushed):
            self.lost(kernel.step, before, why=str(error))
        self.use_two_slugs(kernel.step, why="Kaggle takes no kernel as its own source")

    def lost(self, step: str, pushed: Pushed, *, why: str) -> None:
        """What an earlier session left cannot be mounted under either slug: StepFailed, and the next call begins anew."""
        self.state.note(pushed, Status.failed, failure=why, earlier="", best={}, progress="")
        raise StepFailed(f"{step}: {why}; the same command begins it anew")

    def _forget(self, kernel: Kernel, before: Pushed | None) -> None:
        """Have the state as it was before a push that did not happen."""
        if before is None:
            del self.state.steps[kernel.step]
        else:
            self.state.steps[kernel.step] = before
        self.state.save()


def _mounts_itself(pushed: Pushed) -> bool:
    """Whether a push has its own slug among its sources."""
    return bool(pushed.earlier) and pushed.slug == pushed.earlier


def _bare(slug: str) -> str:
    """A slug without its owner."""
    return slug.rpartition("/")[2]
