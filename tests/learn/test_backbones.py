"""Every backbone takes any channels and learns; what nobody has is refused."""

import builtins
import sys
from typing import Any

import pytest
import torch

from building import make_network
from cellsignal.errors import InputError
from cellsignal.learn.networks.backbones import BACKBONES, get_backbone, stem_name
from cellsignal.learn.networks.classifier import Classifier

SMALL = [name for name in BACKBONES if name.endswith("-small")]


def losses(model: Classifier, images: torch.Tensor, steps: int) -> list[float]:
    optimizer, found, labels = torch.optim.Adam(model.parameters(), lr=1e-3), [], torch.arange(len(images)) % 3
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("name", [*SMALL, "plain-cnn"])
def test_every_small_backbone_takes_any_channels_and_learns(name: str) -> None:
    model, size = make_network(name, channels=4, classes=3), BACKBONES[name].min_image_size
    images = torch.randint(0, 255, (6, 4, size, size), dtype=torch.uint8)
    found = losses(model, images, 4)
    assert found[-1] < found[0] and model(images).shape == (6, 3)
    assert model.embed(model.prepare(images)).shape == (6, model.features)


@pytest.mark.parametrize("name", SMALL)
def test_small_ones_are_small_and_equal_for_equal_seeds(name: str) -> None:
    one, same, other = (make_network(name, channels=6, classes=3, seed=seed).state_dict() for seed in (1, 1, 2))
    assert 0.15e6 < sum(tensor.numel() for tensor in one.values()) < 0.65e6
    assert all(torch.equal(tensor, same[key]) for key, tensor in one.items()) and not torch.equal(one["head.weight"], other["head.weight"])


@pytest.mark.parametrize("name", [name for name in BACKBONES if name not in SMALL])
def test_large_backbones_see_any_channels_at_their_smallest_size(name: str) -> None:
    if name in ("se-resnext50", "xception"):
        pytest.importorskip("timm")
    model = make_network(name, channels=5, classes=3).eval()
    size = BACKBONES[name].min_image_size
    with torch.inference_mode():
        assert model(torch.randint(0, 255, (1, 5, size, size), dtype=torch.uint8)).shape == (1, 3)
        with pytest.raises(InputError, match=f"use images of {size} px or more"):
            model(torch.zeros((1, 5, size - 1, size), dtype=torch.uint8))
    assert model.body.get_submodule(stem_name(model.body)).in_channels == 5


def test_any_network_of_timm_has_a_name() -> None:
    pytest.importorskip("timm")
    model = make_network("timm:mobilenetv3_small_050", channels=6, classes=3).eval()
    with torch.inference_mode():
        assert model(torch.zeros((1, 6, 32, 32), dtype=torch.uint8)).shape == (1, 3)
    assert get_backbone("timm:mobilenetv3_small_050").hub_repository.startswith("timm/mobilenetv3_small_050")
    with pytest.raises(InputError, match="timm .* has no network 'resnet9000'"):
        get_backbone("timm:resnet9000")


def test_a_transformer_made_for_another_size_is_refused_in_one_line() -> None:
    pytest.importorskip("timm")
    model = make_network("timm:vit_tiny_patch16_224", channels=6, classes=3).eval()
    with pytest.raises(InputError, match=r"the timm:vit_tiny_patch16_224 takes no images of 64 px \(.*224\)\); use images of the size that it was made for"):
        model(torch.zeros((1, 6, 64, 64), dtype=torch.uint8))


def test_an_unknown_backbone_is_refused() -> None:
    with pytest.raises(InputError, match="unknown backbone 'resnet'.*densenet121.*timm:NAME"):
        get_backbone("resnet")


def test_without_timm_its_networks_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    known, really = {name for name in sys.modules if name.partition(".")[0] == "timm"}, builtins.__import__
    for name in known:
        monkeypatch.delitem(sys.modules, name)
    def absent(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "timm":
            raise ImportError(name)
        return really(name, *rest)
    monkeypatch.setattr(builtins, "__import__", absent)
    for name in ("se-resnext50", "timm:resnet18"):
        with pytest.raises(InputError, match="one of timm's, which is not installed; pip install timm"):
            make_network(name, channels=6, classes=2)
