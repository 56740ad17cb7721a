"""Training learns, remembers, resumes bit for bit, and trusts no damaged file."""

from pathlib import Path

import pytest
import torch

from cellsignal.errors import InputError
from cellsignal.files import read_json, sha256
from cellsignal.learn.batches import SiteImages
from cellsignal.learn.models import BACKBONES, Classifier, load_body, load_weights
from cellsignal.learn.phases import Phase, learning_rate_at
from cellsignal.learn.train import fit

CLASSES = [0, 10, 20, 30]


class Killed(Exception):
    pass


def train(patches: tuple, weights: Path, *, epochs: int = 4, on_epoch=lambda history: None, **changes) -> list[dict]:
    root, sites = patches
    first = sites["experiment"] == "HUVEC-01"
    data, held_out = (SiteImages(root, part, class_numbers=CLASSES, cache=True) for part in (sites[first], sites[~first]))
    phase = Phase(**{"name": "train", "epochs": epochs, "batch_size": 8, "learning_rate": 3e-3} | changes)
    model = Classifier("densenet-small", channels=6, classes=4)
    return fit(model, data, held_out=held_out, weights=weights, on_epoch=on_epoch, phase=phase)


def test_it_learns_and_writes_weights_that_load(patches: tuple, tmp_path: Path) -> None:
    history = train(patches, tmp_path / "model.safetensors", epochs=12)
    assert history[-1]["loss"] < history[0]["loss"] / 3
    assert max(row["held_out_accuracy"] for row in history) == 1
    model, card = load_weights(tmp_path / "model.safetensors")
    assert (card.class_numbers, card.well_types, model.classes) == (CLASSES, ["treatment"], 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


@pytest.mark.parametrize("kills", [(1,), (1, 2, 3)])
def test_killed_and_resumed_equals_undisturbed_bit_for_bit(patches: tuple, tmp_path: Path, kills: tuple[int, ...]) -> None:
    train(patches, tmp_path / "whole/model.safetensors")
    for kill in kills:
        def die(history: list, kill: int = kill) -> None:
            if len(history) == kill:
                raise Killed
        with pytest.raises(Killed):
            train(patches, tmp_path / "parts/model.safetensors", on_epoch=die)
    history = train(patches, tmp_path / "parts/model.safetensors")
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert sha256(tmp_path / "whole/model.safetensors") == sha256(tmp_path / "parts/model.safetensors")


def test_a_finished_training_is_not_repeated_and_a_changed_one_is(patches: tuple, tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    first = train(patches, weights)
    assert train(patches, weights) == first
    assert [row["learning_rate"] for row in train(patches, weights, learning_rate=1e-3)] != [row["learning_rate"] for row in first]


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_a_damaged_checkpoint_is_not_trusted(patches: tuple, tmp_path: Path, damage: str) -> None:
    train(patches, tmp_path / "whole/model.safetensors")
    weights = tmp_path / "model.safetensors"
    def die(history: list) -> None:
        raise Killed
    with pytest.raises(Killed):
        train(patches, weights, on_epoch=die)
    tensors = next(tmp_path.glob("*.checkpoint-*.safetensors"))
    content = bytearray(tensors.read_bytes())
    content[-100] ^= 4
    {"truncate": lambda: tensors.write_bytes(content[:200]), "flip": lambda: tensors.write_bytes(content),
     "delete": tensors.unlink}[damage]()
    train(patches, weights)
    assert sha256(weights) == sha256(tmp_path / "whole/model.safetensors")


@pytest.mark.parametrize("damage", ["[]", "{", '{"sha256": 3}'])
def test_a_damaged_card_means_training_again(patches: tuple, tmp_path: Path, damage: str) -> None:
    weights = tmp_path / "model.safetensors"
    train(patches, weights, epochs=1)
    before = sha256(weights)
    weights.with_suffix(".json").write_text(damage)
    train(patches, weights, epochs=1)
    assert sha256(weights) == before and load_weights(weights)


def test_damaged_or_foreign_weights_are_named(patches: tuple, tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    train(patches, weights, epochs=1)
    with pytest.raises(InputError, match="no such file.*run the step"):
        load_weights(tmp_path / "absent.safetensors")
    with pytest.raises(InputError, match="weights of a densenet-small do not fit the densenet121"):
        load_body(Classifier("densenet121", channels=6, classes=4), weights)
    content = bytearray(weights.read_bytes())
    content[-50] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InputError, match="differs from the SHA-256 on record"):
        load_weights(weights)


def test_the_body_moves_and_the_head_stays(patches: tuple, tmp_path: Path) -> None:
    weights = tmp_path / "pretrain.safetensors"
    train(patches, weights, epochs=1)
    model = Classifier("densenet-small", channels=6, classes=9, seed=5)
    head = model.head.weight.clone()
    assert load_body(model, weights) == read_json(tmp_path / "pretrain.json")["sha256"]
    trained, _ = load_weights(weights)
    assert torch.equal(model.body.features.conv0.weight, trained.body.features.conv0.weight)
    assert torch.equal(model.head.weight, head)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_takes_any_channels_and_learns(backbone: str) -> None:
    model = Classifier(backbone, channels=4, classes=3)
    images = torch.randint(0, 255, (6, 4, 32, 32), dtype=torch.uint8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        loss = torch.nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2, 0, 1, 2]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert model(images).shape == (6, 3) and losses[-1] < losses[0]
    with pytest.raises(InputError, match="unknown backbone 'resnet'"):
        Classifier("resnet", channels=6, classes=2)


def test_the_rate_falls_where_the_slides_say() -> None:
    rates = [learning_rate_at(epoch, 375, 1e-3, schedule="steps") for epoch in (0, 319, 320, 349, 350)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5])
    assert learning_rate_at(50, 100, 1.0, schedule="cosine") == pytest.approx(0.5)
