"""The one error a user can cause, and how it reads."""


class InputError(ValueError):
    """Something the user gave is wrong: one line says what, where and how to mend it."""

    def __init__(self, what: str, *, where: object = "", cure: str = "") -> None:
        parts = [f"{where}: {what}" if where != "" else what, cure]
        super().__init__("; ".join(" ".join(part.split()) for part in parts if part))
