"""A virtual batch is the mean over its sites, a skipped step harms no other, and MixUp keeps its labels straight."""

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from building import make_network, make_phase, run_epoch
from cellsignal.learn.networks.backbones import BACKBONES, Backbone
from cellsignal.learn.batches.dataset import SiteImages
from cellsignal.learn.networks.batchnorm import batch_statistics
from cellsignal.learn.networks.covariates import encode_covariates
from cellsignal.learn.training.epoch import evaluate
from cellsignal.learn.networks.classifier import Classifier

CLASSES = [0, 10, 20, 30]
PLAIN = make_phase("plain", 1, 8, 1.0)
PLATES = {"plate": ["1", "2"]}


@pytest.fixture
def data(patches: tuple) -> SiteImages:
    root, sites = patches
    return SiteImages(root, sites, class_numbers=CLASSES, cache=True)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Classifier]:
    """Makes networks without batch normalisation, in which no site feels another."""
    def body(channels: int) -> tuple[nn.Module, int]:
        return nn.Sequential(nn.Conv2d(channels, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 5
    monkeypatch.setitem(BACKBONES, "plain", Backbone(body))
    monkeypatch.setattr("cellsignal.learn.settings.BACKBONES", ["plain"])
    return lambda **options: make_network("plain", channels=6, classes=4, **options)


def gradients(model: Classifier) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def mean_gradients(model: Classifier, data: SiteImages, rows: np.ndarray) -> dict[str, torch.Tensor]:
    """Of all `rows` through one network call."""
    model.zero_grad()
    images = torch.from_numpy(np.stack([data.image(row) for row in rows]))
    targets = one_hot(torch.from_numpy(data.labels[rows]), 4).float()
    binary_cross_entropy_with_logits(model(images, encode_covariates(data.sites.iloc[rows], model.covariates)), targets).backward()
    return gradients(model)


def last_step(model: Classifier, data: SiteImages, steps: list, **options) -> dict[str, torch.Tensor]:
    """The gradients that the last step of an epoch used; no weight moves."""
    run_epoch(model, data, steps, torch.optim.SGD(model.parameters(), lr=0.0), phase=PLAIN, **options)
    return gradients(model)


@pytest.mark.parametrize("told", [{}, PLATES], ids=["image", "plate"])
@pytest.mark.parametrize("parts", [[8, 8, 8], [3, 8, 5], [2, 9]])
def test_a_virtual_batch_is_the_mean_over_its_sites(plain: Callable, data: SiteImages, parts: list[int], told: dict) -> None:
    # In float64: a gradient is a sum over the 30 x 30 pixels of at most 24 sites, and rounding errors of both signs add up as the
    # root of their count (Higham 2002).
    rounding = torch.finfo(torch.float64).eps * (24 * 30 * 30) ** 0.5
    model, order = plain(levels=told).double(), np.random.default_rng(0).permutation(len(data))
    rows = order[: sum(parts)]
    step = np.split(rows, np.cumsum(parts)[:-1])
    expected = mean_gradients(model, data, rows)
    found = last_step(model, data, [[order[-8:]], step])  # the gradients of an earlier step are forgotten
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=rounding, atol=rounding, msg=name)


def test_an_overflowing_step_is_skipped_and_leaves_nothing_behind(plain: Callable, data: SiteImages) -> None:
    first, second = [np.arange(8), np.arange(8, 12)], [np.arange(12, 20), np.arange(20, 23)]
    model, other = plain(), plain()
    for network in (model, other):  # features in the hundreds: 2^127 times their gradient is beyond fp32
        nn.init.zeros_(network.head.weight)
        network.body[0].weight.data *= 1e4
    # The backoff makes it 2^20 for the second step.
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-107)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    run_epoch(model, data, [first], optimizer, phase=PLAIN, scaler=scaler)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()) and scaler.get_scale() == 2.0**20
    run_epoch(model, data, [second], optimizer, phase=PLAIN, scaler=scaler)
    run_epoch(other, data, [second], torch.optim.SGD(other.parameters(), lr=1.0), phase=PLAIN)
    for name, tensor in other.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, msg=name)
    assert not torch.equal(other.head.weight, before["head.weight"])


def test_loss_and_accuracy_are_means_over_sites(plain: Callable, data: SiteImages) -> None:
    model, rows = plain(), np.arange(11)
    row = run_epoch(model, data, [[rows[:8]], [rows[8:]]], torch.optim.SGD(model.parameters(), lr=0.0), phase=PLAIN)
    logits = model(torch.from_numpy(np.stack([data.image(i) for i in rows])))
    labels = torch.from_numpy(data.labels[rows])
    assert row["loss"] == pytest.approx(binary_cross_entropy_with_logits(logits, one_hot(labels, 4).float()).item(), rel=1e-5)
    assert row["accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())


def test_a_mixed_site_counts_as_the_one_that_dominates_it(plain: Callable, data: SiteImages, monkeypatch: pytest.MonkeyPatch) -> None:
    """An oracle that reads the class off the shares in the mixed picture is right about every site."""
    for row in range(len(data)):
        data.cached[row] = np.zeros((6, 32, 32), np.uint8)
        data.cached[row][data.labels[row]] = 100
    oracle = plain()
    monkeypatch.setattr(oracle, "embed", lambda prepared: prepared.mean((2, 3))[:, :4])
    monkeypatch.setattr(oracle, "classify", lambda features: features + 0 * oracle.head.bias)
    phase = make_phase("final", 1, 8, 1e-5, mixup_alpha=1.0)
    optimizer = torch.optim.SGD(oracle.parameters(), lr=0.0)
    steps = [[rows] for rows in np.split(np.arange(32), 4)]
    assert run_epoch(oracle, data, steps, optimizer, phase=phase)["accuracy"] == 1


def test_mixing_follows_seed_epoch_and_batch(plain: Callable, data: SiteImages) -> None:
    steps = [[rows] for rows in np.split(np.arange(32), 4)]
    def loss(*, seed: int = 0, epoch: int = 0, mixup: float = 0.4, told: dict = {}) -> float:
        model = plain(levels=told)
        phase = make_phase("final", 1, 8, 1e-5, mixup_alpha=mixup, seed=seed)
        return run_epoch(model, data, steps, torch.optim.SGD(model.parameters(), lr=0.0), phase=phase, epoch=epoch)["loss"]
    assert loss() == loss() and loss(told=PLATES) == loss(told=PLATES)
    assert len({loss(), loss(seed=1), loss(epoch=1), loss(mixup=0.0)}) == 4


def test_bf16_computes_coarsely_but_keeps_weights_and_statistics_in_fp32(data: SiteImages) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        model = make_network("densenet-small", channels=6, classes=4)
        phase = make_phase("whole", 1, 8, 1e-3)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, amsgrad=True, fused=True)
        losses[precision] = run_epoch(model, data, [[np.arange(16)], [np.arange(16, 32)]], optimizer, phase=phase, precision=precision)["loss"]
        assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32, torch.int64}
    # 37 layers round their numbers, about 1, at convolution, norm and activation to 8 bits, with errors of both signs; the loss of a
    # logit is no steeper than 1.
    assert losses["bf16"] != losses["fp32"] and losses["bf16"] == pytest.approx(losses["fp32"], rel=0, abs=2.0**-9 * (3 * 37) ** 0.5)


@pytest.mark.parametrize("pixels", [2**23, 32 * 32 * 5])
def test_held_out_sites_are_normalised_by_their_own_plate(data: SiteImages, monkeypatch: pytest.MonkeyPatch, pixels: int) -> None:
    monkeypatch.setattr("cellsignal.learn.training.epoch.CPU_BATCH_PIXELS", pixels)
    model, sizes = make_network("densenet-small", channels=6, classes=4), []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda images: sizes.append(len(images)) or forward(images))
    accuracy = evaluate(model, data, scope="plate")
    assert sizes == ([8] * 4 if pixels == 2**23 else [4] * 8)
    if pixels == 2**23:
        with torch.inference_mode(), batch_statistics(model):
            plates = [np.arange(start, start + 8) for start in range(0, 32, 8)]
            right = [(forward(torch.from_numpy(np.stack([data.image(i) for i in rows]))).argmax(1).numpy() == data.labels[rows]).sum()
                     for rows in plates]
        assert accuracy == sum(right) / 32


@pytest.mark.parametrize(("rows", "scope"), [([0, 1, 2, 8, 16, 17, 24], "plate"), ([3, 8], "plate"), ([5], "plate"), ([5], "mixed")])
def test_a_held_out_site_alone_on_its_plate_is_scored_with_running_statistics(
    data: SiteImages, monkeypatch: pytest.MonkeyPatch, rows: list[int], scope: str
) -> None:
    """A random split leaves such sites."""
    model, said = make_network("densenet-small", channels=6, classes=4), {}
    some = SiteImages(data.root, data.sites.iloc[rows], class_numbers=CLASSES, cache=True)
    forward = model.forward
    def noted(images: torch.Tensor) -> torch.Tensor:
        logits = forward(images)
        said.update({image.numpy().tobytes(): row for image, row in zip(images, logits, strict=True)})
        return logits
    monkeypatch.setattr(model, "forward", noted)
    accuracy, right = evaluate(model, some, scope=scope), 0
    scopes = {"plate": [row // 8 for row in rows], "mixed": [0] * len(rows)}[scope]
    for place in set(scopes):
        mine = [i for i, its in enumerate(scopes) if its == place]
        with torch.inference_mode(), batch_statistics(model) if len(mine) > 1 else nullcontext(model.eval()):
            logits = forward(torch.from_numpy(np.stack([some.image(i) for i in mine])))
        torch.testing.assert_close(torch.stack([said[some.image(i).tobytes()] for i in mine]), logits, rtol=1e-3, atol=1e-3)
        right += (logits.argmax(1).numpy() == some.labels[mine]).sum()
    assert accuracy == right / len(rows)


def test_without_held_out_sites_nothing_is_measured(patches: tuple) -> None:
    root, sites = patches
    model = make_network("densenet-small", channels=6, classes=4)
    assert evaluate(model, None, scope="plate") is None
    assert evaluate(model, SiteImages(root, sites.iloc[:0], class_numbers=CLASSES), scope="plate") is None
