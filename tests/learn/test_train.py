"""Training learns, remembers, resumes bit for bit, and trusts no damaged file."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
import torch
from trainings import small

from cellsignal.learn.settings import MachineSettings, TrainingSettings
from building import history_of, make_network, make_phase, train_phase
from cellsignal.errors import InputError
from cellsignal.files import read_json, sha256
from cellsignal.learn.batches.dataset import SiteImages
from cellsignal.learn.networks.classifier import Classifier, load_body, load_weights
from cellsignal.run import environment
from cellsignal.run.chain import plans
from cellsignal.run.chain.progress import ChainProgress
from cellsignal.run.recipe import Recipe

CLASSES = [0, 10, 20, 30]


class Killed(Exception):
    pass


def train(patches: tuple, weights: Path, *, epochs: int = 4, on_epoch=lambda history: None, model: Classifier | None = None,
          watch: bool = True, history: tuple | list = (), **changes) -> list[dict]:
    root, sites = patches
    first = sites["experiment"] == "HUVEC-01"
    data, held_out = (SiteImages(root, part, class_numbers=CLASSES, cache=True) for part in (sites[first], sites[~first]))
    machine = {key: changes.pop(key) for key in list(changes) if key in MachineSettings.model_fields}
    phase = make_phase(**{"name": "train", "epochs": epochs, "batch_size": 8, "learning_rate": 3e-3} | changes)
    return train_phase(model or make_network("densenet-small", channels=6, classes=4), data, phase=phase, weights=weights, held_out=held_out if watch else None, history=history, on_epoch=on_epoch, **machine)


def killed_after(epochs: int):
    def die(history: list) -> None:
        if len(history) == epochs:
            raise Killed
    return die


def test_it_learns_and_writes_weights_that_load(patches: tuple, tmp_path: Path) -> None:
    history = train(patches, tmp_path / "model.safetensors", epochs=12)
    assert history[-1]["loss"] < history[0]["loss"] / 3
    assert max(row["held_out_accuracy"] for row in history) == 1
    model, card = load_weights(tmp_path / "model.safetensors")
    assert (card.class_numbers, card.well_types, model.classes) == (CLASSES, ["treatment"], 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


KINDS = {
    "whole": {},
    "virtual batch": {"batch_size": 3, "virtual_batch": 7},
    "head": {"trainable": "head", "virtual_batch": 16},
    "final": {"mixup_alpha": 0.4, "keep": "last", "watch": False, "schedule": "constant"},
    "bf16": {"precision": "bf16"},
}


@pytest.mark.parametrize("kills", [(1,), (1, 2, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_resumed_equals_undisturbed_bit_for_bit(patches: tuple, tmp_path: Path, kind: str, kills: tuple[int, ...]) -> None:
    train(patches, tmp_path / "whole/model.safetensors", **KINDS[kind])
    for kill in kills:
        with pytest.raises(Killed):
            train(patches, tmp_path / "parts/model.safetensors", on_epoch=killed_after(kill), **KINDS[kind])
    history = train(patches, tmp_path / "parts/model.safetensors", **KINDS[kind])
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert sha256(tmp_path / "whole/model.safetensors") == sha256(tmp_path / "parts/model.safetensors")


@pytest.fixture
def shown(tmp_path: Path) -> Callable[..., tuple]:
    """Tells what a terminal shows of the training in tmp_path/weights/RPE: (epochs done, of how many, in words)."""
    plan = plans.plan(Recipe(training=TrainingSettings(final_epochs=1)), ["RPE"], kernels=environment.kernels_folder())
    step = next(step for step in plan if step.name == "3-train-cell-type@RPE")
    progress = ChainProgress(tmp_path)
    progress.started(step)
    def look(*, begin: bool = False) -> tuple:
        if begin:
            progress.ended(step, seconds=0.0, reused=False)
            progress.started(step)
        progress.refresh()
        bar = progress.bars.tasks[-1]
        return bar.completed, bar.total, bar.fields["note"]
    return look


def test_a_terminal_shows_the_epochs_of_the_phase_that_runs(patches: tuple, tmp_path: Path, shown: Callable) -> None:
    seen = []
    def watched(history: list) -> None:
        seen.append(shown())
        killed_after(2)(history)
    for name in ("model", "head"):  # the first one's checkpoint stays
        with pytest.raises(Killed):
            train(patches, tmp_path / f"weights/RPE/{name}.safetensors", name=name, on_epoch=watched)
    assert seen == [(1, 4, "model, epoch 1/4"), (2, 4, "model, epoch 2/4"), (1, 4, "head, epoch 1/4"), (2, 4, "head, epoch 2/4")]


def test_what_an_earlier_run_left_is_shown_when_its_phase_goes_on(
    patches: tuple, tmp_path: Path, shown: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, seen = tmp_path / "weights/RPE/final.safetensors", []
    with pytest.raises(Killed):
        train(patches, weights, name="final", on_epoch=killed_after(2))
    assert shown(begin=True) == (0, None, ""), "nothing of this step yet"
    monkeypatch.setattr("cellsignal.learn.training.fit.train_epoch", lambda *_, **__: seen.append(shown()) or killed_after(0)([]))
    with pytest.raises(Killed):
        train(patches, weights, name="final", epochs=3)
    assert seen == [(0, None, "")], "another training, which begins at its beginning"
    with pytest.raises(Killed):
        train(patches, weights, name="final")
    assert seen[1:] == [(2, 4, "final, epoch 2/4")]


def test_a_resumed_scaler_goes_on_where_it_was(patches: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    def scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
        made.append(torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=3))
        return made[-1]
    monkeypatch.setattr("cellsignal.learn.training.checkpoint.gradient_scaler", scaler)
    train(patches, tmp_path / "whole/model.safetensors")
    with pytest.raises(Killed):
        train(patches, tmp_path / "parts/model.safetensors", on_epoch=killed_after(2))
    train(patches, tmp_path / "parts/model.safetensors")
    whole, _, parts = made
    assert parts.state_dict() == whole.state_dict() and whole.get_scale() > 2.0**20
    assert sha256(tmp_path / "whole/model.safetensors") == sha256(tmp_path / "parts/model.safetensors")


def test_fp16_with_its_scaler_learns_and_resumes(patches: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU without native bf16, here on the CPU, which computes fp16 slowly: `resolve` alone is replaced."""
    monkeypatch.setattr("cellsignal.learn.devices.resolve_precision", lambda device, precision="auto": "fp16")
    whole = train(patches, tmp_path / "whole/model.safetensors", virtual_batch=16)
    with pytest.raises(Killed):
        train(patches, tmp_path / "parts/model.safetensors", virtual_batch=16, on_epoch=killed_after(2))
    assert read_json(tmp_path / "parts/model.checkpoint.json")["details"]["scaler"]["scale"] > 0
    train(patches, tmp_path / "parts/model.safetensors", virtual_batch=16)
    assert sha256(tmp_path / "whole/model.safetensors") == sha256(tmp_path / "parts/model.safetensors")
    assert whole[-1]["loss"] < whole[0]["loss"]
    assert {tensor.dtype for tensor in load_weights(tmp_path / "whole/model.safetensors")[0].state_dict().values()} == {torch.float32, torch.int64}


def test_phases_follow_one_another_and_tell_one_story(patches: tuple, tmp_path: Path) -> None:
    def story(on_epoch=lambda history: None) -> Classifier:
        model, history = make_network("densenet-small", channels=6, classes=4), ()
        for name, changes in {"head": {"trainable": "head"}, "whole": {}, "final": {"mixup_alpha": 0.4, "watch": False}}.items():
            history = train(patches, tmp_path / f"{name}.safetensors", epochs=2, name=name, model=model, history=history,
                            on_epoch=on_epoch, **changes)
        return model
    with pytest.raises(Killed):
        story(killed_after(3))
    first = story()
    rows = history_of(tmp_path / "final.safetensors")
    assert [(row["phase"], row["epoch"]) for row in rows] == [(name, n) for name in ("head", "whole", "final") for n in (1, 2)]
    assert [row["held_out_accuracy"] is None for row in rows] == [False] * 4 + [True] * 2
    again = story(on_epoch=lambda history: [row["phase"] for row in history])
    assert rows == history_of(tmp_path / "final.safetensors"), "nothing was trained again"
    assert first.origin == again.origin == read_json(tmp_path / "final.json")["outputs"]["final.safetensors"]
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in first.state_dict().items())


def test_a_phase_after_another_beginning_is_another_training(patches: tuple, tmp_path: Path) -> None:
    def after(learning_rate: float) -> list[dict]:
        model = make_network("densenet-small", channels=6, classes=4)
        train(patches, tmp_path / "head.safetensors", epochs=1, model=model, trainable="head", learning_rate=learning_rate)
        return train(patches, tmp_path / "whole.safetensors", epochs=1, model=model)
    assert after(1e-3) == after(1e-3) != after(2e-3)


def test_the_head_learns_and_the_body_stays(patches: tuple, tmp_path: Path) -> None:
    model = make_network("densenet-small", channels=6, classes=4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    history = train(patches, tmp_path / "head.safetensors", model=model, trainable="head", learning_rate=3e-2, epochs=8)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.weight", "head.bias"}, "not a weight, not a running statistic of the body"
    assert history[-1]["loss"] < history[0]["loss"] and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(("keep", "watch"), [("best", True), ("last", True), ("last", False), ("best", False)])
def test_the_best_or_the_last_weights_are_kept(patches: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str, watch: bool) -> None:
    accuracies = iter([0.2, 0.6, 0.1, 0.5])
    monkeypatch.setattr("cellsignal.learn.training.fit.evaluate", lambda model, held_out, **rest: next(accuracies) if held_out else None)
    model, seen = make_network("densenet-small", channels=6, classes=4), []
    train(patches, tmp_path / "model.safetensors", model=model, keep=keep, watch=watch,
          on_epoch=lambda history: seen.append(model.head.weight.detach().clone()))
    kept = seen[1 if keep == "best" and watch else 3]
    assert torch.equal(model.head.weight, kept)
    assert torch.equal(load_weights(tmp_path / "model.safetensors")[0].head.weight, kept)


def test_no_epochs_keep_what_was_there(patches: tuple, tmp_path: Path) -> None:
    model = make_network("densenet-small", channels=6, classes=4)
    before = model.head.weight.detach().clone()
    earlier = train(patches, tmp_path / "a.safetensors", epochs=1)
    assert train(patches, tmp_path / "b.safetensors", epochs=0, model=model, history=earlier) == earlier
    assert torch.equal(load_weights(tmp_path / "b.safetensors")[0].head.weight, before)


def test_a_loss_that_is_no_number_ends_the_training_in_words(patches: tuple, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="phase train: the loss is (nan|inf) in epoch .*; lower training.learning_rate"):
        train(patches, tmp_path / "model.safetensors", learning_rate=1e30)


def test_a_network_that_is_told_the_plate_learns_it(patches: tuple, tmp_path: Path) -> None:
    told = {"plate": ["1", "2", "3"]}
    model = make_network("densenet-small", channels=6, classes=4, levels=told)
    before = model.head.weight.detach().clone()
    train(patches, tmp_path / "model.safetensors", model=model, epochs=2)
    loaded, card = load_weights(tmp_path / "model.safetensors")
    assert card.covariates == loaded.covariates == told and card.scope == "plate"
    assert torch.equal(loaded.head.weight, model.head.weight)
    moved = (model.head.weight - before).abs().amax(0)[-3:]
    assert moved[0] > 0 and moved[1] > 0 and moved[2] == 0, "no site lies on a third plate"


def test_a_finished_training_is_not_repeated_and_a_changed_one_is(patches: tuple, tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    first = train(patches, weights)
    assert train(patches, weights) == first
    assert [row["learning_rate"] for row in train(patches, weights, learning_rate=1e-3)] != [row["learning_rate"] for row in first]


@pytest.mark.parametrize("epochs", [0, 2])
def test_a_kept_phase_tells_the_story_that_led_to_it_now(patches: tuple, tmp_path: Path, epochs: int) -> None:
    """Other pretraining may keep the same weights, its best ones; the curve is the new one, the weights stay."""
    weights = tmp_path / "model.safetensors"
    old, new = ([{"phase": "controls", "epoch": n, "loss": 1 / n} for n in range(1, last + 1)] for last in (2, 3))
    own = train(patches, weights, epochs=epochs, history=old)[2:]
    when, facts = weights.stat().st_mtime_ns, read_json(tmp_path / "model.json")
    for before in (new, [], old):
        assert train(patches, weights, epochs=epochs, history=before) == history_of(weights) == [*before, *own]
    assert len(own) == epochs and weights.stat().st_mtime_ns == when and read_json(tmp_path / "model.json") == facts


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_a_damaged_checkpoint_is_not_trusted(patches: tuple, tmp_path: Path, damage: str) -> None:
    train(patches, tmp_path / "whole/model.safetensors")
    weights = tmp_path / "model.safetensors"
    with pytest.raises(Killed):
        train(patches, weights, on_epoch=killed_after(1))
    tensors = next(tmp_path.glob("*.checkpoint-*.safetensors"))
    content = bytearray(tensors.read_bytes())
    content[-100] ^= 4
    {"truncate": lambda: tensors.write_bytes(content[:200]), "flip": lambda: tensors.write_bytes(content),
     "delete": tensors.unlink}[damage]()
    train(patches, weights)
    assert sha256(weights) == sha256(tmp_path / "whole/model.safetensors")


@pytest.mark.parametrize("damage", ["[]", "{", '{"sha256": 3}', "a class number"])
def test_a_damaged_card_means_training_again(patches: tuple, tmp_path: Path, damage: str) -> None:
    weights, card = tmp_path / "model.safetensors", tmp_path / "model.json"
    train(patches, weights, epochs=1)
    before, told = sha256(weights), card.read_text()
    card.write_text(re.sub(r'("class_numbers": \[\s+)0,', r'\g<1>1,', told, count=1) if damage == "a class number" else damage)
    assert card.read_text() != told
    train(patches, weights, epochs=1)
    assert sha256(weights) == before and load_weights(weights)[1].class_numbers == json.loads(told)["identity"]["class_numbers"]


def test_damaged_or_foreign_weights_are_named(patches: tuple, tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    train(patches, weights, epochs=1)
    with pytest.raises(InputError, match="no such weights; run 3-train-cell-type, which writes them"):
        load_weights(tmp_path / "absent.safetensors")
    with pytest.raises(InputError, match="weights of a densenet-small do not fit the densenet121"):
        load_body(make_network("densenet121", channels=6, classes=4), weights)
    content = bytearray(weights.read_bytes())
    content[-50] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InputError, match="differs from the SHA-256 on record"):
        load_weights(weights)


def test_other_images_of_the_same_sites_are_learnt_anew(patches: tuple, tmp_path: Path) -> None:
    """The same wells and labels at another size, or drawn again: weights and checkpoints of the old images are of no use."""
    root, sites = patches
    shutil.copytree(root, tmp_path / "images")
    for name, change in {"same": lambda image: image, "darker": lambda image: image // 2, "larger": lambda image: image.repeat(2, 0).repeat(2, 1)}.items():
        for path in (tmp_path / "images").rglob("*.png"):
            cv2.imwrite(str(path), change(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)))
        small((tmp_path / "images", sites), tmp_path / "model.safetensors", epochs=1)
        shutil.copyfile(tmp_path / "model.safetensors", tmp_path / f"{name}.safetensors")
        small((tmp_path / "images", sites), tmp_path / f"new/{name}.safetensors", epochs=1)
        assert sha256(tmp_path / f"{name}.safetensors") == sha256(tmp_path / f"new/{name}.safetensors")
