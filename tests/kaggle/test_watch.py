"""What a person sees of pushed kernels."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from cellsignal.errors import InputError, StepFailed
from cellsignal.kaggle import watch
from cellsignal.kaggle.watch import Outcome
from cellsignal.kaggle.errors import ServerError
from cellsignal.kaggle.push_state import PushedKernel, PushState, Status


@pytest.fixture
def state(tmp_path: Path) -> PushState:
    """Two pushed steps, one that runs."""
    common = {"identity": "i", "run": "runs/tiny", "parameters": {}, "code": "c", "version": 2}
    return PushState(tmp_path / "tiny/state.json", {
        "1-eda": PushedKernel(slug="alice/cellsignal-tiny-1-eda", gpu=False, status=Status.complete, **common),
        "2-pretrain-controls@RPE": PushedKernel(slug="alice/cellsignal-tiny-2", gpu=True, status=Status.running, **common),
    })  # fmt: skip


def scripted(monkeypatch: pytest.MonkeyPatch, *answers: Outcome | BaseException) -> None:
    """Kaggle says of the pretraining what `answers` tell one after the other, and that all else is complete."""
    left = list(answers)

    def look(step: str, pushed: PushedKernel, *, interval: float) -> Outcome:
        if not step.startswith("2-"):
            return Outcome(Status.complete)
        answer = left.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr(watch, "look_at_kernel", look)


QUEUED, RUNNING = Outcome(Status.running, "QUEUED"), Outcome(Status.running, "RUNNING")


def test_one_line_an_event_where_there_is_no_terminal(state: PushState, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    scripted(monkeypatch, QUEUED, QUEUED, RUNNING, RUNNING, Outcome(Status.complete))
    seen = watch.watch(state, interval=0.0)
    assert capsys.readouterr().out.splitlines() == [
        "1-eda complete", "2-pretrain-controls@RPE running: QUEUED", "2-pretrain-controls@RPE running: RUNNING", "2-pretrain-controls@RPE complete",
    ]  # fmt: skip
    watch.refuse_failed(seen)
    assert not state.path.exists()  # a look changes nothing


def test_a_live_table_in_a_terminal(state: PushState, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, RUNNING, Outcome(Status.incomplete, "pretrain, epoch 7 of 30"))
    board, screen = watch.StatusView(), io.StringIO()
    board.console = Console(file=screen, force_terminal=True, width=120)
    board.live = type(board.live)(console=board.console, auto_refresh=False)
    watch.watch(state, interval=0.0, board=board)
    shown = screen.getvalue()
    assert shown.index("step") < shown.index("alice/cellsignal-tiny-2 version 2") < shown.index("incomplete pretrain, epoch 7 of 30")


def test_a_failed_step_is_told_at_the_end(state: PushState, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, Outcome(Status.failed, "it ended with ERROR"))
    with pytest.raises(StepFailed, match="^2-pretrain-controls@RPE: it ended with ERROR$"):
        watch.refuse_failed(watch.watch(state, interval=0.0))


def test_trouble_in_a_row_ends_the_watching_and_an_answer_between_does_not(state: PushState, monkeypatch: pytest.MonkeyPatch) -> None:
    trouble = [ServerError("no")] * (watch.RETRIES - 1)
    scripted(monkeypatch, *trouble, RUNNING, *trouble, Outcome(Status.complete))
    watch.watch(state, interval=0.0)
    scripted(monkeypatch, *trouble, ServerError("the last"))
    with pytest.raises(ServerError, match="the last"):
        watch.watch(state, interval=0.0)


def test_nothing_pushed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="^tiny: nothing was pushed yet; start with `cellsignal kaggle push`"):
        watch.watch(PushState(tmp_path / "tiny/state.json"), interval=0.0)


def test_the_live_table_ends_with_the_watching(state: PushState, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, ServerError("no"), KeyboardInterrupt())
    board = watch.StatusView()
    board.console = Console(file=io.StringIO(), force_terminal=True)
    board.live = type(board.live)(console=board.console, auto_refresh=False)
    with pytest.raises(KeyboardInterrupt):
        watch.watch(state, interval=0.0, board=board)
    assert not board.live.is_started


