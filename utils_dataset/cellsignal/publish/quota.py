"""The week's GPU hours: how many of them a session may have, so that it ends by itself and not with the quota."""

from collections.abc import Collection

from cellsignal.errors import InputError, StepFailed
from cellsignal.publish import client
from cellsignal.run import paths

MARGIN = 20.0  # minutes of a session beside its work: it starts, reads, saves
LEAST = 30.0  # minutes of work that are worth a session


def hours_left() -> float | None:
    """The GPU hours that are left this week; None when Kaggle does not tell, and then there is nothing to share."""
    try:
        return client.gpu_hours()
    except (StepFailed, InputError):  # the push itself will say what is wrong
        return None


def share(hours: float, *, running: Collection[float], starting: int) -> float:
    """Minutes of work for the next of `starting` sessions; `running`: minutes that others may still take.

    Where not all could do something worth a session, it has what is left alone.
    """
    left = 60 * hours - sum(running)
    together = left / starting - MARGIN
    return together if together >= LEAST else left - MARGIN


def wanted(asked: float) -> float:
    """Minutes of work that a session has when the quota is no limit; `asked` is the recipe's time_budget_minutes."""
    return asked or paths.SESSION_MINUTES
