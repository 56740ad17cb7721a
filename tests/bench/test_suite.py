"""A whole benchmark, tiny: what is measured, what is told of it, and how it is drawn."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from cellsignal.bench import ours, report, suite, timeline
from cellsignal.bench.compare import compare, read_benchmark
from cellsignal.bench.suite import Benchmark
from cellsignal.data import simulated
from cellsignal.errors import InputError
from cellsignal.files import write_json
from cellsignal.run.kernels import benchmark
from cellsignal.settings import flatten
from cellsignal.show import benchmark as draw

ROOT = Path(__file__).resolve().parents[2]


def test_every_stage_has_ours_beside_a_peer_or_a_floor(found: dict[str, Any], tmp_path: Path) -> None:
    kinds: dict[str, set[str]] = {}
    for row in found["rows"]:
        kinds.setdefault(row["stage"], set()).add(row["kind"])
        assert 0 < row["min"] <= row["median"] <= row["max"], row
    assert all({"ours", "peer"} <= kinds[stage] for stage in ("read", "augment", "data path", "train", "predict", "experiment"))
    assert kinds["machine"] == {"floor"} and {"read", "augment"} <= {stage for stage in kinds if "floor" in kinds[stage]}
    assert len(found["ratios"]) >= 7 and all(row["ratio"] > 0 for row in found["ratios"])
    write_json(tmp_path / "a.json", found)
    assert len(compare(read_benchmark(tmp_path / "a.json"), found)) == len(found["rows"])
    assert found["method"]["own_sites"] == 8 and found["machine"]["cores"] >= 1 and found["machine"]["libraries"]["torch"]


def test_the_time_line_is_whole(found: dict[str, Any]) -> None:
    for lane in ("ours: store", "Brodt: PNGs"):
        parts = {row["part"]: row for row in found["timeline"] if row["lane"] == lane}
        assert tuple(parts) == timeline.PARTS and sum(row["share"] for row in parts.values()) == pytest.approx(1, abs=0.01)
        assert all(parts[part]["ms"] > 0 for part in ("read", "augment", "forward", "backward", "step"))
    assert next(row["ms"] for row in found["timeline"] if row["part"] == "decode" and row["lane"] == "ours: store") == 0, "plain pixels"


@pytest.mark.parametrize("name, receipt, drawn", [("", False, True), ("plates", False, False), ("plates", True, True)])
def test_the_notebook_s_figures_know_what_was_measured_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, receipt: bool, drawn: bool
) -> None:
    monkeypatch.setattr(benchmark, "Benchmark", lambda folder, **settings: None)
    monkeypatch.chdir(tmp_path)
    if receipt:
        write_json(tmp_path / name / "simulate.json", {})
    benchmark.begin(tmp_path / "run", data=name)
    assert simulated.shown() is drawn


def test_shares_of_the_ceilings_are_shares(found: dict[str, Any]) -> None:
    assert {"train_matrix", "train_bandwidth", "predict_matrix", "predict_bandwidth", "train_waiting"} == found["shares"].keys()
    assert all(0 <= share for share in found["shares"].values()) and found["shares"]["train_waiting"] < 1


def test_the_cost_page_has_here_and_elsewhere(found: dict[str, Any]) -> None:
    hosts = {row["host"] for row in found["cost"]["rows"]}
    assert len(hosts) == 5 and any(host.startswith("here: ") for host in hosts)
    assert all(row["hours"] == max(row[part] for part in ("read", "decode", "compute")) for row in found["cost"]["rows"])
    brodt = yaml.safe_load((ROOT / "papermill_params/brodt.yaml").read_text())
    stated = flatten(brodt)
    assert {name: stated[name] for name in benchmark.BRODT_PARAMETERS} == benchmark.BRODT_PARAMETERS
    chosen, name = benchmark.cost_parameters(ROOT / "papermill_params/demo.yaml")
    assert (chosen["training.epochs"], chosen["training.pretrain_epochs"], name) == (22, 12, "demo") and set(chosen) == set(benchmark.COST_PARAMETERS)


def test_images_show_every_way(found: dict[str, Any]) -> None:
    rates = draw.draw_rates(found["rows"])
    names = {text.get_text() for axes in rates.axes for text in axes.get_yticklabels()}
    assert names == {row["name"] for row in found["rows"] if row["stage"] in draw.TITLES}
    assert {text.get_text() for text in draw.draw_timeline(found["timeline"]).axes[0].get_yticklabels()} == {"ours: store", "Brodt: PNGs"}
    assert len(draw.draw_cost(found["cost"]["rows"], recipe="brodt").axes[0].get_yticklabels()) == 10
    for figure in (rates, draw.draw_rates([]), draw.draw_timeline([]), draw.draw_cost([])):
        assert figure.png().startswith(b"\x89PNG")


def test_our_ways_do_what_they_are_said_to_do(bench: Benchmark) -> None:
    images = bench.sample.images()
    source = ours.open_store(bench.store)
    assert np.array_equal(source.read_many(bench.sample.stems), images) and ours.reading(bench.store, bench.sample.stems[:3])() == 3
    batches = ours.batches_of(8, 4, min_batches=5)
    assert [len(rows) for rows in batches] == [4] * 5 and sorted(np.concatenate(batches[:2])) == list(range(8))
    before = [weight.detach().clone() for weight in bench.trainer.model.parameters()]
    assert bench.trainer.epoch(ours.dataset(bench.store, bench.sample.sites), batches=2)() == 8
    assert not all(torch.equal(old, new) for old, new in zip(before, bench.trainer.model.parameters(), strict=True))
    answers = bench.trainer.adapted(images)
    assert answers.shape == (8, 1108) and np.allclose(np.exp(answers).sum(1), 1, atol=1e-4)


def test_the_data_path_is_that_of_two_cores_however_many_there_are(bench: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    read, stages, seen = suite.read_batches, [], []
    monkeypatch.setattr(suite, "read_batches", lambda *given, workers, **more: seen.append((workers, torch.get_num_threads())) or read(*given, workers=workers, **more))
    monkeypatch.setattr(bench, "workers", 16)
    monkeypatch.setattr(bench, "stage", lambda name, candidates: stages.append(name) or candidates[0].work())
    with suite.threads(4):
        bench.data_path()
        assert torch.get_num_threads() == 4
    assert seen == [(2, 2)] and stages == ["data path"], "the peers have two processes"


def test_numbers_that_measure_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rounds is 0; use 1 or more"):
        Benchmark(tmp_path, rounds=0)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="7 sites; use an even number"):
        Benchmark(tmp_path, sites=7).sample  # noqa: B018


def test_what_is_told_fits_json(found: dict[str, Any]) -> None:
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert report.records(pd.DataFrame({"a": [1.0, float("nan")], "b": ["x", None]})) == [{"a": 1.0, "b": "x"}, {"a": None, "b": None}]
