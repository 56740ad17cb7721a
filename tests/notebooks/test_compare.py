"""The comparison's notebook, run as a user runs it, on finished runs of known quality."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from finished_runs import vouch, wells, write_run

from cellsignal.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.ci
def test_the_notebook_compares_what_lies_beside_it(tmp_path: Path) -> None:
    for name, raw in (("brodt-seed0", 0.4), ("brodt-seed1", 0.4), ("best-seed0", 0.8)):
        write_run(tmp_path / name, raw=raw, assigned=raw + 0.1, tables=[wells()], seed=int(name[-1]), backbone=name[:4])
    metrics = tmp_path / "best-seed0/metrics.json"
    write_json(metrics, {**read_json(metrics), "simulated": True})
    vouch(tmp_path / "best-seed0")
    command = [sys.executable, "-m", "papermill", ROOT / "kernels/compare/compare.ipynb", tmp_path / "out.ipynb", "-k", "python3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([*command, "-p", "run", tmp_path / "compare"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    outputs = [output for cell in nbformat.read(tmp_path / "out.ipynb", 4).cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 5
    told = read_json(tmp_path / "compare/compare.json")
    assert {row["recipe"] for row in told["runs"]} == {"brodt", "best"} and "best" in (tmp_path / "compare/compare.html").read_text()
    assert "<title>cellsignal: runs compared (simulated data)</title>" in (tmp_path / "compare/compare.html").read_text()
    [difference] = [row for row in told["differences"] if row["kind"] == "raw"]
    assert difference["of_experiments"][1] < -0.2 and (difference["recipe"], difference["from"]) == ("brodt", "best"), "folders come by name"
    written = read_json(tmp_path / "compare/receipts/compare.json")
    assert set(written["outputs"]) == {"compare.html", "compare.json"} and written["details"]["attached_files"] == {}
