"""The cost of a recipe: work counted against textbooks, sites against an actual training."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from building import dataset_size, make_network
from cellsignal.data.settings import WellSettings
from cellsignal.bench import cost
from cellsignal.run.recipe import Recipe
from cellsignal.settings import keys
from cellsignal.bench.cost import Work, count_weights, count_work
from cellsignal.data.tables.splits import split_sites
from cellsignal.data.tables.wells import read_tables

FAST = cost.Source("store", 1.5e6, 2000.0, 512)


def test_work_is_what_the_papers_say() -> None:
    inference, training = count_work("densenet121", 512)
    # Huang et al. 2017: 2.87 billion multiplications and additions for 3 channels of 224 px; three more go through 64 kernels of 7 x 7.
    assert inference.flops == pytest.approx(2 * (2.87e9 * (512 / 224) ** 2 + 3 * 64 * 49 * 256**2), rel=0.02)
    assert 2.8 < training.flops / inference.flops < 3.05, "backwards twice as much, but for the first layer"
    assert training.numbers > 2 * inference.numbers
    assert count_weights("densenet121", channels=3, classes=1000) == pytest.approx(7.98e6, rel=0.01)


def test_work_is_counted_as_it_would_be_done() -> None:
    seen, _ = count_work("densenet-small", 32, classes=7)
    model, images = make_network("densenet-small", channels=6, classes=7).eval(), torch.rand(2, 6, 32, 32)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.classify(model.embed(images))
    assert seen.flops == counter.get_total_flops() / 2
    assert count_work("densenet-small", 64, classes=7)[0].flops == pytest.approx(4 * seen.flops, rel=0.01)


def test_an_operator_takes_what_its_arithmetic_or_its_traffic_takes() -> None:
    assert Work(((100.0, 1.0), (1.0, 100.0))).seconds(10.0, 50.0, width=2) == pytest.approx(10 + 4)


def test_the_screen_is_that_of_the_tables(shared: Path) -> None:
    tables = read_tables(shared / "rxrx1")
    sites = tables.sites.assign(split=split_sites(tables.wells, tables.sites, settings=WellSettings(split="experiment", validation_experiments=1), seed=0))
    found = dataset_size(sites)
    for name, count in vars(cost.RXRX1_SIZE).items():
        assert count == pytest.approx(getattr(found, name), rel=0.02), name


DATA_SET = cost.DatasetSize(train=1000, held_out=100, test=300, controls=200, controls_held_out=20, plate=50)


def workload(part: str, **recipe: object) -> cost.Workload:
    """`recipe`: by the keys alone, whose groups are looked up; and `adapted_passes`."""
    passes = {key: recipe.pop(key) for key in ("adapted_passes",) if key in recipe}
    dotted = {name: value for key, value in recipe.items() for name in keys(Recipe) if name.endswith(f".{key}")}
    assert len(dotted) == len(recipe)
    return next(each for each in cost.training_workloads(DATA_SET, dotted, **passes) if each.part == part)


def test_every_parameter_that_costs_is_counted() -> None:
    assert workload("controls", pretrain_epochs=3) == cost.Workload("controls", 600, 60, 660)
    assert workload("whole", epochs=4, ensemble=["resnet50"]).trained == 8000 == workload("whole", epochs=4, ablate_virtual_batch=True).trained
    assert workload("whole", epochs=4, classes="all").trained == 4 * 1220
    assert [(each.image_size, each.trained) for each in cost.training_workloads(DATA_SET, {"training.epochs": 4, "augmentation.progressive_sizes": [16, 32]}) if each.part == "whole"] == [(16, 2000), (32, 2000)]
    assert workload("final", final_epochs=2).trained == 2200 and workload("held out", epochs=4).inferred == 400
    assert workload("pseudo-labels", epochs=9, pseudo_label_epochs=2, pseudo_label_share=0.5, pseudo_label_increment=0.6).trained == (0.5 + 1) * 300
    assert workload("prediction").inferred == 400 * 2 + 100 and workload("prediction", statistics="batch", num_batch_sizes=97).inferred == 400 * (2 + 97)
    assert workload("prediction", tta_views=8, adapted_passes=6).inferred == 400 * (1 + 6) + 100 + 7 * 400 * 6


def test_the_slowest_part_is_the_bottleneck() -> None:
    workloads, host = [cost.Workload("whole", 0, 1000, 1000)], cost.Host("one", 1, 1e12, 1e11, 16e9, 2, disk=1e9)
    fast = cost.estimate(workloads, host, FAST, backbone="densenet-small", image_size=512)
    assert fast.read == pytest.approx(1.5) and fast.decode == pytest.approx(0.25) and fast.bottleneck == "compute"
    slow = cost.estimate(workloads, host, replace(FAST, per_core=0.5), backbone="densenet-small", image_size=512)
    assert slow.bottleneck == "decode" and slow.seconds == 1000 and slow.compute == fast.compute
    half = cost.estimate(workloads, replace(host, efficiency=0.25, inference_efficiency=0.25), FAST, backbone="densenet-small", image_size=256)
    assert half.read == pytest.approx(fast.read / 4) and half.compute == pytest.approx(2 * fast.compute / 4, rel=0.02)


def test_what_was_measured_is_what_is_predicted() -> None:
    host = cost.measured(cost.Host("here", 1, 1e11, 1e10, 0, 2, width=4), trained_per_second=40.0, inferred_per_second=160.0,
                         backbone="densenet-small", image_size=64)
    found = cost.estimate([cost.Workload("whole", 2000, 8000, 4000)], host, FAST, backbone="densenet-small", image_size=64)
    assert found.compute == pytest.approx(100)


def test_the_page_has_hours_quota_and_bottleneck() -> None:
    table = cost.page({"training.epochs": 90, "training.pretrain_epochs": 10}, [FAST], backbone="densenet121", image_size=512)
    assert len(table) == 4 * 3 and set(table["host"]) == {host.name for host in cost.HOSTS}
    kaggle = table[table["host"] == "T4 x 2"].set_index("scale")
    assert kaggle.loc[10, "hours"] == pytest.approx(10 * kaggle.loc[1, "hours"]) and kaggle.loc[1, "quota_weeks"] == pytest.approx(kaggle.loc[1, "hours"] / 30)
    hours = table[table["scale"] == 1].set_index("host")["compute"]
    assert hours["T4 x 2"] > hours["A100"] > hours["H100"] and table.loc[table["host"] != "T4 x 2", "sessions"].isna().all()
    assert pd.api.types.is_float_dtype(table["hours"])
