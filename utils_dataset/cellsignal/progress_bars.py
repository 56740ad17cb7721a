"""Progress bars: one line each, in a terminal and in a notebook."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """A bar over `iterable`, or of `total` steps; `options` are tqdm's.

    In a notebook it is an output of its own that is redrawn in its place: what tqdm writes to a stream there becomes
    another line of an executed notebook, a red one, each time that it is redrawn. Jupyter's widgets are not used,
    because a page without their state shows none.
    """
    if notebook_shell() is None or options.get("disable"):
        return tqdm(iterable, **options)
    return tqdm(iterable, file=_OneOutput(), **{"mininterval": 0.5, **options})


def notebook_shell() -> Any:
    """The IPython shell of a notebook, or None; a terminal cannot redraw what it has displayed."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell if hasattr(shell, "kernel") else None


class _OneOutput:
    """What tqdm writes to, as the text of one display."""

    encoding = "utf-8"  # or tqdm draws with digits and signs

    def __init__(self) -> None:
        self._handle: Any = None

    def write(self, text: str) -> None:
        """Take a state of the bar; the moves of the cursor between two of them mean nothing here."""
        if not (line := text.replace("\x1b[A", "").strip()):
            return
        from IPython.display import display

        shown = {"text/plain": line}
        if self._handle is None:
            self._handle = display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)

    def flush(self) -> None:
        """Nothing is held back."""
