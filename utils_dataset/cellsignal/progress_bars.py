"""Progress bars that take one line, in a terminal and in a notebook."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """A tqdm bar over `iterable`, or of `total` steps; `options` are tqdm's.

    In a notebook the bar is a display that is updated: written to stderr, each update would be another red line of the
    executed notebook. Jupyter widgets are not used because an exported page does not show them.
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
    """A stream for tqdm that shows the last line written as one display."""

    encoding = "utf-8"  # otherwise tqdm draws in ASCII

    def __init__(self) -> None:
        self._handle: Any = None

    def write(self, text: str) -> None:
        """Show a state of the bar; cursor movements are dropped."""
        if not (line := text.replace("\x1b[A", "").strip()):
            return
        from IPython.display import display

        shown = {"text/plain": line}
        if self._handle is None:
            self._handle = display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)

    def flush(self) -> None:
        """Nothing is buffered."""
