"""What the design of a screen tells the decision, from the tables."""

from typing import Any

import pandas as pd

from cellsignal.data.plates import plate_groups, rotations


def design_of(wells: pd.DataFrame, *, groups: bool = True, rotation_prior: float = 0.99, certainty: float = 0.95) -> dict[str, Any]:
    """The arguments of `assign.decide` that hold for a whole screen: groups, rotations, and how far these are believed.

    `wells`: of all cell types, columns as in `Tables.wells`; only labelled ones tell. Without `groups`, or where the
    tables show none, there are none, and each siRNA is once in an experiment.
    """
    known = plate_groups(wells) if groups else []
    return {"groups": known, "rotations": rotations(wells, known) if known else None,
            "rotation_prior": rotation_prior, "certainty": certainty}
