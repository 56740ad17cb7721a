"""The client's verbs against the small Kaggle, with both real clients: what they give, and what each refusal becomes."""

import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import pytest
from folders import SLUG, dataset, kernel
from fake_kaggle import COMPETITION, TOKEN, FakeKaggle, Outcome, Pushed

from cellsignal.errors import InputError
from cellsignal.kaggle import client as kaggle
from cellsignal.kaggle import errors

Connect = Callable[..., dict[str, str]]


@pytest.fixture
def server(tmp_path: Path, client: Path, connect: Connect) -> Iterator[FakeKaggle]:
    """A Kaggle that each client in turn is sent to."""
    with FakeKaggle(tmp_path / "kaggle") as server:
        connect(server, client)
        yield server


def refused(kind: type[Exception], call: Callable[[], object]) -> str:
    """The one line with which `call` fails."""
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    line = str(caught.value)
    assert len(line.splitlines()) == 1 and len(line) <= 400 and TOKEN not in line and "0f1e2d3c" not in line
    return line


def test_a_push_is_a_version_and_runs(server: FakeKaggle, tmp_path: Path) -> None:
    folder = kernel(tmp_path / "one")
    assert kaggle.push(folder) == 1
    assert kaggle.push(folder, seconds=600) == 2
    assert kaggle.kernel_status(SLUG) == "COMPLETE" and kaggle.kernel_failure(SLUG) == ""
    first, second = server.sent("SaveKernel")
    assert json.loads(first["text"])["cells"][0]["source"] == "x = 1\nx"
    assert first["isPrivate"] is True and first["enableInternet"] is False  # written, so not left to the client's defaults
    assert "sessionTimeoutSeconds" not in first and second["sessionTimeoutSeconds"] == 600


def test_nothing_is_sent_of_a_kernel_that_kaggle_would_take_amiss(server: FakeKaggle, tmp_path: Path) -> None:
    line = refused(InputError, lambda: kaggle.push(kernel(tmp_path / "one", id="INSERT_KAGGLE_USERNAME/cellsignal-tiny-1-eda")))
    assert "placeholder" in line and "cellsignal kaggle init" in line
    line = refused(InputError, lambda: kaggle.push(kernel(tmp_path / "one", title="CellSignal tiny, 1st EDA")))
    assert "cellsignal-tiny-1st-eda" in line and "Kaggle goes by the title" in line
    assert "code_file" in refused(InputError, lambda: kaggle.push(kernel(tmp_path / "one", code_file="other.ipynb")))
    assert "OWNER/SLUG" in refused(InputError, lambda: kaggle.push(kernel(tmp_path / "one", id="cellsignal")))
    assert "no such file" in refused(InputError, lambda: kaggle.push(tmp_path / "nowhere"))
    assert server.requests == []


def test_a_refused_session_is_busy_and_the_next_push_goes_through(server: FakeKaggle, tmp_path: Path) -> None:
    server.busy = 1
    folder = kernel(tmp_path / "one", enable_gpu=True, machine_shape="NvidiaTeslaT4")
    line = refused(errors.Busy, lambda: kaggle.push(folder))
    assert "Maximum batch GPU session count of 2 reached" in line
    assert kaggle.push(folder) == 1


def test_sources_that_kaggle_drops_are_named_although_it_saved_the_version(server: FakeKaggle, tmp_path: Path) -> None:
    gone = {"dataset_sources": ["alice/cellsignal-utils"], "kernel_sources": ["alice/cellsignal-tiny-0"], "competition_sources": ["c/rxrx1", COMPETITION]}
    with pytest.raises(errors.InvalidSource) as caught:
        kaggle.push(kernel(tmp_path / "one", **gone))
    assert caught.value.sources == ("alice/cellsignal-utils", "c/rxrx1", "alice/cellsignal-tiny-0")
    assert "dataset source alice/cellsignal-utils and the competition source c/rxrx1" in str(caught.value)
    assert str(caught.value).endswith("; accept the rules at https://www.kaggle.com/competitions/c/rxrx1/rules")
    assert server.kernels[SLUG][0].version == 1


def test_the_week_s_hours(server: FakeKaggle) -> None:
    for hours in (3.5, 0.0, None):
        server.gpu_hours = hours
        assert kaggle.gpu_hours() == hours


@pytest.mark.parametrize(
    "code, message, kind, says",
    [
        (401, "Unauthorized", errors.LoginFailed, "kaggle auth login"),
        (403, "Permission 'kernels.update' was denied", errors.Denied, "is it yours"),
        (409, "Conflict", errors.Conflict, "choose another name"),
        (429, "Too Many Requests", errors.RateLimited, "wait a few minutes"),
        (500, "Internal Server Error", errors.ServerError, "again later"),
        (502, "", errors.ServerError, "again later"),
        (400, "The notebook\nis too large", errors.Refused, "The notebook"),
    ],
)
def test_refusals_of_a_push(server: FakeKaggle, tmp_path: Path, code: int, message: str, kind: type[Exception], says: str) -> None:
    server.answer("SaveKernel", code, message)
    assert says in refused(kind, lambda: kaggle.push(kernel(tmp_path / "one")))
    assert kaggle.push(kernel(tmp_path / "one")) == 1  # nothing stays in the way of a second call


def test_no_or_a_wrong_login(server: FakeKaggle, client: Path, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(server, client, key="00000000000000000000000000000000")
    line = refused(errors.LoginFailed, lambda: kaggle.push(kernel(tmp_path / "one")))
    assert "~/.kaggle/access_token" in line and "0000" not in line
    monkeypatch.delenv("KAGGLE_KEY")
    refused(errors.LoginFailed, lambda: kaggle.push(kernel(tmp_path / "one")))
    refused(errors.LoginFailed, kaggle.username)


def test_the_name_behind_the_login(server: FakeKaggle, client: Path, connect: Connect) -> None:
    assert kaggle.username() == "alice"
    connect(server, client, token=True)
    assert kaggle.username() == "alice"


def test_another_owners_slug(server: FakeKaggle, tmp_path: Path) -> None:
    line = refused(errors.Denied, lambda: kaggle.push(kernel(tmp_path / "one", id="bob/cellsignal-tiny-1-eda")))
    assert "bob/cellsignal-tiny-1-eda" in line


def test_no_answer(server: FakeKaggle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://me:secret@127.0.0.1:9")
    line = refused(errors.Unreachable, lambda: kaggle.push(kernel(tmp_path / "one")))
    assert "look at the network" in line and "secret" not in line


def test_a_client_that_hangs_is_ended(server: FakeKaggle, monkeypatch: pytest.MonkeyPatch) -> None:
    with server.lock:  # no call gets its answer
        monkeypatch.setattr(kaggle, "_TIMEOUT", 1.0)
        assert "no answer in 1 s" in refused(errors.Unreachable, lambda: kaggle.kernel_status(SLUG))


def test_a_kernel_that_is_not_there(server: FakeKaggle, tmp_path: Path) -> None:
    refused(errors.Missing, lambda: kaggle.kernel_status(SLUG))
    refused(errors.Missing, lambda: kaggle.output(SLUG, tmp_path / "out"))
    server.answer("GetKernelSessionStatus", 404, "Not found")
    refused(errors.Missing, lambda: kaggle.kernel_status(SLUG))


@pytest.mark.parametrize("status", ["ERROR", "CANCEL_ACKNOWLEDGED"])
def test_a_session_that_failed_says_why(server: FakeKaggle, tmp_path: Path, status: str) -> None:
    server.runner = lambda pushed: Outcome(status, failure="Your notebook\nran out of memory")
    kaggle.push(kernel(tmp_path / "one"))
    server.wait()
    assert kaggle.kernel_status(SLUG) == status
    assert kaggle.kernel_failure(SLUG) == "Your notebook ran out of memory"


def test_outputs_come_from_all_pages_with_their_folders(server: FakeKaggle, tmp_path: Path) -> None:
    left = tmp_path / "left"
    for number in range(203):
        path = left / "runs/tiny/scores" / f"{number:03}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(number))
    (left / "runs/tiny/run.json").write_text("{}")
    server.runner = lambda pushed: Outcome("COMPLETE", left, log='[{"stream_name":"stdout","time":1.0,"data":"done"}]')
    kaggle.push(kernel(tmp_path / "one"))
    server.wait()
    found = kaggle.output(SLUG, tmp_path / "some", "run\\.json$")
    assert {path.relative_to(tmp_path / "some").as_posix() for path in found} == {"runs/tiny/run.json", "cellsignal-tiny-1-eda.log"}
    found = kaggle.output(SLUG, tmp_path / "all")
    assert len(found) == 205 and all(path.is_file() for path in found)
    assert (tmp_path / "all/runs/tiny/scores/202.txt").read_text() == "202"


def test_an_output_is_fetched_again_though_it_has_the_old_size(server: FakeKaggle, tmp_path: Path) -> None:
    left = tmp_path / "left"
    left.mkdir()
    server.runner = lambda pushed: Outcome("COMPLETE", left)
    for text in ("first", "later"):
        (left / "run.json").write_text(text)
        kaggle.push(kernel(tmp_path / "one"))
        server.wait()
        kaggle.output(SLUG, tmp_path / "out")
        assert (tmp_path / "out/run.json").read_text() == text


def test_a_refused_download_is_no_output_but_for_the_older_client(server: FakeKaggle, client: Path, tmp_path: Path) -> None:
    left = tmp_path / "left"
    left.mkdir()
    (left / "run.json").write_text("{}")
    server.runner = lambda pushed: Outcome("COMPLETE", left)
    kaggle.push(kernel(tmp_path / "one"))
    server.wait()
    server.answer("GET", 403, "the address has expired")
    if client.name == "2.2.4":  # why whoever fetches compares hashes
        [written] = kaggle.output(SLUG, tmp_path / "out")
        assert written.read_text() == "the address has expired"
    else:
        refused(errors.Denied, lambda: kaggle.output(SLUG, tmp_path / "out"))


def test_a_dataset_is_made_versioned_and_waited_for(server: FakeKaggle, tmp_path: Path) -> None:
    assert kaggle.dataset_status("alice/cellsignal-utils") == (kaggle.DATASET_MISSING, 0)
    server.dataset_polls = 1
    folder = dataset(tmp_path / "utils")
    kaggle.create_dataset(folder)
    assert kaggle.dataset_status("alice/cellsignal-utils")[0] == "blobs_received"
    assert kaggle.dataset_status("alice/cellsignal-utils") == ("ready", 1)
    (folder / "package/inner/two.py").write_text("two = 2\n")
    kaggle.version_dataset(folder, "the second")
    assert kaggle.dataset_status("alice/cellsignal-utils") == ("ready", 1) or server.datasets["alice/cellsignal-utils"].current == 2
    assert kaggle.dataset_status("alice/cellsignal-utils") == ("ready", 2)
    first, second = (
        {path.relative_to(version).as_posix() for path in version.rglob("*") if path.is_file()}
        for version in server.datasets["alice/cellsignal-utils"].versions
    )
    assert first == {"README.md", "package/inner/one.py"}  # with the folder's name, without what Python left
    assert second == first | {"package/inner/two.py"}
    assert server.sent("CreateDataset")[0]["isPrivate"] is True


def test_a_dataset_that_is_there_already_is_not_made_again(server: FakeKaggle, tmp_path: Path) -> None:
    folder = dataset(tmp_path / "utils")
    kaggle.create_dataset(folder)
    assert "already in use" in refused(errors.Conflict, lambda: kaggle.create_dataset(folder))


def test_an_upload_that_breaks_off_goes_on_or_fails_whole(server: FakeKaggle, tmp_path: Path) -> None:
    folder = dataset(tmp_path / "utils")
    server.answer("PUT", 400, "bad", times=2)
    assert "Upload unsuccessful" in refused(errors.UploadBroken, lambda: kaggle.create_dataset(folder))
    server.datasets.clear()  # 2.2.4 makes a data set of what arrived
    server._answers.clear()
    server.upload_breaks = 1
    kaggle.create_dataset(folder)
    assert (server.datasets["alice/cellsignal-utils"].versions[0] / "package/inner/one.py").is_file()


def test_refusals_of_a_dataset(server: FakeKaggle, tmp_path: Path) -> None:
    folder = dataset(tmp_path / "utils")
    refused(errors.Denied, lambda: kaggle.version_dataset(folder, "before the first"))
    server.answer("CreateDataset", 429, "Too Many Requests", retry_after=0)
    kaggle.create_dataset(folder)  # the client itself waits as long as it is told
    server.answer("CreateDatasetVersion", 500, "Internal Server Error")
    refused(errors.ServerError, lambda: kaggle.version_dataset(folder, "again"))
    server.answer("GetDatasetStatus", 500, "Internal Server Error")
    refused(errors.ServerError, lambda: kaggle.dataset_status("alice/cellsignal-utils"))


def test_a_submission_arrives_as_it_is(server: FakeKaggle, tmp_path: Path) -> None:
    file = tmp_path / "submission.csv"
    file.write_text("id_code,sirna\nHUVEC-01_1_B03,3\n")
    assert kaggle.submit(COMPETITION, file, "tiny") == f"Successfully submitted to {COMPETITION}"
    assert server.submissions[0]["bytes"] == file.read_bytes() and server.submissions[0]["submissionDescription"] == "tiny"
    refused(errors.Missing, lambda: kaggle.submit("no-such-competition", file, "tiny"))
    server.answer("PUT", 400, "bad")
    refused(errors.UploadBroken, lambda: kaggle.submit(COMPETITION, file, "tiny"))
    server.answer("CreateSubmission", 403, "You must accept this competition's rules before you can submit")
    assert f"competitions/{COMPETITION}/rules" in refused(errors.Denied, lambda: kaggle.submit(COMPETITION, file, "tiny"))
    assert len(server.submissions) == 1


def test_competition_files_whole_and_one_by_one(server: FakeKaggle, tmp_path: Path) -> None:
    assert "/rules" in refused(errors.Denied, lambda: kaggle.download(COMPETITION, tmp_path / "data"))
    held = tmp_path / "held"
    (held / "train").mkdir(parents=True)
    (held / "train.csv").write_text("id_code\n")
    (held / "train/one.png").write_bytes(b"png")
    with zipfile.ZipFile(held / f"{COMPETITION}.zip", "w") as archive:
        archive.write(held / "train.csv", "train.csv")
    with zipfile.ZipFile(held / "test.csv.zip", "w") as archive:
        archive.writestr("test.csv", "id_code\n")
    server.competitions[COMPETITION] = held
    server.zipped.add("test.csv")
    assert zipfile.is_zipfile(kaggle.download(COMPETITION, tmp_path / "data"))
    assert kaggle.download(COMPETITION, tmp_path / "data", "train.csv").read_text() == "id_code\n"
    assert kaggle.download(COMPETITION, tmp_path / "data", "test.csv").name == "test.csv.zip"
    assert kaggle.download(COMPETITION, tmp_path / "data", "train/one.png").read_bytes() == b"png"
    refused(errors.Missing, lambda: kaggle.download(COMPETITION, tmp_path / "data", "none.csv"))


def test_sessions_are_counted(server: FakeKaggle, tmp_path: Path) -> None:
    done = Event()

    def run(pushed: Pushed) -> Outcome:
        done.wait(60)
        return Outcome()

    server.runner = run
    for number in (1, 2):
        kaggle.push(kernel(tmp_path / "one", id=f"alice/kernel-{number}", title=f"kernel {number}", enable_gpu=True))
    refused(errors.Busy, lambda: kaggle.push(kernel(tmp_path / "one", id="alice/kernel-3", title="kernel 3", enable_gpu=True)))
    assert server.most_running[True] == 2
    done.set()
