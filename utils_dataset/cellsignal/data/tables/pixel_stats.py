"""The competition's table of brightness, which a data set may bring along."""

from pathlib import Path

import pandas as pd

from cellsignal.data.tables import schema
from cellsignal.errors import raise_if_any

FILE = "pixel_stats.csv"


def read_pixel_stats(root: Path) -> pd.DataFrame | None:
    """pixel_stats.csv of a data set: one row per site and channel, the columns of `rows.PixelRow`; None where it is absent.

    Raises Faults naming file, line and column of the first fault.
    """
    path = Path(root) / FILE
    if not path.exists():
        return None
    table, problems = schema.read_rows(path, schema.PixelRow)
    raise_if_any([problem._replace(cure=f"{problem.cure}, or remove the file to do without") for problem in problems])
    return table.reset_index(drop=True)
