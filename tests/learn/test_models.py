"""Networks of any backbone, their body and their head, and the files they live in."""

from pathlib import Path

import pytest
import torch

from cellsignal.errors import InputError
from cellsignal.files import read_json, write_json
from cellsignal.learn.models import BACKBONES, Card, Classifier, load_body, load_weights, save_weights


def saved(path: Path, *, plates: int = 0, classes: int = 4) -> Classifier:
    model = Classifier("densenet-small", channels=6, classes=classes, plates=plates, seed=3)
    save_weights(path, model.state_dict(), Card("densenet-small", 6, list(range(classes)), ["treatment"], "experiment", plates))
    return model


def test_weights_come_back_with_all_the_card_says(tmp_path: Path) -> None:
    model = saved(tmp_path / "model.safetensors", plates=4)
    loaded, card = load_weights(tmp_path / "model.safetensors")
    assert (card.class_numbers, card.well_types, card.scope, card.plates) == ([0, 1, 2, 3], ["treatment"], "experiment", 4)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert model.origin == "seed 3" and loaded.origin == read_json(tmp_path / "model.json")["sha256"]


@pytest.mark.parametrize("absent", ["scope", "plates", "sha256", "backbone"])
def test_a_card_that_lacks_a_fact_is_refused_in_one_line(tmp_path: Path, absent: str) -> None:
    saved(tmp_path / "model.safetensors")
    card = read_json(tmp_path / "model.json")
    write_json(tmp_path / "model.json", {name: value for name, value in card.items() if name != absent})
    with pytest.raises(InputError, match=f"model.json: does not say {absent}; train again"):
        load_weights(tmp_path / "model.safetensors")


def test_a_card_that_is_no_card_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "model.safetensors")
    write_json(tmp_path / "model.json", [])
    with pytest.raises(InputError, match="does not describe weights"):
        load_weights(tmp_path / "model.safetensors")


@pytest.mark.parametrize("plates", [0, 4])
def test_the_body_moves_and_the_head_stays(tmp_path: Path, plates: int) -> None:
    taught = saved(tmp_path / "pretrain.safetensors", plates=4)
    model = Classifier("densenet-small", channels=6, classes=9, plates=plates, seed=5)
    head = model.head.weight.clone()
    assert load_body(model, tmp_path / "pretrain.safetensors") == model.origin == read_json(tmp_path / "pretrain.json")["sha256"]
    assert torch.equal(model.head.weight, head)
    for name, tensor in model.body.state_dict().items():
        assert torch.equal(tensor, taught.body.state_dict()[name]), name


def test_the_body_does_not_depend_on_the_number_of_classes() -> None:
    few, many = (Classifier("densenet-small", channels=6, classes=classes, seed=2) for classes in (3, 30))
    assert all(torch.equal(tensor, many.body.state_dict()[name]) for name, tensor in few.body.state_dict().items())


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
    assert model.body(images.float()).shape == (6, model.head.in_features)


def test_an_unknown_backbone_is_refused() -> None:
    with pytest.raises(InputError, match="unknown backbone 'resnet'.*densenet121"):
        Classifier("resnet", channels=6, classes=2)


@torch.inference_mode()
def test_the_plate_enters_as_a_one_hot_behind_the_pooling() -> None:
    model = Classifier("densenet-small", channels=6, classes=5, plates=3).eval()
    images = torch.randint(0, 255, (3, 6, 32, 32), dtype=torch.uint8)
    on = [model(images, torch.full((3,), plate)) for plate in range(3)]
    weight = model.head.weight[:, -3:]
    torch.testing.assert_close(on[1] - on[0], (weight[:, 1] - weight[:, 0]).expand(3, 5), rtol=1e-4, atol=1e-5)
    half = model(images, torch.tensor([[0.5, 0.5, 0.0]] * 3))
    torch.testing.assert_close(half, (on[0] + on[1]) / 2, rtol=1e-4, atol=1e-5)


def test_plates_that_lack_or_do_not_exist_are_named() -> None:
    model = Classifier("densenet-small", channels=6, classes=5, plates=3)
    images = torch.zeros((2, 6, 32, 32), dtype=torch.uint8)
    with pytest.raises(InputError, match="plates: this network wants to know the plate"):
        model(images)
    with pytest.raises(InputError, match="plate 4 is none of the 3"):
        model(images, torch.tensor([0, 3]))
    blind = Classifier("densenet-small", channels=6, classes=5).eval()
    assert torch.equal(blind(images), blind(images, torch.tensor([0, 3]))), "not asked, not read"
