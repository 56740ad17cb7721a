"""The notebook of profiles, run as a user runs it, on a table of simulated plates with their images."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np

from cellsignal.data.tables.wells import read_tables
from cellsignal.files import read_json

ROOT = Path(__file__).resolve().parents[2]
KINDS = {"treatment": "treatment", "positive_control": "poscon", "negative_control": "negcon"}


def test_the_notebook_corrects_measures_and_shows_wells(tmp_path: Path, tiny_plates: Path) -> None:
    wells = read_tables(tiny_plates).wells
    wells = wells[wells["sirna"].notna() & (wells["cell_type"] == wells["cell_type"].iloc[0])].reset_index(drop=True)
    random = np.random.default_rng(0)
    sirnas = random.normal(size=(1139, 8))
    table = wells[["experiment", "plate", "well", "sirna"]].set_axis(["Metadata_Batch", "Metadata_Plate", "Metadata_Well", "Metadata_Perturbation"], axis=1)
    table["Metadata_Control_Type"] = wells["well_type"].map(KINDS)
    table["Metadata_Plate"] = wells["experiment"] + "_" + wells["plate"].astype(str)
    table[[f"embedding_{number}" for number in range(8)]] = sirnas[wells["sirna"].to_numpy(int)] + random.normal(size=(len(wells), 8)) / 2
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
