"""How far a step came, compared from session to session: as numbers, phase by phase."""

import re
from collections.abc import Mapping

_PART = re.compile(r"(\d+) of (\d+)")


def place(progress: str) -> tuple[str, int]:
    """The phase and how far it came: "whole, epoch 7 of 30" is ("whole, epoch # of 30", 7); without numbers it is at 0."""
    found = _PART.search(progress)
    return _PART.sub(r"# of \2", progress), int(found[1]) if found else 0


def advanced(best: Mapping[str, int], progress: str) -> bool:
    """Whether a step came further than ever before: in this phase, or to a phase that it had never reached.

    A session that began from nothing goes through phases that are known, and so brings it no further.
    """
    phase, number = place(progress)
    return number > best.get(phase, -1)


def furthest(best: Mapping[str, int], progress: str) -> dict[str, int]:
    """By phase, how far a step came in its best session, this one included."""
    phase, number = place(progress)
    return {**best, phase: max(number, best.get(phase, number))}
