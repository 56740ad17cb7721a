"""What happens while a push takes days: mended code, listings that lag, other sessions, the week's hours."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import sessions
from fake_kaggle import FakeKaggle, Outcome, Pushed
from sessions import PRETRAIN, expected, out_of_time, pushes

from cellsignal import code_identity
from cellsignal.errors import StepFailed
from cellsignal.kaggle import utility_dataset
from cellsignal.kaggle.errors import QuotaSpent
from cellsignal.receipts import Receipt
from cellsignal import provenance

Call = Callable[..., dict[str, str]]


def mend(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is not what it was: a comment of a file that each notebook uses."""
    monkeypatch.setattr(provenance, "code_digest", lambda *package: "mended")
    monkeypatch.setattr(code_identity, "package_code", lambda *rooms: {"learn": "mended"})


@pytest.mark.parametrize("complete", [False, True])
def test_mended_code_goes_on_with_what_earlier_code_left(server: FakeKaggle, call: Call, monkeypatch: pytest.MonkeyPatch, complete: bool) -> None:
    if not complete:
        server.runner = sessions.in_turn(server, out_of_time(server, "pretrain, epoch 3 of 9"))
    call(only="2")
    mend(monkeypatch)
    assert call(only="2") == {}
    slug = "alice/cellsignal-tiny-2-pretrain-controls-rpe"
    first, second = server.kernels[slug]
    assert second.mounts["notebooks"] == {slug: first.outcome.folder} and expected(second) == [PRETRAIN]
    assert call("seed=5", only="2") == {}  # other work
    assert server.kernels[slug][2].mounts["notebooks"] == {} and expected(server.kernels[slug][2]) == []


def test_code_that_another_push_brought_to_kaggle_is_known(
    server: FakeKaggle, call: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One recipe is at work for days; another, pushed after an edit, versions the package that both mount."""
    uploaded = ["code", "mended"]
    monkeypatch.setattr(utility_dataset, "codes_after", lambda code: uploaded[uploaded.index(code) + 1 :])
    server.runner = sessions.in_turn(server, out_of_time(server, "pretrain, epoch 3 of 9"), lambda pushed: mended(pushed, server))
    assert call(only="2", until_done=True) == {}
    assert f"{PRETRAIN} complete: made by newer code" in capsys.readouterr().out
    assert pushes(server) == ["2-pretrain-controls-rpe"] * 2


def mended(pushed: Pushed, server: FakeKaggle) -> Outcome:
    outcome = sessions.work(pushed, server)
    path = outcome.folder / f"runs/tiny/receipts/{PRETRAIN}.json"
    found = Receipt.read(path)
    replace(found, details={**found.details, "code": "mended"}).write()
    return outcome


@pytest.mark.slow
@pytest.mark.ci
def test_a_listing_of_the_session_before_is_not_believed(server: FakeKaggle, call: Call) -> None:
    server.runner = sessions.in_turn(server, out_of_time(server, "pretrain, epoch 3 of 9"))
    call(only="2")
    server.listings_late = 2  # it would say: no further than epoch 3
    assert call(only="2") == {}
    assert call("seed=5", only="2") == {}
    server.listings_late = 2  # it would say: its seed is 5
    assert call("seed=6", only="2") == {}
    assert len(pushes(server)) == 4


def test_a_listing_of_a_session_that_failed_is_not_believed_either(server: FakeKaggle, call: Call) -> None:
    server.runner = sessions.in_turn(server, lambda pushed: sessions.work(pushed, server, seed=7))
    with pytest.raises(StepFailed, match="its seed is 7 and not 0"):
        call(only="1")
    server.listings_late = 2  # it would say: its seed is 7
    assert call(only="1") == {}
    assert len(pushes(server)) == 2


def test_a_listing_that_stays_that_of_the_session_before(server: FakeKaggle, call: Call) -> None:
    assert call(only="1") == {}
    server.listings_late = 100
    with pytest.raises(StepFailed, match="^1-eda: the output is of the wrong run: its receipt is that of the session before"):
        call("seed=5", only="1")


def test_a_session_with_other_parameters_is_waited_for_and_counted(server: FakeKaggle, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    goes_on = threading.Event()
    server.runner = sessions.in_turn(server, lambda pushed: goes_on.wait(60) and sessions.work(pushed, server))
    with pytest.raises(StepFailed, match="still running"):
        call(only="2", session_timeout=0.3)
    threading.Timer(1.5, goes_on.set).start()
    server.sessions[True] = 1
    assert call("seed=5", only="2") == {}
    assert len(pushes(server)) == 2 and server.most_running[True] == 1
    said = capsys.readouterr().out
    assert said.count("waiting for its last push, which runs with other parameters or code; to go on at once delete it: https") == 1
    assert "Maximum" not in said


@pytest.mark.slow
@pytest.mark.ci
def test_the_queue_has_a_patience_of_its_own(server: FakeKaggle, call: Call) -> None:
    server.machines.clear()
    server.runner = lambda pushed: time.sleep(0.5) or sessions.work(pushed, server)  # long enough to be seen at work
    with pytest.raises(StepFailed, match=r"^1-eda: still queued after .* or a longer --queue-timeout"):
        call(only="1", queue_timeout=0.5)
    threading.Timer(3.0, server.machines.set).start()
    assert call(only="1", session_timeout=2.0) == {}  # which begins with the work
    assert pushes(server) == ["1-eda"]


def budgets(server: FakeKaggle) -> list[float]:
    return [sessions.given(pushed)["machine"].get("time_budget_minutes", 0.0) for versions in server.kernels.values() for pushed in versions]


def test_the_week_s_hours_are_shared_by_the_sessions(server: FakeKaggle, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    server.gpu_hours = 5.0
    both = threading.Barrier(2, timeout=60)
    server.runner = lambda pushed: (both.wait() or True) and sessions.work(pushed, server)
    assert call(only="2", types="[]") == {}
    assert budgets(server) == pytest.approx([130.0, 130.0], abs=1)
    assert f"{PRETRAIN} works 130 minutes, because 5 GPU hours are left this week" in capsys.readouterr().out


@pytest.mark.parametrize("hours", [30.0, None])
def test_enough_hours_or_an_unknown_number_change_nothing(server: FakeKaggle, call: Call, hours: float | None) -> None:
    server.gpu_hours = hours
    assert call(only="2") == {} and budgets(server) == [0.0]


def test_too_few_hours_for_a_session(server: FakeKaggle, call: Call) -> None:
    server.gpu_hours = 0.8
    assert call(only="1") == {}  # which takes no GPU
    with pytest.raises(QuotaSpent, match=f"^{PRETRAIN}: 0.8 GPU hours are left this week, too little for a session; `kaggle quota` says when"):
        call(only="2")
    assert pushes(server) == ["1-eda"]
    assert call("machine.time_budget_minutes=5", only="2") == {}  # who asks for so little has it


def test_a_session_that_may_need_all_hours_has_them(server: FakeKaggle, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    """The second waits for what the first leaves, and neither fails."""
    server.gpu_hours = 1.6
    assert call(only="2", types="[]") == {}
    assert server.most_running[True] == 1 and len(pushes(server)) == 2
    assert capsys.readouterr().out.count("waiting: what runs may need the 1.6 GPU hours") == 1
