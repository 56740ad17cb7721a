"""What the rows of a training's history say, whatever its metric."""

from collections.abc import Sequence

HELD_OUT = "held_out_"


def metric_of(row: dict) -> str:
    """By what an epoch's row was measured, such as "accuracy" or "macro_f1" (`learn.metrics`)."""
    return next((key.removeprefix(HELD_OUT) for key in row if key.startswith(HELD_OUT)), "accuracy")


def held_out_value(row: dict) -> float | None:
    """What an epoch's row says of the held-out sites; None where they were not measured."""
    return row.get(HELD_OUT + metric_of(row))


def best_epoch(rows: Sequence[dict]) -> dict | None:
    """The row that did best on the held-out sites, the first of equals; None when none was measured."""
    return max((row for row in rows if held_out_value(row) is not None), key=held_out_value, default=None)
