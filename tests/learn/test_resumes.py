"""Interrupted in any way, a training goes on to the very same weights; tests/slow proves it thirty times over."""

import multiprocessing
import os
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import trainings
from trainings import Epochs, cut_short, small

from cellsignal.errors import InputError
from cellsignal.files import read_json, sha256
from cellsignal.budget import Budget, DeadlineMonitor, TimeSpent
from cellsignal.learn.training.checkpoint import Checkpoint
from cellsignal.receipts import Receipt

NAMES = [f"{name}.safetensors" for name in trainings.PHASES]


@pytest.fixture(scope="module")
def plates(patches: tuple[Path, pd.DataFrame], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root, sites = patches
    table = tmp_path_factory.mktemp("sites") / "sites.csv"
    sites.to_csv(table, index=False)
    return {"root": str(root), "sites": str(table)}


@pytest.fixture(scope="module")
def undisturbed(plates: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert session(plates, folder) == 0
    return [sha256(folder / name) for name in NAMES]


def session(plates: dict[str, str], folder: Path, *, after: float | None = None, **ends: object) -> int:
    """One session in a process of its own, killed `after` so many seconds; gives its exit code."""
    process = multiprocessing.get_context("fork").Process(target=trainings.session, kwargs={**plates, "folder": str(folder), **ends})
    process.start()
    process.join(after)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode


@pytest.mark.parametrize("how", ["half", "before", "after"])
def test_killed_while_a_checkpoint_is_written(plates: dict[str, str], undisturbed: list[str], tmp_path: Path, how: str) -> None:
    for which in (1, 4):  # tensors of the next epoch, and then JSON of the one after it; slow tests kill at thirty more moments
        assert session(plates, tmp_path, death=(how, which)) == -9
    assert session(plates, tmp_path) == 0
    assert [sha256(tmp_path / name) for name in NAMES] == undisturbed


def test_killed_at_any_moment(plates: dict[str, str], undisturbed: list[str], tmp_path: Path) -> None:
    for after in (0.3, 0.5, 0.7):
        session(plates, tmp_path, after=after)
    assert session(plates, tmp_path) == 0
    assert [sha256(tmp_path / name) for name in NAMES] == undisturbed


def test_out_of_time_and_on_from_what_the_last_session_left(
    plates: dict[str, str], undisturbed: list[str], tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    folders, words = [], ""
    while words != "whole":
        here, carry = tmp_path / str(len(folders)), {}
        here.mkdir()
        if folders:
            folders[-1].chmod(0o555)
            carry = {"elsewhere": str(folders[-1])}
            for name in NAMES:
                trainings.take_up(folders[-1] / name, here)
        seconds = 0.5 + 0.2 * len(folders)
        began = time.monotonic()
        assert session(plates, here, seconds=seconds, **carry) == 0
        assert time.monotonic() - began < seconds + 60
        words = capfd.readouterr().out.split("\n")[-2]
        folders.append(here)
    assert len(folders) >= 2 and [sha256(folders[-1] / name) for name in NAMES] == undisturbed


def test_a_spent_budget_says_how_far_the_phase_came(patches: tuple, tmp_path: Path) -> None:
    seen = []
    options = {"budget": Epochs(2), "on_epoch": lambda history: seen.append([row["epoch"] for row in history])}
    assert cut_short(patches, tmp_path / "model.safetensors", options=options) == "train, epoch 2 of 4"
    assert seen == [[1], [1, 2]]
    assert read_json(tmp_path / "model.checkpoint.json")["details"]["epoch"] == 2 and not (tmp_path / "model.safetensors").exists()


def test_an_epoch_that_would_be_late_is_not_begun(patches: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began, now = [], [1000.0]
    monkeypatch.setattr("cellsignal.budget.time.time", lambda: now[0])
    def slow(*arguments, **options) -> dict:
        began.append(now[0])
        now[0] += 60
        return {"loss": 1.0, "accuracy": 0.5}
    ticks = iter(range(10**6))
    monkeypatch.setattr("cellsignal.learn.training.fit.train_epoch", slow)
    monkeypatch.setattr("cellsignal.learn.training.fit.time.perf_counter", lambda: now[0] + 1e-6 * next(ticks))
    budget = Budget(1000 + 200)
    assert cut_short(patches, tmp_path / "model.safetensors", epochs=9, watch=False, options={"budget": budget}) == "train, epoch 3 of 9"
    assert began == [1000, 1060, 1120], "20 seconds are left, and an epoch takes 60"


@pytest.mark.parametrize(("seconds", "images", "ends"), [
    (250, 0, [1060]), (310, 0, [1060, 1220]), (420, 0, [1060, 1220, 1380]), (310, 16 * 3 * 4, [1060]), (430, 16 * 3 * 4, [1060, 1220, 1380])])
def test_an_epoch_whose_labelling_would_be_late_is_not_begun(
    patches: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int, images: int, ends: list[int]
) -> None:
    """Epochs of 60 seconds, from the second one on with 100 of labelling, for which twice 60 are kept, or more for many images."""
    clock, ended = SimpleNamespace(_now=1000.0), []  # private: what a clock shows is no part of the code
    monkeypatch.setattr("cellsignal.budget.time.time", lambda: clock._now)
    def lasts(seconds: int, answer: object, told: list) -> object:
        clock._now += seconds
        told.append(clock._now)
        return answer
    slow = type("Slow", (), {"images_per_labelling": images, "__call__": lambda self, *told: lasts(100, np.full(16, -1), [])})()
    monkeypatch.setattr("cellsignal.learn.training.fit.train_epoch", lambda *given, **more: lasts(60, {"loss": 1.0, "accuracy": 0.5}, ended))
    monkeypatch.setattr("cellsignal.learn.training.fit.time.perf_counter", lambda: clock._now)
    rows = []
    options = {"budget": Budget(1000 + seconds), **trainings.pseudo(patches), "relabel": slow, "on_epoch": lambda history: rows.__setitem__(slice(None), history)}
    def train() -> None:
        with suppress(TimeSpent):
            small(patches, tmp_path / "model.safetensors", epochs=3, pseudo_label_epochs=2, watch=False, options=options)
    train()
    assert ended == ends
    assert [row.get("labelling_seconds") for row in rows] == [None, 100, 100][:len(ends)]
    options["budget"] = Budget(clock._now + 180)
    train()
    assert len(rows) == min(3, len(ends) + 1), "a session that begins with labelling does not guess"


def test_an_epoch_of_unknown_length_is_broken_off_and_leaves_no_trace(patches: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(patches, tmp_path / "whole/model.safetensors", batch_size=3)
    weights, budget = tmp_path / "parts/model.safetensors", Budget(time.time() + 1e6)
    monkeypatch.setattr(DeadlineMonitor, "is_late", lambda monitor: setattr(monitor, "num_done", monitor.num_done + 1) or monitor.num_done == 3)
    assert cut_short(patches, weights, batch_size=3, options={"budget": budget}) == "train, epoch 0 of 4"
    assert not list(tmp_path.glob("parts/*"))
    monkeypatch.undo()
    small(patches, weights, batch_size=3, options={"budget": Budget(time.time() + 1e6)})
    assert sha256(weights) == sha256(tmp_path / "whole/model.safetensors")


def test_pace_foresees_the_end_from_a_tenth_of_the_way_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("cellsignal.budget.time.time", lambda: now[0])
    monkeypatch.setattr("cellsignal.budget.time.monotonic", lambda: now[0])
    def first_late(deadline: float) -> int | None:
        now[0], pace = 0.0, DeadlineMonitor(Budget(deadline), 50)
        for part in range(1, 51):
            now[0] += 100.0 if part == 1 else 1.0  # kernels are compiled, files are read for the first time
            if pace.is_late():
                return part
        return None
    assert first_late(150) is None and first_late(149) is None
    assert first_late(148.5) == 5
    assert first_late(99) == 1, "the deadline itself is noticed at once"


def test_budgets() -> None:
    endless, over, long = Budget(), Budget(time.time() - 1), Budget(time.time() + 100)
    assert endless.fits(1e9) and long.fits(90) and not long.fits(110) and not over.fits(0)
    assert (endless.spent, endless.remaining, endless.note) == (False, float("inf"), "")
    long.stop("whole, epoch 1 of 2")
    assert long.spent and not long.fits(0) and long.remaining == 0


def left_off(patches: tuple, folder: Path, epochs: int, **options) -> Path:
    cut_short(patches, folder / "model.safetensors", options={"budget": Epochs(epochs), **options})
    return folder


@pytest.mark.parametrize("order", [(1, 3, 2), (3, 2, 1)])
def test_the_checkpoint_that_came_furthest_is_taken_up(patches: tuple, tmp_path: Path, order: tuple[int, ...]) -> None:
    folders = [left_off(patches, tmp_path / str(epochs), epochs) for epochs in order]
    seen, weights = [], tmp_path / "here/model.safetensors"
    cut_short(patches, weights, options={"budget": Epochs(0), "resume_folders": [tmp_path / "absent", *folders]})
    assert read_json(tmp_path / "here/model.checkpoint.json")["details"]["epoch"] == 3, "at once: the next session may see only this folder"
    small(patches, weights, options={"on_epoch": lambda history: seen.append(len(history))})
    small(patches, tmp_path / "whole/model.safetensors")
    assert seen == [4] and sha256(weights) == sha256(tmp_path / "whole/model.safetensors")
    assert all(len(list(folder.iterdir())) == 2 for folder in folders), "what is elsewhere stays as it is"


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "json", "edited", "stranger", "epoch", "digest", "deep"])
def test_a_damaged_or_foreign_checkpoint_elsewhere_gives_way(patches: tuple, tmp_path: Path, damage: str) -> None:
    good, bad = left_off(patches, tmp_path / "good", 2), left_off(patches, tmp_path / "bad", 3)
    tensors, facts = next(bad.glob("*.safetensors")), bad / "model.checkpoint.json"
    content = bytearray(tensors.read_bytes())
    content[-100] ^= 4
    told = Receipt.read(facts)
    {"flip": lambda: tensors.write_bytes(content), "truncate": lambda: tensors.write_bytes(content[:200]), "delete": tensors.unlink,
     "json": lambda: facts.write_text("{"), "edited": lambda: facts.write_text(facts.read_text().replace('"loss": ', '"loss": 1')),
     "stranger": lambda: replace(told, identity={**told.identity, "seed": 5}).write(),
     "epoch": lambda: replace(told, details={**told.details, "epoch": "three"}).write(), "digest": lambda: replace(told, outputs={tensors.name: [told.outputs]}).write(),
     "deep": lambda: facts.write_text("[" * 100_000)}[damage]()
    seen = []
    small(patches, tmp_path / "here/model.safetensors",
          options={"resume_folders": [bad, good], "on_epoch": lambda history: seen.append(len(history))})
    assert seen == [3, 4]


def test_our_own_checkpoint_wins_unless_another_came_further(patches: tuple, tmp_path: Path) -> None:
    other, here = left_off(patches, tmp_path / "other", 2), left_off(patches, tmp_path / "here", 2)
    before = (here / "model.checkpoint.json").stat().st_ino
    cut_short(patches, here / "model.safetensors", options={"resume_folders": [other, here], "budget": Epochs(0)})
    assert (here / "model.checkpoint.json").stat().st_ino == before
    tensors = next(here.glob("*.safetensors"))
    os.truncate(tensors, 100)
    cut_short(patches, here / "model.safetensors", options={"resume_folders": [other], "budget": Epochs(0)})
    assert sha256(tensors) == read_json(here / "model.checkpoint.json")["outputs"][tensors.name]


def test_a_checkpoint_names_no_file_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"")
    folder = tmp_path / "attached"
    folder.mkdir()
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    Receipt(folder / "m.checkpoint.json", {}, {"../secret": empty}, details={"epoch": 1}).write()
    Checkpoint(tmp_path / "here/m.safetensors", fingerprint={}).copy_latest([folder])
    assert not (tmp_path / "here").exists()


def test_a_loss_that_is_no_number_is_no_checkpoint(patches: tuple, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the loss is"):
        small(patches, tmp_path / "model.safetensors", learning_rate=1e30)
    assert all(read_json(path)["details"]["rows"][-1]["loss"] < 1e30 for path in tmp_path.glob("*.json"))


def test_a_checkpoint_whose_tensors_cannot_be_read_gives_way(tmp_path: Path) -> None:
    for content in (b"", (10**18).to_bytes(8, "little"), b"\x02" + bytes(7) + b"[]"):
        (tmp_path / "m.checkpoint-1.safetensors").write_bytes(content)
        digest = sha256(tmp_path / "m.checkpoint-1.safetensors")
        Receipt(tmp_path / "m.checkpoint.json", {}, {"m.checkpoint-1.safetensors": digest}, details={"epoch": 1}).write()
        assert Checkpoint(tmp_path / "m.safetensors", fingerprint={}).load() is None
