"""What the user can mend, what failed all the same, and how both read."""


class InputError(ValueError):
    """Something the user gave is wrong: one line says what, where and how to mend it."""

    def __init__(self, what: str, *, where: object = "", cure: str = "") -> None:
        parts = [f"{where}: {what}" if where != "" else what, cure]
        super().__init__("; ".join(" ".join(part.split()) for part in parts if part))


class StepFailed(RuntimeError):
    """A step ended without its work done, and not because of what the user gave."""
