"""The clock: known work gets its known rate, whatever the order."""

import time

import pytest
import torch

from cellsignal.bench.timer import throughput
from cellsignal.bench.timer import Candidate, measure, rate, ratio


def waits(seconds: float, calls: list[str], name: str):
    def work() -> float:
        calls.append(name)
        time.sleep(seconds)
        return 10.0
    return work


def test_rates_are_medians_of_shuffled_rounds() -> None:
    calls: list[str] = []
    ways = [Candidate("slow", "peer", waits(0.02, calls, "slow")), Candidate("fast", "ours", waits(0.002, calls, "fast"))]
    rows = measure("sleep", ways, rounds=5, seconds=0.0, sites=3)
    assert [(row.name, row.kind, row.rounds, row.sites) for row in rows] == [("slow", "peer", 5, 3), ("fast", "ours", 5, 3)]
    assert all(row.min <= row.median <= row.max for row in rows)
    assert rows[0].max <= 500 and rows[1].max <= 5000  # nobody wakes early, and on a busy machine anybody late
    assert ratio(rows, "sleep", "fast", "slow") == rows[1].median / rows[0].median > 1 and ratio(rows, "sleep", "fast", "else") is None
    assert calls[:2] == ["slow", "fast"] and calls.count("slow") == calls.count("fast") == 6, "each warms up once"
    assert calls[2:] not in (["slow", "fast"] * 5, ["fast", "slow"] * 5)


def test_work_goes_on_for_its_seconds_and_may_keep_its_own_clock() -> None:
    calls: list[str] = []
    assert rate(waits(0.01, calls, "one"), 0.05) <= 1000 and 1 <= len(calls) <= 5
    assert rate(lambda: (6.0, 2.0), 5.0) == 3.0


def batches(count: int, closed: list[bool]):
    try:
        for number in range(count):
            time.sleep(0.05 if number < 2 else 0.005)  # what starts slowly is not counted
            yield torch.full((4, 1), number), number
    finally:
        closed.append(True)


@pytest.mark.parametrize("count", [7, 100])
def test_a_data_path_is_counted_between_its_waves(count: int) -> None:
    closed: list[bool] = []
    seen: list[int] = []
    work = throughput(lambda: batches(count, closed), lambda images: seen.append(int(images[0, 0])), wave=2, seconds=0.02)
    sites, seconds = work()
    assert closed == [True] and seen == list(range(len(seen)))
    assert sites == 4 * (len(seen) - 2) and sites / seconds <= 800, "at most a batch in 5 ms"
    assert 6 <= len(seen) <= min(count, 8)
