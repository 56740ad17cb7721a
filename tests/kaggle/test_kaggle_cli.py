"""`cellsignal kaggle …`: what a person types, reads and gets as exit code."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import sessions
from fake_kaggle import COMPETITION, FakeKaggle, Outcome, Pushed

from cellsignal import code_identity
from cellsignal import files
from cellsignal.cli.main import main
from cellsignal import provenance
from cellsignal.run import environment

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "papermill_params/tiny.yaml"
ONE = ("-p", "wells.cell_types=[RPE]")
QUICK = ("--poll", "0.05")


class Ended(NamedTuple):
    """A command that ended."""

    code: int
    out: str
    err: str


Cellsignal = Callable[..., Ended]


@pytest.fixture(autouse=True)
def same_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the package's files hold is no matter here; the person stands in an empty folder."""
    monkeypatch.setattr(provenance, "code_digest", lambda *package: "code")
    monkeypatch.setattr(code_identity, "package_code", lambda *rooms: {})
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cellsignal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cellsignal:
    """cellsignal("push", …) runs `cellsignal kaggle push …` in this process."""

    def called(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["cellsignal", "kaggle", *map(str, arguments)])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        with pytest.raises(SystemExit) as ended:
            main()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        return Ended(ended.value.code, *capsys.readouterr())

    return called


@pytest.mark.parametrize("command", ["init", "push", "watch", "pull", "submit", "download"])
def test_every_command_has_help_with_an_example(cellsignal: Cellsignal, command: str) -> None:
    told = cellsignal(command, "--help")
    assert told.code == 0 and f"Example: cellsignal kaggle {command}" in told.out


def test_from_the_first_push_to_the_submission(server: FakeKaggle, cellsignal: Cellsignal, tmp_path: Path) -> None:
    server.competitions[COMPETITION] = tmp_path / "tables"
    files.write_text(tmp_path / "tables/sample_submission.csv", "id_code,sirna\nHUVEC-02_1_B02,0\nHUVEC-02_1_B03,0\n")
    pushed = cellsignal("push", TINY, "--machine", "t4x2", *ONE, *QUICK)
    assert (pushed.code, pushed.err) == (0, "")
    assert pushed.out.splitlines()[-1] == "complete: 2-pretrain-controls@RPE, 3-train-cell-type@RPE, 4-predict-assign, 1-eda"
    assert server.datasets["alice/cellsignal-utils"].current == 1
    watched = cellsignal("watch", TINY, *QUICK)
    assert watched.code == 0 and "4-predict-assign complete" in watched.out
    pulled = cellsignal("pull", TINY)
    assert pulled.code == 0 and f"report      {tmp_path / 'runs/tiny/report.html'}" in pulled.out
    assert "of 4 steps, each as its receipt says" in pulled.out
    submitted = cellsignal("submit", TINY, "-m", "the first one")
    assert submitted.code == 0 and submitted.out.splitlines()[-1] == f"sent {tmp_path / 'runs/tiny/submission.csv'}"
    [sent] = server.submissions
    assert sent["bytes"] == (tmp_path / "runs/tiny/submission.csv").read_bytes()
    assert cellsignal("submit", tmp_path / "runs/tiny/submission.csv").code == 0


def test_a_dry_run_writes_the_kernels_and_asks_nobody(server: FakeKaggle, cellsignal: Cellsignal, tmp_path: Path) -> None:
    told = cellsignal("push", TINY, "--dry-run", "--user", "bob")
    assert told.code == 0 and server.requests == []
    lines = told.out.splitlines()
    assert lines[1] == "2. 3-train-cell-type@HUVEC as bob/cellsignal-tiny-3-train-cell-type-huvec, GPU, after 2-pretrain-controls@HUVEC"
    assert lines[-1] == f"wrote {tmp_path / 'build/tiny'}"
    assert len(list((tmp_path / "build/tiny").glob("*/kernel-metadata.json"))) == 6
    told = cellsignal("push", TINY, "--dry-run", "--user", "bob", "--only", "0-chain", "--build", tmp_path / "elsewhere")
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["0-chain"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["push", TINY, "--user", "INSERT_KAGGLE_USERNAME"], "'INSERT_KAGGLE_USERNAME' is no Kaggle user name; "),
        (["push", TINY, "--user", "a b"], "'a b' is no Kaggle user name; "),
        (["push", TINY, "--user", "bob", "--poll", "inf"], "Invalid value for '--poll': "),
        (["push", TINY, "--user", "bob", "--only", "7"], "--only 7: no such step; choose from 2-pretrain-controls@HUVEC"),
        (["push", TINY, "--user", "bob", "--cell-type", "U2OS", "--only", "3"], "--only 3 --cell-type U2OS: no such step; "),
        (["push", TINY, "--user", "bob", "--dataset", "plates"], "--dataset plates: no data set's name; "),
        (["push", TINY, "--user", "bob", "-p", "epoch=3"], "-p epoch=3: unknown key 'epoch'; did you mean 'training.epochs'?"),
        (["push", ROOT / "papermill_params/real-small.yaml", "--user", "bob"], "data: Kaggle cannot see the folder runs/real-small/data; "),
        (["push", "none.yaml", "--user", "bob"], "none.yaml: no such file; "),
        (["watch", TINY], "tiny: nothing was pushed yet; "),
        (["pull", TINY], "4-predict-assign is not complete (nothing was pushed); "),
        (["submit", TINY], "there is no submission.csv; "),
        (["submit", "none.csv", "--data", "."], "none.csv: no such file; "),
        (["submit", "none.csv", "--out", "runs/tiny"], "none.csv: --out names the folder of a recipe's run; "),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(cellsignal: Cellsignal, server: FakeKaggle, arguments: list[object], words: str) -> None:
    ended = cellsignal(*arguments)
    [line] = ended.err.splitlines()
    assert ended.code == 2 and words in line
    assert server.requests == []


def test_two_recipes_of_one_name_do_not_share_their_kernels(server: FakeKaggle, cellsignal: Cellsignal, tmp_path: Path) -> None:
    assert cellsignal("push", TINY, "--only", "1", *QUICK).code == 0
    (tmp_path / "other").mkdir()
    other = tmp_path / "other/tiny.yaml"
    other.write_text(TINY.read_text().replace("seed: 0", "seed: 1"))
    for command in (["push", other, "--only", "1"], ["watch", other], ["pull", other]):
        ended = cellsignal(*command)
        [line] = ended.err.splitlines()
        assert ended.code == 2 and f"{TINY} was pushed under this name" in line and "rename one of the two files" in line
    assert len(server.sent("SaveKernel")) == 1


def test_the_outputs_are_fetched_while_a_push_goes_on(server: FakeKaggle, cellsignal: Cellsignal, tmp_path: Path) -> None:
    from cellsignal.kaggle import push_state

    assert cellsignal("push", TINY, *ONE, *QUICK).code == 0
    with push_state.open_state(tmp_path / "build/tiny"):
        assert cellsignal("pull", TINY).code == 0
        busy = cellsignal("push", TINY, *ONE, *QUICK)
    assert busy.code == 2 and "another push works on this recipe" in busy.err


def test_the_outputs_come_into_the_folder_where_one_stands(server: FakeKaggle, cellsignal: Cellsignal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cellsignal("push", TINY, *ONE, *QUICK).code == 0
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    pulled = cellsignal("pull", TINY, "--out", ".", "--build", tmp_path / "build/tiny")
    assert (pulled.code, pulled.err) == (0, "") and (tmp_path / "here/submission.csv").is_file()


@pytest.mark.parametrize("text", ["the address has expired", "{}", "[]", '{"text": "rows"}'])
def test_a_rehearsal_that_does_not_arrive_is_the_platform_s_failure(
    server: FakeKaggle, cellsignal: Cellsignal, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    from cellsignal.kaggle import client, push, push_state

    kernel = push_state.PushedKernel("i", "alice/cellsignal-tiny-rehearse", False, "runs/tiny", {}, "code")
    monkeypatch.setattr(push.PushRunner, "drive", lambda runner, chosen: runner.state.steps.update(rehearse=kernel))
    monkeypatch.setattr(client, "output", lambda slug, folder, pattern: files.write_text(folder / "runs/tiny/rehearsal.json", text))
    ended = cellsignal("push", TINY, "--rehearse", "--user", "alice", *QUICK)
    assert ended.code == 1 and ended.err == (
        "cellsignal: error: rehearse: Kaggle gave no runs/tiny/rehearsal.json; give the same command again, or see https://www.kaggle.com/code/alice/cellsignal-tiny-rehearse\n")


@pytest.mark.parametrize("metadata", [None, "[]", "{}"])
def test_a_dry_run_that_finds_no_name_asks_for_it(cellsignal: Cellsignal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, metadata: str | None) -> None:
    monkeypatch.setattr(environment, "kernels_folder", lambda: tmp_path / "kernels")
    if metadata is not None:
        (tmp_path / "kernel-metadata.json").write_text(metadata)
    ended = cellsignal("push", TINY, "--dry-run")
    assert (ended.code, ended.err) == (2, "cellsignal: error: your name on Kaggle is not known without network; add --user NAME\n")


def test_a_failure_of_kaggle_s_is_one_line_and_exit_code_1(server: FakeKaggle, cellsignal: Cellsignal) -> None:
    server.runner = sessions.in_turn(server, lambda pushed: sessions.failing())
    for command in (["push", TINY, "--only", "1", *QUICK], ["watch", TINY, *QUICK]):
        ended = cellsignal(*command)
        assert ended.code == 1
        assert ended.err.startswith("cellsignal: error: 1-eda: it ended with ERROR (Notebook Threw Exception and InputError: no experiment")
        assert len(ended.err.splitlines()) == 1
    assert cellsignal("push", TINY, "--only", "1", *QUICK).code == 0


def test_a_spent_time_budget_is_exit_code_3(server: FakeKaggle, cellsignal: Cellsignal) -> None:
    def spent(pushed: Pushed) -> Outcome:
        return sessions.work(pushed, server, complete=False, progress="pretrain, epoch 1 of 2")

    server.runner = sessions.in_turn(server, spent)
    ended = cellsignal("push", TINY, *ONE, "--only", "2", *QUICK)
    assert (ended.code, ended.err) == (3, "")
    told = "time budget spent in 2-pretrain-controls@RPE: pretrain, epoch 1 of 2; give the same command again to continue, or add --until-done"
    assert ended.out.splitlines()[-1] == told
    assert cellsignal("push", TINY, *ONE, "--only", "2", *QUICK, "--until-done").code == 0


def test_the_competition_s_tables(server: FakeKaggle, cellsignal: Cellsignal, tmp_path: Path) -> None:
    from cellsignal.data.microscope.simulate import simulate

    simulate(tmp_path / "plates", preset="tiny")
    server.competitions[COMPETITION] = tmp_path / "plates"
    ended = cellsignal("download", "--tables", "--out", tmp_path / "tables")
    assert ended.code == 0 and "error" not in ended.err
    assert (tmp_path / "tables/train.csv").read_bytes() == (tmp_path / "plates/train.csv").read_bytes()
    both = cellsignal("download", "--tables", "--cell-type", "RPE")
    assert both.code == 2 and "contradict each other" in both.err


def test_init_takes_no_name_that_cannot_be_one(cellsignal: Cellsignal) -> None:
    ended = cellsignal("init", "--user", "")
    assert ended.code == 2 and "'' is no Kaggle user name; " in ended.err


def test_a_wrong_key_is_a_login_problem(server: FakeKaggle, cellsignal: Cellsignal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_KEY", "5e4d3c2b1a0f9e8d7c6b5a4f3e2d1c0b")
    ended = cellsignal("push", TINY, "--only", "1", *QUICK)
    [line] = ended.err.splitlines()
    assert ended.code == 2 and "kaggle config view" in line and "5e4d3c2b" not in ended.out + ended.err


def test_a_cell_type_that_is_a_path_writes_nothing(server: FakeKaggle, cellsignal: Cellsignal, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("preset: tiny\nwells: {cell_types: [x/../../y]}\n")
    told = cellsignal("push", tmp_path / "bad.yaml", "--dry-run", "--user", "bob")
    assert told.code == 2 and told.err.startswith(
        f"cellsignal: error: {tmp_path}/bad.yaml:2: wells.cell_types is ['x/../../y']: 'x/../../y' cannot be the name of a folder: ")
    assert {path.name for path in tmp_path.iterdir()} <= {"bad.yaml", "home"} and server.requests == []
