"""YAML that grows without measure, or that means another thing than it says: one line each, in recipes, sweeps and overrides."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from cellsignal.run import recipe

Refused = Callable[..., str]
NUMBER = "write a number without leading zeros, `_` and `:`, or a text in quotes"
# What YAML allows and nobody means: text, where in the file, and the fault.
BOMBS = {
    "brackets": ("preset: tiny\nseed: " + "[" * 5000, 2, "more than 20 lists or mappings inside each other; write it flat"),
    "braces": ("preset: tiny\nseed: " + "{a: " * 5000, 2, "more than 20 lists or mappings inside each other; write it flat"),
    "dashes": ("preset: tiny\nwells:\n " + "- " * 5000, 3, "more than 20 lists or mappings inside each other; write it flat"),
    "digits": (f"preset: tiny\nseed: {'9' * 6000}", 2, "a number of 6,000 characters; write at most 40"),
    "hexadecimal digits": (f"preset: tiny\nseed: 0x{'f' * 6000}", 2, "a number of 6,002 characters; write at most 40"),
    "digits of a float": (f"preset: tiny\nseed: 0.{'3' * 6000}", 2, "a number of 6,002 characters; write at most 40"),
    "digits in a list": (f"preset: tiny\nseed: [32, {'9' * 6000}]", 2, "a number of 6,000 characters; write at most 40"),
    "aliases": ("a: &a0 [x, x, x, x]\n" + "".join(f"b{n}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(9)), 5, "more than 10,000 values, aliases written out"),
    "an alias of itself": ("preset: tiny\nseed: &a [32, *a]", 2, "*a stands inside itself; write out what it shall be"),
    "leading zero": ("preset: tiny\nseed: 010", 2, f"010 is 8 in YAML 1.1, and something else in YAML 1.2; {NUMBER}"),
    "a negative one": ("preset: tiny\nseed: -010", 2, f"-010 is -8 in YAML 1.1, and something else in YAML 1.2; {NUMBER}"),
    "to the base of 60": ("preset: tiny\nseed: 1:30", 2, f"1:30 is 90 in YAML 1.1, and something else in YAML 1.2; {NUMBER}"),
    "a fraction of it": ("preset: tiny\nseed: 1:30.5", 2, f"1:30.5 is 90.5 in YAML 1.1, and something else in YAML 1.2; {NUMBER}"),
    "binary": ("preset: tiny\nseed: 0b11", 2, f"0b11 is 3 in YAML 1.1, and something else in YAML 1.2; {NUMBER}"),
    "thousands": ("preset: tiny\nseed: 1_000", 2, f"1_000 is 1000 in YAML 1.1, and something else in YAML 1.2; {NUMBER}"),
    "of a key": ("preset: tiny\n010: 3", 2, f"010 is 8 in YAML 1.1, and something else in YAML 1.2; {NUMBER}"),
    "half a character": ('preset: tiny\nrun: "\\udcff"', 2, "not YAML ('utf-8' codec can't encode character '\\udcff' in position 0: surrogates not allowed)"),
    "a number that is none": ('preset: tiny\nseed: !!int ""', 2, "not YAML (string index out of range)"),
    "a date that is none": ("preset: tiny\nseed: 2001-99-99", 2, "not YAML (month must be in 1..12)"),
}


@pytest.mark.parametrize("text, line, part", BOMBS.values(), ids=BOMBS)
def test_what_yaml_allows_and_nobody_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused, text: str, line: int, part: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text(text)
    (tmp_path / "good.yaml").write_text("preset: tiny\n")
    assert f"bad.yaml:{line}: {part}" in refused("run", "bad.yaml")
    assert f"bad.yaml:{line}: {part}" in refused("sweep", "good.yaml", "bad.yaml")
    key, _, value = text.splitlines()[1].partition(": ")
    if value and key not in ("010", "b0"):  # keys are no YAML there, and no anchor is known
        said = refused("run", "good.yaml", "-p", f"{key}={value}")
        assert said.startswith(f"-p {key}={value[:90]}") and ("the value is not YAML" if part.startswith("not YAML") else part) in said


def test_a_file_without_end_is_no_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "long.yaml").write_text("# and so on\n" * 100_000)
    assert refused("run", "long.yaml") == "long.yaml: more than 1,000,000 characters; name a file of parameters"
    assert refused("run", "/dev/zero") == "/dev/zero: is no regular file; put the file itself there"


@pytest.mark.parametrize("text", ["0", "-0", "7", "-12", "0x1f", "1.5", "0.25", "00.5", "1.0e-3", ".5", ".inf", "4294967295", "'010'", "'1:30'", "2024", "0o17"])
def test_numbers_that_all_read_alike_pass(tmp_path: Path, text: str) -> None:
    (tmp_path / "good.yaml").write_text(f"seed: {text}\n")
    assert recipe.read_yaml(tmp_path / "good.yaml")[0] == {"seed": yaml.safe_load(text)} == dict([recipe.read_override(f"seed={text}")])
