"""Every backbone with ImageNet weights on the hub is the very network that they were trained in."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from building import make_network
from cellsignal.learn.networks.backbones import BACKBONES
from cellsignal.learn.networks.pretrained import load_pretrained

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", [name for name, entry in BACKBONES.items() if entry.hub_repository])
def test_untrained_weights_of_the_hubs_network_give_the_same_features(name: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    entry = BACKBONES[name]
    theirs = timm.create_model(entry.hub_repository.removeprefix("timm/"), pretrained=False).eval()
    save_file({key: tensor.contiguous() for key, tensor in theirs.state_dict().items()}, tmp_path / "w.safetensors")
    ours = make_network(name, channels=3, classes=2).eval()
    load_pretrained(ours, tmp_path / "w.safetensors")
    images = torch.rand(2, 3, entry.min_image_size, entry.min_image_size, dtype=torch.float64)  # untrained activations go up to 1e7
    with torch.inference_mode():
        features = theirs.double().forward_features(images)
        torch.testing.assert_close(ours.double().embed(images), features.mean((2, 3)), rtol=1e-6, atol=1e-6)
