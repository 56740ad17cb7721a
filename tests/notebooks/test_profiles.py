"""The notebook of profiles, run as a user runs it, on a table of simulated plates with their images."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from cellsignal.data.images.reader import read_site
from cellsignal.data.simulated import showing
from cellsignal.data.tables.wells import read_tables
from cellsignal.errors import InputError
from cellsignal.files import read_json
from cellsignal.profiles.mechanisms import means
from cellsignal.profiles.table import from_frame
from cellsignal.run.kernels.profiles import neighbour_images, open_table

ROOT = Path(__file__).resolve().parents[2]
KINDS = {"treatment": "treatment", "positive_control": "poscon", "negative_control": "negcon"}


def table_of(plates: Path) -> pd.DataFrame:
    """Profiles of the wells of one cell type whose siRNA is known."""
    wells = read_tables(plates).wells
    wells = wells[wells["sirna"].notna() & (wells["cell_type"] == wells["cell_type"].iloc[0])].reset_index(drop=True)
    random = np.random.default_rng(0)
    sirnas = random.normal(size=(1139, 8))
    table = wells[["experiment", "plate", "well", "sirna"]].set_axis(["Metadata_Batch", "Metadata_Plate", "Metadata_Well", "Metadata_Perturbation"], axis=1)
    table["Metadata_Control_Type"] = wells["well_type"].map(KINDS)
    table["Metadata_Plate"] = wells["experiment"] + "_" + wells["plate"].astype(str)
    table[[f"embedding_{number}" for number in range(8)]] = sirnas[wells["sirna"].to_numpy(int)] + random.normal(size=(len(wells), 8)) / 2
    return table


def test_the_notebook_corrects_measures_and_shows_wells(tmp_path: Path, tiny_plates: Path) -> None:
    table = table_of(tiny_plates)
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/run.json").write_text("{}")
    table.to_parquet(tmp_path / "demo/embeddings.parquet")
    command = [sys.executable, "-m", "papermill", ROOT / "kernels/profiles/profiles.ipynb", tmp_path / "out.ipynb", "-k", "python3"]
    options = ["-p", "run", tmp_path / "profiles", "-p", "data", tiny_plates, "-y", "profile: {components: 0, permutations: 199}"]
    ended = subprocess.run([*command, *options], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    outputs = [output for cell in nbformat.read(tmp_path / "out.ipynb", 4).cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 5
    record = read_json(tmp_path / "profiles/profile.json")
    assert record["table"] == "embeddings.parquet" and record["simulated"] is True
    names = [row["profiles"] for row in record["networks"][0]["retrieval"] if row["restriction"] == "none"]
    assert names == ["uncorrected", "centred", "corrected"]
    assert "profile.json" in read_json(tmp_path / "profiles/receipts/profiles.json")["outputs"]


def test_wells_whose_image_cannot_be_read_are_left_out(tiny_plates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profiles = from_frame(table_of(tiny_plates))
    chosen = means(profiles).wells["Metadata_Perturbation"].iloc[0]
    images, titles, rows = neighbour_images(profiles, tiny_plates, chosen)
    unreadable = iter([True])

    def read(root: Path, stem: str) -> np.ndarray:
        if next(unreadable, False):
            raise InputError("is no image", where=stem)
        return read_site(root, stem)

    monkeypatch.setattr("cellsignal.run.kernels.profiles.read_site", read)
    fewer = neighbour_images(profiles, tiny_plates, chosen)
    assert len(images) > 1 and fewer[1:] == (titles[1:], rows[1:]) and all(map(np.array_equal, fewer[0], images[1:]))


def test_a_metadata_csv_of_other_data_is_no_plates_unless_it_is_named(tmp_path: Path, tiny_plates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, table = tmp_path / "other", tmp_path / "table.parquet"
    other.mkdir()
    (other / "metadata.csv").write_text("name,value\na,1\n")
    table_of(tiny_plates).to_parquet(table)
    monkeypatch.setattr("cellsignal.run.mounts.data_sets", lambda: [other])
    with showing(False):
        profiles, plates = open_table(table)
        assert plates is None and neighbour_images(profiles, plates, "1") == ([], [], [])
        profiles, plates = open_table(table, data=str(other))
    with pytest.raises(InputError, match="metadata.csv"):
        neighbour_images(profiles, plates, "1")
