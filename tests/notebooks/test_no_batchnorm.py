"""A network without batch normalisation has one answer under all three kinds of statistics, and every page says so."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from building import in_groups
from cellsignal.data.microscope.simulate import simulate
from cellsignal.files import read_json
from cellsignal.learn.networks.batchnorm import NO_BATCHNORM, NO_BATCHNORM_NOTE
from cellsignal.run import environment
from cellsignal.run.chain import script
from cellsignal.run.record.results import summary
from cellsignal.show.report import write_report

KERNELS = Path(__file__).resolve().parents[2] / "kernels"


@pytest.mark.slow
@pytest.mark.ci
def test_equal_rungs_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLSIGNAL_CHAIN", "1")
    simulate(tmp_path / "plates", preset="tiny", experiments=["RPE-01", "RPE-02", "RPE-03"])
    run = tmp_path / "run"
    values = in_groups({"run": str(run), "data": str(tmp_path / "plates"), "preset": "", "pretrain_epochs": 1, "epochs": 1, "final_epochs": 0,
              "backbone": "plain-cnn", "num_batch_sizes": 9, "cell_type": "RPE"})  # fmt: skip
    for kernel in ("2-pretrain-controls", "3-train-cell-type", "4-predict-assign"):
        script.execute(KERNELS / f"{kernel}/{kernel}.ipynb", values)
        environment.unlock_run_folder(run)
        plt.close("all")
        assert (NO_BATCHNORM_NOTE in capsys.readouterr().out) == (kernel != "4-predict-assign"), kernel
    metrics = read_json(run / "metrics.json")
    assert metrics["statistics_note"] == NO_BATCHNORM_NOTE
    raw = {row["rung"]: row["accuracy"] for row in metrics["ladder"] if row["kind"] == "raw" and row["split"] == "test"}
    for kind in ("batch", "adapted"):
        assert raw[kind] == raw["running"]
        assert (run / f"scores/model/{kind}/RPE-03.parquet").read_bytes() == (run / "scores/model/running/RPE-03.parquet").read_bytes()
        told = read_json(run / f"scores/model/{kind}/metadata.json")["details"]["experiments"].values()
        embedded = 4 * 31 * 2 * (kind == "adapted")  # sites of controls, for the table of embeddings
        assert all(fact["gathered"] == {NO_BATCHNORM: 4} and fact["images"] == fact["sites"] + embedded for fact in told), "one pass, not nine"
    page = " ".join(re.sub("<[^>]*>", "", write_report(run).read_text(encoding="utf-8")).split())
    assert page.index("The network has no layers of batch normalisation") < page.index("By cell type")
    assert NO_BATCHNORM_NOTE in summary(run)
