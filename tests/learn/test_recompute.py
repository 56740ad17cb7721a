"""What is computed again on the way back gives the same gradients and statistics, from less memory; what is compiled, the same features."""

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from trainings import small

from building import make_network
from cellsignal.errors import InputError
from cellsignal.files import read_json, sha256
from cellsignal.learn.devices import compile_function, cudnn_benchmark
from cellsignal.learn.networks.checkpointing import Checkpointing, checkpoint_blocks, checkpointed_blocks
from cellsignal.learn.networks.classifier import Classifier
from cellsignal.learn.networks import memory
from cellsignal.learn.networks.memory import _saved_bytes, fitting_parts, training_memory
from cellsignal.learn.settings import MachineSettings
from cellsignal.learn.training import fit

# Name: how many blocks it has, and the share that they keep at most of what all layers would; the small ones' stems keep much.
KINDS = {"densenet-small": (16, 0.6), "resnet-small": (4, 0.8), "se-resnext-small": (4, 0.95), "xception-small": (8, 0.95),
         "vgg-small": (1, 0.6), "plain-cnn": (0, 1)}
IMAGES = torch.arange(4 * 6 * 64 * 64).remainder(251).to(torch.uint8).view(4, 6, 64, 64)


def pair(backbone: str) -> tuple[Classifier, Classifier]:
    """A network, and its twin that recomputes."""
    model = make_network(backbone, channels=6, classes=4).train()
    again = copy.deepcopy(model)
    assert checkpoint_blocks(again.body) == KINDS[backbone][0] == checkpoint_blocks(again.body)
    return model, again


@pytest.mark.parametrize("backbone", KINDS)
def test_gradients_and_running_statistics_stay_what_they_were(backbone: str) -> None:
    both = pair(backbone)
    for model in both:
        for _ in range(2):
            model(IMAGES).logsumexp(1).sum().backward()
    first, second = both
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())
    assert list(first.state_dict()) == list(second.state_dict())


@pytest.mark.parametrize("backbone", [name for name, (count, _) in KINDS.items() if count])
def test_less_is_kept_for_the_way_back(backbone: str) -> None:
    first, second = (sum(_saved_bytes(model, model.prepare(IMAGES))[0]) for model in pair(backbone))
    assert second < KINDS[backbone][1] * first


@pytest.mark.parametrize("backbone", KINDS)
@pytest.mark.parametrize("parts", [2, 5])
def test_parts_of_a_batch_have_the_statistics_and_the_gradients_of_the_whole(backbone: str, parts: int) -> None:
    whole = make_network(backbone, channels=6, classes=4).double().train()
    again = copy.deepcopy(whole)
    assert checkpoint_blocks(again.body, parts=parts) >= max(1, KINDS[backbone][0] + 3 * (backbone == "densenet-small")), "DenseNet's transitions too"
    images, chosen = IMAGES.new_empty(5, 6, 32, 32).random_(generator=torch.Generator().manual_seed(0)), torch.eye(4, dtype=torch.float64).repeat(2, 1)[:5]
    for model in (whole, again):
        (model(images).log_softmax(1) * chosen).sum().backward()
    largest = max(weight.grad.abs().max() for weight in whole.parameters())
    assert largest > 1e-3
    for ours, theirs in zip(again.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12 * largest.item())
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in whole.state_dict().items()), "the forward pass is that of the whole batch"


@pytest.mark.parametrize("backbone", ["timm:mobilenetv3_small_050", "timm:dla46_c"])
def test_parts_are_the_whole_where_norms_activate_and_blocks_take_further_tensors(backbone: str) -> None:
    pytest.importorskip("timm")
    whole = make_network(backbone, channels=6, classes=4).double().train()
    again = copy.deepcopy(whole)
    assert checkpoint_blocks(again.body, parts=2)
    images = IMAGES.new_empty(5, 6, 64, 64).random_(generator=torch.Generator().manual_seed(0))
    for model in (whole, again):
        model(images).log_softmax(1)[:, 0].sum().backward()
    largest = max(weight.grad.abs().max() for weight in whole.parameters())
    assert largest > 1e-3
    for ours, theirs in zip(again.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12 * largest.item())
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in whole.state_dict().items())


def test_frozen_statistics_would_not_have_the_gradients_of_the_whole() -> None:
    """What the gradient through the statistics is worth: the bound above would find it missing."""
    whole = make_network("resnet-small", channels=6, classes=4).double().train()
    frozen = copy.deepcopy(whole)
    images = IMAGES.new_empty(5, 6, 32, 32).random_(generator=torch.Generator().manual_seed(0))
    for norm in (module for module in frozen.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.register_forward_pre_hook(lambda norm, inputs: _freeze(norm, inputs[0]))
    for model in (whole, frozen):
        (model(images).log_softmax(1)[:, 0]).sum().backward()
    first, second = (next(model.parameters()).grad for model in (whole, frozen))
    assert (first - second).abs().max() > 1e-2 * first.abs().max()


def _freeze(norm: torch.nn.BatchNorm2d, values: torch.Tensor) -> None:
    variance, mean = torch.var_mean(values.detach(), dim=(0, 2, 3), correction=0)
    norm.eval()
    norm.running_mean, norm.running_var = mean, variance


def run_out_of_memory(monkeypatch: pytest.MonkeyPatch, *failing: int) -> None:
    """Have the calls of `Classifier.classify` with these numbers, counted from 1, fail when the body has computed its features."""
    classify, calls = Classifier.classify, []
    def fails(model: Classifier, *inputs: torch.Tensor, **others: torch.Tensor) -> torch.Tensor:
        calls.extend([0] * model.training)
        if model.training and len(calls) in failing:
            raise torch.OutOfMemoryError("simulated")
        return classify(model, *inputs, **others)
    monkeypatch.setattr(Classifier, "classify", fails)


def test_a_step_in_which_memory_runs_out_is_repeated_with_checkpointing(patches: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                        capsys: pytest.CaptureFixture) -> None:
    phase = {"epochs": 2, "batch_size": 4, "virtual_batch": 8, "mixup_alpha": 0.4}
    small(patches, tmp_path / "plain/model.safetensors", **phase)
    run_out_of_memory(monkeypatch, 2)  # the second batch of the first step
    small(patches, tmp_path / "short/model.safetensors", **phase)
    assert sha256(tmp_path / "plain/model.safetensors") == sha256(tmp_path / "short/model.safetensors")
    assert capsys.readouterr().out == "memory ran out: batches of 4 are computed with gradient checkpointing from now on, with the same statistics and gradients\n"


def test_memory_that_runs_out_again_and_again_halves_the_parts(patches: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    whole = small(patches, tmp_path / "whole.safetensors", epochs=1, batch_size=4, learning_rate=1e-4, optimizer="sgd")
    run_out_of_memory(monkeypatch, 1, 2, 3)
    parts = small(patches, tmp_path / "parts.safetensors", epochs=1, batch_size=4, learning_rate=1e-4, optimizer="sgd")
    assert capsys.readouterr().out.count("memory ran out") == 3 and parts[0]["loss"] == pytest.approx(whole[0]["loss"], rel=1e-4)
    run_out_of_memory(monkeypatch, *range(9))
    with pytest.raises(InputError, match="even in parts of one site; lower it"):
        small(patches, tmp_path / "never.safetensors", epochs=1, batch_size=4)
    with pytest.raises(InputError, match="gradient_checkpointing: the memory does not hold a training batch; set it to auto"):
        Checkpointing(make_network("plain-cnn").body, False).save_memory(4)


def test_auto_takes_what_the_free_memory_needs(patches: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    needs = {0: 20, 1: 8, 2: 5, 3: 4}
    assert [fitting_parts(memory, 3, needs.__getitem__) for memory in (20, 19, 7, 4, 3)] == [0, 1, 2, 3, 3]
    small(patches, tmp_path / "plain/model.safetensors", epochs=1)
    monkeypatch.setattr(memory, "SMALL_BATCH_PIXELS", 0)
    needs = [training_memory("densenet-small", size=32, batch_size=8, classes=4, precision="fp32", parts=parts).tensors for parts in (0, 1)]
    for name, free in {"much": needs[0], "less": needs[1]}.items():
        monkeypatch.setattr(fit, "free_memory", lambda device, free=free: free)
        small(patches, tmp_path / f"{name}/model.safetensors", epochs=1)
        assert sha256(tmp_path / "plain/model.safetensors") == sha256(tmp_path / f"{name}/model.safetensors")
    assert capsys.readouterr().out.startswith("train: gradient checkpointing, because 0.0 GB would not fit into the free memory; the gradients are the same")


def test_parts_of_a_batch_take_less_memory_by_the_estimate() -> None:
    for backbone in ("densenet-small", "vgg-small", "plain-cnn"):
        whole, again, eighths = (training_memory(backbone, size=512, batch_size=24, parts=parts).total for parts in (0, 1, 8))
        assert whole >= again > eighths
    assert training_memory("densenet161", size=512, batch_size=24, parts=1).total < 9e9, "best.yaml on a T4 of 15 GB, where it takes 20 otherwise"


def test_a_copy_recomputes_itself() -> None:
    _, model = pair("densenet-small")
    other = copy.deepcopy(model)
    with torch.no_grad():
        for weight in other.body.parameters():
            weight.zero_()
    assert model(IMAGES).std() > 0 and len({id(block) for each in (model, other) for block in checkpointed_blocks(each.body)}) == 32
    assert torch.equal(other(IMAGES)[0], other(IMAGES)[1]), "black bodies see nothing"


def test_a_training_that_recomputes_ends_with_the_same_weights(patches: tuple, tmp_path: Path) -> None:
    phase = {"epochs": 2, "ema_decay": 0.9, "mixup_alpha": 0.4}
    for name, options in {"plain": {}, "again": {"gradient_checkpointing": True}}.items():
        small(patches, tmp_path / f"{name}/model.safetensors", options=options, **phase)
    assert sha256(tmp_path / "plain/model.safetensors") == sha256(tmp_path / "again/model.safetensors")
    assert small(patches, tmp_path / "plain/model.safetensors", options={"gradient_checkpointing": True}, **phase), "no other training"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_memory_is_counted_without_numbers_as_it_is_with_them(precision: str) -> None:
    model = make_network("densenet-small", channels=6, classes=1108).train()
    prepared = model.prepare(IMAGES)
    real = sum(_saved_bytes(model, prepared)[0])
    counted = training_memory("densenet-small", size=64, batch_size=4, precision=precision)
    halves = 2 * sum(weight.numel() for weight in model.parameters() if weight.ndim > 1)  # of weights, which autocast makes and keeps
    expected = {"fp32": real, "fp16": real / 2 + halves}[precision]
    assert counted.activations - 4 * prepared.numel() == pytest.approx(expected, rel=0.05)
    twice = training_memory("densenet-small", size=64, batch_size=8, precision=precision)
    assert 1.7 < twice.activations / counted.activations <= 2 and twice.weights == counted.weights


def test_a_densenet121_of_512_px_is_estimated_to_fit_a_t4() -> None:
    plain, again = (training_memory("densenet121", size=512, batch_size=8, parts=parts) for parts in (0, 1))
    assert 2.5e9 < again.total < plain.total < 15e9
    assert plain.weights == again.weights and again.activations < 0.3 * plain.activations


def test_a_compiled_training_ends_where_the_other_does(patches: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    def eager(function, **options):  # no kernels, which take minutes
        made.append(function)
        return torch._dynamo.optimize("eager")(function)
    for name, options in {"plain": {}, "fast": {"compile": True}}.items():
        monkeypatch.setattr(torch, "compile", eager)
        small(patches, tmp_path / f"{name}/model.safetensors", model=make_network("plain-cnn", channels=6, classes=4), epochs=2,
              ema_decay=0.9, options=options)
    assert len(made) == 1 and sha256(tmp_path / "plain/model.safetensors") == sha256(tmp_path / "fast/model.safetensors")
    known = [read_json(tmp_path / f"{name}/model.json")["identity"].get("compile") for name in ("plain", "fast")]
    assert known == [None, True]


def test_a_compiled_body_is_not_computed_again(patches: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch compiles no checkpoints whose second pass leaves the running statistics alone."""
    with pytest.raises(ValueError, match="torch.compile computes no blocks again; use auto or false"):
        MachineSettings(compile=True, gradient_checkpointing=True)
    monkeypatch.setattr(memory, "SMALL_BATCH_PIXELS", 0)
    need = training_memory("densenet-small", size=32, batch_size=8, classes=4, precision="fp32", parts=1).tensors
    monkeypatch.setattr(fit, "free_memory", lambda device: need)
    with pytest.raises(InputError, match="machine.compile: the memory does not hold a training batch; set it to false"):
        small(patches, tmp_path / "model.safetensors", epochs=1, options={"compile": True})


def test_without_a_compiler_one_line_says_so() -> None:
    broken = partial(torch.compile, backend=lambda graph, inputs: 1 / 0)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match="compile: torch.compile failed .*; set machine.compile: false"):
        patch.setattr(torch, "compile", broken)
        compile_function(lambda images: images + 1)(torch.ones(3))


@pytest.mark.parametrize(("device", "sizes", "tries"), [("cuda", [8, 7, 8], True), ("cuda", [8, 7, 6], False), ("cpu", [8], False)])
def test_kernels_are_tried_where_batches_are_of_one_size_or_two(device: str, sizes: list[int], tries: bool) -> None:
    with cudnn_benchmark(torch.device(device), sizes):
        assert torch.backends.cudnn.benchmark == tries
    assert torch.backends.cudnn.benchmark is False
