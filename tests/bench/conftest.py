"""One tiny benchmark for all tests of what it found."""

from typing import Any

import pytest

from cellsignal.bench.report import report
from cellsignal.bench.suite import Benchmark
from cellsignal.run.kernels.benchmark import BRODT_PARAMETERS


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    """Everything measured once, as shortly as can be."""
    bench = Benchmark(tmp_path_factory.mktemp("bench"), sites=8, image_size=32, backbone="densenet-small", batch_size=4, rounds=1, seconds=0.0,
                  workers=2, device="cpu", floor_bytes=2**20)
    bench.everything()
    return bench


@pytest.fixture(scope="session")
def found(bench: Benchmark) -> dict[str, Any]:
    """What benchmark.json would hold."""
    return report(bench, recipe=BRODT_PARAMETERS, recipe_name="brodt")
