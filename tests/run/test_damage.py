"""A handful of flipped bits and edited files in runs of toys; tests/slow flips hundreds in a real one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from building import recipe_of
from cellsignal import files
from cellsignal.data.microscope import simulate
from cellsignal.errors import InputError
from cellsignal.run import inputs
from cellsignal.run.bundle import bundle
from cellsignal.run.chain import chain
from cellsignal.run.chain.notebooks import StepFailed

Run = Callable[..., list[str]]


def flip(path: Path, place: int = -20, bit: int = 1) -> None:
    """Flip a bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


@pytest.fixture
def tables_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plates are drawn in milliseconds: each is one image of a few bytes."""

    def render(out: Path, plates: dict[str, Any], **_: Any) -> None:
        for place, parts in plates.items():
            files.write_text(out / simulate.WORKING_FOLDER / f"{Path(place).name}.csv", "")
            for plate in parts:
                files.write_text(out / place / f"Plate{plate.plate}/B02_s1_w1.png", f"{place} {plate.plate}")

    monkeypatch.setattr(simulate, "_render", render)


@pytest.fixture
def run(tmp_path: Path, kernels: Path, in_this_process: None, capsys: pytest.CaptureFixture[str]) -> Run:
    """run(key=value) gives the names of the steps that started; the folder is run.folder."""

    def go(**values: Any) -> list[str]:
        capsys.readouterr()
        chain.run_chain(recipe_of(values), run=go.folder, kernels=kernels)
        return sorted(line.split()[0] for line in capsys.readouterr().out.splitlines() if line.endswith("started"))

    go.folder = tmp_path / "run"
    return go


@pytest.mark.parametrize("name", ["train.csv", "test_controls.csv", "solution.csv", "pixel_stats.csv", simulate.RECEIPT])
def test_an_edited_table_of_drawn_plates_is_drawn_again_with_a_word_or_refused(
    tmp_path: Path, tables_alone: None, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    own, named = inputs.prepare("", run=tmp_path / "run", preset="tiny"), inputs.prepare(str(tmp_path / "mine"), run=tmp_path, preset="tiny")
    before = (own / name).read_bytes()
    capsys.readouterr()
    for root in (own, named):
        flip(root / name)
    inputs.open_tables("", run=tmp_path / "run", preset="tiny")
    assert (own / name).read_bytes() == before
    assert f"{own / name}: not " in (said := capsys.readouterr().out) and said.endswith("; the plates are drawn again\n")
    with pytest.raises(InputError, match=f"mine/{name}: not .*; delete the whole folder {named} and simulate again$"):
        inputs.open_tables(str(named), run=tmp_path, preset="tiny")
    assert (named / name).read_bytes() != before


def test_an_image_that_a_receipt_names_is_drawn_again(run: Run, tables_alone: None) -> None:
    run(preset="tiny")
    image = run.folder / "data/train/HUVEC-01/Plate1/B02_s1_w1.png"
    before = image.read_bytes()
    flip(image, -1)
    # The report runs too where the seconds that it shows have changed.
    assert "plates" in run(preset="tiny") and image.read_bytes() == before
    assert run(preset="tiny") == []


@pytest.mark.parametrize("step", ["plates", "3-train-cell-type@U2OS", "4-predict-assign", "1-eda"])
def test_a_step_whose_receipt_is_damaged_runs_again(run: Run, plates: Path, step: str) -> None:
    run(data=str(plates))
    flip(run.folder / f"receipts/{step}.json")
    assert step in run(data=str(plates)) and run(data=str(plates)) == []


def test_what_an_archive_tells_is_what_the_run_left(run: Run, plates: Path) -> None:
    run(data=str(plates))
    cases = {
        "recipe.json": "recipe.json: not as the run left it; run the command that made it again$",
        "seconds.json": "seconds.json: not as the run left it; run the command that made it again$",
        "receipts/record.json": "record.json: not .*; run the command that made it again$",
        "receipts/3-train-cell-type@U2OS.json": "U2OS.json: not .*; delete it, and run the command that made it again$",
        "weights/U2OS/model.json": "model.json: not as 3-train-cell-type@U2OS left it; run the command that made it again$",
    }
    for name, words in cases.items():
        before = (run.folder / name).read_bytes()
        flip(run.folder / name, -2)
        with pytest.raises(InputError, match=words):
            bundle.bundle(run.folder)
        (run.folder / name).write_bytes(before)
    assert bundle.bundle(run.folder).is_file()


def test_the_recipe_of_a_later_run_that_was_killed_is_not_that_of_an_earlier_one(
    run: Run, plates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(data=str(plates), seed=0)

    def killed(self: chain.Chain, *_: object, **__: object) -> None:
        raise StepFailed("killed")

    with monkeypatch.context() as patch, pytest.raises(StepFailed, match="killed"):
        patch.setattr(chain.Chain, "run_steps", killed)
        run(data=str(plates), seed=1)
    assert files.read_json(run.folder / "recipe.json")["parameters"]["seed"] == 1
    with pytest.raises(InputError, match="the run is not complete; run it to the end, with the command that began it$"):
        bundle.bundle(run.folder)
    run(data=str(plates), seed=0)
    assert bundle.bundle(run.folder).is_file()
