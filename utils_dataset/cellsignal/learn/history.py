"""Reading the rows of a training's history, one per epoch, whatever its metric."""

HELD_OUT_PREFIX = "held_out_"


def metric_name(row: dict) -> str:
    """The metric of an epoch's row, such as "accuracy" or "macro_f1" (`learn.training.epoch.METRICS`)."""
    return next((key.removeprefix(HELD_OUT_PREFIX) for key in row if key.startswith(HELD_OUT_PREFIX)), "accuracy")


def held_out_value(row: dict) -> float | None:
    """The metric of an epoch's row on the held-out sites; None where it was not measured."""
    return row.get(HELD_OUT_PREFIX + metric_name(row))
