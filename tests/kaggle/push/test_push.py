"""Pushing with the real client: order, sessions, failures that end in one line, and second calls that go on."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import sessions
from fake_account import Dataset
from fake_kaggle import FakeKaggle, Outcome, Pushed
from sessions import PREDICT, PRETRAIN, TRAIN, out_of_time, pushes

from cellsignal.errors import InputError, StepFailed
from cellsignal.kaggle import client as kaggle
from cellsignal.kaggle import push, push_state, watch
from cellsignal.kaggle.errors import LoginFailed, RateLimited, ServerError, Unreachable
from cellsignal.receipts import Receipt
from cellsignal import provenance

Connect = Callable[..., dict[str, str]]
Call = Callable[..., dict[str, str]]


def test_a_recipe_goes_through_both_clients(server: FakeKaggle, client: Path, connect: Connect, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    connect(server, client)

    both_at_once = threading.Barrier(2, timeout=60)

    def work(pushed: Pushed) -> Outcome:
        if "pretrain" in pushed.slug:
            both_at_once.wait()
        return sessions.work(pushed, server)

    server.runner = work
    assert call(types="[]") == {}
    assert sorted(pushes(server)) == [
        "1-eda", "2-pretrain-controls-huvec", "2-pretrain-controls-rpe", "3-train-cell-type-huvec", "3-train-cell-type-rpe", "4-predict-assign",
    ]  # fmt: skip
    assert pushes(server)[-1] == "4-predict-assign"
    assert server.most_running == {True: 2, False: 1} and server.busy == 0
    last = server.kernels["alice/cellsignal-tiny-4-predict-assign"][0]
    assert set(last.mounts["notebooks"]) == {f"alice/cellsignal-tiny-3-train-cell-type-{name}" for name in ("huvec", "rpe")}
    assert all(last.mounts["notebooks"].values())  # whole before it was pushed
    said = capsys.readouterr().out
    assert f"{PREDICT} pushed: https://www.kaggle.com/code/alice/cellsignal-tiny-4-predict-assign version 1" in said
    assert f"{PREDICT} complete" in said


def test_no_more_sessions_than_kaggle_runs(server: FakeKaggle, call: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert push.MAX_SESSIONS == server.sessions == {True: 2, False: 5}
    monkeypatch.setitem(push.MAX_SESSIONS, True, 1)
    server.sessions[True] = 1

    def work(pushed: Pushed) -> Outcome:
        while len(server.sent("GetKernelSessionStatus")) < 2:  # until it was seen to run
            time.sleep(0.05)
        return sessions.work(pushed, server)

    server.runner = work
    assert call(only="2", types="[]") == {}
    assert len(pushes(server)) == 2 and "waiting" not in capsys.readouterr().out


def test_the_same_call_keeps_all_and_a_changed_parameter_repeats_what_stands_on_it(
    server: FakeKaggle, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    for overrides in ([], ["machine.num_workers=2"], ["training.epochs=3"]):
        assert call(*overrides, cell_type="RPE") == {}
    assert pushes(server) == ["2-pretrain-controls-rpe", "3-train-cell-type-rpe", "3-train-cell-type-rpe"]
    said = capsys.readouterr().out
    assert (said.count(f"{PRETRAIN} kept"), said.count(f"{TRAIN} kept")) == (2, 1)


def test_a_new_version_of_the_attached_plates_repeats_all(server: FakeKaggle, call: Call) -> None:
    server.datasets["bob/plates"] = Dataset("plates", [server.folder])
    for _ in range(2):
        assert call(only="1", datasets=["bob/plates"]) == {}
    assert pushes(server) == ["1-eda"]
    server.datasets["bob/plates"].versions.append(server.folder)
    assert call(only="1", datasets=["bob/plates"]) == {}
    assert pushes(server) == ["1-eda"] * 2


def test_waits_while_all_sessions_are_taken(server: FakeKaggle, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    server.busy = 3
    call(only="1")
    assert len(pushes(server)) == 4 and len(server.kernels["alice/cellsignal-tiny-1-eda"]) == 1
    assert capsys.readouterr().out.count("Maximum batch CPU session count of 5 reached") == 1


def test_sessions_stay_taken_longer_than_anybody_waits(server: FakeKaggle, call: Call) -> None:
    server.busy = 1000
    with pytest.raises(StepFailed, match=r"^no free session: .*Maximum batch CPU.* after 0.000\d+ hours; .*--session-timeout"):
        call(only="1", session_timeout=1.0)
    server.busy = 0
    assert call(only="1") == {}


def test_a_session_outlasts_the_patience_and_is_waited_for_again(server: FakeKaggle, call: Call) -> None:
    goes_on = threading.Event()
    server.runner = lambda pushed: goes_on.wait(60) and sessions.work(pushed, server)
    with pytest.raises(StepFailed, match=r"^1-eda: still running after .*; see https://www.kaggle.com/code/alice/cellsignal-tiny-1-eda; give the same command again to wait longer"):
        call(only="1", session_timeout=1.0)
    goes_on.set()
    assert call(only="1") == {}
    assert pushes(server) == ["1-eda"]


@pytest.mark.parametrize(
    "status, words", [("ERROR", " (Notebook Threw Exception and InputError: no experiment HUVEC-99; choose others)"),
                      ("CANCEL_ACKNOWLEDGED", " (InputError: no experiment HUVEC-99; choose others)")]
)  # fmt: skip
def test_a_session_that_fails(server: FakeKaggle, call: Call, status: str, words: str) -> None:
    server.runner = sessions.in_turn(server, lambda pushed: sessions.failing(status))
    with pytest.raises(StepFailed) as failed:
        call(only="1")
    assert str(failed.value) == f"1-eda: it ended with {status}{words}; see https://www.kaggle.com/code/alice/cellsignal-tiny-1-eda"
    assert call(only="1") == {}
    assert pushes(server) == ["1-eda", "1-eda"]


def test_a_failure_that_nobody_saw_is_told_before_it_is_repeated(server: FakeKaggle, call: Call) -> None:
    fails = threading.Event()
    server.runner = sessions.in_turn(server, lambda pushed: fails.wait(60) and sessions.failing())
    with pytest.raises(StepFailed, match="still running"):
        call(only="1", session_timeout=0.5)
    fails.set()
    server.wait()
    with pytest.raises(StepFailed, match="it ended with ERROR"):
        call(only="1")
    assert pushes(server) == ["1-eda"]
    assert call(only="1") == {} and pushes(server) == ["1-eda", "1-eda"]


def other_code(pushed: Pushed, server: FakeKaggle) -> Outcome:
    outcome = sessions.work(pushed, server)
    path = outcome.folder / "runs/tiny/receipts/1-eda.json"
    found = Receipt.read(path)
    replace(found, details={**found.details, "code": "older"}).write()
    return outcome


@pytest.mark.parametrize(
    "turn, words",
    [
        (lambda pushed, server: sessions.work(pushed, server, seed=1), "its seed is 1 and not 0"),
        (other_code, "it was made by other code"),
        (lambda pushed, server: Outcome(), "there is no receipt of 1-eda in runs/tiny"),
    ],
)
def test_the_output_of_another_run(server: FakeKaggle, call: Call, turn: Callable[..., Outcome], words: str) -> None:
    server.runner = sessions.in_turn(server, lambda pushed: turn(pushed, server))
    with pytest.raises(StepFailed) as failed:
        call(only="1")
    assert str(failed.value).startswith(f"1-eda: the output is of the wrong run: {words}")
    assert call(only="1") == {}
    assert pushes(server) == ["1-eda", "1-eda"]


def test_who_edits_the_package_while_kernels_run_changes_nothing_on_kaggle(
    server: FakeKaggle, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = ["uploaded"]
    monkeypatch.setattr(provenance, "code_digest", lambda *package: digests[-1])

    def work(pushed: Pushed) -> Outcome:
        digests.append("uploaded")
        outcome = sessions.work(pushed, server)
        digests.append("edited here meanwhile")
        return outcome

    server.runner = work
    assert call(cell_type="RPE") == {}


def test_what_somebody_else_ran_over_it_is_not_kept(server: FakeKaggle, clients: dict[str, Path], connect: Connect, call: Call) -> None:
    connect(server, clients["2.2.4"])  # which looks at the last version, whichever was ours
    call(only="1")
    body = {**server.sent("SaveKernel")[0], "text": server.sent("SaveKernel")[0]["text"].replace("seed = 0", "seed = 7")}
    server.save_kernel(body)
    server.wait()
    assert call(only="1") == {}
    assert pushes(server) == ["1-eda", "1-eda"]


def test_a_source_that_kaggle_does_not_know(server: FakeKaggle, call: Call) -> None:
    with pytest.raises(StepFailed) as failed:
        call(only="1", upload=lambda: None)
    assert str(failed.value).startswith("1-eda: push of alice/cellsignal-tiny-1-eda: ") and "alice/cellsignal-utils" in str(failed.value)
    assert call(only="1") == {}


@pytest.mark.parametrize("code, kind, times", [(401, LoginFailed, 1), (429, RateLimited, watch.RETRIES), (500, ServerError, watch.RETRIES)])
def test_a_push_that_is_refused(server: FakeKaggle, call: Call, code: int, kind: type[Exception], times: int) -> None:
    server.answer("SaveKernel", code, "no", times=times)
    with pytest.raises(kind) as refused:
        call(only="1", interval=0.01)
    assert "\n" not in str(refused.value)
    assert call(only="1") == {}
    assert len(server.kernels["alice/cellsignal-tiny-1-eda"]) == 1


def test_a_push_of_which_no_answer_came_is_not_repeated(server: FakeKaggle, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = kaggle.push

    def cut(folder: Path) -> int:
        heard(folder)
        raise Unreachable("the line was cut")

    monkeypatch.setattr(kaggle, "push", cut)
    assert call(only="1") == {}
    assert pushes(server) == ["1-eda"]


def test_a_call_that_ended_before_the_answer_came_is_gone_on_with(server: FakeKaggle, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = kaggle.push

    def cut(folder: Path) -> int:
        heard(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(kaggle, "push", cut)
    with pytest.raises(KeyboardInterrupt):
        call(only="1")
    monkeypatch.setattr(kaggle, "push", heard)
    assert call(only="1") == {}
    assert pushes(server) == ["1-eda"]


def test_a_short_trouble_does_not_end_days_of_work(server: FakeKaggle, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    server.runner = sessions.in_turn(server, out_of_time(server, "pretrain, epoch 3 of 9"))
    server.answer("SaveKernel", 429, "Too Many Requests")
    server.answer("SaveKernel", 500, "Internal Server Error", times=2)
    uploads = iter((RateLimited("too many"), ServerError("no"), None))

    def upload() -> None:
        if error := next(uploads):
            raise error
        server.datasets["alice/cellsignal-utils"] = Dataset("CellSignal utils", [server.folder])

    assert call(only="2", until_done=True, upload=upload, interval=0.01) == {}
    assert pushes(server)[-2:] == ["2-pretrain-controls-rpe"] * 2
    assert len(server.kernels["alice/cellsignal-tiny-2-pretrain-controls-rpe"]) == 2
    assert capsys.readouterr().out.count("asking again: ") == 5


def test_a_short_trouble_of_kaggle_does_not_end_the_waiting(server: FakeKaggle, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    server.answer("GetKernelSessionStatus", 503, "Service unavailable", times=2)
    assert call(only="1") == {}
    assert capsys.readouterr().out.count("asking again: status of alice/cellsignal-tiny-1-eda") == 2


def test_a_long_trouble_ends_it_and_the_next_call_goes_on(server: FakeKaggle, call: Call) -> None:
    server.answer("GetKernelSessionStatus", 500, "oops", times=5)
    with pytest.raises(ServerError):
        call(only="1")
    assert call(only="1") == {}
    assert pushes(server) == ["1-eda"]


def test_a_part_needs_its_sources(server: FakeKaggle, call: Call) -> None:
    with pytest.raises(InputError, match=f"^{PRETRAIN}: it is not complete on Kaggle, and others need it; push it first"):
        call(only="3")
    assert pushes(server) == []
    call(only="2")
    assert call(only="3") == {}
    assert pushes(server) == ["2-pretrain-controls-rpe", "3-train-cell-type-rpe"]


def test_the_whole_chain_as_one_kernel(server: FakeKaggle, call: Call) -> None:
    assert call(only="0-chain") == {}
    [pushed] = server.kernels["alice/cellsignal-tiny-0-chain"]
    assert sessions.given(pushed)["training"]["epochs"] == 2 and pushed.gpu


def test_another_call_on_the_same_recipe(server: FakeKaggle, call: Call, tmp_path: Path) -> None:
    with push_state.open_state(tmp_path / "build"), pytest.raises(InputError, match="another push works on this recipe"):
        call(only="1")
    assert server.requests == []


def test_a_damaged_state_is_named(call: Call, tmp_path: Path) -> None:
    (tmp_path / "build").mkdir()
    for text in ("{", '{"steps": {"1-eda": {"slug": 1}}, "two_slugs": false}', "[]", '{"steps": []}'):
        (tmp_path / "build/state.json").write_text(text)
        with pytest.raises(InputError, match="state.json"):
            call(only="1")


def test_a_kernel_that_says_it_is_done_without_its_files(server: FakeKaggle, call: Call) -> None:
    """A prediction of some cell types ends well, but a submission answers all wells."""

    def without(pushed: Pushed) -> Outcome:
        left = sessions.work(pushed, server)
        path = next(left.folder.rglob(f"receipts/{PREDICT}.json"))
        found = Receipt.read(path)
        replace(found, outputs={name: digest for name, digest in found.outputs.items() if name != "submission.csv"}).write()
        return left

    server.runner = lambda pushed: without(pushed) if PREDICT in pushed.slug else sessions.work(pushed, server)
    with pytest.raises(StepFailed, match="^4-predict-assign: it ended without submission.csv; see https://"):
        call()
    server.runner = lambda pushed: sessions.work(pushed, server)
    assert call() == {} and pushes(server)[-1] == PREDICT


@pytest.mark.parametrize("change", [{"slug": 5}, {"outputs": "submission.csv"}, {"outputs": [1]}, {"version": "2"}, {"parameters": []}, {"best": {"whole": "1"}}, {"status": "lost"}, {"pushed": None}])
def test_a_state_of_another_shape_is_named(tmp_path: Path, change: dict) -> None:
    step = {"identity": "i", "slug": "a/b", "gpu": False, "run": "runs/x", "parameters": {}, "code": "c", "status": "running", "of a later version": 1}
    Receipt(tmp_path / push_state.STATE, {"recipe": ""}, details={"steps": {"1-eda": step}, "two_slugs": False}).write()
    assert push_state.read(tmp_path).steps["1-eda"].slug == "a/b"
    Receipt(tmp_path / push_state.STATE, {"recipe": ""}, details={"steps": {"1-eda": {**step, **change}}, "two_slugs": False}).write()
    with pytest.raises(InputError, match=r"state.json: not a state of pushes \(.*\); delete it: what is complete will be pushed again$") as refused:
        push_state.read(tmp_path)
    assert "\n" not in str(refused.value)
