"""The table of embeddings before its reader: mantispy (Python 3.12 or later; pip install mantispy), which is no dependency of this package."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cellsignal.decide.embeddings import WRITERS, embedding_table

pytestmark = pytest.mark.slow


def wells_of(plates: int = 2) -> pd.DataFrame:
    """Wells of one test experiment: an untreated one, two positive controls and five treatments on each plate, one in two siRNAs unknown."""
    rows = [
        {"id_code": f"HUVEC-01_{plate}_B{number:02d}", "experiment": "HUVEC-01", "cell_type": "HUVEC", "plate": plate, "well": f"B{number:02d}",
         "well_type": {2: "negative_control", 3: "positive_control", 4: "positive_control"}.get(number, "treatment"), "split": "test",
         "sirna": {2: 1138, 3: 1108, 4: 1109}.get(number, number if number % 2 else pd.NA)}
        for plate in range(1, plates + 1) for number in range(2, 10)
    ]
    return pd.DataFrame(rows).astype({"sirna": "Int64"})


def table() -> pd.DataFrame:
    wells = wells_of()
    values = np.random.default_rng(0).normal(size=(len(wells), 6))
    embeddings = pd.DataFrame(values, index=wells["id_code"])
    return embedding_table(embeddings, wells, network="model", one_network=False, simulated=True)


def test_mantispy_reads_the_table_and_finds_it_valid(tmp_path: Path) -> None:
    mantispy = pytest.importorskip("mantispy")
    WRITERS["parquet"](tmp_path / "embeddings.parquet", table())
    profiles = mantispy.io.read_profiles(tmp_path / "embeddings.parquet", resolution="well")
    assert profiles.shape == (16, 6) and list(profiles.var_names) == [f"embedding_{number}" for number in range(6)]
    report = str(mantispy.io.validate(profiles))
    assert "ERROR" not in report and report.count("WARNING") == 1 and "Metadata_CellCount" in report  # which nobody counted here
    assert profiles.obs["Metadata_Perturbation"].isna().sum() == 4 and profiles.obs["Metadata_Control"].sum() == 6
    other_name = table().replace({"Metadata_Control_Type": {"treatment": "trt"}})
    WRITERS["parquet"](tmp_path / "other.parquet", other_name)
    try:  # that the check can fail
        refused = "ERROR" in str(mantispy.io.validate(mantispy.io.read_profiles(tmp_path / "other.parquet", resolution="well")))
    except ValueError:
        refused = True
    assert refused


def test_anndata_holds_the_same_as_parquet(tmp_path: Path) -> None:
    anndata = pytest.importorskip("anndata")
    WRITERS["h5ad"](tmp_path / "embeddings.h5ad", table())
    data = anndata.read_h5ad(tmp_path / "embeddings.h5ad")
    np.testing.assert_array_equal(data.X, table().filter(like="embedding_").to_numpy())
    assert list(data.obs_names) == table()["Metadata_Id"].tolist() and data.obs["Metadata_Control"].dtype == bool
    assert data.obs["Metadata_Perturbation"].isna().sum() == 4
