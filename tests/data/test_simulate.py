"""The virtual microscope: the competition's files, the real design, the same bytes always, an honest difficulty."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from cellsignal import files
from cellsignal.data import simulated
from cellsignal.data.tables import plate_design
from cellsignal.data.check import check_dataset
from cellsignal.data.microscope.simulate import PLATES, simulate
from cellsignal.data.microscope.layout import complete_labels, draw_design
from cellsignal.data.microscope.workdir import run_in_processes, working_folder
from cellsignal.data.tables.wells import read_tables
from cellsignal.errors import InputError, StepFailed

PAIR = ("HUVEC-01", "HUVEC-03")  # the smallest part of `tiny` with a training and a test experiment


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated") / "tiny"
    simulate(folder, preset="tiny", parallel_map=partial(run_in_processes, processes=2))
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated") / "pair"
    simulate(folder, preset="tiny", experiments=PAIR, parallel_map=map)
    return folder


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder, hidden ones too."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def differing(one: Path, other: Path) -> list[str]:
    """The files that two folders do not share, by name: thousands of equal sums would hide them."""
    ours, theirs = digests(one), digests(other)
    return sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name))


def test_writes_exactly_the_competitions_files(tiny: Path) -> None:
    assert {path.name for path in tiny.iterdir()} == {
        "train.csv", "test.csv", "train_controls.csv", "test_controls.csv", "sample_submission.csv",
        "pixel_stats.csv", "solution.csv", "simulate.json", ".simulate-code.json", "train", "test",
    }
    headers = {path.name: path.read_text().split("\n", 1)[0] for path in tiny.glob("*.csv")}
    labelled = "id_code,experiment,plate,well,sirna"
    assert headers == {
        "train.csv": labelled,
        "test.csv": "id_code,experiment,plate,well",
        "train_controls.csv": f"{labelled},well_type",
        "test_controls.csv": f"{labelled},well_type",
        "sample_submission.csv": "id_code,sirna",
        "solution.csv": "id_code,sirna",
        "pixel_stats.csv": "id_code,experiment,plate,well,site,channel,mean,std,median,min,max",
    }


def test_headers_are_those_of_the_real_tables(tiny: Path, shared: Path) -> None:
    for name in ("train", "test", "train_controls", "test_controls", "sample_submission"):
        real, ours = (folder / f"{name}.csv" for folder in (shared / "rxrx1", tiny))
        assert ours.open().readline() == real.open().readline()


def test_lacks_two_channels_of_one_test_site_and_nothing_else(tiny: Path) -> None:
    problems = check_dataset(tiny, progress=False)
    assert 1 <= len(problems) <= 2
    assert problems["file"].astype(str).str.contains("_s2").all()
    tables = read_tables(tiny)
    assert len(list(tiny.glob("t*/*/Plate*/*.png"))) == 12 * len(tables.wells) - 2
    assert len(pd.read_csv(tiny / "pixel_stats.csv")) == 12 * len(tables.wells) - 2


def test_has_the_real_design(tiny: Path) -> None:
    tables = read_tables(tiny)
    found = plate_design.layout(tables.wells)
    assert [len(group) for group in found["groups"]] == [2, 2, 2, 2]
    assert {tuple(pair["experiments"]) for pair in found["duplicates"]} == {("RPE-01", "HUVEC-03")}
    controls = tables.wells[tables.wells["well_type"] != "treatment"].groupby(["experiment", "plate"])["sirna"]
    assert all(sorted(sirnas) == list(range(1108, 1139)) for _, sirnas in controls)
    rows, columns = tables.wells["well"].str[0], tables.wells["well"].str[1:].astype(int)
    assert rows.between("B", "O").all() and columns.between(2, 23).all()


def test_solution_holds_each_class_once_in_a_rotation_training_never_saw(tiny: Path) -> None:
    tables = read_tables(tiny)
    groups = plate_design.plate_groups(tables.wells)
    seen = set(map(tuple, plate_design.rotations(tables.wells, groups).values()))
    told = tables.wells.assign(sirna=tables.wells["sirna"].fillna(tables.wells["id_code"].map(tables.solution)))
    tested = told[(told["dataset"] == "test") & (told["well_type"] == "treatment")]
    assert not tested.duplicated(["experiment", "sirna"]).any()
    assert not tested["sirna"].isna().any()
    turns = plate_design.rotations(told, groups)
    assert {tuple(turns[name]) for name in ("HUVEC-03", "RPE-03")}.isdisjoint(seen)


def test_pixel_stats_are_those_of_the_images(tiny: Path) -> None:
    for row in pd.read_csv(tiny / "pixel_stats.csv").sample(20, random_state=0).itertuples():
        kind = "train" if (tiny / "train" / row.experiment).exists() else "test"
        name = f"{row.well}_s{row.site}_w{row.channel}.png"
        image = cv2.imread(str(tiny / kind / row.experiment / f"Plate{row.plate}" / name), cv2.IMREAD_UNCHANGED)
        assert image.dtype == np.uint8 and image.shape == (32, 32)
        expected = image.mean(), image.std(), np.median(image), image.min(), image.max()
        np.testing.assert_allclose((row.mean, row.std, row.median, row.min, row.max), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.ci
def test_same_bytes_from_any_number_of_processes(pair: Path, tmp_path: Path) -> None:
    simulate(tmp_path / "again", preset="tiny", experiments=PAIR, parallel_map=partial(run_in_processes, processes=2))
    assert differing(tmp_path / "again", pair) == []


def test_an_experiment_is_the_same_whatever_is_drawn_beside_it(pair: Path, tiny: Path) -> None:
    assert differing(pair / "train" / "HUVEC-01", tiny / "train" / "HUVEC-01") == []


def test_a_full_disk_is_told_and_no_picture_lost(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, written = Path.write_bytes, []

    def fill(path: Path, content: bytes) -> int:
        written.append(path)
        if len(written) < 100 or path.suffix != ".png":
            return whole(path, content)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as small:
        small.setattr(Path, "write_bytes", fill)
        with pytest.raises(InputError, match=r"the disk is full \(.* are free\); free some space, then give the same command again to continue"):
            simulate(tmp_path / "out", preset="tiny", experiments=PAIR, parallel_map=map)
    simulate(tmp_path / "out", preset="tiny", experiments=PAIR, parallel_map=map)
    assert differing(tmp_path / "out", pair) == []


@pytest.mark.slow
@pytest.mark.ci
def test_another_seed_gives_other_images(pair: Path, tmp_path: Path) -> None:
    simulate(tmp_path / "other", preset="tiny", seed=1, experiments=PAIR, image_size=16)
    assert (tmp_path / "other" / "solution.csv").read_text() != (pair / "solution.csv").read_text()


def test_a_second_call_does_nothing(pair: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in pair.rglob("*")}
    simulate(pair, preset="tiny", experiments=PAIR)
    assert {path: path.stat().st_mtime_ns for path in pair.rglob("*")} == before


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("delay", [0.0, *(pytest.param(delay, marks=(pytest.mark.slow, pytest.mark.ci)) for delay in (0.4, 1.2))])
def test_killed_and_called_again_it_ends_with_the_same_bytes(pair: Path, tmp_path: Path, delay: float) -> None:
    out = tmp_path / "killed"
    code = (
        "from cellsignal.data.microscope.simulate import simulate\n"
        f"if __name__ == '__main__': simulate({str(out)!r}, preset='tiny', experiments={PAIR!r}, parallel_map=map)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.DEVNULL)
    while not (out / ".simulation").exists():
        assert child.poll() is None
        time.sleep(0.005)
    time.sleep(delay)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    simulate(out, preset="tiny", experiments=PAIR)
    assert differing(out, pair) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"preset": "giant"}, "choose one of demo, small, hard, tiny"),
        ({"preset": "tiny", "seed": -1}, "seed -1; choose 0 or more"),
        ({"preset": "tiny", "image_size": 4}, "choose 16 to 2048"),
        ({"preset": "tiny", "experiments": ("HUVEC-01", "HUVEC-9")}, "no experiment HUVEC-9; choose from HUVEC-01"),
        ({"preset": "tiny", "experiments": ("HUVEC-03",)}, "no training experiment is chosen"),
        ({"preset": "tiny", "like": "nowhere"}, "no such folder"),
    ],
)
def test_refuses_arguments_that_name_nothing(tmp_path: Path, arguments: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        simulate(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_refuses_a_folder_with_a_different_simulation(pair: Path) -> None:
    before = digests(pair)
    with pytest.raises(InputError, match="holds a different simulation; choose another folder"):
        simulate(pair, preset="tiny", seed=1, experiments=PAIR)
    assert digests(pair) == before


def test_two_at_once_do_not_meet(pair: Path) -> None:
    before = digests(pair)
    with files.locked(pair), pytest.raises(InputError, match="another simulation works in this folder; wait"):
        simulate(pair, preset="tiny", experiments=PAIR)
    assert digests(pair) == before


def test_a_damaged_receipt_is_told_with_a_cure_that_works(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/simulate.json").write_text("{")
    with pytest.raises(InputError, match="simulate.json: not readable as JSON .*; delete the whole folder"):
        simulate(tmp_path / "out", preset="tiny")


def test_refuses_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for place in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(InputError, match="holds files that no simulation wrote; choose another folder$"):
            simulate(place, preset="tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
@pytest.mark.ci
def test_like_draws_the_wells_of_given_tables(tiny: Path, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    for name in ("train", "test", "train_controls", "test_controls", "sample_submission"):
        (given / f"{name}.csv").write_text((tiny / f"{name}.csv").read_text())
    chosen = ("RPE-01", "RPE-02", "RPE-03")
    simulate(tmp_path / "out", preset="tiny", seed=5, like=given, experiments=chosen, image_size=16)
    made, asked = read_tables(tmp_path / "out"), read_tables(given).wells
    columns = ["id_code", "well_type", "sirna"]
    expected = asked.loc[asked["experiment"].isin(chosen), columns].reset_index(drop=True)
    pd.testing.assert_frame_equal(made.wells[columns], expected)
    assert set(made.solution.index) == set(made.sample)
    shape = cv2.imread(str(next((tmp_path / "out/test").glob("*/*/*.png"))), cv2.IMREAD_UNCHANGED).shape
    assert shape == (16, 16)


def test_real_tables_get_a_truth_by_the_rules(shared: Path) -> None:
    wells = read_tables(shared / "rxrx1").wells
    told = complete_labels(wells, seed=0)
    groups = plate_design.plate_groups(wells)
    treated = told[told["well_type"] == "treatment"]
    assert not treated.duplicated(["experiment", "sirna"]).any()
    group = treated["sirna"].map({sirna: index for index, part in enumerate(groups) for sirna in part})
    assert (group.groupby([treated["experiment"], treated["plate"]]).nunique() == 1).all()
    turns = plate_design.rotations(told, groups)
    assert len({tuple(turn) for turn in turns.values()}) == 4
    layouts = told.set_index(["experiment", "plate", "well"])["sirna"]
    source, copy = layouts["RPE-03"].unstack(), layouts["HUVEC-18"].unstack()
    agreement = [(np.roll(source, shift, axis=0) == copy).to_numpy().mean() for shift in range(4)]
    assert sorted(agreement)[-1] > 0.99 > 0.2 > sorted(agreement)[-2]


def test_a_known_solution_is_kept(tiny: Path) -> None:
    tables = read_tables(tiny)
    told = complete_labels(tables.wells, seed=3, solution=tables.solution).set_index("id_code")["sirna"]
    assert (told[tables.solution.index] == tables.solution).all()


@pytest.fixture
def design() -> pd.DataFrame:
    """Three training and two test experiments of each of two cell types, every class known; HUVEC-05 repeats RPE-02, with controls that do not tell the shift."""
    table = draw_design(0, ("HUVEC", "RPE"), classes=48, train=3, test=2, repeats=(("HUVEC-05", "RPE-02"),))
    one_plate = table[(table["experiment"] == "RPE-02") & (table["plate"] == 1) & (table["well_type"] != "treatment")]
    alike = table["experiment"].isin(["HUVEC-05", "RPE-02"]) & (table["well_type"] != "treatment")
    return table.assign(sirna=table["sirna"].mask(alike, table["well"].map(one_plate.set_index("well")["sirna"])).astype(int))


def without_answers(design: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    """The wells as the competition gives them, and which of them it hides."""
    hidden = (design["dataset"] == "test") & (design["well_type"] == "treatment")
    return design.assign(sirna=design["sirna"].astype("Int64").mask(hidden)), hidden


@pytest.mark.parametrize("every", [2, 11])
def test_a_solution_of_some_wells_is_completed_by_the_rules(design: pd.DataFrame, every: int) -> None:
    wells, hidden = without_answers(design)
    assert {"experiments": ["RPE-02", "HUVEC-05"], "plate_shift": None} in plate_design.duplicate_layouts(wells)
    solution = design[hidden].set_index("id_code")["sirna"].iloc[::every]
    told = complete_labels(wells, seed=7, solution=solution)[hidden]
    assert (told.set_index("id_code")["sirna"][solution.index] == solution).all()
    assert not told.duplicated(["experiment", "sirna"]).any()
    plates = [table.groupby(["experiment", "plate"])["sirna"].agg(set) for table in (told, design[hidden])]
    assert plates[0].equals(plates[1])


def test_a_plate_for_which_there_is_no_group_is_named(design: pd.DataFrame) -> None:
    wells, hidden = without_answers(design)
    wells.loc[hidden & (wells["experiment"] == "RPE-04") & (wells["plate"] == 4), "plate"] = 5
    where = wells.loc[wells["plate"] == 5, "id_code"].iloc[0]
    with pytest.raises(InputError, match=f"^{where}: training has 4 plate groups, and none for this plate; take the plate out of the tables$"):
        complete_labels(wells, seed=0)


def test_an_experiment_without_a_number_is_refused_before_anything_is_drawn(data_set: Path, tmp_path: Path) -> None:
    for path in data_set.glob("*.csv"):
        path.write_text(path.read_text().replace("RPE-02", "RPE-b"))
    with pytest.raises(InputError, match="^simulate: cannot draw RPE-b: brightness follows the number of an experiment; rename it in the tables, such as"):
        simulate(tmp_path / "out", preset="tiny", like=data_set)
    assert not (tmp_path / "out").exists()


def test_plates_are_simulated_from_the_first_table_on(tmp_path: Path) -> None:
    """The tables come before the receipt: a disk that is full between them leaves what reads like any data set."""
    with pytest.raises(OSError, match="full"), working_folder(tmp_path / "out", {"preset": "tiny", "seed": 3}):
        (tmp_path / "out/train.csv").write_text("id_code")
        raise OSError("full")
    assert simulated.is_simulated(tmp_path / "out") and simulated.identity(tmp_path / "out") == {"preset": "tiny", "seed": 3}
    assert not simulated.is_drawn(tmp_path / "out", preset="tiny", seed=3)


def test_presets_name_what_they_repeat() -> None:
    for preset in PLATES.values():
        numbers = range(1, preset.train + preset.test + 1)
        names = {f"{cell_type}-{number:02d}" for cell_type in preset.cell_types for number in numbers}
        assert {name for pair in preset.repeats for name in pair} <= names


def _kill_this_process(part: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return part


def test_a_process_that_is_killed_is_told_and_not_waited_for() -> None:
    with pytest.raises(StepFailed, match="^a process was killed, or could not start; give the same command again to make what is missing$"):
        list(run_in_processes(_kill_this_process, [1, 2, 3], processes=2))
