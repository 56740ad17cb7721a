"""Pushing with the real client: order, sessions, failures that end in one line, and second calls that go on."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sessions
from holdings import Dataset
from server import FakeKaggle, Outcome, Pushed

from cellsignal.errors import InputError, StepFailed
from cellsignal.publish import client as kaggle
from cellsignal.publish import earlier, order, push, state, utilities, watch
from cellsignal.publish.refusals import LoginFailed, QuotaSpent, RateLimited, ServerError, Unreachable
from cellsignal.run import paths, provenance, recipe, sources

ROOT = Path(__file__).resolve().parents[2]
PRETRAIN, TRAIN, PREDICT, EDA = "2-pretrain-controls@RPE", "3-train-cell-type@RPE", "4-predict-assign", "1-eda"
Connect = Callable[..., dict[str, str]]
Call = Callable[..., dict[str, str]]


@pytest.fixture(autouse=True)
def same_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the package's files hold is no matter here."""
    monkeypatch.setattr(provenance, "code_digest", lambda *package: "code")
    monkeypatch.setattr(sources, "closure", lambda code: {})


@pytest.fixture
def server(tmp_path: Path, clients: dict[str, Path], connect: Connect) -> Iterator[FakeKaggle]:
    """A Kaggle whose sessions end well, and the newest client."""
    with FakeKaggle(tmp_path / "kaggle") as server:
        server.runner = lambda pushed: sessions.work(pushed, server)
        connect(server, clients["2.2.5"])
        yield server


@pytest.fixture
def call(server: FakeKaggle, tmp_path: Path) -> Call:
    """call("-p", …, only=…, cell_type=…, until_done=…): one call of push for the tiny recipe with one cell type."""

    def upload() -> None:
        server.datasets.setdefault("alice/cellsignal-utils", Dataset("CellSignal utils", [tmp_path]))

    def called(*overrides: str, only: str = "", cell_type: str = "", types: str = "[RPE]", upload: Callable[[], None] = upload, **waiting: object) -> dict[str, str]:
        checked = recipe.load(ROOT / "papermill_params/tiny.yaml", [f"cell_types={types}", *overrides])
        plan = order.plan(checked, name="tiny", owner="alice", kernels=paths.kernels(), whole=only == "0-chain")
        with state.opened(tmp_path / "build") as pushed:
            options = push.Waiting(**{"interval": 0.05, "patience": 60.0, **waiting})
            return push.Press(plan, pushed, upload, options).drive(order.choose(plan, only=only, cell_type=cell_type))

    return called


def pushes(server: FakeKaggle) -> list[str]:
    """The slugs of all pushes that Kaggle took, in order, without what all have in common."""
    return [body["slug"].removeprefix("alice/cellsignal-tiny-") for body in server.sent("SaveKernel")]


def test_a_recipe_goes_through_both_clients(server: FakeKaggle, client: Path, connect: Connect, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    connect(server, client)

    side_by_side = threading.Barrier(2, timeout=60)

    def work(pushed: Pushed) -> Outcome:
        if "pretrain" in pushed.slug:
            side_by_side.wait()
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
    assert push.SESSIONS == server.sessions == {True: 2, False: 5}
    monkeypatch.setitem(push.SESSIONS, True, 1)
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
    for overrides in ([], ["workers=2"], ["epochs=3"]):
        assert call(*overrides, cell_type="RPE") == {}
    assert pushes(server) == ["2-pretrain-controls-rpe", "3-train-cell-type-rpe", "3-train-cell-type-rpe"]
    said = capsys.readouterr().out
    assert (said.count(f"{PRETRAIN} kept"), said.count(f"{TRAIN} kept")) == (2, 1)


def test_waits_while_all_sessions_are_taken(server: FakeKaggle, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    server.busy = 3
    call(only="1")
    assert len(pushes(server)) == 4 and len(server.kernels["alice/cellsignal-tiny-1-eda"]) == 1
    assert capsys.readouterr().out.count("Maximum batch CPU session count of 5 reached") == 1


def test_sessions_stay_taken_longer_than_anybody_waits(server: FakeKaggle, call: Call) -> None:
    server.busy = 1000
    with pytest.raises(StepFailed, match=r"^no free session: .*Maximum batch CPU.* after 0.000\d+ hours; .*--patience"):
        call(only="1", patience=1.0)
    server.busy = 0
    assert call(only="1") == {}


def test_a_session_outlasts_the_patience_and_is_waited_for_again(server: FakeKaggle, call: Call) -> None:
    goes_on = threading.Event()
    server.runner = lambda pushed: goes_on.wait(60) and sessions.work(pushed, server)
    with pytest.raises(StepFailed, match=r"^1-eda: still running after .*; see https://www.kaggle.com/code/alice/cellsignal-tiny-1-eda; the same command waits on"):
        call(only="1", patience=1.0)
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
        call(only="1", patience=0.5)
    fails.set()
    server.wait()
    with pytest.raises(StepFailed, match="it ended with ERROR"):
        call(only="1")
    assert pushes(server) == ["1-eda"]
    assert call(only="1") == {} and pushes(server) == ["1-eda", "1-eda"]


def other_code(pushed: Pushed, server: FakeKaggle) -> Outcome:
    outcome = sessions.work(pushed, server)
    path = outcome.folder / "runs/tiny/manifests/1-eda.json"
    path.write_text(path.read_text().replace('"code": "code"', '"code": "older"'))
    return outcome


@pytest.mark.parametrize(
    "turn, words",
    [
        (lambda pushed, server: sessions.work(pushed, server, seed=1), "its seed is 1 and not 0"),
        (other_code, "it was made by other code"),
        (lambda pushed, server: Outcome(), "there is no manifest of 1-eda in runs/tiny"),
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


def out_of_time(server: FakeKaggle, progress: str) -> Callable[[Pushed], Outcome]:
    return lambda pushed: sessions.work(pushed, server, complete=False, progress=progress)


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
    with pytest.raises(StepFailed, match="no further than pretrain, epoch 3 of 9; raise time_budget_minutes"):
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
    return sessions.failing(said=f"InputError: {PRETRAIN}: {earlier.MISSING}; attached are datasets/alice/cellsignal-utils\n")


def test_what_kaggle_did_not_mount_is_mounted_from_the_second_slug(server: FakeKaggle, call: Call) -> None:
    server.runner = sessions.in_turn(server, out_of_time(server, "pretrain, epoch 3 of 9"), not_mounted)
    assert call(only="2", until_done=True) == {}
    first, second = (f"alice/cellsignal-tiny-2-pretrain-controls-rpe{end}" for end in ("", "-b"))
    assert [expected(pushed) for pushed in server.kernels[first]] == [[], [PRETRAIN]]
    assert server.kernels[second][0].mounts["notebooks"] == {first: server.kernels[first][0].outcome.folder}


def expected(pushed: Pushed) -> list[str]:
    """The steps whose earlier session a notebook asks for."""
    cells = ["".join(cell["source"]) for cell in pushed.notebook["cells"] if "expects-earlier" in cell["metadata"].get("tags", [])]
    return [cell.split("expect('")[1].split("'")[0] for cell in cells]


def test_what_is_nowhere_to_be_mounted_begins_anew(server: FakeKaggle, call: Call) -> None:
    server.runner = sessions.in_turn(server, out_of_time(server, "pretrain, epoch 3 of 9"), not_mounted, not_mounted)
    with pytest.raises(StepFailed, match=f"^{PRETRAIN}: .*{earlier.MISSING}.*; the same command begins it anew"):
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
    assert not [pushed for pushed in state.read(server.folder.parent / "build").steps.values() if pushed.stray]


def mend(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is not what it was: a comment of a file that each notebook uses."""
    monkeypatch.setattr(provenance, "code_digest", lambda *package: "mended")
    monkeypatch.setattr(sources, "closure", lambda code: {"learn/train.py": "mended"})


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
    monkeypatch.setattr(utilities, "codes_after", lambda code: uploaded[uploaded.index(code) + 1 :])
    server.runner = sessions.in_turn(server, out_of_time(server, "pretrain, epoch 3 of 9"), lambda pushed: mended(pushed, server))
    assert call(only="2", until_done=True) == {}
    assert f"{PRETRAIN} complete: made by newer code" in capsys.readouterr().out
    assert pushes(server) == ["2-pretrain-controls-rpe"] * 2


def mended(pushed: Pushed, server: FakeKaggle) -> Outcome:
    outcome = sessions.work(pushed, server)
    path = outcome.folder / f"runs/tiny/manifests/{PRETRAIN}.json"
    path.write_text(path.read_text().replace('"code": "code"', '"code": "mended"'))
    return outcome


def test_a_listing_of_the_session_before_is_not_believed(server: FakeKaggle, call: Call) -> None:
    server.runner = sessions.in_turn(server, out_of_time(server, "pretrain, epoch 3 of 9"))
    call(only="2")
    server.listings_late = 2  # it would say: no further than epoch 3
    assert call(only="2") == {}
    assert call("seed=5", only="2") == {}
    server.listings_late = 2  # it would say: its seed is 5
    assert call("seed=6", only="2") == {}
    assert len(pushes(server)) == 4


def test_a_listing_that_stays_that_of_the_session_before(server: FakeKaggle, call: Call) -> None:
    assert call(only="1") == {}
    server.listings_late = 100
    with pytest.raises(StepFailed, match="^1-eda: the output is of the wrong run: its manifest is that of the session before"):
        call("seed=5", only="1")


def test_a_session_with_other_parameters_is_waited_for_and_counted(server: FakeKaggle, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    goes_on = threading.Event()
    server.runner = sessions.in_turn(server, lambda pushed: goes_on.wait(60) and sessions.work(pushed, server))
    with pytest.raises(StepFailed, match="still running"):
        call(only="2", patience=0.3)
    threading.Timer(1.5, goes_on.set).start()
    server.sessions[True] = 1
    assert call("seed=5", only="2") == {}
    assert len(pushes(server)) == 2 and server.most_running[True] == 1
    said = capsys.readouterr().out
    assert said.count("waiting for its last push, which runs with other parameters or code; to go on at once delete it: https") == 1
    assert "Maximum" not in said


def test_the_queue_has_a_patience_of_its_own(server: FakeKaggle, call: Call) -> None:
    server.machines.clear()
    server.runner = lambda pushed: time.sleep(0.5) or sessions.work(pushed, server)  # long enough to be seen at work
    with pytest.raises(StepFailed, match=r"^1-eda: still queued after .*--queue says how long"):
        call(only="1", queue=0.5)
    threading.Timer(3.0, server.machines.set).start()
    assert call(only="1", patience=2.0) == {}  # which begins with the work
    assert pushes(server) == ["1-eda"]


def budgets(server: FakeKaggle) -> list[float]:
    return [sessions.given(pushed)["time_budget_minutes"] for versions in server.kernels.values() for pushed in versions]


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
    assert call("time_budget_minutes=5", only="2") == {}  # who asks for so little has it


def test_a_session_that_may_need_all_hours_has_them(server: FakeKaggle, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    """The second waits for what the first leaves, and neither fails."""
    server.gpu_hours = 1.6
    assert call(only="2", types="[]") == {}
    assert server.most_running[True] == 1 and len(pushes(server)) == 2
    assert capsys.readouterr().out.count("waiting: what runs may need the 1.6 GPU hours") == 1


def test_a_source_that_kaggle_does_not_know(server: FakeKaggle, call: Call) -> None:
    with pytest.raises(StepFailed) as failed:
        call(only="1", upload=lambda: None)
    assert str(failed.value).startswith("1-eda: push of alice/cellsignal-tiny-1-eda: ") and "alice/cellsignal-utils" in str(failed.value)
    assert call(only="1") == {}


@pytest.mark.parametrize("code, kind, times", [(401, LoginFailed, 1), (429, RateLimited, watch.FORGIVEN), (500, ServerError, watch.FORGIVEN)])
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
    assert sessions.given(pushed)["epochs"] == 2 and pushed.gpu


def test_another_call_on_the_same_recipe(server: FakeKaggle, call: Call, tmp_path: Path) -> None:
    with state.opened(tmp_path / "build"), pytest.raises(InputError, match="another push works on this recipe"):
        call(only="1")
    assert server.requests == []


def test_a_damaged_state_is_named(call: Call, tmp_path: Path) -> None:
    (tmp_path / "build").mkdir()
    for text in ("{", '{"steps": {"1-eda": {"slug": 1}}, "two_slugs": false}', "[]", '{"steps": []}'):
        (tmp_path / "build/state.json").write_text(text)
        with pytest.raises(InputError, match="state.json"):
            call(only="1")
