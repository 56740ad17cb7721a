"""How long work may go on, and how far it came when it had to stop."""

import time

MARGIN = 1.1  # a part is given this many times what one of its size took at worst


class TimeSpent(RuntimeError):
    """The time budget is spent before the work is done: the message says how far it came, and the same call goes on there."""


class Budget:
    """Time until `deadline`, in seconds since 1970 (time.time()), which processes can hand on; None: there is no end.

    Work asks `fits` before each part and raises TimeSpent when the next one does not. Work that goes on side by side calls
    `stop` instead, and ends when what still runs has ended: from then on it is `spent`, nothing fits any more, and `note`
    says how far the work came.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self.deadline, self.spent, self.note = deadline, False, ""
        self.slowest = 0.0  # seconds per unit of the parts that were told

    @property
    def left(self) -> float:
        """Seconds until the deadline; infinite without one, 0 once the budget is spent."""
        if self.spent:
            return 0.0
        return float("inf") if self.deadline is None else self.deadline - time.time()

    def fits(self, seconds: float) -> bool:
        """Whether work of so many seconds would end before the deadline."""
        return self.left > 0 and seconds <= self.left

    def fits_part(self, units: float) -> bool:
        """Whether a part of so many units of work would end in time, judged by those before; nothing is known of a first one."""
        return self.fits(MARGIN * self.slowest * units)

    def took(self, units: float, seconds: float) -> None:
        """Tell how long a part of so many units took."""
        self.slowest = max(self.slowest, seconds / max(units, 1))

    def stop(self, note: str) -> None:
        """Say that work ends here unfinished, and how far it came."""
        self.spent, self.note = True, note


class DeadlineMonitor:
    """Foresees, part by part, whether work of so many equal parts will be late: nothing is known of a first epoch before.

    Judged by the parts since the first, in which files and kernels warm up, and only from the tenth
    of the way on.
    """

    def __init__(self, budget: Budget, parts: int) -> None:
        self.budget, self.parts, self.done = budget, parts, 0
        self.first = 0.0  # when the first part was done

    def late(self) -> bool:
        """To be asked after each part: whether the parts that follow would end after the deadline."""
        self.done += 1
        if self.done == 1:
            self.first = time.monotonic()
        ahead = 0.0
        if self.done > 1 and self.done >= self.parts / 10:
            ahead = (time.monotonic() - self.first) / (self.done - 1) * (self.parts - self.done)
        return self.done < self.parts and not self.budget.fits(ahead)
