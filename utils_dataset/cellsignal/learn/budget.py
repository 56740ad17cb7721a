"""How long work may go on, and how far it came when it had to stop."""

import time


class Budget:
    """Time until `deadline`, in seconds since 1970 (time.time()), which processes can hand on; None: there is no end.

    Work asks `fits` before each part and calls `stop` when the next one does not. From then on it is
    `spent`: nothing fits any more, and `note` says how far the work came.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self.deadline, self.spent, self.note = deadline, False, ""

    @property
    def left(self) -> float:
        """Seconds until the deadline; infinite without one, 0 once the budget is spent."""
        if self.spent:
            return 0.0
        return float("inf") if self.deadline is None else self.deadline - time.time()

    def fits(self, seconds: float) -> bool:
        """Whether work of so many seconds would end before the deadline."""
        return not self.spent and self.left > 0 and seconds <= self.left

    def stop(self, note: str) -> None:
        """Say that work ends here unfinished, and how far it came."""
        self.spent, self.note = True, note
