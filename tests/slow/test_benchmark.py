"""What the benchmark promises, as generous lower bounds, on real sites where they are; and its prediction against a run.

Rates swing on a busy machine: these tests want one to themselves.
"""

from pathlib import Path

import pytest

from building import dataset_size, recipe_of
from cellsignal.data.settings import WellSettings
from cellsignal.bench import cost, report
from cellsignal.bench.suite import Benchmark
from cellsignal.data.tables.splits import split_sites
from cellsignal.data.tables.wells import read_tables
from cellsignal.files import read_json
from cellsignal.run.kernels.benchmark import COST_PARAMETERS
from cellsignal.settings import flatten
from cellsignal.run.chain.chain import run_chain

pytestmark = pytest.mark.slow
LEAST = {"read": {"official": 10, "OpenCV": 7}, "data path": {"Brodt": 3, "Sypetkowski": 3}, "experiment": {"97": 30}}  # a third or less given away


def test_the_promised_ratios(shared: Path, tmp_path: Path) -> None:
    bench = Benchmark(tmp_path, data=shared / "rxrx1", sites=32, backbone="densenet-small", rounds=5, seconds=0.5, device="cpu")
    for stage in (bench.reading, bench.data_path, bench.experiment):
        stage()
    found = {(row["stage"], row["peer"].split(":")[0].split(",")[0].split(" ")[0]): row["ratio"] for row in report.ratios(bench.rows)}
    print(*(f"{row['stage']}: {row['ratio']:.1f} times {row['peer']}" for row in report.ratios(bench.rows)), sep="\n")
    for stage, peers in LEAST.items():
        for peer, least in peers.items():
            assert found[stage, peer] >= least, (stage, peer, found[stage, peer])


def test_the_predicted_cost_is_the_measured_one(tmp_path: Path) -> None:
    """A run on the `small` plates: seconds of all epochs and of the prediction, which is what networks take."""
    values = {"preset": "small", "backbone": "densenet-small", "batch_size": 16, "pretrain_epochs": 2, "epochs": 4, "html_pages": False}
    run = tmp_path / "run"
    run_chain(recipe_of({**values, "run": str(run), "device": "cpu"}))
    seconds = sum(row["seconds"] for row in read_json(run / "weights/HUVEC/model.json")["details"]["history"])
    told = [read_json(path)["details"] for path in run.glob("scores/model/*/metadata.json")]
    seconds += sum(each["seconds"] for facts in told for each in facts["experiments"].values())

    bench = Benchmark(tmp_path / "bench", sites=64, image_size=64, backbone="densenet-small", batch_size=16, rounds=5, seconds=2.0, device="cpu")
    for stage in (bench.machine, bench.reading, bench.training, bench.predicting):
        stage()
    tables = read_tables(run / "data")
    sites = tables.sites.assign(split=split_sites(tables.wells, tables.sites, settings=WellSettings(split="experiment", validation_experiments=1), seed=0))
    chosen = {name: value for name, value in flatten(recipe_of({**values, "run": "x"}).model_dump()).items() if name in COST_PARAMETERS}
    workloads = cost.training_workloads(dataset_size(sites), chosen, tests_answered=True)
    predicted = cost.estimate(workloads, report.this_machine(bench), report.sources(bench)[0], backbone="densenet-small", image_size=64)
    print(f"predicted {predicted.seconds:.1f} s, measured {seconds:.1f} s")
    assert predicted.seconds == pytest.approx(seconds, rel=0.2)
