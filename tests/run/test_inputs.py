"""The plates of a run: found, simulated once, and never thrown away when they are the user's."""

from dataclasses import replace
from pathlib import Path

import pytest

from cellsignal.data import simulated
from cellsignal.data.download import rxrx1
from cellsignal.data.microscope import simulate
from cellsignal.data.microscope import workdir
from cellsignal.errors import InputError
from cellsignal.receipts import Receipt
from cellsignal.run import inputs, environment


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What was simulated, by a stand-in that keeps the real one's manners."""
    calls: list[tuple[str, int]] = []

    def stand_in(out: Path, *, preset: str, seed: int, keep: bool = True) -> None:
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


@pytest.mark.slow
@pytest.mark.ci
def test_plates_of_other_code_are_drawn_anew_in_the_run_folder_and_kept_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    tiny = simulate.PRESETS["tiny"]
    monkeypatch.setitem(simulate.PRESETS, "tiny", replace(tiny, cell_types=("RPE",), train=1, image_size=16, repeats=()))
    for data in ("", str(tmp_path / "mine")):
        inputs.prepare(data, run=tmp_path, preset="tiny", parallel_map=map)
    before = {name: (tmp_path / name / "pixel_stats.csv").stat().st_mtime_ns for name in ("data", "mine")}
    for module in (workdir, simulated):
        monkeypatch.setattr(module, "package_code", lambda room: {"": "", room: "of tomorrow"})
    capsys.readouterr()
    for data in ("", str(tmp_path / "mine")):
        inputs.prepare(data, run=tmp_path, preset="tiny", parallel_map=map)
    assert [line for line in capsys.readouterr().out.splitlines() if not line.startswith("SIMULATED DATA")] == [
        f"{tmp_path / 'data'}: drawn by other code of cellsignal (cellsignal, data); the plates are drawn again",
        f"{tmp_path / 'mine'}: kept, although other code of cellsignal (cellsignal, data) drew these plates; delete the folder to draw them anew"]
    after = {name: (tmp_path / name / "pixel_stats.csv").stat().st_mtime_ns for name in ("data", "mine")}
    assert after["data"] != before["data"] and after["mine"] == before["mine"]
    inputs.prepare("", run=tmp_path, preset="tiny", parallel_map=map)
    assert "other code" not in capsys.readouterr().out, "now it is of this code"


def test_what_other_code_left_half_drawn_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(simulate, "_write_tables", broken)
        simulate.simulate(tmp_path / "data", preset="tiny", experiments=["RPE-01"], image_size=16, parallel_map=map)
    monkeypatch.setattr(workdir, "package_code", lambda room: {room: "of tomorrow"})
    with pytest.raises(InputError, match=r"drawn by other code of cellsignal \(cellsignal, data\); delete this folder, or choose another"):
        simulate.simulate(tmp_path / "data", preset="tiny", experiments=["RPE-01"], image_size=16, parallel_map=map)


def test_a_named_folder_is_never_replaced(tmp_path: Path, made: list[tuple[str, int]]) -> None:
    inputs.prepare(str(tmp_path / "mine"), run=tmp_path, preset="tiny", seed=0)
    with pytest.raises(InputError, match="different simulation"):  # it has no tables, so there are no plates that could win
        inputs.prepare(str(tmp_path / "mine"), run=tmp_path, preset="tiny", seed=1)


def test_plates_that_are_named_win_over_a_preset_and_one_line_says_so(
    tmp_path: Path, plates: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inputs, "_printed", set())
    for _ in range(2):
        assert inputs.prepare(str(plates), run=tmp_path, preset="tiny", seed=3) == plates
    assert capsys.readouterr().out == f"preset 'tiny' is ignored: plates that are named as `data` take precedence, {plates}\n"
    assert inputs.resolve(str(plates), run=tmp_path, preset="tiny", seed=3) == (plates, "") and not simulated.shown()
    Receipt(plates / simulate.RECEIPT, {"preset": "small", "seed": 1}).write()
    inputs.prepare(str(plates), run=tmp_path, preset="tiny", seed=3)
    assert capsys.readouterr().out.startswith("SIMULATED DATA: a virtual microscope draws every image (preset 'small', seed 1), ")
    assert simulated.shown()


def test_named_plates_that_the_preset_drew_keep_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Or a second call would be of other parameters than the first."""
    simulate.simulate(tmp_path / "mine", preset="tiny", experiments=["HUVEC-01"], image_size=16)
    (tmp_path / "mine/train_controls.csv").touch()
    assert inputs.resolve(str(tmp_path / "mine"), run=tmp_path, preset="tiny", seed=0) == (tmp_path / "mine", "tiny")
    assert "draws nothing" not in capsys.readouterr().out


def test_a_preset_that_draws_says_so_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(inputs, "_printed", set())
    monkeypatch.setattr(simulate, "simulate", lambda out, **how: (print("drawing"), Receipt(out / simulate.RECEIPT, how).write()))
    inputs.prepare("", run=tmp_path, preset="tiny", seed=7)
    assert capsys.readouterr().out == (
        "SIMULATED DATA: a virtual microscope draws every image (preset 'tiny', seed 7), and none is the competition's; "
        "for real plates name their folder as `data`, or attach them on Kaggle\ndrawing\n")
    assert simulated.shown()


def test_cell_types_are_checked_before_an_unfinished_simulation_goes_on(tmp_path: Path) -> None:
    Receipt(tmp_path / "data" / simulated.WORKING_FOLDER / simulate.RECEIPT, {"preset": "tiny", "seed": 0}, complete=False).write()
    with pytest.raises(InputError, match="^here: no cell_type 'HELA' in the preset tiny; choose from HUVEC, RPE$"):
        inputs.check_cell_types(["HELA"], run=tmp_path, preset="tiny", where="here")


def test_trials_rest_on_plates_that_are_not_replaced(tmp_path: Path, made: list[tuple[str, int]]) -> None:
    inputs.prepare("", run=tmp_path, preset="tiny", seed=0, replace=False)
    with pytest.raises(InputError, match="different simulation"):
        inputs.prepare("", run=tmp_path, preset="tiny", seed=1, replace=False)
    assert made == [("tiny", 0)]


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
    monkeypatch.setattr(rxrx1, "from_kagglehub", lambda competition: asked.append(competition) or plates)
    monkeypatch.setattr(environment, "COLAB", tmp_path / "content")
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    with pytest.raises(InputError, match="no such data folder"):
        inputs.resolve("", run=tmp_path / "run")
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    assert inputs.resolve("", run=tmp_path / "run", preset="tiny") == (tmp_path / "content/data/run/data", "tiny")
    assert inputs.resolve(str(plates), run=tmp_path / "run") == (plates, "")
    assert asked == []
    assert inputs.resolve("", run=tmp_path / "run") == (plates, "")
    assert asked == ["recursion-cellular-image-classification"]
