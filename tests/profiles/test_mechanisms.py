"""Accuracy by mechanism on tables that lack some compounds."""

import numpy as np
import pytest
from tables import make_table

from cellsignal.profiles.mechanisms import has_mechanisms, mechanism_matches
from cellsignal.profiles.table import from_frame


@pytest.mark.parametrize("unknown", [None, np.nan])
def test_a_treatment_without_compound_is_no_neighbour_of_itself(unknown: object) -> None:
    table = make_table()
    treated = table["Metadata_Control_Type"] == "treatment"
    table["Metadata_Compound"] = table["Metadata_Perturbation"].where(treated, None).astype(object)
    table["Metadata_Mechanism"] = table["Metadata_Perturbation"].map({f"t{number}": f"mechanism {number // 4}" for number in range(8)})
    complete = mechanism_matches(from_frame(table))
    assert (complete["perturbation"] != complete["nearest"]).all() and len(complete) == 8
    table.loc[table["Metadata_Perturbation"] == "t0", "Metadata_Compound"] = unknown
    matches = mechanism_matches(from_frame(table))
    assert set(matches["perturbation"]) == {f"t{number}" for number in range(1, 8)} and (matches["perturbation"] != matches["nearest"]).all()
    table.loc[~table["Metadata_Perturbation"].isin(["t0"]), "Metadata_Mechanism"] = None
    assert not has_mechanisms(from_frame(table)), "no treatment has both"
