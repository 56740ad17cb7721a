"""Submissions: checked against the sample, then sent by the real client."""

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_kaggle import COMPETITION, FakeKaggle

from cellsignal import files
from cellsignal.cli.main import main
from cellsignal.decide.submission import check_submission
from cellsignal.errors import InputError, StepFailed
from cellsignal.kaggle import competition as submitting
from cellsignal.kaggle.errors import Denied, Refused, UploadBroken
from cellsignal.run.chain import steps

CURE = "write a class number: 0-1107 treatment, 1108-1137 positive control, 1138 untreated"
SAMPLE = "id_code,sirna\nHUVEC-02_1_B02,0\nHUVEC-02_1_B03,0\nHUVEC-02_1_B04,0\n"
GOOD = "id_code,sirna\nHUVEC-02_1_B03,0\nHUVEC-02_1_B02,1107\nHUVEC-02_1_B04,5\n"


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """A folder with a sample submission of three wells."""
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/sample_submission.csv").write_text(SAMPLE)
    return tmp_path / "tables"


@pytest.fixture
def server(tmp_path: Path, tables: Path, client: Path, connect: Callable[..., dict[str, str]]) -> Iterator[FakeKaggle]:
    """A Kaggle that holds the competition."""
    with FakeKaggle(tmp_path / "kaggle") as server:
        server.competitions[COMPETITION] = tables
        connect(server, client)
        yield server


newest = pytest.mark.parametrize("client", ["2.2.5"], indirect=True)  # where the client's version makes no difference


def write(folder: Path, text: str) -> Path:
    path = folder / "submission.csv"
    path.write_text(text)
    return path


def test_a_good_submission_in_any_order(tmp_path: Path, tables: Path) -> None:
    assert check_submission(write(tmp_path, GOOD), sample=tables / "sample_submission.csv") == 3
    assert check_submission(write(tmp_path, "\ufeff" + GOOD.replace("\n", "\r\n")), sample=tables / "sample_submission.csv") == 3


@pytest.mark.parametrize(
    "text, words",
    [
        (GOOD.replace("B03,0", "B03,1108"), "submission.csv:2:sirna: '1108' is not a class"),
        (GOOD.replace("B03,0", "B03,nan"), "submission.csv:2:sirna: 'nan' is not a class"),
        (GOOD.replace("B03,0", "B03,1.5"), "submission.csv:2:sirna: '1.5' is not a class"),
        (GOOD.replace("B03,0", "B03,"), "submission.csv:2:sirna: '' is not a class"),
        *((GOOD.replace("B03,0", f"B03,{cell}"), f"submission.csv:2:sirna: {cell!r} is not a class of this table; {CURE}")
          for cell in ("911.0", "+911", "0911", "3_0", "9e2", " 911", "911 ", "0x3", "-0", "\u0663", "\u00b2", "\uff19", "1,0".replace(",", "."))),
        (GOOD.replace("HUVEC-02_1_B03,", "HUVEC-02_1_B03 ,"), "submission.csv:2:id_code: 'HUVEC-02_1_B03 ' is no test well (and 1 more)"),
        (GOOD.replace("id_code,sirna", "id_code, sirna"), "submission.csv:1: no column sirna (there are: id_code, ' sirna')"),
        (GOOD.replace("B03,0", "B02,0"), "submission.csv:3:id_code: 'HUVEC-02_1_B02' stands twice (and 1 more)"),
        (GOOD.replace("B03,0", "B05,0"), "submission.csv:2:id_code: 'HUVEC-02_1_B05' is no test well (and 1 more)"),
        ("id_code,sirna\nHUVEC-02_1_B03,0\n", "submission.csv: HUVEC-02_1_B02 is missing (and 1 more)"),
        (GOOD.replace("sirna", "siRNA"), "submission.csv:1: no column sirna (there are: id_code, siRNA)"),
        ("id_code,sirna,confidence\nHUVEC-02_1_B03,0,0.5\n", "submission.csv:1: there is a column 'confidence'; keep only id_code,sirna"),
        (GOOD.replace(",", ";"), "submission.csv:1: columns are not separated by commas"),
        ("", "submission.csv: the file is empty"),
        ("id_code,sirna\n", "submission.csv: HUVEC-02_1_B02 is missing (and 2 more)"),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, tables: Path, text: str, words: str) -> None:
    with pytest.raises(InputError) as refused:
        check_submission(write(tmp_path, text), sample=tables / "sample_submission.csv")
    assert words in str(refused.value)


def test_a_submission_is_checked_then_sent(server: FakeKaggle, tmp_path: Path) -> None:
    said = submitting.submit(write(tmp_path, GOOD), message="the first one")
    assert "uccessfully submitted" in said
    [sent] = server.submissions
    assert sent["bytes"].decode() == GOOD and sent["submissionDescription"] == "the first one"


@newest
def test_a_zipped_sample_is_a_sample(server: FakeKaggle, tmp_path: Path, tables: Path) -> None:
    with zipfile.ZipFile(tables / "sample_submission.csv.zip", "w") as archive:
        archive.writestr("sample_submission.csv", SAMPLE)
    server.zipped.add("sample_submission.csv")
    submitting.submit(write(tmp_path, GOOD), message="x")
    assert len(server.submissions) == 1
    with zipfile.ZipFile(tables / "sample_submission.csv.zip", "w") as archive:
        archive.writestr("other.csv", SAMPLE)
    with pytest.raises(StepFailed, match="Kaggle sent no sample_submission.csv"):
        submitting.submit(write(tmp_path, GOOD), message="x")


@newest
def test_a_wrong_one_is_not_sent(server: FakeKaggle, tmp_path: Path, tables: Path) -> None:
    with pytest.raises(InputError, match="is no test well"):
        submitting.submit(write(tmp_path, GOOD.replace("B03", "B05")), message="x")
    with pytest.raises(InputError, match="is no test well"):
        submitting.submit(write(tmp_path, GOOD.replace("B03", "B05")), message="x", data=tables)
    assert server.submissions == [] and not server.sent("StartSubmissionUpload")


@newest
def test_a_sample_of_simulated_plates_is_none(server: FakeKaggle, tmp_path: Path, tables: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It would let through what the competition then scores as wrong."""
    monkeypatch.chdir(tmp_path)
    plates = tmp_path / "plates"
    plates.mkdir()
    (plates / "sample_submission.csv").write_text(SAMPLE.replace("HUVEC-02", "HUVEC-07"))
    (plates / "simulate.json").write_text("{}")
    (tmp_path / "first.yaml").write_text("data: plates\n")
    run = tmp_path / "runs/first"
    run.mkdir(parents=True)
    left_by_a_run(run, GOOD.replace("HUVEC-02", "HUVEC-07"))
    commands = [(["first.yaml"], "is no test well"), (["runs/first/submission.csv", "--data", "plates"], "plates: holds simulated plates, ")]
    commands.append((["runs/first/submission.csv", "--out", "runs/first"], "--out names the folder of a recipe's run; "))
    for arguments, words in commands:
        assert submitted(arguments) == 2 and words in capsys.readouterr().err
    assert server.submissions == []
    left_by_a_run(run, GOOD)
    (tmp_path / "first.yaml").write_text("data: /kaggle/input/datasets/alice/plates\n")  # which is there only
    assert submitted(["first.yaml"]) == 0 and len(server.submissions) == 1


def left_by_a_run(run: Path, submission: str) -> None:
    """A submission and a recipe that the run's receipts vouch for."""
    write(run, submission)
    files.write_json(run / "recipe.json", {"parameters": {}})
    steps.write_receipt(run, steps.Step("4-predict-assign", outputs=("submission.csv", "recipe.json")), identity={}, seconds=1.0)


def submitted(arguments: list[str]) -> int:
    """The exit code of `cellsignal kaggle submit`."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr("sys.argv", ["cellsignal", "kaggle", "submit", *arguments])
        patch.setattr("signal.signal", lambda number, handler: None)
        main()
    return ended.value.code


def test_rules_not_accepted(server: FakeKaggle, tmp_path: Path) -> None:
    del server.competitions[COMPETITION]
    with pytest.raises((Denied, Refused)) as refused:
        submitting.submit(write(tmp_path, GOOD), message="x")
    assert "accept the rules at https://www.kaggle.com/competitions/recursion-cellular-image-classification/rules" in str(refused.value)


def test_an_upload_that_breaks_off(server: FakeKaggle, tmp_path: Path, tables: Path) -> None:
    server.answer("PUT", 400, "bad", times=100)
    with pytest.raises(UploadBroken):
        submitting.submit(write(tmp_path, GOOD), message="x", data=tables)
    assert server.submissions == []
    server._answers.clear()
    submitting.submit(write(tmp_path, GOOD), message="x", data=tables)
    assert len(server.submissions) == 1


def test_a_run_without_a_submission(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no submission.csv; run `cellsignal kaggle pull`"):
        submitting.submission_of_run(tmp_path)


def test_a_submission_that_the_run_did_not_leave_is_not_sent(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    files.write_json(tmp_path / "recipe.json", {"parameters": {}})
    step = steps.Step("4-predict-assign", outputs=("submission.csv",))
    steps.write_receipt(tmp_path, step, identity={}, seconds=1.0)
    unfinished = "recipe.json: no finished step of the run left it; run the command"
    with pytest.raises(InputError, match=unfinished):  # a later run with other parameters was killed
        submitting.submission_of_run(tmp_path)
    steps.write_receipt(tmp_path, steps.Step("record", outputs=("recipe.json",)), identity={}, seconds=0.0)
    assert submitting.submission_of_run(tmp_path) == tmp_path / "submission.csv"
    write(tmp_path, GOOD.replace("1107", "1106"))
    with pytest.raises(InputError, match="submission.csv: not as the run left it; run the command"):
        submitting.submission_of_run(tmp_path)


def test_answers_to_a_benchmark_are_not_sent_to_kaggle(tmp_path: Path) -> None:
    (tmp_path / "submission.csv").write_text("site_id,sirna_id\nHUVEC-01_1_B02_2,7\n")
    with pytest.raises(InputError, match="the task rxrx1-wilds is no competition on Kaggle; send the files in its run's `predictions`"):
        submitting.submit(tmp_path / "submission.csv", message="x")
