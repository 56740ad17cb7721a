"""Weights for RGB become weights for any channels; what does not fit says so."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from building import make_network
from cellsignal.errors import InputError
from cellsignal.files import sha256
from cellsignal.learn.networks import pretrained
from cellsignal.learn.networks.backbones import stem_name
from cellsignal.learn.networks.pretrained import adapt_stem, load_pretrained


def rgb(path: Path, *, backbone: str = "resnet-small", drop: str = "", **more: torch.Tensor) -> dict[str, torch.Tensor]:
    """A file as ImageNet's are: the body for three channels, and a classifier."""
    body = make_network(backbone, channels=3, classes=2, seed=9).body.state_dict()
    tensors = {**body, "fc.weight": torch.ones(1000, 128), "fc.bias": torch.ones(1000), **more}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items() if name != drop}, path)
    return body


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 7])
def test_an_adapted_stem_answers_grey_pictures_as_before(channels: int) -> None:
    filters = torch.randn(5, 3, 2, 2)
    adapted = adapt_stem(filters, channels)
    assert adapted.shape == (5, channels, 2, 2)
    if channels % 3 == 0 or channels == 1:
        torch.testing.assert_close(adapted.sum(1), filters.sum(1))
    if channels > 3:
        torch.testing.assert_close(adapted[:, 3], filters[:, 0] * 3 / channels)


def test_the_stem_is_adapted_and_the_rest_taken_as_it_is(tmp_path: Path) -> None:
    known = rgb(tmp_path / "w.safetensors")
    model = make_network("resnet-small", channels=6, classes=4)
    head, stem = model.head.weight.clone(), f"{stem_name(model.body)}.weight"
    assert load_pretrained(model, tmp_path / "w.safetensors") == model.origin == sha256(tmp_path / "w.safetensors")
    taken = model.body.state_dict()
    torch.testing.assert_close(taken.pop(stem), known.pop(stem).repeat(1, 2, 1, 1) / 2)
    assert all(torch.equal(tensor, known[name]) for name, tensor in taken.items())
    assert torch.equal(model.head.weight, head)


def test_weights_of_our_own_networks_are_taken_too(tmp_path: Path) -> None:
    taught = make_network("resnet-small", channels=6, classes=9, seed=4)
    save_file({name: tensor.contiguous() for name, tensor in taught.state_dict().items()}, tmp_path / "w.safetensors")
    model = make_network("resnet-small", channels=6, classes=4)
    load_pretrained(model, tmp_path / "w.safetensors")
    assert all(torch.equal(tensor, taught.body.state_dict()[name]) for name, tensor in model.body.state_dict().items())


def test_old_files_without_counters_are_taken(tmp_path: Path) -> None:
    rgb(tmp_path / "w.safetensors", drop="features.1.num_batches_tracked")
    load_pretrained(make_network("resnet-small", channels=6, classes=4), tmp_path / "w.safetensors")


@pytest.mark.parametrize(("fault", "message"), [
    ({"drop": "features.1.weight"}, "does not fit the resnet-small: 1 weights differ, the first is features.1.weight"),
    ({"backbone": "vgg-small"}, "does not fit the resnet-small: .* weights differ"),
    ({"foreign": torch.ones(2)}, "1 weights differ, the first is foreign"),
    ({"features.1.weight": torch.ones(2)}, "1 weights differ, the first is features.1.weight"),
])
def test_what_does_not_fit_is_refused_and_leaves_the_network_alone(tmp_path: Path, fault: dict, message: str) -> None:
    rgb(tmp_path / "w.safetensors", **fault)
    model = make_network("resnet-small", channels=6, classes=4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=f"{message}.*pretrained: \"\" to train from scratch"):
        load_pretrained(model, tmp_path / "w.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()) and model.origin == "seed 0"


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_text("<html>")
    for name, message in (("w", "is no safetensors file"), ("absent", "no such weights")):
        with pytest.raises(InputError, match=message):
            load_pretrained(make_network("resnet-small", channels=6, classes=4), tmp_path / f"{name}.safetensors")


def test_what_cannot_be_downloaded_says_what_to_attach(monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    def offline(repository: str, name: str) -> str:
        raise ConnectionError(f"no way to {repository}/{name}")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(InputError) as caught:
        pretrained.download_imagenet("densenet121")
    line = str(caught.value)
    for part in ("densenet121.safetensors", "https://huggingface.co/timm/densenet121.tv_in1k", "attach", 'pretrained: ""', "ConnectionError"):
        assert part in line
    assert "\n" not in line
    with pytest.raises(InputError, match="there are no ImageNet weights of the vgg-small; attach vgg-small.safetensors"):
        pretrained.download_imagenet("vgg-small")
