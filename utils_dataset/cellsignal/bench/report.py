"""What a benchmark found, as `benchmark.json` has it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from cellsignal import machine
from cellsignal.bench import cost, timeline
from cellsignal.bench.compare import SCHEMA
from cellsignal.bench.cost import count_work
from cellsignal.bench.ours import CLASSES
from cellsignal.bench.sample import CHANNELS
from cellsignal.bench.suite import Benchmark
from cellsignal.bench.timer import Row, ratio

# What is promised: stage, ours, a peer's, and how many times as fast ours is at least.
RATIOS = (
    ("read", "ours: store", "official: scikit-image, six PNGs", 15.0),
    ("read", "ours: store", "OpenCV, six PNGs", 10.0),
    ("data path", "ours: store, threads", "Brodt: two processes, batches of 8", 5.0),
    ("data path", "ours: store, threads", "Sypetkowski: two processes, batches of 24", 5.0),
    ("experiment", "ours: store, adapted", "97 decoding passes", 30.0),
    ("augment", "ours: bytes turned, floats on the device", "Brodt: turned, floats, put together", None),
    ("train", "ours: from memory", "eager, channels first", None),
    ("predict", "ours: whole plate", "eager, channels first", None),
)  # fmt: skip
FULL = 512  # px of the pictures for which reading promises anything
ON_GPU = 1.7  # the promise for training and prediction there


def report(bench: Benchmark, *, place: str = "local", recipe: Mapping[str, Any], recipe_name: str) -> dict[str, Any]:
    """Machine, method, rows, ratios, time line, what share of the ceilings was reached, and the cost of `recipe` on other machines.

    `recipe`: parameters by dotted key, as `cost.training_workloads` takes them.
    """
    return {
        "schema": SCHEMA,
        "machine": machine.machine(place, threads=torch.get_num_threads()),
        "method": _method(bench),
        "rows": [row.as_record() for row in bench.rows],
        "ratios": ratios(bench.rows, gpu=bench.chosen.type == "cuda", image_size=bench.sample.image_size),
        "timeline": timeline.as_rows(bench.lanes),
        "shares": shares(bench),
        "cost": {"recipe": recipe_name, "parameters": dict(recipe), "assumed": _assumed(bench), "rows": records(pages(bench, recipe))},
    }


def _method(bench: Benchmark) -> dict[str, Any]:
    sample = bench.sample
    return {
        "sites": bench.sites, "own_sites": sample.own, "origin": sample.origin, "channels": CHANNELS, "image_size": sample.image_size,
        "png_bytes_per_site": round(sample.bytes_per_site), "network_size": bench.small.image_size, "backbone": bench.backbone,
        "batch_size": bench.batch_size, "device": bench.chosen.type, "precision": bench.bits, "rounds": bench.rounds,
        "seconds": bench.seconds, "workers": bench.workers, "seed": bench.seed,
        "order": "every round in another order; what is given are medians over rounds, with least and most",
        "page_cache": "files were read before and lie in the page cache, but for the row `disk read`",
    }  # fmt: skip


def ratios(rows: Sequence[Row], *, gpu: bool = False, image_size: int = FULL) -> list[dict[str, Any]]:
    """How many times as fast ours is as each peer's way, and what was promised (None: nothing, as for the reading of small pictures)."""
    promises = [(*each[:3], _promised(*each, gpu=gpu, image_size=image_size)) for each in RATIOS]
    found = [(stage, mine, theirs, ratio(rows, stage, mine, theirs), least) for stage, mine, theirs, least in promises]
    return [{"stage": stage, "ours": mine, "peer": theirs, "ratio": round(times, 2), "promised": least}
            for stage, mine, theirs, times, least in found if times is not None]


def _promised(stage: str, ours: str, peer: str, least: float | None, *, gpu: bool, image_size: int) -> float | None:
    if stage in ("read", "data path") and image_size < FULL:
        return None
    return ON_GPU if gpu and stage in ("train", "predict") else least


def shares(bench: Benchmark) -> dict[str, float]:
    """Of the matrix rate and of the memory's bandwidth that training and prediction reached; how long training waits for the store.

    Traffic is counted as if every operator began and ended in memory. The wait is measured, and 0 where it is lost in the noise.
    """
    rates, host = {(row.stage, row.name): row.median for row in bench.rows}, here(bench)
    seen, learnt = count_work(bench.backbone, bench.small.image_size, classes=CLASSES)
    found = {}
    for stage, name, each in (("train", "ours: from memory", learnt), ("predict", "ours: whole plate", seen)):
        if (stage, name) in rates:
            found |= {f"{stage}_matrix": each.flops * rates[stage, name] / host.flops,
                      f"{stage}_bandwidth": host.width * each.numbers * rates[stage, name] / host.bandwidth}
    if ("train", "ours: from memory") in rates:
        found["train_waiting"] = max(0.0, 1 - rates["train", "ours: from the store"] / rates["train", "ours: from memory"])
    return {name: round(share, 4) for name, share in found.items()}


def here(bench: Benchmark) -> cost.Host:
    """This machine, by what was measured: one card, or the CPU."""
    rates = {row.name: row.median for row in bench.rows}
    kind = bench.chosen.type
    matrix = next(rate for name, rate in rates.items() if name.startswith("matrix product"))
    memory = torch.cuda.get_device_properties(bench.chosen).total_memory if kind == "cuda" else 0
    name = torch.cuda.get_device_name(bench.chosen) if kind == "cuda" else machine.hardware()["cpu"]
    # A copied byte crosses twice.
    host = cost.Host(f"here: {name}", 1, 1e9 * matrix, 2e9 * rates[f"memory copy, {kind}"], memory, machine.cores(),
                     1e9 * rates["disk read"], width=4 if bench.bits == "fp32" else 2)
    learnt, seen = (rates.get(name) for name in ("ours: from memory", "ours: whole plate"))
    if learnt is None or seen is None:
        return host
    return cost.measured(host, learnt_per_second=learnt, seen_per_second=seen, backbone=bench.backbone,
                         image_size=bench.small.image_size, classes=CLASSES)


def sources(bench: Benchmark) -> list[cost.Source]:
    """Where sites come from, by what reading them took here."""
    rates, size = {(row.stage, row.name): row.median for row in bench.rows}, bench.sample.image_size
    return [cost.Source("PNG", bench.sample.bytes_per_site, rates["read", "ours: PNG, checked"], size),
            cost.Source("store", CHANNELS * size**2, rates["read", "ours: store"], size)]


def pages(bench: Benchmark, recipe: Mapping[str, Any]) -> pd.DataFrame:
    """Hours and bottleneck of a recipe on RxRx1 here and on the machines of `cost.HOSTS`."""
    mine = here(bench)
    # The share of its ceiling that a GPU reached here is better than an assumption for others.
    hosts = [replace(host, efficiency=mine.efficiency, looking=mine.looking) if mine.memory else host for host in cost.HOSTS]
    return cost.page(recipe, sources(bench), backbone="densenet121", image_size=512, hosts=[mine, *hosts])


def _assumed(bench: Benchmark) -> list[str]:
    mine, share = here(bench), f"{cost.EFFICIENCY} of the roofline, which nobody measured"
    if bench.chosen.type == "cuda":
        share = f"{mine.efficiency:.2f} of the roofline in learning and {mine.looking:.2f} in looking, as measured on this GPU"
    return [f"GPUs reach {share}", "their cores read and decode as fast as those here, and their disks give 0.5 GB/s",
            f"two cards are {2 * cost.PAIR:.2f} times as fast as one", "held-out sites are scored after every epoch",
            "the disk holds what is read: of RxRx1 at 512 px 55 GB of PNGs or a store of 197 GB, of which Kaggle's working space takes 20"]


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table as JSON has it, None where there is nothing, numbers with five digits."""
    def told(value: Any) -> Any:
        if isinstance(value, float | np.floating):
            return None if np.isnan(value) else float(f"{value:.5g}")
        return value.item() if isinstance(value, np.integer) else value
    return [{name: told(value) for name, value in row.items()} for row in table.to_dict("records")]
