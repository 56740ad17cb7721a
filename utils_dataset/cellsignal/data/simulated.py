"""Whether data are simulated: a simulation leaves its receipt in their folder, and every figure and page says so.

Who opens data tells it here, once; who draws figures and writes pages asks here.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cellsignal.receipts import Receipt

RECEIPT = "simulate.json"  # in the folder of a simulation, and of a store that was packed from it
WORKSHOP = ".simulation"  # in a folder whose simulation has not come to its end
WORDS = "simulated data"
_shown = False


def is_simulated(root: Path | str) -> bool:
    """Whether the pictures of a data set were drawn by the virtual microscope, for its own tables or for real ones."""
    return (Path(root) / RECEIPT).is_file()


def identity(root: Path | str) -> Mapping[str, Any]:
    """What a simulation drew, `preset` and `seed` among it; empty where there is none or its receipt is damaged."""
    found = Receipt.find(Path(root) / RECEIPT)
    return found.identity if found else {}


def show(simulated: bool) -> None:
    """From here on, the figures and pages of this process are of simulated data, or of others."""
    global _shown
    _shown = simulated


@contextmanager
def showing(simulated: bool) -> Iterator[None]:
    """Figures and pages in this block are of simulated data, or of others."""
    before = shown()
    show(simulated)
    try:
        yield
    finally:
        show(before)


def shown() -> bool:
    """Whether figures and pages are of simulated data."""
    return _shown


def titled(title: str) -> str:
    """The title of a figure or a page, which says so where the data are simulated."""
    if not shown():
        return title
    return f"{title} ({WORDS})" if title else WORDS.capitalize()
