"""The results of a benchmark as the content of `benchmark.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from cellsignal import provenance
from cellsignal.bench import cost, timeline
from cellsignal.bench.compare import SCHEMA
from cellsignal.bench.cost import count_work
from cellsignal.bench.ours import CLASSES
from cellsignal.bench.sample import CHANNELS
from cellsignal.bench.suite import Benchmark
from cellsignal.bench.timer import Row, ratio

# The promised ratios: stage, our candidate, a peer's, and the least ratio of their rates.
PROMISED_RATIOS = (
    ("read", "ours: store", "official: scikit-image, six PNGs", 15.0),
    ("read", "ours: store", "OpenCV, six PNGs", 10.0),
    ("data path", "ours: store, threads", "Brodt: two processes, batches of 8", 5.0),
    ("data path", "ours: store, threads", "Sypetkowski: two processes, batches of 24", 5.0),
    ("experiment", "ours: store, adapted", "97 decoding passes", 30.0),
    ("augment", "ours: bytes turned, floats on the device", "Brodt: turned, floats, put together", None),
    ("train", "ours: from memory", "eager, channels first", None),
    ("predict", "ours: whole plate", "eager, channels first", None),
)  # fmt: skip
PROMISED_SIZE = 512  # px of the images for which reading promises anything
GPU_RATIO = 1.7  # the promise for training and prediction there


def report(bench: Benchmark, *, platform: str = "local", recipe: Mapping[str, Any], recipe_name: str) -> dict[str, Any]:
    """Machine, method, rows, ratios, timeline, shares of the hardware limits, and the cost of `recipe` on other machines.

    `recipe`: parameters of `cost.training_workloads`, by dotted key.
    """
    return {
        "schema": SCHEMA,
        "machine": provenance.describe_machine(platform, threads=torch.get_num_threads()),
        "method": _method(bench),
        "rows": [row.as_json() for row in bench.rows],
        "ratios": ratios(bench.rows, gpu=bench.chosen.type == "cuda", image_size=bench.sample.image_size),
        "timeline": timeline.as_rows(bench.timelines),
        "shares": shares(bench),
        "cost": {"recipe": recipe_name, "parameters": dict(recipe), "assumed": _assumptions(bench), "rows": records(pages(bench, recipe))},
    }


def _method(bench: Benchmark) -> dict[str, Any]:
    sample = bench.sample
    return {
        "sites": bench.sites, "own_sites": sample.originals, "origin": sample.origin, "channels": CHANNELS, "image_size": sample.image_size,
        "png_bytes_per_site": round(sample.bytes_per_site), "network_size": bench.small.image_size, "backbone": bench.backbone,
        "batch_size": bench.batch_size, "device": bench.chosen.type, "precision": bench.bits, "rounds": bench.rounds,
        "seconds": bench.seconds, "workers": bench.workers, "seed": bench.seed,
        "order": "every round in another order; what is given are medians over rounds, with least and most",
        "page_cache": "files were read before and lie in the page cache, but for the row `disk read`",
    }  # fmt: skip


def ratios(rows: Sequence[Row], *, gpu: bool = False, image_size: int = PROMISED_SIZE) -> list[dict[str, Any]]:
    """How many times as fast ours is as each peer's way, and what was promised (None: nothing, as for the reading of small images)."""
    promises = [(*row[:3], _promised(*row, gpu=gpu, image_size=image_size)) for row in PROMISED_RATIOS]
    measured = [(stage, ours_name, peer, ratio(rows, stage, ours_name, peer), promised) for stage, ours_name, peer, promised in promises]
    return [{"stage": stage, "ours": ours_name, "peer": peer, "ratio": round(speedup, 2), "promised": promised}
            for stage, ours_name, peer, speedup, promised in measured if speedup is not None]


def _promised(stage: str, ours: str, peer: str, promised: float | None, *, gpu: bool, image_size: int) -> float | None:
    if stage in ("read", "data path") and image_size < PROMISED_SIZE:
        return None
    return GPU_RATIO if gpu and stage in ("train", "predict") else promised


def shares(bench: Benchmark) -> dict[str, float]:
    """Of the matrix rate and of the memory's bandwidth that training and prediction reached; how long training waits for the store.

    Traffic is counted as if every operator began and ended in memory. The wait is measured, and 0 where it is lost in the noise.
    """
    rates, host = {(row.stage, row.name): row.median for row in bench.rows}, this_machine(bench)
    inference, training = count_work(bench.backbone, bench.small.image_size, classes=CLASSES)
    reached = {}
    for stage, name, work in (("train", "ours: from memory", training), ("predict", "ours: whole plate", inference)):
        if (stage, name) in rates:
            reached |= {f"{stage}_matrix": work.flops * rates[stage, name] / host.flops,
                      f"{stage}_bandwidth": host.width * work.numbers * rates[stage, name] / host.bandwidth}
    if ("train", "ours: from memory") in rates:
        reached["train_waiting"] = max(0.0, 1 - rates["train", "ours: from the store"] / rates["train", "ours: from memory"])
    return {name: round(share, 4) for name, share in reached.items()}


def this_machine(bench: Benchmark) -> cost.Host:
    """This machine, by what was measured: one card, or the CPU."""
    rates = {row.name: row.median for row in bench.rows}
    kind = bench.chosen.type
    matrix = next(rate for name, rate in rates.items() if name.startswith("matrix product"))
    memory = torch.cuda.get_device_properties(bench.chosen).total_memory if kind == "cuda" else 0
    name = torch.cuda.get_device_name(bench.chosen) if kind == "cuda" else provenance.hardware()["cpu"]
    # A copied byte crosses twice.
    host = cost.Host(f"here: {name}", 1, 1e9 * matrix, 2e9 * rates[f"memory copy, {kind}"], memory, provenance.cores(),
                     1e9 * rates["disk read"], width=4 if bench.bits == "fp32" else 2, is_gpu=kind == "cuda")
    trained, inferred = (rates.get(name) for name in ("ours: from memory", "ours: whole plate"))
    if trained is None or inferred is None:
        return host
    return cost.measured(host, trained_per_second=trained, inferred_per_second=inferred, backbone=bench.backbone,
                         image_size=bench.small.image_size, classes=CLASSES)


def sources(bench: Benchmark) -> list[cost.Source]:
    """Where sites come from, with the rates measured on this machine."""
    rates, size = {(row.stage, row.name): row.median for row in bench.rows}, bench.sample.image_size
    return [cost.Source("PNG", bench.sample.bytes_per_site, rates["read", "ours: PNG, checked"], size),
            cost.Source("store", CHANNELS * size**2, rates["read", "ours: store"], size)]


def pages(bench: Benchmark, recipe: Mapping[str, Any]) -> pd.DataFrame:
    """Hours and bottleneck of a recipe on RxRx1, on this machine and on the machines of `cost.HOSTS`."""
    this_host = this_machine(bench)
    # The share of its ceiling that a GPU reached on this machine is better than an assumption for others.
    hosts = [replace(host, efficiency=this_host.efficiency, inference_efficiency=this_host.inference_efficiency) if this_host.memory else host for host in cost.HOSTS]
    return cost.page(recipe, sources(bench), backbone="densenet121", image_size=512, hosts=[this_host, *hosts])


def _assumptions(bench: Benchmark) -> list[str]:
    this_host, efficiency = this_machine(bench), f"{cost.EFFICIENCY} of the roofline, which nobody measured"
    if bench.chosen.type == "cuda":
        efficiency = f"{this_host.efficiency:.2f} of the roofline in training and {this_host.inference_efficiency:.2f} in inference, as measured on this GPU"
    return [f"GPUs reach {efficiency}", "their cores read and decode as fast as those here, and their disks give 0.5 GB/s",
            f"two cards are {2 * cost.MULTI_GPU_EFFICIENCY:.2f} times as fast as one", "held-out sites are scored after every epoch",
            "the disk holds what is read: of RxRx1 at 512 px 55 GB of PNGs or a store of 197 GB, of which Kaggle's working space takes 20"]


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table as JSON has it, None where there is nothing, numbers with five digits."""
    def plain(value: Any) -> Any:
        if isinstance(value, float | np.floating):
            return None if np.isnan(value) else float(f"{value:.5g}")
        return value.item() if isinstance(value, np.integer) else value
    return [{name: plain(value) for name, value in row.items()} for row in table.to_dict("records")]
