"""Whose statistics normalise, and what chunks and refinements make of a whole plate's."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from building import make_network
from cellsignal.learn.networks.backbones import BACKBONES
from cellsignal.learn.batches.dataset import SiteImages, num_batches
from cellsignal.learn.networks.batchnorm import CPU_BATCH_PIXELS, NO_BATCHNORM_NOTE, REFINEMENTS, adapted_pass, batch_statistics, max_batch_pixels, no_batchnorm_note, batchnorm_layers
from cellsignal.learn.networks.classifier import Classifier
from cellsignal.learn.training.epoch import evaluate

LAYERS = 37  # of a densenet-small


@pytest.fixture
def model() -> Classifier:
    return make_network("densenet-small", channels=6, classes=4, seed=1).eval()


@pytest.fixture
def plate() -> torch.Tensor:
    """Twenty sites, each brighter than the one before: batches of neighbours differ a lot."""
    images = torch.randint(0, 255, (20, 6, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return (images * torch.linspace(0.2, 1, 20)[:, None, None, None]).to(torch.uint8)


def sender(model: nn.Module, plate: torch.Tensor, size: int) -> Callable[[], torch.Tensor]:
    parts = torch.tensor_split(plate, num_batches(len(plate), size))
    return lambda: torch.cat([model(part) for part in parts])


@torch.inference_mode()
def whole(model: nn.Module, plate: torch.Tensor) -> torch.Tensor:
    with batch_statistics(model):
        return model(plate)


@torch.inference_mode()
def distance(model: nn.Module, plate: torch.Tensor, *, size: int, refinements: int) -> float:
    """Between the logits in chunks of `size` and those of one batch, relative to the latter's spread."""
    exact = whole(model, plate)
    chunked, _ = adapted_pass(model, sender(model, plate, size), refinements=refinements)
    return float((chunked - exact).abs().max() / exact.std())


@torch.inference_mode()
def test_all_refinements_give_one_batch_of_the_whole_plate(model: Classifier, plate: torch.Tensor) -> None:
    assert len(batchnorm_layers(model)) == LAYERS
    for size, refinements in ((3, LAYERS), (10, 1000), (20, 0)):
        answer, how = adapted_pass(model, sender(model, plate, size), refinements=refinements)
        torch.testing.assert_close(answer, whole(model, plate), rtol=1e-3, atol=1e-4)
        assert how == ("accumulated, refined 0 times" if size == 20 else "layer by layer")


@torch.inference_mode()
def test_each_refinement_makes_one_more_layer_exact(model: Classifier, plate: torch.Tensor) -> None:
    with batch_statistics(model):
        exact = outputs(model, lambda: model(plate))
    for refinements in (0, 1, 5):
        chunked = outputs(model, lambda: adapted_pass(model, sender(model, plate, 4), refinements=refinements))
        right = [torch.allclose(mine, one, rtol=1e-3, atol=1e-3) for mine, one in zip(chunked, exact, strict=True)]
        assert all(right[:refinements]) and not all(right), refinements


def outputs(model: Classifier, run: Callable[[], object]) -> list[torch.Tensor]:
    """What every norm gave out for the last batch of the plate, its last four sites."""
    last: dict[nn.Module, torch.Tensor] = {}
    hooks = [norm.register_forward_hook(lambda norm, _, output: last.update({norm: output[-4:].clone()})) for norm in batchnorm_layers(model)]
    run()
    for hook in hooks:
        hook.remove()
    return [last[norm] for norm in batchnorm_layers(model)]


def test_refinements_come_closer_however_different_the_batches(model: Classifier, plate: torch.Tensor) -> None:
    none, six, all_layers = (distance(model, plate, size=5, refinements=number) for number in (0, 6, LAYERS))
    assert all_layers < 1e-3 < six < 0.5 < 1 < none


def test_the_default_is_close_on_a_plate_of_alike_batches(model: Classifier, plate: torch.Tensor) -> None:
    mixed = plate[torch.randperm(20, generator=torch.Generator().manual_seed(1))]
    assert distance(model, mixed, size=10, refinements=REFINEMENTS) < 0.2 < distance(model, mixed, size=10, refinements=1)


@settings(deadline=None, max_examples=15)
@given(cuts=st.lists(st.integers(1, 19), max_size=5, unique=True), order=st.permutations(range(20)))
def test_moments_do_not_depend_on_the_chunks(cuts: list[int], order: list[int]) -> None:
    values = torch.randn(20, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 7 + 1000
    model, shuffled = nn.Sequential(nn.BatchNorm2d(3)), values[order]
    chunks = torch.tensor_split(shuffled, sorted(cuts))
    with torch.inference_mode():
        answer, _ = adapted_pass(model, lambda: torch.cat([model(chunk) for chunk in chunks]), refinements=1)
        torch.testing.assert_close(answer, whole(model, shuffled), rtol=1e-3, atol=1e-3)


@torch.inference_mode()
def test_norms_after_the_pooling_are_adapted_too() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)).eval()
    features = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)) + 4
    answer, _ = adapted_pass(model, sender(model, features, 4), refinements=1)
    torch.testing.assert_close(answer.mean(0), torch.zeros(5), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_batch_statistics_depend_on_the_batch(model: Classifier, plate: torch.Tensor) -> None:
    with batch_statistics(model):
        assert not torch.allclose(torch.cat([model(part) for part in plate.split(5)]), model(plate), atol=1e-3)


def test_running_statistics_are_as_before_afterwards(model: Classifier, plate: torch.Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(RuntimeError), batch_statistics(model):
        raise RuntimeError
    with torch.inference_mode():
        adapted_pass(model, sender(model, plate, 7))
    with pytest.raises(ZeroDivisionError):
        adapted_pass(model, lambda: 1 / 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(not norm._forward_pre_hooks for norm in batchnorm_layers(model))


@torch.inference_mode()
def test_a_brighter_batch_changes_running_predictions_but_not_adapted_ones(model: Classifier, plate: torch.Tensor) -> None:
    dark = plate // 2
    with batch_statistics(model):
        torch.testing.assert_close(model(dark), model(dark * 2), rtol=1e-2, atol=1e-2)
    assert not torch.allclose(model(dark), model(dark * 2), rtol=1e-2, atol=1e-2)


def test_a_gpu_counts_on_its_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("mem_get_info", (15 * 10**9, 16 * 10**9)), ("memory_reserved", 0), ("memory_allocated", 0)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    sites = max_batch_pixels(torch.device("cuda")) / 512**2
    assert 150 < sites < 250  # of 512 px, DenseNet121 in 15 GB
    assert max_batch_pixels(torch.device("cpu")) == CPU_BATCH_PIXELS


@pytest.mark.parametrize("name", [*BACKBONES, "timm:convnext_atto", "timm:mobilenetv3_small_050"])
def test_networks_without_batch_normalisation_are_known(name: str) -> None:
    if name.startswith("timm:") or name in ("se-resnext50", "xception"):
        pytest.importorskip("timm")
    with torch.device("meta"):
        model = make_network(name, channels=6, classes=3)
    assert no_batchnorm_note(model) == (NO_BATCHNORM_NOTE if name in ("plain-cnn", "timm:convnext_atto") else "")


def test_held_out_sites_may_be_scored_under_running_statistics(patches: tuple[Path, pd.DataFrame]) -> None:
    root, sites = patches
    data, model = SiteImages(root, sites, class_numbers=[0, 10, 20, 30], cache=True), make_network()
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.from_numpy(np.stack(data.cached[:16])))
        answers = model.eval()(torch.from_numpy(np.stack(data.cached))).argmax(1).numpy()
    assert evaluate(model, data, scope="mixed", running=True) == (answers == data.labels).mean()
