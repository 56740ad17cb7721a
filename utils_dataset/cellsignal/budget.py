"""Time budgets: how long work may go on, and how much of it was done when it had to stop."""

import time

MARGIN = 1.1  # a part is assumed to take this many times the longest measured time


class TimeSpent(RuntimeError):
    """The time budget is spent before the work is done: the message says how much was done, and the same call goes on there."""


class Budget:
    """Time until `deadline`, in seconds since 1970 (time.time()), which other processes understand too; None for no deadline.

    Sequential work asks `fits` before each part and raises TimeSpent when the next one does not fit. Parallel work calls
    `stop` instead, and ends when the running parts have ended: from then on the budget is `spent`, nothing fits, and `note`
    says how much was done.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self.deadline, self.spent, self.note = deadline, False, ""
        self.seconds_per_unit = 0.0  # of the slowest part so far

    @property
    def remaining(self) -> float:
        """Seconds until the deadline; infinite without one, 0 once the budget is spent."""
        if self.spent:
            return 0.0
        return float("inf") if self.deadline is None else self.deadline - time.time()

    def fits(self, seconds: float) -> bool:
        """Whether work of so many seconds would end before the deadline."""
        return self.remaining > 0 and seconds <= self.remaining

    def fits_part(self, units: float) -> bool:
        """Whether a part of so many units of work would end in time, estimated from the parts before it; a first part always fits."""
        return self.fits(MARGIN * self.seconds_per_unit * units)

    def record_part(self, units: float, seconds: float) -> None:
        """Record how long a part of so many units took."""
        self.seconds_per_unit = max(self.seconds_per_unit, seconds / max(units, 1))

    def stop(self, note: str) -> None:
        """End the work here although it is not done; `note` says how much is."""
        self.spent, self.note = True, note


class DeadlineMonitor:
    """Predicts during a first epoch, whose duration is unknown, whether its `num_parts` equal parts will end after the deadline.

    The estimate leaves out the first part, in which files and GPU kernels warm up, and begins after a tenth of the parts.
    """

    def __init__(self, budget: Budget, num_parts: int) -> None:
        self.budget, self.num_parts, self.num_done = budget, num_parts, 0
        self.first_done_at = 0.0

    def is_late(self) -> bool:
        """Whether the remaining parts would end after the deadline; to be called after each part."""
        self.num_done += 1
        if self.num_done == 1:
            self.first_done_at = time.monotonic()
        seconds_ahead = 0.0
        if self.num_done > 1 and self.num_done >= self.num_parts / 10:
            seconds_ahead = (time.monotonic() - self.first_done_at) / (self.num_done - 1) * (self.num_parts - self.num_done)
        return self.num_done < self.num_parts and not self.budget.fits(seconds_ahead)
