"""The accuracy route of each experiment as text: what was used to decide, and how sure that was."""

from collections.abc import Sequence
from textwrap import fill
from typing import Any

import pandas as pd

from cellsignal.decide.commands import Assigned, experiment_of

COLUMNS = ("experiment", "route", "groups", "certainty", "rotation", "surprise", "temperature", "labelled", "confidence")
RIGHT = ("certainty", "surprise", "temperature", "labelled", "confidence")  # numbers
WIDTH = 100


def routes_table(assigned: Assigned) -> str:
    """One line per experiment, then the notes.

    COLUMNS: experiment; route; groups (the plate group on plates 1, 2, …); certainty (posterior
    probability of this order of groups); rotation (whether training experiments show it); surprise
    (bits by which the scores like another order better than any rotation); temperature; labelled (wells
    that it was measured on before its own plates moved it, 0 where there were none); confidence (mean
    over the wells). "-" where there is no such thing.
    """
    experiments = assigned.experiments
    confidence = assigned.confidence.groupby(experiment_of(assigned.confidence.index)).mean()
    rows = [_row(str(name), row, confidence.get(name)) for name, row in experiments.iterrows()]
    return "\n".join([*_aligned(rows), *_notes(experiments["note"])])


def _row(name: str, row: pd.Series, confidence: float | None) -> list[str]:
    groups = row["group_on_plate"]
    rotation = row["rotation"] if isinstance(groups, Sequence) else None
    return [
        name,
        str(row["route"]),
        " ".join(map(str, groups)) if isinstance(groups, Sequence) else "-",
        _number(row["group_confidence"], ".4f"),
        "-" if _absent(rotation) else "yes" if rotation else "no",
        "-" if _absent(rotation) else _number(row["surprise_bits"], ".1f"),
        _number(row["temperature"], ".3f"),
        _number(row["labelled"], ",.0f"),
        _number(confidence, ".3f"),
    ]


def _absent(value: Any) -> bool:
    return value is None or value is pd.NA or value != value  # NaN differs from itself


def _number(value: Any, form: str) -> str:
    return "-" if _absent(value) else format(float(value), form)


def _notes(notes: pd.Series) -> list[str]:
    """Each note once, with the experiments it is about."""
    groups = notes[notes != ""].groupby(notes, sort=False).groups
    return [fill(f"{', '.join(map(str, names))}: {note}", WIDTH, subsequent_indent="  ") for note, names in groups.items()]


def _aligned(rows: list[list[str]]) -> list[str]:
    """A header and the rows, text to the left and numbers to the right."""
    table = [list(COLUMNS), *rows]
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = (
        "  ".join(cell.rjust(width) if name in RIGHT else cell.ljust(width) for name, cell, width in zip(COLUMNS, line, widths))
        for line in table
    )
    return [line.rstrip() for line in lines]
