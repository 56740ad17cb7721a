"""The plates of a run: found, simulated once, and never thrown away when they are the user's."""

from pathlib import Path

import pytest

from cellsignal.data import download, simulate
from cellsignal.errors import InputError
from cellsignal.run import inputs, paths


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What was simulated, by a stand-in that keeps the real one's manners."""
    calls: list[tuple[str, int]] = []

    def stand_in(out: Path, *, preset: str, seed: int) -> None:
        mark, plan = out / simulate.RECEIPT, f"{preset} {seed}"
        if out.exists() and (not mark.exists() or mark.read_text() != plan):
            raise InputError("holds a different simulation", where=out)
        if not out.exists():
            out.mkdir(parents=True)
            mark.write_text(plan)
            calls.append((preset, seed))

    monkeypatch.setattr(simulate, "simulate", stand_in)
    return calls


def test_simulated_once_and_again_when_the_seed_changes(tmp_path: Path, made: list[tuple[str, int]]) -> None:
    for seed in (0, 0, 1):
        assert inputs.prepare("", run=tmp_path, preset="tiny", seed=seed) == tmp_path / "data"
    assert made == [("tiny", 0), ("tiny", 1)]


def test_a_named_folder_is_never_replaced(tmp_path: Path, made: list[tuple[str, int]]) -> None:
    inputs.prepare(str(tmp_path / "mine"), run=tmp_path, preset="tiny", seed=0)
    with pytest.raises(InputError, match="different simulation"):
        inputs.prepare(str(tmp_path / "mine"), run=tmp_path, preset="tiny", seed=1)


def test_real_plates_in_the_run_folder_are_never_replaced(tmp_path: Path, made: list[tuple[str, int]]) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train.csv").write_text("precious")
    with pytest.raises(InputError):
        inputs.prepare("", run=tmp_path, preset="tiny", seed=0)
    assert (tmp_path / "data/train.csv").read_text() == "precious"


def test_tables_are_read_and_selected(plates: Path, tmp_path: Path) -> None:
    tables = inputs.open_tables(str(plates), run=tmp_path, experiments=["U2OS-01"])
    assert set(tables.wells["experiment"]) == {"U2OS-01"}
    assert tables.root == plates


def test_colab_fetches_the_competition_only_where_no_plates_are_named(
    tmp_path: Path, plates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(download, "from_kagglehub", lambda competition: asked.append(competition) or plates)
    monkeypatch.setattr(paths, "COLAB", tmp_path / "content")
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    with pytest.raises(InputError, match="no such data folder"):
        inputs.check("", run=tmp_path / "run")
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    assert inputs.check("", run=tmp_path / "run", preset="tiny") == tmp_path / "content/data/run/data"
    assert inputs.check(str(plates), run=tmp_path / "run") == plates
    assert asked == []
    assert inputs.check("", run=tmp_path / "run") == plates
    assert asked == ["recursion-cellular-image-classification"]
