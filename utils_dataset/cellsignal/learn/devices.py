"""Device, precision and kernels of the arithmetic."""

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from cellsignal.errors import InputError

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "fp32", "fp16", "bf16")
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
NATIVE_BF16 = (8, 0)  # least compute capability: Ampere has bf16 units, a T4 (7.5) or P100 (6.0) only emulates them


def pick_device(device: str) -> torch.device:
    """The device called "cpu" or "cuda"; "auto" is the GPU if there is one. Raises InputError for any other name, and without a GPU for "cuda"."""
    if device not in DEVICES:
        raise InputError(f"unknown device {device!r}", where="device", cure=f"use one of: {', '.join(DEVICES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("no GPU here", where="device", cure="use machine.device: auto or cpu")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def resolve_precision(device: torch.device, precision: str = "auto") -> str:
    """The precision "fp32", "fp16" or "bf16" that `precision` stands for on a device.

    "auto": bf16 on a GPU that has it natively, fp16 on any other GPU, fp32 on a CPU. Raises
    InputError for an unknown name, and for fp16 on a CPU, where it is slow and overflows.
    """
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}", where="precision", cure=f"use one of: {', '.join(PRECISIONS)}")
    if precision == "fp16" and device.type == "cpu":
        raise InputError("fp16 needs a GPU", where="precision", cure="use auto, fp32 or bf16 on a CPU")
    if precision != "auto":
        return precision
    if device.type == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device) >= NATIVE_BF16 else "fp16"


def autocast(device: torch.device, precision: str = "auto") -> torch.autocast:
    """A context in which convolutions and matrix products run in `precision`; for fp32 it does nothing.

    Batch normalisation keeps its statistics in fp32 throughout. Micikevicius et al. 2018.
    """
    name = resolve_precision(device, precision)
    return torch.autocast(device.type, dtype=DTYPES.get(name), enabled=name in DTYPES)


def gradient_scaler(device: torch.device, precision: str = "auto") -> torch.amp.GradScaler:
    """A scaler that keeps fp16 gradients from vanishing and skips steps where they overflow; disabled for other precisions."""
    return torch.amp.GradScaler(device.type, enabled=resolve_precision(device, precision) == "fp16")


@contextmanager
def cudnn_benchmark(device: torch.device, sizes: Collection[int]) -> Iterator[None]:
    """Inside, cuDNN searches for its fastest kernels, if there are at most two batch sizes: the search costs the same for each."""
    previous = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = previous or device.type == "cuda" and len(set(sizes)) <= 2
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = previous


def free_memory(device: torch.device) -> int:
    """Bytes that a training may still take: of a GPU, what no other program holds; elsewhere, what the system gives without swapping."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    return sys.maxsize  # not Linux: the system does not say


def compile_function(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """`function` compiled by torch.compile, which may take minutes at its first call; that call raises InputError without a compiler."""
    compiled = torch.compile(function)
    def call(images: torch.Tensor) -> torch.Tensor:
        try:
            return compiled(images)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"torch.compile failed ({reason})", where="compile", cure="set machine.compile: false") from error
    return call
