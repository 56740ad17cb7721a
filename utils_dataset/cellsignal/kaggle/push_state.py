"""What was pushed, as a file beside the rendered kernels, so that a second call goes on where the first one ended."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from typing_extensions import NotRequired, TypedDict  # pydantic needs this one before Python 3.12

from cellsignal import files
from cellsignal.errors import InputError
from cellsignal.receipts import Receipt
from cellsignal.run import environment

STATE = "state.json"


class Status(StrEnum):
    """How far a pushed step is, as the last look at it said."""

    pushing = "pushing"  # the client was called; whether Kaggle heard it is not known
    running = "running"  # queued or at work
    complete = "complete"  # ended, and its receipt says that it is whole
    incomplete = "incomplete"  # ended well because its time was spent
    failed = "failed"  # ended otherwise, and that was said


@dataclass
class PushedKernel:
    """One step's last push."""

    identity: str
    slug: str  # owner/slug that ran last
    gpu: bool
    run: str  # run folder in the kernel
    parameters: dict[str, Any]
    code: str  # provenance.code_digest() of the package it was pushed with
    outputs: list[str] = field(default_factory=list)  # what its receipt must name when it says that all is done
    status: Status = Status.pushing
    version: int = 0  # on Kaggle; 0 while not known
    work: str = ""  # its identity but for the code: what an earlier session of the same work left can be gone on with
    progress: str = ""  # of an incomplete step, as its receipt says
    best: dict[str, int] = field(default_factory=dict)  # how far this work ever came, by phase
    failure: str = ""
    pushed: float = 0.0  # when, in seconds since 1970
    minutes: float = 0.0  # that its session may work
    written: float = 0.0  # when its receipt was, by the clock of its session
    seen: float = 0.0  # the same of the session before: what Kaggle lists for a while after this one has ended
    earlier: str = ""  # owner/slug of the last session of this work that ended well, and is mounted
    stray: str = ""  # owner/slug that Kaggle runs without its earlier self: it takes a session until it ends

    @property
    def version_slug(self) -> str:
        """What the client takes for this very version, as far as it minds versions."""
        return f"{self.slug}/{self.version}" if self.version else self.slug

    @property
    def url(self) -> str:
        """Where a person looks at it."""
        return f"https://www.kaggle.com/code/{self.slug}"


@dataclass
class PushState:
    """The pushes of one recipe, by step; `save` after every change."""

    path: Path
    steps: dict[str, PushedKernel] = field(default_factory=dict)
    two_slugs: bool = False  # Kaggle takes or mounts no kernel as its own source
    recipe: str = ""  # the YAML file that was pushed: another of the same name would take its kernels' slugs

    def save(self) -> None:
        """Write it atomically."""
        steps = {name: asdict(pushed) for name, pushed in self.steps.items()}
        Receipt(self.path, {"recipe": self.recipe}, complete=False, details={"steps": steps, "two_slugs": self.two_slugs}).write()

    def note(self, pushed: PushedKernel, status: Status, **changes: object) -> None:
        """Write down what became of a push."""
        pushed.status = status
        for name, value in changes.items():
            setattr(pushed, name, value)
        self.save()

    def forget_ended(self, step: str) -> None:
        """Leave out a step that has ended: the failure of a rehearsal says nothing of what is pushed after it."""
        if step in self.steps and self.steps[step].status in (Status.complete, Status.incomplete, Status.failed):
            del self.steps[step]
            self.save()


# The details of state.json; a status is looked up, and so checked, by its enumeration.
_STEP = TypedDict("_STEP", {each.name: NotRequired[each.type] for each in fields(PushedKernel) if each.name != "status"})
_FILE = TypedDict("_FILE", {"steps": dict[str, _STEP], "two_slugs": bool})


def folder_of(name: str) -> Path:
    """The folder of a recipe's rendered kernels and state: build/<name> in the checkout we stand in, else here."""
    checkout, current = environment.repository(), Path.cwd()
    in_checkout = checkout is not None and current.is_relative_to(checkout)
    return (checkout if in_checkout else current) / "build" / name


def read(folder: Path, *, recipe: Path | None = None) -> PushState:
    """The state in `folder`, empty when nothing was pushed; InputError when it is damaged or another `recipe`'s."""
    path = folder / STATE
    state = _read(path) if path.exists() else PushState(path)
    if recipe is None:
        return state
    recipe_path = os.path.realpath(recipe)
    if state.recipe not in ("", recipe_path) and Path(state.recipe).is_file():
        what = f"{state.recipe} was pushed under this name, and its kernels have these slugs"
        raise InputError(what, where=recipe, cure="rename one of the two files")
    state.recipe = recipe_path
    return state


def _read(path: Path) -> PushState:
    what, cure = "not a state of pushes", "delete it: what is complete will be pushed again"
    content = Receipt.read(path, cure=cure)
    files.validated(content.details, _FILE, where=path, fault=what, cure=cure)
    try:
        steps = {name: _as_pushed(values) for name, values in content.details["steps"].items()}
        return PushState(path, steps, content.details["two_slugs"], content.identity["recipe"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{what} ({error})", where=path, cure=cure) from None


def _as_pushed(values: dict[str, Any]) -> PushedKernel:
    """A push as it was written; keys of a newer version are left out."""
    names = {field.name for field in fields(PushedKernel)}
    return PushedKernel(**{name: value for name, value in values.items() if name in names} | {"status": Status(values["status"])})


@contextmanager
def open_state(folder: Path, *, recipe: Path | None = None) -> Iterator[PushState]:
    """The state for one writer at a time; InputError when another call holds it, or it is another `recipe`'s."""
    with files.locked(folder / ".push.lock", busy_message="another push works on this recipe"):
        yield read(folder, recipe=recipe)


# How far a step came, compared from session to session: as numbers, phase by phase.


_PROGRESS = re.compile(r"(\d+) of (\d+)")


def position(progress: str) -> tuple[str, int]:
    """The phase and how far it came: "whole, epoch 7 of 30" is ("whole, epoch # of 30", 7); without numbers it is at 0."""
    match = _PROGRESS.search(progress)
    return _PROGRESS.sub(r"# of \2", progress), int(match[1]) if match else 0


def advanced(best: Mapping[str, int], progress: str) -> bool:
    """Whether a step came further than ever before: in this phase, or to a phase that it had never reached.

    A session that began from nothing goes through phases that are known, and so brings it no further.
    """
    phase, number = position(progress)
    return number > best.get(phase, -1)


def furthest(best: Mapping[str, int], progress: str) -> dict[str, int]:
    """By phase, how far a step came in its best session, this one included."""
    phase, number = position(progress)
    return {**best, phase: max(number, best.get(phase, number))}
