"""What is wrong with the data, as a list: the first is told, all can be asked for."""

from collections.abc import Sequence
from typing import NamedTuple

from cellsignal.errors import InputError


class Problem(NamedTuple):
    """One fault: `where` is a file, or file:line:column."""

    where: str
    what: str
    cure: str


class Faults(InputError):
    """The data has faults: the message tells the first, `problems` holds every one."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        first, more = problems[0], len(problems) - 1
        what = f"{first.what} (and {more:,} more)" if more else first.what
        super().__init__(what, where=first.where, cure=first.cure)
        self.problems = list(problems)


def refuse(problems: Sequence[Problem]) -> None:
    """Raise Faults if there are any."""
    if problems:
        raise Faults(problems)
