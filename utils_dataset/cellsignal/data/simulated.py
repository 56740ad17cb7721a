"""Whether data are simulated: a simulation writes a receipt into the folder, and every figure and page carries a label.

Code that opens data calls `show` once; code that draws figures or writes pages calls `shown` or `titled`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cellsignal.receipts import Receipt

RECEIPT = "simulate.json"  # in the folder of a simulation, and of a store that was packed from it
WORKING_FOLDER = ".simulation"  # in the folder of an unfinished simulation
LABEL = "simulated data"
_shown = False


def is_simulated(root: Path | str) -> bool:
    """Whether the images of a data set were drawn by the virtual microscope (its tables may be real)."""
    return (Path(root) / RECEIPT).is_file()


def identity(root: Path | str) -> Mapping[str, Any]:
    """The identity of a simulation with `preset` and `seed`; empty if there is none or its receipt is damaged."""
    receipt = Receipt.find(Path(root) / RECEIPT)
    return receipt.identity if receipt else {}


def show(simulated: bool) -> None:
    """Set whether the figures and pages of this process show simulated data."""
    global _shown
    _shown = simulated


@contextmanager
def showing(simulated: bool) -> Iterator[None]:
    """Within this block figures and pages show simulated data, or do not."""
    previous = shown()
    show(simulated)
    try:
        yield
    finally:
        show(previous)


def shown() -> bool:
    """Whether figures and pages show simulated data."""
    return _shown


def titled(title: str) -> str:
    """The title of a figure or a page, with a label if the data are simulated."""
    if not shown():
        return title
    return f"{title} ({LABEL})" if title else LABEL.capitalize()
