"""The first notebook, run as a user runs it: papermill from the checkout, on plates of both kinds."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
FIGURES = {
    "batch_effect", "channel_means", "classes", "controls", "experiments", "groups",
    "layout", "plates", "positive_controls", "treatments", "wells",
}  # fmt: skip


def execute(out: Path, **parameters: str) -> str:
    """Run the notebook with papermill; gives all it printed and showed as text."""
    flags = [word for name, value in parameters.items() for word in ("-p", name, value)]
    page = out / "1-eda.ipynb"
    command = [sys.executable, "-m", "papermill", ROOT / "kernels/1-eda/1-eda.ipynb", page, "-p", "run", out / "run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([*command, *flags], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    outputs = [output for cell in nbformat.read(page, 4).cells for output in cell.get("outputs", [])]
    assert {path.stem for path in (out / "run/eda").iterdir()} == FIGURES
    assert sum("image/png" in output.get("data", {}) for output in outputs) == len(FIGURES)
    data = [output.get("data", {}) for output in outputs]
    return "".join(output.get("text") or shown.get("text/markdown") or shown.get("text/plain", "") for output, shown in zip(outputs, data))


@pytest.mark.slow
@pytest.mark.ci
def test_on_simulated_plates(tiny_plates, tmp_path):
    shown = execute(tmp_path, data=str(tiny_plates), preset="")
    assert "experiments without a complete control site: none" in shown
    assert "from pixel_stats.csv" in shown
    assert "SIMULATED DATA: a virtual microscope draws every image (preset 'tiny', seed 0)" in shown
    assert "**In plain brightness the batch effect is larger than the biology**" in shown


@pytest.mark.slow
@pytest.mark.ci
def test_on_the_real_tables_with_the_few_real_wells(shared, tmp_path):
    shown = execute(tmp_path, data=str(shared / "rxrx1"), preset="")
    assert "siRNAs per group: [277, 277, 277, 277]" in shown
    assert "experiments without a complete control site: HEPG2-02" in shown
    assert "sites with 4" in shown
    assert "30 rows from images: 5 of 62,755 wells" in shown
    assert "**Batch effect and biology were not compared**: too few control wells have pixel statistics." in shown
    assert "SIMULATED" not in shown
