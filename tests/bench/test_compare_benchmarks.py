"""Two benchmarks side by side, and what is none."""

import json
from pathlib import Path

import pytest

from cellsignal.bench.compare import SCHEMA, as_text, compare, differences, read_benchmark
from cellsignal.errors import InputError


def benchmark(rates: dict[str, tuple[float, float, float]], *, image_size: int = 512, cores: int = 2) -> dict:
    rows = [{"stage": "read", "name": name, "kind": "ours", "unit": "sites/s", "min": low, "median": middle, "max": high}
            for name, (low, middle, high) in rates.items()]
    return {"schema": SCHEMA, "machine": {"cpu": "one", "cores": cores, "gpus": [], "libraries": {"torch": f"2.{cores}"}},
            "method": {"image_size": image_size}, "rows": rows}  # fmt: skip


def test_what_both_measured_stands_side_by_side() -> None:
    table = compare(benchmark({"a": (8, 10, 12), "b": (1, 2, 3), "c": (1, 1, 1)}), benchmark({"b": (2, 3, 4), "a": (18, 20, 24)}))
    assert table[["name", "ratio", "apart"]].values.tolist() == [["a", 2.0, True], ["b", 1.5, False]]
    assert "2.00 *" in as_text(table) and "1.50" in as_text(table)


def test_one_round_has_no_range_that_others_could_be_apart_from() -> None:
    assert not compare(benchmark({"a": (1, 1, 1)}), benchmark({"a": (2, 2, 2)}))["apart"].any()


def test_differences_of_machine_and_method_are_told() -> None:
    lines = list(differences(benchmark({}), benchmark({}, image_size=64, cores=4)))
    assert lines == ["cores: 2 and 4", "image_size: 512 and 64; rates are not of the same work", "torch: 2.2 and 2.4"]
    assert not list(differences(benchmark({}), benchmark({})))
    first, second = ({**benchmark({}), "method": {"batch_size": size}} for size in (8, 32))
    assert list(differences(first, second)) == ["batch_size: 8 and 32; rates are not of the same work"]


@pytest.mark.parametrize("content", [[], {"schema": SCHEMA}, {**benchmark({}), "schema": "other"}, {**benchmark({}), "rows": [{"stage": "read"}]},
                                     benchmark({"a": (1, 0, 1)}), benchmark({"a": (float("inf"), 1, 1)}), benchmark({"a": (1, True, 1)}),
                                     {**benchmark({}), "machine": {"libraries": [1]}}])  # fmt: skip
def test_what_is_no_benchmark_is_refused(tmp_path: Path, content: object) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="a.json: (is no benchmark|has a damaged row); "):
        read_benchmark(tmp_path / "a.json")


def test_a_file_of_something_else_is_never_to_be_deleted(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# mine")
    for name, what in (("README.md", "is no benchmark"), ("absent.json", "no such file")):
        with pytest.raises(InputError, match=f"{name}: {what}; give a benchmark.json"):
            read_benchmark(tmp_path / name)


def test_nothing_in_common_is_refused() -> None:
    with pytest.raises(InputError, match="nothing in common"):
        compare(benchmark({"a": (1, 1, 1)}), benchmark({"b": (1, 1, 1)}))
