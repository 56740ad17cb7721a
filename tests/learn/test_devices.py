"""The precision that fits the device, and the words for one that does not."""

import pytest
import torch

from cellsignal.errors import InputError
from cellsignal.learn.devices import autocast, gradient_scaler, pick_device, resolve_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(("capability", "expected"), [((6, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_auto_takes_bf16_where_it_is_native(monkeypatch: pytest.MonkeyPatch, capability: tuple, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_precision(CUDA) == expected
    assert [resolve_precision(CUDA, name) for name in ("fp32", "fp16", "bf16")] == ["fp32", "fp16", "bf16"]
    assert resolve_precision(CPU) == "fp32"


def test_fp16_on_a_cpu_and_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match="fp16 needs a GPU; use auto, fp32 or bf16"):
        resolve_precision(CPU, "fp16")
    with pytest.raises(InputError, match="unknown precision 'fp8'; use one of: auto, fp32"):
        resolve_precision(CPU, "fp8")


@pytest.mark.parametrize(("precision", "dtype"), [("auto", torch.float32), ("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_products_run_in_the_precision_asked_for(precision: str, dtype: torch.dtype) -> None:
    with autocast(CPU, precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_only_fp16_is_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    asked = []
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: asked.append((device, enabled)))
    for precision in ("auto", "fp16", "bf16", "fp32"):
        gradient_scaler(CUDA, precision)
    gradient_scaler(CPU)
    assert asked == [("cuda", True), ("cuda", True), ("cuda", False), ("cuda", False), ("cpu", False)]


def test_a_missing_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == CPU
    with pytest.raises(InputError, match="device: unknown device 'tpu'; use one of: auto, cpu, cuda"):
        pick_device("tpu")
    with pytest.raises(InputError, match="no GPU here"):
        pick_device("cuda")
