"""Receipts that are read as they were written, or not at all."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cellsignal import files
from cellsignal.errors import InputError
from cellsignal.receipts import Receipt

FACTS = {
    "identity": {"step": "é", "seed": 0}, "outputs": {"a.csv": "0" * 64}, "complete": True,
    "details": {"seconds": 2.0947955870000214, "rows": [{"loss": 0.5, "held_out": None}]},
}  # fmt: skip


def test_every_bit_of_a_receipt_counts(tmp_path: Path) -> None:
    written = Receipt(tmp_path / "a.json", **FACTS).write()
    whole = written.path.read_bytes()
    assert Receipt.read(written.path) == written == Receipt.of(tmp_path / "elsewhere.json", FACTS)
    assert list(json.loads(whole)) == [*FACTS, "checksum"]
    for place in range(8 * len(whole)):
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        with pytest.raises(ValueError, match="not as it was written|not readable as JSON"):
            Receipt.parse(written.path, bytes(content))


@pytest.mark.parametrize("damage", ["", "[]", "null", "[" * 100_000, '{"a": NaN}', '{"checksum": 3}', "{}"])
def test_what_is_no_receipt_is_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    (tmp_path / "a.json").write_text(damage)
    with pytest.raises(InputError, match="a.json: not .*; delete it and run the step that writes it again$"):
        Receipt.read(tmp_path / "a.json")
    assert Receipt.find(tmp_path / "a.json") is None and Receipt.find(tmp_path / "b.json") is None


@pytest.mark.parametrize("change", [{"identity": []}, {"outputs": ["a"]}, {"outputs": {"a": 1}}, {"complete": 1}, {"details": None}])
def test_what_is_of_another_shape_is_refused_in_one_line(tmp_path: Path, change: dict) -> None:
    replace(Receipt(tmp_path / "a.json", **FACTS), **change).write()
    with pytest.raises(InputError, match="a.json: not a receipt of this version; delete it and run the step that writes it again$"):
        Receipt.read(tmp_path / "a.json")


def test_details_of_another_shape_are_named(tmp_path: Path) -> None:
    Receipt(tmp_path / "a.json", **FACTS).write()
    with pytest.raises(InputError, match=r"a.json: is not as it was written \(rows: .*\); delete it"):
        Receipt.read(tmp_path / "a.json", dict[str, float])


def test_a_number_that_only_looks_the_same_is_another_receipt(tmp_path: Path) -> None:
    text = Receipt(tmp_path, **FACTS).content.decode()
    other = text.replace("2.0947955870000214", "2.09479558700002140")
    assert json.loads(other) == json.loads(text)
    with pytest.raises(ValueError, match="^not as it was written$"):
        Receipt.parse(tmp_path, other.encode())


def test_it_is_current_when_it_is_complete_and_of_the_same_identity(tmp_path: Path) -> None:
    written = Receipt(tmp_path / "a.json", {"sizes": (1, 2)}).write()
    assert written.is_current({"sizes": (1, 2)}) and not written.is_current({"sizes": (1, 3)})
    assert not replace(written, complete=False).is_current({"sizes": (1, 2)})


def test_files_are_held_against_what_a_receipt_says(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a.csv", "1")
    receipt = Receipt(tmp_path / "a.json", outputs={"a.csv": files.sha256(tmp_path / "a.csv"), "b.csv": ""})
    receipt.check_outputs(tmp_path, ["a.csv"], made_by="4-predict-assign", cure="run it again")
    files.write_text(tmp_path / "a.csv", "2")
    with pytest.raises(InputError, match="a.csv: not as 4-predict-assign left it; run it again$"):
        receipt.check_outputs(tmp_path, made_by="4-predict-assign", cure="run it again")
    (tmp_path / "a.csv").unlink()
    with pytest.raises(InputError, match="a.csv: is missing; run it again$"):
        receipt.check_outputs(tmp_path, made_by="4-predict-assign", cure="run it again")
