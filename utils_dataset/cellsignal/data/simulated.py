"""Whether data are simulated: a simulation writes a receipt into the folder, and every figure and page carries a label.

Code that opens data calls `show` once; code that draws figures or writes pages calls `shown` or `titled`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cellsignal.code_identity import package_code
from cellsignal.files import sha256
from cellsignal.receipts import Receipt

RECEIPT = "simulate.json"  # in the folder of a simulation, and of a store that was packed from it
CODE = ".simulate-code.json"  # which code drew; apart from the receipt, because the same plates are the same data
WORKING_FOLDER = ".simulation"  # in the folder of an unfinished simulation
LABEL = "simulated data"
_shown = False


def is_simulated(root: Path | str) -> bool:
    """Whether the images of a data set were drawn by the virtual microscope (its tables may be real)."""
    return receipt_path(Path(root)).is_file()


def receipt_path(root: Path) -> Path:
    """The receipt of a simulation; of an unfinished one, whose tables may be there already, that in its working folder."""
    return next((path for path in (root / RECEIPT, root / WORKING_FOLDER / RECEIPT) if path.exists()), root / RECEIPT)


def described(root: Path | str) -> str:
    """The folder of a data set in words, which say so if it is simulated."""
    return f"{root} ({LABEL})" if is_simulated(root) else str(root)


def identity(root: Path | str) -> Mapping[str, Any]:
    """The identity of a simulation with `preset` and `seed`; empty if there is none or its receipt is damaged."""
    receipt = Receipt.find(receipt_path(Path(root)))
    return receipt.identity if receipt else {}


def is_current(root: Path, *, preset: str, seed: int) -> bool:
    """Whether a folder holds the plates of a preset's own design, complete and unaltered, as this version of the code draws them.

    False only means that the virtual microscope has to look for itself.
    """
    receipt, code = Receipt.find(root / RECEIPT), Receipt.find(root / CODE)
    if receipt is None or code is None or not code.details.get("own_design"):
        return False
    return is_drawn(root, preset=preset, seed=seed) and code.identity == package_code("data") and all(
        (root / name).is_file() and sha256(root / name) == digest for name, digest in receipt.outputs.items())


def is_drawn(root: Path, *, preset: str, seed: int) -> bool:
    """Whether a folder holds the complete plates of a preset, whatever version of the code drew them."""
    receipt = Receipt.find(root / RECEIPT)
    if receipt is None or not receipt.complete or (root / WORKING_FOLDER).exists():
        return False
    return (receipt.identity.get("preset"), receipt.identity.get("seed")) == (preset, seed)


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
