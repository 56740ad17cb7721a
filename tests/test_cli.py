"""The command: answers at once, says what it wrote, and blames the input in one line."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest

TINY = Path(__file__).resolve().parents[1] / "papermill_params/tiny.yaml"
COMMANDS = ["simulate", "download", "check", "layout", "pack", "run", "bundle", "sweep", "assign", "score", "profile", "colab init"]


def cellsignal(*arguments: object, folder: Path | None = None, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cellsignal.cli.main", *map(str, arguments)]
    return subprocess.run(command, **{"capture_output": True, "text": True, "cwd": folder, **options})


def write_screen(folder: Path) -> Path:
    """Tables of one cell type with three siRNAs, and scores of its test wells; no images."""
    ids = [f"U2OS-0{number}_1_B0{column}" for number in (1, 2) for column in (3, 4, 5)]
    wells = pd.DataFrame({"id_code": ids, "plate": 1, "well": ["B03", "B04", "B05"] * 2, "sirna": [0, 1, 2] * 2})
    wells.insert(1, "experiment", wells["id_code"].str[:7])
    folder.mkdir(parents=True, exist_ok=True)
    wells[:3].to_csv(folder / "train.csv", index=False)
    wells[3:].drop(columns="sirna").to_csv(folder / "test.csv", index=False)
    for name in ("train_controls.csv", "test_controls.csv"):
        wells[:0].assign(well_type="").to_csv(folder / name, index=False)
    likely = pd.DataFrame([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0, 0, 1]], columns=range(3), index=pd.Index(ids[3:], name="id_code"))
    likely.to_csv(folder / "scores.csv")
    return folder


ASSIGN = ("assign", "scores.csv", "--probabilities", "--data", ".", "--no-groups")
ANSWERS = "id_code,sirna\nU2OS-02_1_B03,0\nU2OS-02_1_B04,1\nU2OS-02_1_B05,2\n"
# Neither Python's UTF-8 mode nor its habit of taking C for C.UTF-8, as in a bare container.
ASCII = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_ends_with_an_example_and_comes_at_once(command: str) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = cellsignal(*command.split(), "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2  # 0.1 s of a processor that does nothing else
    assert ended.returncode == 0
    assert f"Example: cellsignal {command}".rstrip() in ended.stdout


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, cellsignal.cli.main; print(sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert not [name for name in ("torch", "pandas", "numpy", "matplotlib", "papermill", "sklearn") if f"'{name}'" in loaded]


@pytest.mark.parametrize("modules", ["cellsignal.decide.commands", "cellsignal.run.record.results, cellsignal.decide.evaluate.tables, cellsignal.show.report", "cellsignal.show.eda.plots"])
def test_what_computes_nothing_with_networks_waits_for_no_pytorch(modules: str) -> None:
    code = f"import sys, {modules}; print([name for name in ('torch', 'torchvision', 'sklearn') if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == ("[]\n", "")


def test_windows_is_told_in_one_line_where_to_go() -> None:
    """A module that is None in sys.modules cannot be imported: so fcntl is absent, as on Windows."""
    code = "import sys; sys.modules['fcntl'] = None; from cellsignal.cli.main import main; main()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "cellsignal: error: this system has no POSIX file locks; on Windows run it inside WSL\n"


@pytest.mark.parametrize(
    "arguments",
    [("check", "nowhere"), ("layout", "nowhere"), ("pack", "nowhere", "out"), ("pack", "nowhere", "out", "--sizes", "big"),
     ("pack", "nowhere", "out", "--codec", "jpeg"), ("score", "a.csv", "b.csv"), ("run", "nowhere.yaml"),
     ("bundle", "nowhere"), ("run", TINY, "--out", "here", "--from", "weights"), ("run", TINY, "--out", "here", "--from", "scores"),
     ("run", TINY, "--from", "memory"),
     ("simulate", "out", "--preset", "gigantic"), ("simulate", "out", "--like", "nowhere"),
     ("assign", "a.parquet", "--data", "nowhere", "--out", "b.csv"), ("assign", "a.npz", "--data", "nowhere"),
     ("assign", "a.csv", "--data", "nowhere", "--out", "b.csv", "--method", "best"), ("assign", "--out", "b.csv"),
     ("assign", "a.csv", "--data", "nowhere", "--out", "b.csv", "--min-group-posterior", "2"),
     ("assign", "a.csv", "--data", "nowhere", "--out", "b.csv", "--confidence", "b.csv"),
     ("simulate", "x", "--seed", "abc"), ("layout",), ("layout", "a", "b"), ("fly",), ("layout", "--fast", "x")],
)  # fmt: skip
def test_bad_input_is_one_line_and_writes_nothing(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(*arguments)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_right_to_write_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "one.yaml").write_text("preset: tiny\n")
    ended = cellsignal("run", tmp_path / "one.yaml", "--out", tmp_path / "file/run")
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1)


def test_layout_of_the_real_tables(shared: Path) -> None:
    ended = cellsignal("layout", shared / "rxrx1", "--json")
    found = json.loads(ended.stdout)
    assert [len(group) for group in found["groups"]] == [277] * 4
    assert len(found["rotations"]) == 33
    printed = cellsignal("layout", shared / "rxrx1").stdout
    assert "groups on plates 1 to 4: 2 3 4 1" in printed
    assert "RPE-03 and HUVEC-07, plates shifted by 3\n" in printed
    assert "RPE-03 and HUVEC-18, shift unknown\n" in printed


def test_assign_offers_every_method() -> None:
    from cellsignal.cli.main import Method
    from cellsignal.decide.settings import AssignmentSettings

    assert tuple(method.value for method in Method) == get_args(AssignmentSettings.model_fields["method"].annotation)


def test_assign_says_by_what_route_it_went_and_what_it_wrote(tmp_path: Path) -> None:
    ended = cellsignal(*ASSIGN, "--out", "out.csv", folder=write_screen(tmp_path))
    assert (ended.returncode, ended.stderr) == (0, "")
    header, row, *wrote = ended.stdout.splitlines()
    assert header.split()[:3] == ["experiment", "route", "groups"] and row.split()[:3] == ["U2OS-02", "one-to-one", "-"]
    assert wrote == ["wrote out.csv and out.confidence.csv"]
    assert pd.read_csv(tmp_path / "out.csv")["sirna"].tolist() == [0, 1, 2]
    assert pd.read_csv(tmp_path / "out.confidence.csv").columns.tolist() == ["id_code", "sirna", "confidence"]


def test_assign_writes_where_a_link_leads_and_to_devices(tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_screen(tmp_path / "screen"))
    Path("link.csv").symlink_to(tmp_path / "real.csv")
    assert cellsignal(*ASSIGN, "--out", "link.csv", "--confidence", "/dev/null").stdout.endswith("wrote link.csv and /dev/null\n")
    assert Path("link.csv").is_symlink() and (tmp_path / "real.csv").read_text() == ANSWERS
    assert Path("/dev/null").is_char_device() and not list(tmp_path.glob("screen/*.confidence.csv"))
    shown = cellsignal(*ASSIGN, "--out", "/dev/stdout", "--confidence", "c.csv").stdout
    assert ANSWERS in shown and Path("c.csv").is_file()
    expected = "/dev/null: is a device or a FIFO, and needs another file for the confidences; add --confidence CSV"
    assert refused(*ASSIGN, "--out", "/dev/null") == expected
    assert refused(*ASSIGN, "--out", "new.csv", "--confidence", "/dev/full") == "/dev/full: No space left on device; choose another path"
    assert refused(*ASSIGN, "--out", "/dev/full", "--confidence", "new.csv") == "/dev/full: No space left on device; choose another path"
    assert not Path("new.csv").exists()


def test_bundle_and_benchmark_refuse_folders_and_follow_links_too(tmp_path: Path, refused: Callable[..., str]) -> None:
    assert refused("benchmark", "--out", tmp_path) == f"{tmp_path}: is a folder; name a file in it"
    assert refused("bundle", tmp_path, "--out", tmp_path) == f"{tmp_path}: is a folder; name a file in it"


def test_an_input_named_as_the_output_is_kept(tmp_path: Path, refused: Callable[..., str]) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("preset: tiny\n")
    for command, kind in ((["rehearse", mine], "rehearsal"), (["benchmark", "--recipe", mine], "benchmark"), (["bundle", tmp_path], "archive of a run")):
        assert refused(*command, "--out", mine) == f"{mine}: is there, and is no {kind}; remove it, or choose another name"
    assert mine.read_text() == "preset: tiny\n"


def test_letters_that_a_terminal_lacks_are_no_fault(tmp_path: Path) -> None:
    ended = cellsignal(*ASSIGN, "--out", "é.csv", folder=write_screen(tmp_path), env=ASCII)
    assert (ended.returncode, ended.stderr) == (0, "") and ended.stdout.isascii()
    assert ended.stdout.splitlines()[-1] == r"wrote \udcc3\udca9.csv and \udcc3\udca9.confidence.csv"
    assert (tmp_path / "é.csv").read_text() == ANSWERS
    assert cellsignal("run", "--help", env=ASCII).returncode == 0


def test_a_folder_whose_name_is_no_text_is_read_and_written(tmp_path: Path) -> None:
    folder = write_screen(Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xfcll")))
    ended = cellsignal("assign", folder / "scores.csv", "--probabilities", "--data", folder, "--no-groups", "--out", folder / "out.csv")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[-1] == rf"wrote {tmp_path}/m\udcfcll/out.csv and {tmp_path}/m\udcfcll/out.confidence.csv"
    assert (folder / "out.csv").read_text() == ANSWERS
    assert cellsignal("score", folder / "out.csv", folder / "out.csv", "--json").stdout.startswith('{"accuracy": 1.0')
    (folder / "train/U2OS-01/Plate1").mkdir(parents=True)
    strange = os.fsdecode(b"B03_\xfc.png")
    (folder / "train/U2OS-01/Plate1" / strange).write_bytes(b"")
    ended = cellsignal("check", folder)
    assert ended.returncode == 2 and r"/m\udcfcll/train/U2OS-01/Plate1/B03_\udcfc.png" in ended.stdout
    assert ended.stderr.splitlines()[-1].startswith(rf"cellsignal: error: {tmp_path}/m\udcfcll: problems: ")


def test_notebooks_want_names_that_are_text(tmp_path: Path) -> None:
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/m\xfcll")
    ended = cellsignal("run", TINY, "--out", folder)
    expected = rf"cellsignal: error: {tmp_path}/m\udcfcll: is no name in UTF-8, as notebooks need it; rename the folder, or choose another"
    assert (ended.returncode, ended.stderr.splitlines()) == (2, [expected])
    assert not list(tmp_path.iterdir())


def test_who_reads_no_further_is_no_fault_and_a_full_disk_behind_the_output_is_one(tmp_path: Path) -> None:
    write_screen(tmp_path)
    read, write = os.pipe()
    os.close(read)
    ended = cellsignal("layout", tmp_path, capture_output=False, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (1, "")
    with open("/dev/full", "w") as full:
        ended = cellsignal("layout", tmp_path, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert (ended.returncode, ended.stderr) == (2, "cellsignal: error: standard output: cannot be written to (No space left on device); send it elsewhere\n")


def test_too_many_open_files_are_told_with_the_command(tmp_path: Path) -> None:
    few = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (12, 12))}
    ended = cellsignal("simulate", tmp_path / "plates", "--preset", "tiny", "--experiments", "RPE-01", **few)
    [line] = [line for line in ended.stderr.splitlines() if line.startswith("cellsignal: error")]
    expected = "cellsignal: error: cellsignal simulate: too many open files (a process may have 12); raise the limit, such as with ulimit -n 4096"
    assert (ended.returncode, line) == (2, expected)


def test_score_as_table_and_as_json(tmp_path: Path) -> None:
    truth = pd.DataFrame({"id_code": ["U2OS-04_1_B03", "U2OS-04_1_B04", "RPE-08_2_B03"], "sirna": [1, 2, 3]})
    truth.to_csv(tmp_path / "solution.csv", index=False)
    truth.assign(sirna=[1, 0, 3]).to_csv(tmp_path / "submission.csv", index=False)
    paths = tmp_path / "submission.csv", tmp_path / "solution.csv"
    found = json.loads(cellsignal("score", *paths, "--json").stdout)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["by_cell_type"] == {"RPE": 1.0, "U2OS": 0.5}
    assert "U2OS         0.5000" in cellsignal("score", *paths).stdout
