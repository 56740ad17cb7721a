"""Records that are read as they were written, or not at all."""

import json
from pathlib import Path

import pytest

from cellsignal import files, receipts
from cellsignal.errors import InputError

FACTS = {"step": "é", "outputs": {"a.csv": "0" * 64}, "seconds": 2.0947955870000214, "rows": [{"loss": 0.5, "held_out": None}], "whole": True}


def test_every_bit_of_a_record_counts(tmp_path: Path) -> None:
    receipts.write(tmp_path / "a.json", FACTS)
    whole = (tmp_path / "a.json").read_bytes()
    assert receipts.read(tmp_path / "a.json") == FACTS and list(json.loads(whole)) == [*FACTS, "checksum"]
    for place in range(8 * len(whole)):
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        with pytest.raises(ValueError, match="not as it was written|not readable as JSON"):
            receipts.parse(bytes(content))


@pytest.mark.parametrize("damage", ["", "[]", "null", "[" * 100_000, '{"a": NaN}', '{"checksum": 3}', "{}"])
def test_what_is_no_record_is_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    (tmp_path / "a.json").write_text(damage)
    with pytest.raises(InputError, match="a.json: not .*; delete it and run the step that writes it again$"):
        receipts.read(tmp_path / "a.json")


def test_a_number_that_only_looks_the_same_is_another_record(tmp_path: Path) -> None:
    text = receipts.text(FACTS)
    assert json.loads(text.replace("2.0947955870000214", "2.09479558700002140")) == json.loads(text)
    with pytest.raises(ValueError, match="^not as it was written$"):
        receipts.parse(text.replace("2.0947955870000214", "2.09479558700002140").encode())


def test_files_are_held_against_what_a_record_says(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a.csv", "1")
    outputs = {"a.csv": files.sha256(tmp_path / "a.csv")}
    receipts.check(tmp_path, outputs, made_by="4-predict-assign", cure="run it again")
    files.write_text(tmp_path / "a.csv", "2")
    with pytest.raises(InputError, match="a.csv: not as 4-predict-assign left it; run it again$"):
        receipts.check(tmp_path, outputs, made_by="4-predict-assign", cure="run it again")
    (tmp_path / "a.csv").unlink()
    with pytest.raises(InputError, match="a.csv: is missing; run it again$"):
        receipts.check(tmp_path, outputs, made_by="4-predict-assign", cure="run it again")
