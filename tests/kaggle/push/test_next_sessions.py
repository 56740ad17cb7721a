"""Steps whose time is spent, and how their next session finds what they left."""

import threading
from collections.abc import Callable

import pytest
import sessions
from fake_kaggle import FakeKaggle, Outcome, Pushed
from sessions import PRETRAIN, expected, out_of_time, pushes

from cellsignal.errors import StepFailed
from cellsignal.kaggle import kernel_folders, push_state

Call = Callable[..., dict[str, str]]


def test_a_step_out_of_time_goes_on_from_its_earlier_self(server: FakeKaggle, call: Call) -> None:
    server.runner = sessions.in_turn(server, out_of_time(server, "pretrain, epoch 1 of 2"))
    assert call(cell_type="RPE") == {PRETRAIN: "pretrain, epoch 1 of 2"}
    assert pushes(server) == ["2-pretrain-controls-rpe"]  # and nothing that stands on it
    assert call(cell_type="RPE") == {}
    slug = "alice/cellsignal-tiny-2-pretrain-controls-rpe"
    first, second = server.kernels[slug]
    assert first.mounts["notebooks"] == {} and second.mounts["notebooks"] == {slug: first.outcome.folder}
    assert pushes(server)[2:] == ["3-train-cell-type-rpe"]


def test_until_done_pushes_again_by_itself(server: FakeKaggle, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    turns = [out_of_time(server, f"pretrain, epoch {epoch} of 9") for epoch in (3, 6)]
    server.runner = sessions.in_turn(server, *turns)
    assert call(only="2", until_done=True) == {}
    assert pushes(server) == ["2-pretrain-controls-rpe"] * 3
    said = capsys.readouterr().out
    assert said.index("epoch 3 of 9") < said.index("epoch 6 of 9") < said.index(f"{PRETRAIN} complete")


def test_a_step_that_stands_still_is_not_pushed_for_ever(server: FakeKaggle, call: Call) -> None:
    server.runner = out_of_time(server, "pretrain, epoch 3 of 9")
    with pytest.raises(StepFailed, match="no further than pretrain, epoch 3 of 9; raise machine.time_budget_minutes"):
        call(only="2", until_done=True)
    assert pushes(server) == [f"2-pretrain-controls-rpe{end}" for end in ("", "", "-b")]


def test_sessions_that_begin_from_nothing_are_not_pushed_for_ever(server: FakeKaggle, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    """Kaggle takes a kernel as its own source and mounts nothing: each session comes about as far as the one before."""
    epochs = iter((37, 38, 37, 38))
    server.runner = lambda pushed: out_of_time(server, f"pretrain, epoch {next(epochs)} of 60")(pushed)
    with pytest.raises(StepFailed, match="no further than pretrain, epoch 38 of 60"):
        call(only="2", until_done=True)
    assert pushes(server) == [f"2-pretrain-controls-rpe{end}" for end in ("", "", "", "-b")]
    assert "no further than pretrain, epoch 37 of 60 after a whole session; it goes on under a second slug" in capsys.readouterr().out


def test_each_step_may_go_on_from_its_second_slug(server: FakeKaggle, call: Call) -> None:
    """Two steps side by side: that the first had to change its slug is no fault of the second's."""
    begun: dict[str, int] = {}

    def work(pushed: Pushed) -> Outcome:
        begun[pushed.slug] = begun.get(pushed.slug, 0) + 1
        if pushed.slug.endswith("-b"):
            return sessions.work(pushed, server)
        return out_of_time(server, "pretrain, epoch 3 of 9")(pushed)

    server.runner = work
    assert call(only="2", types="[]", until_done=True) == {}
    assert sorted(begun.values()) == [1, 1, 2, 2]


def not_mounted(pushed: Pushed) -> Outcome:
    return sessions.failing(said=f"InputError: {PRETRAIN}: {kernel_folders.NOT_MOUNTED}; attached are datasets/alice/cellsignal-utils\n")


def test_what_kaggle_did_not_mount_is_mounted_from_the_second_slug(server: FakeKaggle, call: Call) -> None:
    server.runner = sessions.in_turn(server, out_of_time(server, "pretrain, epoch 3 of 9"), not_mounted)
    assert call(only="2", until_done=True) == {}
    first, second = (f"alice/cellsignal-tiny-2-pretrain-controls-rpe{end}" for end in ("", "-b"))
    assert [expected(pushed) for pushed in server.kernels[first]] == [[], [PRETRAIN]]
    assert server.kernels[second][0].mounts["notebooks"] == {first: server.kernels[first][0].outcome.folder}


def test_what_is_nowhere_to_be_mounted_begins_anew(server: FakeKaggle, call: Call) -> None:
    server.runner = sessions.in_turn(server, out_of_time(server, "pretrain, epoch 3 of 9"), not_mounted, not_mounted)
    with pytest.raises(StepFailed, match=f"^{PRETRAIN}: .*{kernel_folders.NOT_MOUNTED}.*; give the same command again to start it over"):
        call(only="2", until_done=True)
    assert call(only="2", until_done=True) == {}
    last = server.kernels["alice/cellsignal-tiny-2-pretrain-controls-rpe"][-1]
    assert last.mounts["notebooks"] == {} and expected(last) == []


def test_two_slugs_where_kaggle_refuses_a_kernel_as_its_own_source(server: FakeKaggle, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    server.refuse_self = True
    goes_on = threading.Event()
    stray = lambda pushed: goes_on.wait(60) and sessions.work(pushed, server, complete=False, progress="pretrain, epoch 1 of 9")  # noqa: E731
    turns = [out_of_time(server, "pretrain, epoch 3 of 9"), stray, out_of_time(server, "pretrain, epoch 6 of 9")]
    server.runner = sessions.in_turn(server, *turns)
    first, second = (f"alice/cellsignal-tiny-2-pretrain-controls-rpe{end}" for end in ("", "-b"))
    assert call(cell_type="RPE", until_done=True) == {}
    assert pushes(server) == [f"2-pretrain-controls-rpe{end}" for end in ("", "", "-b", "")] + ["3-train-cell-type-rpe"]
    earlier = server.kernels[first][0].outcome.folder
    assert server.kernels[second][0].mounts["notebooks"] == {first: earlier}  # not what runs from the beginning
    assert list(server.kernels[first][2].mounts["notebooks"]) == [second]
    [trained] = server.kernels["alice/cellsignal-tiny-3-train-cell-type-rpe"]
    assert list(trained.mounts["notebooks"]) == [first]  # the slug that ran last
    assert server.most_running[True] == 2 and "under a second slug" in capsys.readouterr().out
    goes_on.set()
    server.wait()


def test_two_slugs_where_kaggle_says_so_in_other_words(server: FakeKaggle, call: Call) -> None:
    server.refuse_self = "A notebook cannot use itself as a data source."
    server.runner = sessions.in_turn(server, *(out_of_time(server, f"pretrain, epoch {epoch} of 9") for epoch in (3, 6)))
    assert call(only="2", until_done=True) == {}
    assert pushes(server) == [f"2-pretrain-controls-rpe{end}" for end in ("", "", "-b", "")]
    assert not [pushed for pushed in push_state.read(server.folder.parent / "build").steps.values() if pushed.stray]
