"""Whose statistics normalise, and that adapted predictions do not depend on batches."""

import numpy as np
import pytest
import torch

from cellsignal.learn.batchnorm import adapted_statistics, batch_statistics, norms
from cellsignal.learn.models import Classifier


@pytest.fixture
def model() -> Classifier:
    return Classifier("densenet-small", channels=6, classes=4, seed=1).eval()


@pytest.fixture
def plate() -> torch.Tensor:
    return torch.randint(0, 255, (20, 6, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def test_adapted_equals_one_batch_of_the_whole_plate(model: Classifier, plate: torch.Tensor) -> None:
    with batch_statistics(model):
        whole = model(plate)
    with adapted_statistics(model, plate) as how:
        parts = torch.cat([model(part) for part in plate.split(3)])
    assert how == "exact"
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_batch_statistics_depend_on_the_batch(model: Classifier, plate: torch.Tensor) -> None:
    with batch_statistics(model):
        assert not torch.allclose(torch.cat([model(part) for part in plate.split(5)]), model(plate), atol=1e-3)


@torch.inference_mode()
def test_running_statistics_are_as_before_afterwards(model: Classifier, plate: torch.Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(RuntimeError), batch_statistics(model):
        raise RuntimeError
    with adapted_statistics(model, plate, exact_pixels=32 * 32 * 7):
        assert not torch.equal(norms(model)[3].running_mean, before["network.features.denseblock1.denselayer1.norm2.running_mean"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items() if "tracked" not in name)


@torch.inference_mode()
def test_too_large_a_plate_is_accumulated_and_says_so(model: Classifier, plate: torch.Tensor) -> None:
    with adapted_statistics(model, plate) as how:
        exact = model(plate)
    with adapted_statistics(model, plate, exact_pixels=32 * 32 * 10) as how:
        close = model(plate)
    assert how == "accumulated"
    assert np.corrcoef(exact.flatten(), close.flatten())[0, 1] > 0.9


@torch.inference_mode()
def test_a_brighter_batch_changes_running_predictions_but_not_adapted_ones(model: Classifier, plate: torch.Tensor) -> None:
    dark = plate // 2
    with adapted_statistics(model, dark * 2):
        bright_scores = model(dark * 2)
    with adapted_statistics(model, dark):
        torch.testing.assert_close(model(dark), bright_scores, rtol=1e-2, atol=1e-2)
    assert not torch.allclose(model(dark), model(dark * 2), rtol=1e-2, atol=1e-2)
