"""`cellsignal benchmark`: what it refuses, and two files side by side."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from cellsignal.bench.sample import take_sample
from cellsignal.errors import InputError
from cellsignal.cli.main import main


@pytest.mark.slow
@pytest.mark.ci
def test_two_benchmarks_side_by_side(found: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    faster = {**found, "rows": [{**row, **{name: 2 * row[name] for name in ("median", "min", "max")}} for row in found["rows"]],
              "machine": {**found["machine"], "cpu": "another"}}  # fmt: skip
    for name, content in (("a", found), ("b", faster)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    monkeypatch.setattr(sys, "argv", ["cellsignal", "benchmark", "--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    with pytest.raises(SystemExit) as ended:
        main()
    out = capsys.readouterr().out
    assert ended.value.code == 0 and out.count("2.00") >= len(found["rows"]) and "cpu: " in out and "another" in out


def test_what_is_wrong_is_one_line(refused, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    assert "is no benchmark" in refused("benchmark", "--compare", tmp_path / "a.json", tmp_path / "a.json")
    assert "name two benchmarks" in refused("benchmark", "--compare", tmp_path / "a.json")
    assert "--compare A.json B.json" in refused("benchmark", tmp_path / "a.json")
    assert "is a folder" in refused("benchmark", "--out", tmp_path)
    assert "no such folder" in refused("benchmark", "--data", tmp_path / "nothing", "--out", tmp_path / "out/b.json")
    assert "no such backbone" in refused("benchmark", "--backbone", "nothing", "--out", tmp_path / "out/b.json", "--sites", "2", "--image-size", "16")
    assert not list((tmp_path / "out").iterdir())


def test_a_damaged_image_has_its_own_name_and_not_that_of_its_copy(tmp_path: Path) -> None:
    plates = take_sample(tmp_path / "plates", data=None, count=2, image_size=16)
    damaged = plates.paths(plates.stems[1])[2]
    damaged.write_bytes(damaged.read_bytes()[:60])
    with pytest.raises(InputError, match=f"^{damaged}: is cut short or damaged; copy the file again$"):
        take_sample(tmp_path / "sample", data=plates.root, count=2)
